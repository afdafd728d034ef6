//! Finding the rule of a descriptor, and reading the files that rules stand in.

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use weir::rules::Entry;

use super::rules;

/// How many rules there are: fewer where it is only to be seen that this works.
fn counts() -> &'static [u32] {
    if std::env::args().any(|argument| argument == "--test") { &[1, 100] } else { &[1, 100, 10_000, 100_000] }
}

/// A way for rules to match, of which there may be any number on one level.
struct Form {
    name: &'static str,
    /// The file's text before its descriptors.
    head: fn(u32) -> String,
    /// The n-th rule.
    rule: fn(u32) -> String,
    /// An entry that the n-th matches.
    entry: fn(u32) -> (String, String),
}

fn address(n: u32) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from_bits(0x0a00_0000 + 4 * n)
}

fn no_head(_: u32) -> String {
    String::new()
}

const FORMS: [Form; 7] = [
    Form {
        name: "exact",
        head: no_head,
        rule: |n| format!("key: k, value: v{n}, rate_limit: 60/minute"),
        entry: |n| ("k".into(), format!("v{n}")),
    },
    Form {
        name: "values",
        head: no_head,
        rule: |n| format!("key: k, values: [a{n}, b{n}, c{n}], rate_limit: 60/minute"),
        entry: |n| ("k".into(), format!("b{n}")),
    },
    Form {
        name: "cidr",
        head: no_head,
        rule: |n| format!("key: k, cidr: {}/30, rate_limit: 60/minute", address(n)),
        entry: |n| ("k".into(), address(n).to_string()),
    },
    Form {
        name: "wildcard",
        head: no_head,
        rule: |n| format!("key: k, value: 'v{n}/*', rate_limit: 60/minute"),
        entry: |n| ("k".into(), format!("v{n}/x")),
    },
    Form {
        name: "middle",
        head: no_head,
        rule: |n| format!("key: k, value: '*<{n}>*', rate_limit: 60/minute"),
        entry: |n| ("k".into(), format!("some <{n}> text")),
    },
    Form {
        name: "regex",
        head: no_head,
        // A key may have a hundred of them, which are tried one after the other.
        rule: |n| format!("key: k{}, regex: 'v{n}/[0-9]+', rate_limit: 60/minute", n / 100),
        entry: |n| (format!("k{}", n / 100), format!("v{n}/17")),
    },
    Form {
        name: "tiers",
        head: |count| {
            let mut head = "tiers: { free: { calls: 60/minute }, pro: { calls: 600/minute } }\n\
                 subjects:\n  k:\n    default: free\n    members:\n"
                .to_owned();
            (0..count).for_each(|n| _ = writeln!(head, "      v{n}: pro"));
            head
        },
        rule: |n| format!("key: k{}, tier_limit: calls", if n == 0 { String::new() } else { n.to_string() }),
        entry: |n| ("k".into(), format!("v{n}")),
    },
];

impl Form {
    /// A file with so many of them. Of tiers, there are so many members, and one rule.
    fn text(&self, count: u32) -> String {
        let mut text = format!("domain: api\n{}descriptors:\n", (self.head)(count));
        let rules = if self.name == "tiers" { 1 } else { count };
        (0..rules).for_each(|n| _ = writeln!(text, "  - {{ {} }}", (self.rule)(n)));
        text
    }
}

pub fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    for form in &FORMS {
        for &count in counts() {
            let set = rules(&form.text(count));
            // In the middle of all, and of a hundred: so many regular expressions are tried one after the other.
            let (key, value) = (form.entry)(count / 200 * 100 + count.min(100) / 2);
            let entry = [Entry { key: key.as_bytes(), value: value.as_bytes() }];
            group.bench_function(BenchmarkId::new(form.name, count), |b| {
                let domain = set.domain("api").unwrap();
                // Which limit a tier has is looked up, too.
                b.iter(|| domain.find(black_box(&entry)).map(|rule| rule.met(&entry).count()));
            });
        }
    }
    for depth in 1..=6 {
        let mut text = String::new();
        for level in (0..depth).rev() {
            let limit = if level == depth - 1 { ", rate_limit: 60/minute" } else { "" };
            let below = if text.is_empty() { String::new() } else { format!(", descriptors: [{text}]") };
            text = format!("{{ key: k{level}{limit}{below} }}");
        }
        let set = rules(&format!("domain: api\ndescriptors: [{text}]\n"));
        let keys: Vec<String> = (0..depth).map(|level| format!("k{level}")).collect();
        let entries: Vec<Entry<'_>> =
            keys.iter().map(|key| Entry { key: key.as_bytes(), value: b"value" }).collect();
        group.bench_function(BenchmarkId::new("depth", depth), |b| {
            let domain = set.domain("api").unwrap();
            b.iter(|| domain.find(black_box(&entries)).is_some());
        });
    }
    group.finish();
}

/// Files of so many rules of each form.
pub fn load(c: &mut Criterion) {
    let count = counts().last().copied().unwrap();
    let mut group = c.benchmark_group("load");
    group.sample_size(10);
    for form in &FORMS {
        // Each of these is compiled.
        let count = if form.name == "regex" { count.min(10_000) } else { count };
        let text = form.text(count);
        group.bench_function(BenchmarkId::new(form.name, count), |b| {
            b.iter_with_large_drop(|| rules(black_box(&text)))
        });
    }
    group.finish();
}
