//! Wildcards and regular expressions of one key, tried in the order of the file.

use regex::bytes::{Regex, RegexBuilder};

use super::Node;
use super::language::{self, Language};
use super::wildcards::{Ends, Wildcards};
use crate::rules::rule::Source;

/// A key may have so many regular expressions: each is tried on a value that nothing before it matches.
pub(in crate::rules) const MAX_REGEXES: usize = 100;

/// What a regular expression may take, compiled, in bytes; and what each thread keeps beside it while matching.
const MAX_SIZE: usize = 1 << 18;

/// Patterns of one key.
#[derive(Debug, Default)]
pub(in crate::rules) struct Patterns {
    wildcards: Wildcards,
    regexes: Vec<Expression>,
}

/// A regular expression in its place.
#[derive(Debug)]
struct Expression {
    /// As it is written.
    text: Box<str>,
    regex: Regex,
    /// How many of the wildcards stand before it.
    after: usize,
    node: Node,
}

/// A pattern, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rules) enum Pattern<'p> {
    Wildcard(&'p [u8]),
    Regex(&'p str),
}

/// Reads a regular expression that is to match a value as a whole. It works on bytes, in time linear in the value's
/// length (<https://docs.rs/regex>), and is refused when it would become too large.
pub(in crate::rules) fn regex(text: &str) -> Result<Regex, String> {
    let build = |text: &str| {
        RegexBuilder::new(text).unicode(false).size_limit(MAX_SIZE).dfa_size_limit(MAX_SIZE).build()
    };
    // Its last line: those before show the place by itself.
    let short = |error: &dyn std::fmt::Display| {
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default();
        last.strip_prefix("error: ").unwrap_or(last).to_owned()
    };
    // By itself first: `a)|(b` is no expression, and would be one in brackets.
    language::parse(text).map_err(|error| short(&error))?;
    build(&format!(r"\A(?:{text})\z")).map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => {
            "too large when compiled: use smaller repetitions, or fewer alternatives".into()
        }
        error => short(&error),
    })
}

impl Patterns {
    /// Adds a wildcard behind what is there; or says where the same one is written.
    pub(in crate::rules) fn insert(&mut self, text: &str, node: Node) -> Result<(), Source> {
        self.wildcards.insert(text, node)
    }

    /// Adds a regular expression behind what is there; or says where the same one is written.
    pub(in crate::rules) fn insert_regex(
        &mut self,
        text: &str,
        regex: Regex,
        node: Node,
    ) -> Result<(), Source> {
        if let Some(twin) = self.regexes.iter().find(|other| *other.text == *text) {
            return Err(twin.node.source.clone());
        }
        self.regexes.push(Expression { text: text.into(), regex, after: self.wildcards.len(), node });
        Ok(())
    }

    /// How many regular expressions there are.
    pub(in crate::rules) fn regexes(&self) -> usize {
        self.regexes.len()
    }

    /// The first pattern of the file that matches.
    pub(in crate::rules) fn find(&self, value: &[u8]) -> Option<&Node> {
        let wildcard = self.wildcards.find(value);
        let place = wildcard.map_or(usize::MAX, |(place, _)| place);
        let before = self.regexes.iter().take_while(|expression| expression.after <= place);
        let mut matching = before.filter(|expression| expression.regex.is_match(value));
        matching.next().map(|expression| &expression.node).or(wildcard.map(|(_, node)| node))
    }

    /// Patterns that a wildcard before them always matches first: the pattern, its node, and the node of that one.
    ///
    /// A wildcard that matches another one's text matches all that the other one does: only a `*` can stand for a `*`.
    pub(in crate::rules) fn covered(&self) -> impl Iterator<Item = (Pattern<'_>, &Node, &Node)> {
        let wildcards = self.wildcards.iter().enumerate().filter_map(|(place, (text, node))| {
            let (first, covering) = self.wildcards.find(text)?;
            (first < place).then_some((Pattern::Wildcard(text), node, covering))
        });
        let regexes = self.regexes.iter().filter_map(|expression| {
            let language = Language::of(&expression.text)?;
            let mut before = self.wildcards.iter_with_ends().take(expression.after);
            let covering = before.find_map(|(ends, node)| {
                ends.is_some_and(|Ends(prefix, suffix)| language.has_ends(prefix, suffix)).then_some(node)
            });
            Some((Pattern::Regex(&expression.text), &expression.node, covering?))
        });
        wildcards.chain(regexes)
    }

    /// Regular expressions that match a few values only, with those.
    pub(in crate::rules) fn narrow(&self) -> impl Iterator<Item = (&str, &Node, Vec<Vec<u8>>)> {
        self.regexes.iter().filter_map(|expression| {
            let values = Language::of(&expression.text)?.values()?;
            Some((&*expression.text, &expression.node, values))
        })
    }

    /// The wildcard that matches any value, if there is one.
    pub(in crate::rules) fn any_value(&self) -> Option<&Node> {
        self.wildcards.iter_with_ends().find(|(ends, _)| *ends == Some(Ends(b"", b""))).map(|(_, node)| node)
    }

    /// Makes ready to be searched what has been inserted.
    pub(super) fn prepare(&mut self) {
        self.wildcards.prepare();
    }

    /// Patterns in the order of the file.
    pub(in crate::rules) fn iter(&self) -> impl Iterator<Item = (Pattern<'_>, &Node)> {
        let mut regexes = self.regexes.iter().peekable();
        let mut wildcards = self.wildcards.iter().enumerate().peekable();
        std::iter::from_fn(move || {
            let place = wildcards.peek().map_or(usize::MAX, |(place, _)| *place);
            if let Some(expression) = regexes.next_if(|expression| expression.after <= place) {
                return Some((Pattern::Regex(&expression.text), &expression.node));
            }
            wildcards.next().map(|(_, (text, node))| (Pattern::Wildcard(text), node))
        })
    }

    pub(super) fn nodes_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.wildcards.nodes_mut().chain(self.regexes.iter_mut().map(|expression| &mut expression.node))
    }
}
