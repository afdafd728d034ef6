//! What is wrong with rule files, and where: `config/api.yaml:14:9 descriptors[2].rate_limit.unit: unknown unit …`.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

/// One thing that is wrong with a rule file, or odd.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file, as it was named.
    pub file: Arc<str>,
    /// Where in the file.
    pub place: Place,
    /// Which part of it, such as `descriptors[2].rate_limit.unit`; empty for the file as a whole.
    pub path: String,
    /// Whether it keeps the rules from being used.
    pub severity: Severity,
    /// What is wrong, and the way out.
    pub message: String,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The rules cannot be used.
    Error,
    /// They can, and may not mean what was meant.
    Warning,
}

/// A place in a file. Lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl Place {
    /// Where a file begins.
    pub const START: Self = Self { line: 1, column: 1 };

    /// From a parser's line, which counts from 1, and column, which counts from 0.
    pub(super) fn new(line: usize, column: usize) -> Self {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Self { line: number(line).max(1), column: number(column).saturating_add(1) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.place)?;
        if !self.path.is_empty() {
            write!(f, " {}", self.path)?;
        }
        write!(f, ": ")?;
        if self.severity == Severity::Warning {
            write!(f, "warning: ")?;
        }
        f.write_str(&self.message)
    }
}

/// The way from a file's top to one of its parts. Lives on the stack of whoever walks; written out only for a problem.
#[derive(Clone, Copy)]
pub(super) enum Path<'p> {
    Root,
    Key(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, key) => f.write_str(&shorten(key)),
            Self::Key(parent, key) => write!(f, "{parent}.{}", shorten(key)),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Collects the problems of one file.
pub(super) struct Problems {
    file: Arc<str>,
    found: RefCell<Vec<Problem>>,
}

impl Problems {
    pub(super) fn new(file: Arc<str>) -> Self {
        Self { file, found: RefCell::default() }
    }

    pub(super) fn file(&self) -> &Arc<str> {
        &self.file
    }

    pub(super) fn error(&self, place: Place, path: &Path<'_>, message: impl Into<String>) {
        self.add(Severity::Error, place, path, message.into());
    }

    pub(super) fn warning(&self, place: Place, path: &Path<'_>, message: impl Into<String>) {
        self.add(Severity::Warning, place, path, message.into());
    }

    /// All that were found, in the order of the file.
    pub(super) fn into_found(self) -> Vec<Problem> {
        let mut found = self.found.into_inner();
        found.sort();
        // An aliased part is read once for each alias, and is wrong once.
        found.dedup_by(|a, b| a.place == b.place && a.message == b.message);
        found
    }

    fn add(&self, severity: Severity, place: Place, path: &Path<'_>, message: String) {
        let problem =
            Problem { file: Arc::clone(&self.file), place, path: path.to_string(), severity, message };
        self.found.borrow_mut().push(problem);
    }
}

/// What is longer is no misspelt word.
pub(super) const LONGEST_WORD: usize = 64;

/// So much of a text as a message can bear, in printable characters.
pub(super) fn shorten(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut short: String = text
        .chars()
        .take(LONGEST)
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    short
}
