//! What is shipped to run weir with names only what there is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use weir::rules::RuleSet;
use weir::telemetry::metrics::{ALL, Instrument, Kind};

use crate::support::python;

/// Labels that Prometheus adds, or that a histogram's buckets have.
const ADDED: [&str; 3] = ["instance", "job", "le"];

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap()
}

fn yaml(name: &str) -> Vec<Value> {
    serde_json::from_str(&python::run("documents.py", &[file(name).to_str().unwrap()])).unwrap()
}

/// The instrument that a series of this name belongs to.
fn instrument(name: &str) -> Option<&'static Instrument> {
    ALL.iter().copied().find(|instrument| {
        let known = instrument.prometheus_name();
        match instrument.kind {
            Kind::Histogram => ["_bucket", "_sum", "_count"].iter().any(|part| known.clone() + part == name),
            Kind::Counter | Kind::Gauge => known == name,
        }
    })
}

/// Words of an expression: names, and between them everything else.
fn words(expression: &str) -> Vec<&str> {
    expression
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| !word.is_empty())
        .collect()
}

/// What is wrong with the names in an expression.
fn mistakes(expression: &str) -> Vec<String> {
    let mut mistakes = Vec::new();
    let mut labels: BTreeSet<&str> = ADDED.into();
    for name in words(expression).into_iter().filter(|word| word.starts_with("weir_")) {
        match instrument(name) {
            Some(instrument) => labels.extend(instrument.labels),
            None => mistakes.push(format!("{name} is no metric")),
        }
    }
    // Of each selector, its own metric's labels; of `by (...)`, those of any in the expression.
    for (at, _) in expression.match_indices('{') {
        let (before, rest) = expression.split_at(at);
        let name = words(before).pop().unwrap_or_default();
        let inside = rest.trim_start_matches('{').split('}').next().unwrap();
        let own = instrument(name).map_or(&[][..], |instrument| instrument.labels);
        for matcher in inside.split(',').filter(|matcher| !matcher.is_empty()) {
            let label = words(matcher)[0];
            if !own.contains(&label) && !ADDED.contains(&label) {
                mistakes.push(format!("{name} has no label {label}"));
            }
        }
    }
    for rest in expression.split("by (").skip(1) {
        for label in words(rest.split(')').next().unwrap()) {
            if !labels.contains(label) {
                mistakes.push(format!("nothing in {expression} has the label {label}"));
            }
        }
    }
    mistakes
}

#[test]
fn a_metric_or_a_label_that_is_not_there_is_found() {
    for (expression, mistakes) in [
        ("rate(weir_calls_total{result=\"ok\",instance=\"a\"}[5m])", 0),
        ("sum by (le) (rate(weir_call_duration_seconds_bucket[5m]))", 0),
        ("weir_call_total", 1),
        ("weir_call_duration_seconds", 1),
        ("weir_calls_total{rule=\"x\"}", 1),
        ("sum by (store) (weir_calls_total)", 1),
    ] {
        assert_eq!(super::deploy::mistakes(expression).len(), mistakes, "{expression}");
    }
}

#[test]
fn alerts_name_only_metrics_and_labels_that_there_are_and_each_is_explained() {
    let document = yaml("alerts.yaml").pop().unwrap();
    let rules: Vec<&Value> = document["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect();
    assert!(rules.len() > 10);
    let mut names = Vec::new();
    for rule in &rules {
        let expression = rule["expr"].as_str().unwrap();
        assert_eq!(mistakes(expression), [""; 0], "{expression}");
        names.push(rule["alert"].as_str().unwrap());
        let summary = rule["annotations"]["summary"].as_str().unwrap();
        for label in summary.split("$labels.").skip(1).map(|rest| words(rest)[0]) {
            // What an aggregation does not keep is not there to be shown.
            let kept = match expression.split("by (").nth(1) {
                Some(rest) => words(rest.split(')').next().unwrap()).contains(&label),
                None => {
                    let metric = words(expression).into_iter().find_map(instrument).unwrap();
                    metric.labels.contains(&label) || label == "instance"
                }
            };
            assert!(kept, "{summary}: {label}");
        }
    }
    let explained: Vec<String> = text("RUNNING.md")
        .lines()
        .filter_map(|line| line.strip_prefix("### Weir").map(|rest| format!("Weir{rest}")))
        .collect();
    assert_eq!(names, explained, "alerts, and those that RUNNING.md explains");
}

#[test]
fn the_dashboard_names_only_metrics_and_labels_that_there_are() {
    let dashboard: Value = serde_json::from_str(&text("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            assert_eq!(mistakes(expression), [""; 0], "{expression}");
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["definition"].as_str() {
            let names = words(query);
            let instrument = names.iter().find_map(|name| instrument(name)).expect(query);
            let label = names.last().unwrap();
            assert!(instrument.labels.contains(label) || ADDED.contains(label), "{query}");
        }
    }
}

#[test]
fn promtool_takes_the_alerts() {
    let output = Command::new("promtool")
        .args(["check", "rules"])
        .arg(file("alerts.yaml"))
        .output()
        .expect("promtool is there; .ci/run says how to get it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Of two instances, everything is wrong with one and nothing with the other.
#[test]
fn each_alert_fires_for_whom_it_is_about_and_for_nobody_else() {
    let tests = text("alerts_test.yaml");
    for line in text("alerts.yaml").lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(&format!("alertname: {line}\n")), "nothing says when {line} fires");
    }
    let output =
        Command::new("promtool").args(["test", "rules"]).arg(file("alerts_test.yaml")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for series in tests.split("series: '").skip(1).map(|rest| rest.split('\'').next().unwrap()) {
        assert_eq!(mistakes(series), [""; 0], "{series}");
    }
}

/// The image that it runs in has a C library, and libraries of the compiler, and no others.
#[test]
fn the_program_needs_no_library_that_its_image_lacks() {
    let output = Command::new("ldd").arg(env!("CARGO_BIN_EXE_weir")).output().unwrap();
    let needed = String::from_utf8(output.stdout).unwrap();
    const THERE: [&str; 6] =
        ["linux-vdso.so.1", "libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "ld-linux"];
    for line in needed.lines() {
        assert!(THERE.iter().any(|library| line.contains(library)), "{line}");
    }
    assert!(needed.contains("libc.so.6"), "{needed}");
    assert!(text("Containerfile").contains("\nFROM gcr.io/distroless/cc-"), "the image that these are in");
}

/// Variables that a file sets are known to `weir serve`; so are flags.
fn known_variables(text: &str) {
    let help = Command::new(env!("CARGO_BIN_EXE_weir")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let variables: BTreeSet<&str> =
        words(text).into_iter().filter(|word| word.starts_with("WEIR_")).collect();
    assert!(!variables.is_empty());
    for variable in variables {
        let is_known =
            help.contains(&format!("[env: {variable}]")) || help.contains(&format!("[env: {variable}="));
        assert!(is_known, "{variable}");
    }
}

#[test]
fn the_manifests_fit_together_and_their_rules_load() {
    let documents = yaml("kubernetes/weir.yaml");
    let kind = |kind: &str| documents.iter().find(|document| document["kind"] == kind).expect(kind);
    let deployment = &kind("Deployment")["spec"];
    let labels = &deployment["template"]["metadata"]["labels"];
    assert_eq!(&deployment["selector"]["matchLabels"], labels);
    assert_eq!(&kind("Service")["spec"]["selector"], labels);
    assert_eq!(&kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&kind("NetworkPolicy")["spec"]["podSelector"]["matchLabels"], labels);
    let pod = &deployment["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["ports"][0]["containerPort"], 8081);
    assert_eq!(container["ports"][1], serde_json::json!({ "name": "http", "containerPort": 8080 }));
    assert_eq!(
        container["livenessProbe"]["httpGet"],
        serde_json::json!({ "port": "http", "path": "/livez" })
    );
    let annotations = &deployment["template"]["metadata"]["annotations"];
    assert_eq!(
        (&annotations["prometheus.io/port"], &annotations["prometheus.io/path"]),
        (&"8080".into(), &"/metrics".into())
    );
    // Each port can be asked for by its name, and by whom is said.
    let let_in: Vec<u64> = kind("NetworkPolicy")["spec"]["ingress"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["ports"][0]["port"].as_u64().unwrap())
        .collect();
    let ports = kind("Service")["spec"]["ports"].as_array().unwrap();
    let served: Vec<u64> = ports.iter().map(|port| port["port"].as_u64().unwrap()).collect();
    assert_eq!((&let_in, &served), (&vec![8081, 8080], &vec![8081, 8080]));
    assert_eq!(ports[1]["targetPort"], container["ports"][1]["name"]);
    let monitor = yaml("kubernetes/podmonitor.yaml").pop().unwrap();
    assert_eq!(&monitor["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(monitor["spec"]["podMetricsEndpoints"][0]["port"], "http");
    assert_eq!(container["readinessProbe"]["grpc"]["port"], 8081);
    assert_eq!(kind("Service")["spec"]["ports"][0]["targetPort"], container["ports"][0]["name"]);
    assert!(
        pod["terminationGracePeriodSeconds"].as_u64().unwrap() >= 38,
        "eight seconds longer than --drain-timeout"
    );
    let variable = |name: &str| -> u64 {
        let all = container["env"].as_array().unwrap();
        let of = all.iter().find(|variable| variable["name"] == name).expect(name);
        of["value"].as_str().unwrap().parse().unwrap()
    };
    assert_eq!(container["resources"]["limits"]["memory"], "1Gi");
    // What RUNNING.md says of each, and 64 MiB for all else.
    let needed = variable("WEIR_MAX_BUCKETS") * 600 + variable("WEIR_MAX_CONNECTIONS") * 35_000 + (64 << 20);
    assert!(needed < 1 << 30, "{needed} bytes may be needed");
    assert_eq!(pod["volumes"][0]["configMap"]["name"], kind("ConfigMap")["metadata"]["name"]);
    for (name, rules) in kind("ConfigMap")["data"].as_object().unwrap() {
        let set = RuleSet::from_texts([(name.as_str(), rules.as_str().unwrap())], 0).unwrap();
        assert!(set.warnings().is_empty() && !set.is_empty());
    }
    known_variables(&text("kubernetes/weir.yaml"));
}

#[test]
fn the_container_file_copies_what_there_is_and_runs_as_nobody_in_particular() {
    let container = text("Containerfile");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ignored = std::fs::read_to_string(root.join(".dockerignore")).unwrap();
    let read = python::run("container.py", &[file("Containerfile").to_str().unwrap()]);
    let read: Vec<(String, Vec<String>, Vec<String>)> = serde_json::from_str(&read).unwrap();
    for (_, _, copied) in read.iter().filter(|(name, flags, _)| name == "COPY" && flags.is_empty()) {
        for source in &copied[..copied.len() - 1] {
            assert!(root.join(source).exists(), "{source}");
            // Of everything else, nothing is sent to whoever builds.
            assert!(
                ignored.lines().any(|line| line == format!("!{source}")),
                "{source} is not in .dockerignore"
            );
        }
    }
    assert!(ignored.lines().any(|line| line == "*"));
    let last = read.iter().rposition(|(name, ..)| name == "FROM").unwrap();
    let said = |name: &str| {
        let (_, _, value) = read[last..].iter().find(|(other, ..)| other == name).expect(name);
        value.iter().map(String::as_str).collect::<Vec<_>>()
    };
    assert_eq!(said("USER"), ["65532:65532"], "not root");
    assert_eq!(said("COPY"), ["/weir/target/release/weir", "/usr/bin/weir"]);
    assert_eq!((said("ENTRYPOINT"), said("CMD")), (vec!["/usr/bin/weir"], vec!["serve"]));
    assert_eq!((said("EXPOSE"), said("STOPSIGNAL")), (vec!["8081", "8080"], vec!["SIGTERM"]));
    let wanted = env!("CARGO_PKG_RUST_VERSION");
    assert!(container.contains(&format!("rust:{wanted}-")), "the Rust that weir needs, {wanted}");
    known_variables(&container);
}

#[test]
fn the_systemd_unit_starts_reloads_and_waits_for_the_end() {
    let unit = text("weir.service");
    for line in ["ExecStart=/usr/bin/weir serve", "ExecReload=/bin/kill -HUP $MAINPID", "DynamicUser=yes"] {
        assert!(unit.lines().any(|other| other == line), "{line}");
    }
    let stop = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    assert!(
        stop.trim_end_matches('s').parse::<u32>().unwrap() >= 38,
        "eight seconds longer than --drain-timeout"
    );
    for line in unit.lines().filter(|line| !line.is_empty() && !line.starts_with(['#', '['])) {
        assert!(line.contains('='), "{line}");
    }
    known_variables(&unit);
}
