//! The JSON Schema of rule files, generated from the types of [`file`](super::file), so that editors complete and check what
//! is written.
//!
//! It says what shape a file has. What rules mean together, such as two that clash, is for `weir check`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::file::{Algorithm, File, HashTag, OneOrMany, Percent, Share};
use super::reply::{HeaderStyle, STYLES};
use super::unit::{SUFFIXES, Unit};
use super::yaml::{Any, Field};
use crate::decision::OnRedisFailure;

/// The schema of a rule file.
#[must_use]
pub fn schema() -> Schema {
    // The version that editors' YAML support knows best.
    let settings = SchemaSettings::draft07()
        .with_transform(RecursiveTransform(text_may_be_unquoted))
        .with_transform(RecursiveTransform(bound_numbers));
    let mut schema = settings.into_generator().into_root_schema_for::<File>();
    schema.insert("title".into(), "Rules of weir".into());
    schema
}

/// Where text is wanted, `123` and `true` are the texts that stand there.
fn text_may_be_unquoted(schema: &mut Schema) {
    let restricted = ["enum", "const", "pattern"].iter().any(|key| schema.get(*key).is_some());
    if !restricted && schema.get("type").is_some_and(|kind| kind == "string") {
        schema.insert("type".into(), ["string", "number", "boolean"].as_slice().into());
    }
}

/// Says what numbers fit, in place of a name for their size that editors do not know.
fn bound_numbers(schema: &mut Schema) {
    if schema.get("format").is_some_and(|format| format == "uint32") {
        schema.remove("format");
        schema.insert("maximum".into(), u32::MAX.into());
    }
}

/// Text that matches, in any case.
fn in_any_case(words: &[&str]) -> String {
    let letter = |letter: char| format!("[{}{}]", letter.to_ascii_uppercase(), letter.to_ascii_lowercase());
    let words: Vec<String> = words.iter().map(|word| word.chars().map(letter).collect()).collect();
    words.join("|")
}

/// What a duration looks like.
fn duration() -> String {
    let suffixes: Vec<&str> = SUFFIXES.iter().map(|(suffix, _)| *suffix).collect();
    format!("[0-9]+({})", suffixes.join("|"))
}

impl<T: JsonSchema> JsonSchema for Field<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
}

impl JsonSchema for Unit {
    fn schema_name() -> Cow<'static, str> {
        "Unit".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<&str> = Self::names().collect();
        json_schema!({
            "description": "The window: a unit in any case, or a duration such as 30s, 15m, 2h",
            "anyOf": [
                { "enum": names },
                { "type": "string", "pattern": format!("^({}|{})$", in_any_case(&names), duration()) },
            ],
        })
    }
}

impl JsonSchema for Algorithm {
    fn schema_name() -> Cow<'static, str> {
        "Algorithm".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "How hits are counted; token_bucket if nothing is said",
            "enum": ["token_bucket", "fixed_window", "sliding_window"],
        })
    }
}

impl JsonSchema for OnRedisFailure {
    fn schema_name() -> Cow<'static, str> {
        "OnRedisFailure".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "What is answered while Redis is away: by this instance's own buckets, a denial, or an admission",
            "enum": ["local", "deny", "allow"],
        })
    }
}

impl JsonSchema for Share {
    fn schema_name() -> Cow<'static, str> {
        "Share".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A part of a whole, as 0.8 or 80%",
            "anyOf": [
                { "type": "number", "exclusiveMinimum": 0, "maximum": 1 },
                { "type": "string", "pattern": "^[0-9.]+ *%?$" },
            ],
        })
    }
}

impl JsonSchema for Percent {
    fn schema_name() -> Cow<'static, str> {
        "Percent".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "description": "So many of a hundred", "type": "integer", "minimum": 0, "maximum": 100 })
    }
}

impl JsonSchema for HeaderStyle {
    fn schema_name() -> Cow<'static, str> {
        "HeaderStyle".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "enum": STYLES.map(|(name, _)| name) })
    }
}

impl JsonSchema for HashTag {
    fn schema_name() -> Cow<'static, str> {
        "HashTag".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let entry = generator.subschema_for::<String>();
        json_schema!({
            "anyOf": [
                { "const": "domain" },
                {
                    "type": "object",
                    "properties": { "entry": entry },
                    "required": ["entry"],
                    "additionalProperties": false,
                },
            ],
        })
    }
}

impl JsonSchema for OneOrMany {
    fn schema_name() -> Cow<'static, str> {
        "OneOrMany".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (one, many) = (generator.subschema_for::<String>(), generator.subschema_for::<Vec<String>>());
        json_schema!({ "description": "A list of texts; of one, the text alone will do", "anyOf": [one, many] })
    }
}

impl JsonSchema for Any {
    fn schema_name() -> Cow<'static, str> {
        "Metadata".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<BTreeMap<String, serde_json::Value>>()
    }
}

/// A limit may be short for the map that its type has.
pub(super) fn short_or_whole(schema: &mut Schema) {
    let names: Vec<&str> = Unit::names().collect();
    let short = format!("^(unlimited|[0-9_]+ */ *({}|{}))$", in_any_case(&names), duration());
    or_short(schema, json_schema!({ "type": "string", "pattern": short }));
}

/// A style may be short for a map that says no more.
pub(super) fn style_or_whole(schema: &mut Schema) {
    or_short(schema, json_schema!({ "enum": STYLES.map(|(name, _)| name) }));
}

fn or_short(schema: &mut Schema, short: Schema) {
    let mut whole = std::mem::take(schema);
    let description = whole.remove("description");
    *schema = json_schema!({ "anyOf": [short, whole] });
    if let Some(description) = description {
        schema.insert("description".into(), description);
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use serde_json::Value;

    use super::*;
    use crate::rules::problem::Problems;
    use crate::rules::{RuleSet, yaml};

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }

    fn to_json(value: Any) -> Value {
        match value {
            Any::Null => Value::Null,
            Any::Bool(value) => value.into(),
            // JSON Schema takes 5.0 for a whole number too.
            Any::Number(value) => value.into(),
            Any::Text(text) => text.into(),
            Any::List(items) => items.into_iter().map(to_json).collect(),
            Any::Map(map) => map.into_iter().map(|(key, value)| (key, to_json(value))).collect(),
        }
    }

    /// What the schema says against a file, as an editor would read it.
    fn against(text: &str) -> Vec<String> {
        let problems = Problems::new(Arc::from("file"));
        let tree = yaml::parse(text, &problems).expect("YAML");
        let value = to_json(yaml::read(&tree, &problems).expect("a value"));
        let validator = jsonschema::validator_for(schema().as_value()).unwrap();
        validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect()
    }

    fn rule_files(directory: &Path) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files.extend(rule_files(&path));
            } else if crate::rules::files::is_rule_file(&path) {
                files.push(path);
            }
        }
        files
    }

    #[test]
    fn every_shipped_rule_file_and_every_one_in_the_manual_is_as_the_schema_says() {
        let mut files = rule_files(&root().join("config"));
        files.extend(rule_files(&root().join("envoy/features")));
        assert!(files.len() >= 6, "{files:?}");
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            assert_eq!(against(&text), [""; 0], "{}", file.display());
        }
        let manual = std::fs::read_to_string(root().join("README.md")).unwrap();
        let blocks = manual.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
        for block in blocks.filter(|block| block.starts_with("domain:")) {
            assert_eq!(against(block), [""; 0], "{block}");
        }
    }

    #[test]
    fn the_schema_beside_the_rules_is_the_one_that_is_generated() {
        let kept = std::fs::read_to_string(root().join("config/schema.json")).unwrap();
        let generated = format!("{:#}\n", schema().as_value());
        assert!(kept == generated, "the types have changed: cargo run -- schema > config/schema.json");
    }

    #[test]
    fn files_to_start_from_name_the_schema() {
        let mut files = rule_files(&root().join("config"));
        files.extend(rule_files(&root().join("envoy/features")));
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let named =
                text.lines().next().unwrap().strip_prefix("# yaml-language-server: $schema=").unwrap();
            let schema = file.parent().unwrap().join(named).canonicalize().unwrap();
            assert_eq!(schema, root().join("config/schema.json").canonicalize().unwrap());
        }
    }

    #[test]
    fn what_is_wrong_by_its_shape_is_wrong_to_the_schema_and_to_weir() {
        let file = |descriptor: &str| format!("domain: api\ndescriptors:\n  - {descriptor}\n");
        for text in [
            "descriptors: []\n".to_owned(),
            "domain: api\ndescriptor: []\n".into(),
            "domain: api\ndescriptors: none\n".into(),
            "domain: [api]\n".into(),
            "domain: api\ntiers: [free]\n".into(),
            "domain: api\ntiers: { free: { requests: 60/minutes } }\n".into(),
            "domain: api\ntiers: { free: { requests: 6/day } }\nsubjects: { a: { member: {}, default: free } }\n".into(),
            file("{ value: x }"),
            file("{ key: [x] }"),
            file("{ key: x, rate_limt: 1/day }"),
            file("{ key: x, rate_limit: 1 per day }"),
            file("{ key: x, rate_limit: 60/minutes }"),
            file("{ key: x, rate_limit: { unit: minutes, requests_per_unit: 1 } }"),
            file("{ key: x, rate_limit: { unit: 1.5s, requests_per_unit: 1 } }"),
            file("{ key: x, rate_limit: { unit: day, requests_per_unit: -1 } }"),
            file("{ key: x, rate_limit: { unit: day, requests_per_unit: 4294967296 } }"),
            file("{ key: x, rate_limit: { unit: day, requests_per_unit: '1' } }"),
            file("{ key: x, rate_limit: { unit: day, requests_per_unit: 1.5 } }"),
            file("{ key: x, rate_limit: { unit: day, requests_per_unit: 1, algorithm: leaky_bucket } }"),
            file("{ key: x, rate_limit: { unit: day, requests_per_unit: 1, shadow_mode: true } }"),
            file("{ key: x, rate_limit: { unit: day, requests_per_unit: 1, replaces: [ a ] } }"),
            file("{ key: x, rate_limits: 1/day }"),
            file("{ key: x, shadow_mode: 'yes' }"),
            file("{ key: x, on_redis_failure: panic, rate_limit: 1/day }"),
            file("{ key: x, values: x }"),
            file("{ key: x, warn_at: 2, rate_limit: 1/day }"),
            file("{ key: x, warn_at: soon, rate_limit: 1/day }"),
            file("{ key: x, enforce_percent: 101, rate_limit: 1/day }"),
            file("{ key: x, enforce_percent: 12.5, rate_limit: 1/day }"),
            file("{ key: x, body: text, rate_limit: 1/day }"),
            "domain: api\nredis_hash_tag: user\n".into(),
            "domain: api\nredis_hash_tag: { entri: user }\n".into(),
            "domain: api\nheaders: all\n".into(),
            "domain: api\nheaders: { style: draft, rest: x }\n".into(),
            file("{ key: x, metadata: [1] }"),
        ] {
            assert!(!against(&text).is_empty(), "the schema takes {text}");
            assert!(RuleSet::from_texts([("file", text.as_str())], 0).is_err(), "weir takes {text}");
        }
    }

    #[test]
    fn what_weir_takes_in_another_way_of_writing_is_as_the_schema_says() {
        for descriptor in [
            "{ key: 5, value: true, message: 5, rate_limit: { unit: MINUTE, requests_per_unit: 16 } }",
            "{ key: x, rate_limit: 1_000/Hour }",
            "{ key: x, rate_limit: { unlimited: true } }",
            "{ key: x, cidr: 10.0.0.0/8, rate_limits: [ 1/15m, 9/day ] }",
            "{ key: x, warn_at: 80%, rate_limit: 1/day }",
            "{ key: x, warn_at: 0.8, rate_limit: 1/day }",
            "{ key: x, metadata: { a: [1, { b: null }] }, rate_limit: unlimited }",
        ] {
            let text = format!("domain: api\ndescriptors:\n  - {descriptor}\n");
            RuleSet::from_texts([("file", text.as_str())], 0).unwrap();
            assert_eq!(against(&text), [""; 0], "{text}");
        }
    }
}
