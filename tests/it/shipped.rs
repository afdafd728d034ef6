//! Every file that is shipped for use is loaded here, and says what it is said to say.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};

use weir::bucket::{Bucket, Calendar, Hits, Limit, Outcome};
use weir::rules::{Entry, RuleSet, load};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(self::files(&path)) } else { files.push(path) }
    }
    files
}

/// The label of the rule that a descriptor meets in the domain `api`.
fn meets(set: &RuleSet, entries: &[(&str, &str)]) -> Option<String> {
    let entries: Vec<Entry<'_>> =
        entries.iter().map(|(key, value)| Entry { key: key.as_bytes(), value: value.as_bytes() }).collect();
    set.domain("api").unwrap().find(&entries).map(|rule| rule.label.to_string())
}

#[test]
fn every_file_in_config_loads_by_itself_and_without_a_warning() {
    let mut files = files(&root().join("config"));
    // Beside them is what editors check them against.
    files.retain(|file| !file.ends_with("schema.json"));
    assert!(!files.is_empty());
    for file in files {
        let set = load(&file, 0).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert!(set.warnings().is_empty() && !set.is_empty(), "{}: {:?}", file.display(), set.warnings());
    }
}

#[test]
fn the_example_limits_what_its_comments_say() {
    let set = load(&root().join("config"), 0).unwrap();
    for (entries, rule) in [
        (&[("remote_address", "192.0.2.7")][..], Some("api.remote_address")),
        (&[("remote_address", "192.0.2.10")], None),
        (&[("user_id", "a")], Some("api.user_id")),
        (&[("user_id", "partner-1")], Some("api.user_id_partner-1")),
        (&[("user_id", "a"), ("method", "POST")], Some("api.user_id.method_POST")),
        (&[("user_id", "a"), ("method", "GET")], None),
        (&[("login_address", "192.0.2.7")], Some("api.login_address")),
        (&[("path", "/reports/2026")], Some("api.path_/reports/*")),
        (&[("path", "/")], None),
        (&[("generic_key", "api")], Some("api.generic_key_api")),
        (&[("country", "nl")], Some("api.country")),
    ] {
        assert_eq!(meets(&set, entries).as_deref(), rule, "{entries:?}");
    }
}

#[test]
fn every_rule_file_in_the_manual_loads() {
    let manual = std::fs::read_to_string(root().join("README.md")).unwrap();
    let blocks: Vec<&str> = manual
        .split("```yaml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .filter(|block| block.starts_with("domain:"))
        .collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let set = RuleSet::from_texts([("README.md", block)], 0)
            .unwrap_or_else(|error| panic!("{error:?}\n{block}"));
        assert!(set.warnings().is_empty(), "{:?}", set.warnings());
    }
}

/// Each column is an eighth of a minute, the first one begins half a minute before the turn of one.
#[test]
fn the_picture_of_the_algorithms_shows_what_they_admit() {
    const MINUTE: u64 = 60_000_000;
    let manual = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (eight, minute) = (NonZeroU32::new(8).unwrap(), NonZeroU64::new(MINUTE).unwrap());
    for (name, limit) in [
        ("token_bucket", Limit::new(eight, minute)),
        ("fixed_window", Limit::fixed_window(eight, minute, Calendar::Epoch)),
        ("sliding_window", Limit::sliding_window(eight, minute)),
    ] {
        let mut bucket = Bucket::FULL;
        let half_past = 29_000_000 * MINUTE + MINUTE / 2;
        let mut column = |column: u64| {
            // Ten times in each, somebody takes all that there is.
            let mut admitted = 0;
            for moment in 0..10 {
                let now = half_past + (10 * column + moment) * MINUTE / 80;
                while bucket.take(&limit, Hits::Take(1), now) == Outcome::Fits {
                    admitted += 1;
                }
            }
            if admitted == 0 { ".".to_owned() } else { admitted.to_string() }
        };
        let columns: Vec<String> = (0..20).map(&mut column).collect();
        let is = format!(
            "{} │ {} │ {}",
            columns[..4].join(" "),
            columns[4..12].join(" "),
            columns[12..].join(" ")
        );
        let shown = manual.lines().find(|line| line.starts_with(&format!("  {name} "))).unwrap();
        let shown: Vec<&str> = shown.split_whitespace().skip(1).collect();
        assert_eq!(shown.join(" "), is, "{name}");
    }
}

/// What the manual says of a flag's default is what the command line has.
#[test]
fn every_flag_of_serve_is_in_the_manual_with_its_variable_and_default() {
    let manual = std::fs::read_to_string(root().join("README.md")).unwrap();
    let help =
        std::process::Command::new(env!("CARGO_BIN_EXE_weir")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let mut flags = 0;
    for part in help.split("\n      --").skip(1) {
        let flag = part.split([' ', '[', '=', '\n']).next().unwrap();
        let told = |name: &str| {
            let line =
                part.lines().map(str::trim).find_map(|line| line.strip_prefix(name)?.strip_suffix(']'))?;
            Some(line.trim_end_matches('=').to_owned())
        };
        let Some(variable) = told("[env: ") else { continue };
        let default = told("[default: ").map_or(String::new(), |default| format!("`{default}`"));
        let row = format!("| `--{flag}` | `{variable}` | {default} |");
        assert!(manual.contains(&row), "the manual has no row {row}");
        flags += 1;
    }
    assert!(flags >= 10, "{flags}");
}

/// The instruments of the code, as the manual tells them.
#[test]
fn the_manual_has_every_metric_with_its_labels_and_no_other() {
    let manual = std::fs::read_to_string(root().join("README.md")).unwrap();
    let told: Vec<&str> = manual.lines().filter(|line| line.starts_with("| `weir_")).collect();
    let is: Vec<String> = weir::telemetry::metrics::ALL
        .iter()
        .map(|instrument| {
            let labels: Vec<String> = instrument.labels.iter().map(|label| format!("`{label}`")).collect();
            let (name, kind) =
                (instrument.prometheus_name(), format!("{:?}", instrument.kind).to_lowercase());
            format!("| `{name}` | {kind} | {} | {} |", labels.join(", "), instrument.help)
        })
        .collect();
    assert_eq!(told, is, "the manual's table should be:\n{}", is.join("\n"));
}

/// What was measured is of one run of code that is there, and reaches what it should.
#[test]
fn the_manual_has_every_figure_and_ci_runs_the_benches() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let manual = read("README.md");
    let (_, measured) = manual.split_once("<!-- `make bench-manual` writes from here -->").unwrap();
    let (measured, _) = measured.split_once("<!-- to here -->").unwrap();
    let bars: Vec<&str> = measured.lines().filter(|line| line.ends_with("| aim |")).collect();
    assert_eq!(bars.len(), 13, "all bars of the design reach their aim: {bars:#?}");
    for wrong in ["**missed**", "different runs", "unknown", " with changes"] {
        assert!(!measured.contains(wrong), "{wrong}");
    }
    for plot in ["benches/plots/throughput.svg", "benches/plots/latency.svg"] {
        assert!(manual.contains(&format!("({plot})")) && read(plot).contains("weir, Redis"), "{plot}");
    }
    assert!(read(".ci/run").lines().any(|line| line == "make bench-try"));
}
