//! A response's dynamic metadata, which a proxy can log and route by.
//!
//! What the reference says (the request, and the metadata of the rules that it passed), and what was decided: of each
//! descriptor, and at the top of the tightest limit of all.

use std::collections::BTreeMap;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use super::{Asked, Charged, LimitSource, Plan, tightest};
use crate::bucket::Outcome;
use crate::decision::Mode;
use crate::proto::{Code, DescriptorStatus, Entry, RateLimitDescriptor, RateLimitRequest};
use crate::rules::{Allowance, Any, Rule};

type Fields = BTreeMap<String, Value>;

/// The metadata of a response.
pub(super) fn of(
    request: &RateLimitRequest,
    plan: &Plan<'_>,
    shown: &[Option<Charged<'_, '_>>],
    statuses: &[DescriptorStatus],
    is_denied: bool,
) -> Struct {
    let rule = |asked: &Asked<'_>| match asked {
        Asked::Charges { rule, .. } => rule.map_or("override", |rule| &rule.label).to_owned(),
        Asked::Nothing | Asked::Unlimited { .. } => String::new(),
    };
    let asked = plan.asked.iter().zip(shown);
    let descriptors = request.descriptors.iter().zip(asked.clone()).map(|(descriptor, (asked, shown))| {
        let mut fields = described(descriptor);
        if let Some(shown) = shown {
            add_decided(&mut fields, &rule(asked), shown, is_denied);
        }
        value(Kind::StructValue(Struct { fields }))
    });
    let mut fields = BTreeMap::from([
        ("domain".into(), text(&request.domain)),
        ("descriptors".into(), value(Kind::ListValue(ListValue { values: descriptors.collect() }))),
    ]);
    if request.hits_addend != 0 {
        fields.insert("hitsAddend".into(), number(request.hits_addend.into()));
    }

    let all = shown.iter().flatten().copied();
    // What denies nothing is shown where there is nothing else.
    let enforced = tightest(all.clone().filter(|charged| charged.charge.mode != Mode::Shadow));
    if let Some(tightest) = enforced.or_else(|| tightest(all)) {
        let of = |shown: &Option<Charged<'_, '_>>| {
            shown.is_some_and(|shown| std::ptr::eq(shown.charge, tightest.charge))
        };
        let asked = asked.clone().find(|(_, shown)| of(shown)).map(|(asked, _)| asked);
        add_decided(&mut fields, &asked.map(rule).unwrap_or_default(), &tightest, is_denied);
    }

    let passed = plan.asked.iter().zip(statuses).filter(|(_, status)| status.code == i32::from(Code::Ok));
    let metadata = passed.filter_map(|(asked, _)| match asked {
        Asked::Charges { rule: Some(Rule { metadata, .. }), .. } => metadata.as_ref(),
        _ => None,
    });
    let mut merged = BTreeMap::new();
    for metadata in metadata {
        if let Any::Map(map) = metadata {
            merge(&mut merged, map);
        }
    }
    if !merged.is_empty() {
        fields.insert("metadata".into(), from_any(&Any::Map(merged)));
    }
    Struct { fields }
}

/// A descriptor as it was asked about.
fn described(descriptor: &RateLimitDescriptor) -> Fields {
    let entry = |entry: &Entry| {
        text(&format!("{}={}", String::from_utf8_lossy(&entry.key), String::from_utf8_lossy(&entry.value)))
    };
    let entries = descriptor.entries.iter().map(entry).collect();
    let mut fields =
        BTreeMap::from([("entries".into(), value(Kind::ListValue(ListValue { values: entries })))]);
    if let Some(hits) = descriptor.hits_addend {
        fields.insert("hitsAddend".into(), number(hits));
    }
    fields
}

/// What was decided of one limit.
fn add_decided(fields: &mut Fields, rule: &str, charged: &Charged<'_, '_>, is_denied: bool) {
    let (limit, name) = match charged.limit {
        LimitSource::Rule(limit) => match limit.allowance {
            Allowance::Limited { requests_per_unit, unit, .. } => {
                (format!("{requests_per_unit}/{unit}"), &*limit.name)
            }
            Allowance::Unlimited => ("unlimited".into(), &*limit.name),
        },
        LimitSource::Request(limit) => (format!("{}/{}", limit.requests_per_unit, limit.unit), ""),
    };
    let is_over = charged.verdict.outcome != Outcome::Fits;
    fields.extend([
        ("rule".into(), text(rule)),
        ("limit".into(), text(&limit)),
        ("remaining".into(), number(charged.verdict.remaining.into())),
        ("source".into(), text(charged.verdict.source.label())),
        ("over".into(), value(Kind::BoolValue(is_over))),
        ("shadow".into(), value(Kind::BoolValue(charged.charge.mode == Mode::Shadow))),
        ("warning".into(), value(Kind::BoolValue(!is_denied && charged.warns()))),
    ]);
    if !name.is_empty() {
        fields.insert("name".into(), text(name));
    }
}

/// Adds what is not there yet; maps are merged into maps.
fn merge(into: &mut BTreeMap<String, Any>, from: &BTreeMap<String, Any>) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (None, _) => _ = into.insert(key.clone(), value.clone()),
            (Some(Any::Map(into)), Any::Map(from)) => merge(into, from),
            (Some(_), _) => {}
        }
    }
}

fn from_any(any: &Any) -> Value {
    value(match any {
        Any::Null => Kind::NullValue(0),
        Any::Bool(value) => Kind::BoolValue(*value),
        Any::Number(number) => Kind::NumberValue(*number),
        Any::Text(text) => Kind::StringValue(text.clone()),
        Any::List(list) => Kind::ListValue(ListValue { values: list.iter().map(from_any).collect() }),
        Any::Map(map) => {
            let fields = map.iter().map(|(key, value)| (key.clone(), from_any(value))).collect();
            Kind::StructValue(Struct { fields })
        }
    })
}

#[allow(clippy::cast_precision_loss, reason = "a Struct knows no other numbers than doubles")]
fn number(count: u64) -> Value {
    value(Kind::NumberValue(count as f64))
}

fn text(text: &str) -> Value {
    value(Kind::StringValue(text.into()))
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}
