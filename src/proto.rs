//! The protocol, as Rust: Envoy's rate limit messages, the service's server and client, and their description.
//!
//! `build.rs` generates it all from `proto/`. [`envoy`] holds the modules as the packages name them; the types that a
//! rate limit call consists of have short names here. The types of `google.protobuf` are those of [`prost_types`],
//! except that a `UInt64Value` is an `Option<u64>`.
//!
//! A descriptor entry's key and value are [`bytes::Bytes`], although the API says `string`: they hold what a client
//! sent, and bytes that are not UTF-8 are limited like any others, not refused. They are slices of the buffer that the
//! message arrived in, so whoever keeps one keeps that buffer: copy what is to stay. [`DESCRIPTOR_SET`] says `string`,
//! as published.

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated: its documentation is that of proto/, its style is not ours"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/proto.rs"));
}

pub use generated::envoy;

pub use envoy::config::core::v3::HeaderValue;
pub use envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
pub use envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::{Entry, RateLimitOverride};
pub use envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
pub use envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus, Quota, RateLimit};
pub use envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;
pub use envoy::service::ratelimit::v3::rate_limit_service_server::{
    RateLimitService, RateLimitServiceServer, SERVICE_NAME,
};
pub use envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
pub use envoy::r#type::v3::RateLimitUnit;

/// The published description of all this, the `google.protobuf` files it imports included: an encoded
/// `google.protobuf.FileDescriptorSet`, for reflection and for proto3 JSON.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor_set.bin"));
