//! Turns `proto/` into Rust, without `protoc`.
//!
//! Two descriptor sets come out of one compilation. The published one says what Envoy's API says; reflection and JSON
//! use it. The other one is only for generating code: there, a descriptor entry's key and value are `bytes`, because
//! they hold what a client sent. A `string` that is not UTF-8 would fail the decoding of the whole call, and a proxy
//! lets a call through when its limiter fails. On the wire the two types look the same.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use prost::Message;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

const SERVICE: &str = "envoy/service/ratelimit/v3/rls.proto";
const ENTRY: [&str; 3] = ["envoy.extensions.common.ratelimit.v3", "RateLimitDescriptor", "Entry"];
const ANY_BYTES: [&str; 2] = ["key", "value"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build.rs");

    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: cargo runs this, not people")?;
    let out = Path::new(&out);
    let described = protox::compile([SERVICE], ["proto"])?;
    fs::write(out.join("descriptor_set.bin"), without_comments(described.clone()).encode_to_vec())?;

    let mut generated = described;
    let mut builder = tonic_prost_build::configure().include_file("proto.rs");
    for name in ANY_BYTES {
        entry_field(&mut generated, name)?.set_type(Type::Bytes);
        builder = builder.bytes(format!(".{}.{name}", ENTRY.join(".")));
    }
    builder.compile_fds(generated)?;
    Ok(())
}

/// The field of a descriptor entry that a client's bytes go through; an error unless it is there and a string.
fn entry_field<'a>(
    set: &'a mut FileDescriptorSet,
    name: &str,
) -> Result<&'a mut FieldDescriptorProto, String> {
    let [package, outer, inner] = ENTRY;
    set.file
        .iter_mut()
        .filter(|file| file.package() == package)
        .find_map(|file| message(&mut file.message_type, outer))
        .and_then(|descriptor| message(&mut descriptor.nested_type, inner))
        .and_then(|entry| entry.field.iter_mut().find(|field| field.name() == name))
        .filter(|field| field.r#type() == Type::String)
        .ok_or_else(|| {
            format!("proto/ has no string field {}.{name}, which must become bytes", ENTRY.join("."))
        })
}

fn message<'a>(messages: &'a mut [DescriptorProto], name: &str) -> Option<&'a mut DescriptorProto> {
    messages.iter_mut().find(|message| message.name() == name)
}

/// Comments and line numbers serve the generated Rust; in the binary they would be dead weight.
fn without_comments(mut set: FileDescriptorSet) -> FileDescriptorSet {
    for file in &mut set.file {
        file.source_code_info = None;
    }
    set
}
