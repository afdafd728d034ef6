//! `weir check`: what a directory of rule files holds, or everything that is wrong with it, for people and for CI.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::stores::Stores;
use super::{EX_USAGE, answer, message};
use crate::clock::Clock;
use crate::rules::{self, LoadError, Problem, RuleSet, Severity};

/// Which rules to check, and how to say what was found.
#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// Directory of rule files, or a single file
    #[arg(env = "WEIR_RULES", value_name = "PATH", default_value = "config")]
    rules: PathBuf,

    /// How to say it
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    format: Format,

    /// Fail on warnings too
    #[arg(long, visible_alias = "strict")]
    deny_warnings: bool,

    #[command(flatten)]
    stores: Stores,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    /// For people: problems on standard error, what is there on standard output
    Human,
    /// One JSON object on standard output
    Json,
    /// GitHub's workflow commands, which show problems beside the lines that they are about
    Github,
}

/// What was found; as JSON, this is the answer.
#[derive(Serialize)]
struct Report<'r> {
    /// Whether the check passes.
    ok: bool,
    /// Whether the names of stores in Redis were checked.
    #[serde(skip)]
    stores_are_known: bool,
    path: String,
    /// The loaded set's, as the log and `/rules` of a server have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<usize>,
    domains: Vec<DomainReport<'r>>,
    errors: usize,
    warnings: usize,
    problems: Vec<ProblemReport<'r>>,
}

#[derive(Serialize)]
struct DomainReport<'r> {
    name: &'r str,
    limits: usize,
    /// The store in Redis that it names.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<&'r str>,
}

#[derive(Serialize)]
struct ProblemReport<'r> {
    severity: &'static str,
    file: &'r str,
    #[serde(flatten)]
    place: Option<PlaceReport>,
    #[serde(skip_serializing_if = "str::is_empty")]
    path: &'r str,
    message: &'r str,
}

#[derive(Serialize)]
struct PlaceReport {
    line: u32,
    column: u32,
}

impl Check {
    /// Checks the rules and prints what was found. 0 when they pass, and 64 when they do not.
    pub(super) fn run(&self) -> ExitCode {
        let loaded = rules::load(&self.rules, Clock::system().now()).and_then(|set| self.stores.check(set));
        let path = self.rules.display().to_string();
        let reason = loaded.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let report = self.report(&path, &loaded, &reason);
        let text = match self.format {
            Format::Human => {
                self.problems(&loaded).iter().for_each(|problem| message(&problem.to_string()));
                match &loaded {
                    Ok(_) => report.summary(),
                    Err(error) => {
                        message(&format!("weir: {error}"));
                        String::new()
                    }
                }
            }
            Format::Json => match serde_json::to_string_pretty(&report) {
                Ok(text) => text + "\n",
                Err(error) => return super::fail(EX_USAGE, &error.to_string()),
            },
            Format::Github => report.commands() + &report.summary(),
        };
        answer(&text);
        if report.ok { ExitCode::SUCCESS } else { ExitCode::from(EX_USAGE) }
    }

    fn problems<'l>(&self, loaded: &'l Result<RuleSet, LoadError>) -> &'l [Problem] {
        loaded.as_ref().map_or_else(LoadError::problems, RuleSet::warnings)
    }

    fn report<'r>(
        &self,
        path: &'r str,
        loaded: &'r Result<RuleSet, LoadError>,
        reason: &'r str,
    ) -> Report<'r> {
        let problems = self.problems(loaded);
        let warnings = problems.iter().filter(|problem| problem.severity == Severity::Warning).count();
        let set = loaded.as_ref().ok();
        let mut problems: Vec<_> = problems.iter().map(ProblemReport::new).collect();
        if matches!(loaded, Err(LoadError::Nothing { .. })) {
            let reason = reason.strip_prefix(path).map_or(reason, |reason| reason.trim_start_matches(": "));
            problems.push(ProblemReport {
                severity: "error",
                file: path,
                place: None,
                path: "",
                message: reason,
            });
        }
        let domain = |(name, domain): (&'r str, &'r rules::Domain)| DomainReport {
            name,
            limits: domain.len(),
            redis: domain.redis(),
        };
        Report {
            ok: set.is_some() && !(self.deny_warnings && warnings > 0),
            stores_are_known: self.stores.are_known(),
            path: path.to_owned(),
            hash: set.and_then(RuleSet::hash).map(|hash| hash.to_string()),
            files: set.map(RuleSet::files),
            domains: set.into_iter().flat_map(RuleSet::domains).map(domain).collect(),
            errors: problems.len() - warnings,
            warnings,
            problems,
        }
    }
}

impl Report<'_> {
    /// What there is, and how it went, for people.
    fn summary(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        if let Some(files) = self.files {
            _ = writeln!(text, "{}: {}", self.path, plural(files, "file"));
        }
        if let Some(hash) = &self.hash {
            _ = writeln!(text, "  hash {hash}");
        }
        for DomainReport { name, limits, redis } in &self.domains {
            _ = write!(text, "  domain {name}: {}", plural(*limits, "limit"));
            _ = match redis {
                None => writeln!(text),
                Some(redis) if self.stores_are_known => writeln!(text, ", in the Redis `{redis}`"),
                Some(redis) => writeln!(
                    text,
                    ", in the Redis `{redis}`, if the server has one of that name (--redis-store {redis} says so here)"
                ),
            };
        }
        let warnings = plural(self.warnings, "warning");
        _ = match (self.ok, self.errors, self.warnings) {
            (true, _, 0) => writeln!(text, "ok"),
            (true, _, _) => writeln!(text, "ok, with {warnings}"),
            (false, 0, _) => writeln!(text, "not ok: {warnings}, and --deny-warnings"),
            (false, errors, 0) => writeln!(text, "not ok: {}", plural(errors, "error")),
            (false, errors, _) => writeln!(text, "not ok: {}, {warnings}", plural(errors, "error")),
        };
        text
    }

    /// A line for each problem, as GitHub's runner takes it:
    /// <https://docs.github.com/en/actions/reference/workflow-commands-for-github-actions>.
    fn commands(&self) -> String {
        let mut text = String::new();
        for problem in &self.problems {
            _ = write!(text, "::{} file={}", problem.severity, escape(&from_here(problem.file), &[':', ',']));
            if let Some(PlaceReport { line, column }) = problem.place {
                _ = write!(text, ",line={line},col={column}");
            }
            let colon = if problem.path.is_empty() { "" } else { ": " };
            let said = format!("{}{colon}{}", problem.path, problem.message);
            _ = writeln!(text, ",title=weir check::{}", escape(&said, &[]));
        }
        text
    }
}

impl<'r> ProblemReport<'r> {
    fn new(problem: &'r Problem) -> Self {
        Self {
            severity: match problem.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            },
            file: &problem.file,
            place: Some(PlaceReport { line: problem.place.line, column: problem.place.column }),
            path: &problem.path,
            message: &problem.message,
        }
    }
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// The file as GitHub knows it: from the directory that the step runs in.
fn from_here(file: &str) -> String {
    let path = Path::new(file.strip_prefix("./").unwrap_or(file));
    let here = std::env::current_dir().ok();
    let path = here.and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path);
    path.display().to_string()
}

/// Writes the characters that would end a command, or one of its parts, as `%` and two hex digits.
fn escape(text: &str, more: &[char]) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if matches!(c, '%' | '\r' | '\n') || more.contains(&c) {
            _ = write!(escaped, "%{:02X}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_a_command_is_escaped() {
        assert_eq!(escape("a: b, 50%\r\n", &[]), "a: b, 50%25%0D%0A");
        assert_eq!(escape("a: b, 50%", &[':', ',']), "a%3A b%2C 50%25");
    }

    #[test]
    fn files_are_named_from_here() {
        let here = std::env::current_dir().unwrap();
        for (file, named) in [
            ("config/api.yaml", "config/api.yaml"),
            ("./config/api.yaml", "config/api.yaml"),
            ("../api.yaml", "../api.yaml"),
            (here.join("a.yaml").to_str().unwrap(), "a.yaml"),
            ("/elsewhere/a.yaml", "/elsewhere/a.yaml"),
        ] {
            assert_eq!(from_here(file), named);
        }
    }
}
