//! Which values a descriptor is about.

use regex::bytes::Regex;

use super::Scope;
use crate::rules::file::{Descriptor, OneOrMany};
use crate::rules::problem::{Path, Place, shorten};
use crate::rules::rule::Source;
use crate::rules::tree::{self, Choices, MAX_REGEXES, Node, Range};
use crate::rules::yaml::Field;

/// The values that a rule matches.
pub(super) enum Matcher<'f> {
    /// Any.
    Bare,
    Exact(&'f str),
    Wildcard(&'f str),
    Listed(Vec<&'f str>),
    Ranges(Vec<Range>),
    Regex(&'f str, Box<Regex>),
    /// None: what is wrong has been noted.
    Broken,
}

/// What tells the ways to match apart in a rule's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Bare = 2,
    Value = 3,
    Listed = 5,
    Ranges = 6,
    Regex = 7,
}

impl Matcher<'_> {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Bare | Self::Broken => Kind::Bare,
            Self::Exact(_) | Self::Wildcard(_) => Kind::Value,
            Self::Listed(_) => Kind::Listed,
            Self::Ranges(_) => Kind::Ranges,
            Self::Regex(..) => Kind::Regex,
        }
    }

    /// The values as rules are told apart by them; a list by its first one, so that more may be added behind it.
    pub(super) fn id(&self) -> String {
        match self {
            Self::Bare | Self::Broken => String::new(),
            Self::Exact(text) | Self::Wildcard(text) | Self::Regex(text, _) => (*text).to_owned(),
            Self::Listed(values) => values.first().map(|value| (*value).to_owned()).unwrap_or_default(),
            Self::Ranges(ranges) => ranges.first().map(Range::to_string).unwrap_or_default(),
        }
    }

    /// The values as a rule's name to people shows them.
    pub(super) fn label(&self) -> Option<String> {
        let list = |first: String, count: usize| if count > 1 { format!("[{first},…]") } else { first };
        match self {
            Self::Bare | Self::Broken => None,
            Self::Exact(value) | Self::Wildcard(value) => Some((*value).to_owned()),
            Self::Listed(values) => Some(list((*values.first()?).to_owned(), values.len())),
            Self::Ranges(ranges) => Some(list(ranges.first()?.to_string(), ranges.len())),
            Self::Regex(text, _) => Some(format!("/{text}/")),
        }
    }

    /// What stands in for a value where all that match share one bucket, if more than one can match.
    ///
    /// A list is known by its first value: that is in no other list of the key, and more may be added behind it without
    /// beginning a new bucket. Only a wildcard has a `*`, so none of the others reads like one.
    pub(super) fn stand_in(&self) -> Option<String> {
        let escape = |text: &str| text.replace('%', "%25").replace('*', "%2A");
        match self {
            Self::Bare | Self::Exact(_) | Self::Broken => None,
            Self::Wildcard(pattern) => Some((*pattern).to_owned()),
            Self::Listed(values) => Some(format!("values:{}", escape(values.first()?))),
            Self::Ranges(ranges) => Some(format!("cidr:{}", ranges.first()?)),
            Self::Regex(text, _) => Some(format!("regex:{}", escape(text))),
        }
    }

    /// Puts a rule among those of its key. Says what else is there already, and where.
    pub(super) fn insert(self, key: &str, choices: &mut Choices, node: Node) -> Result<(), (String, Source)> {
        let with_value = |value: &str| format!("key `{key}` with value `{value}`");
        match self {
            Self::Bare => match &choices.bare {
                Some(twin) => return Err((format!("key `{key}`"), twin.source.clone())),
                None => choices.bare = Some(node),
            },
            Self::Exact(value) => match choices.exact.entry(value.as_bytes().into()) {
                hashbrown::hash_map::Entry::Occupied(twin) => {
                    return Err((with_value(value), twin.get().source.clone()));
                }
                hashbrown::hash_map::Entry::Vacant(slot) => _ = slot.insert(node),
            },
            Self::Wildcard(pattern) => {
                choices.patterns.insert(pattern, node).map_err(|twin| (with_value(pattern), twin))?;
            }
            Self::Listed(values) => {
                choices.lists.insert(&values, node).map_err(|(value, twin)| (with_value(value), twin))?;
            }
            Self::Ranges(ranges) => {
                let inserted = choices.ranges.insert(&ranges, node);
                inserted.map_err(|(range, twin)| (format!("key `{key}` with range `{range}`"), twin))?;
            }
            Self::Regex(text, regex) => {
                let inserted = choices.patterns.insert_regex(text, *regex, node);
                inserted.map_err(|twin| (format!("key `{key}` with regex `{text}`"), twin))?;
            }
            Self::Broken => {}
        }
        Ok(())
    }
}

impl<'f> Scope<'f> {
    /// The values that a descriptor is about.
    pub(super) fn matcher(&self, descriptor: &'f Descriptor, path: &Path<'_>) -> Matcher<'f> {
        let given = [
            ("value", descriptor.value.place()),
            ("values", descriptor.values.place()),
            ("cidr", descriptor.cidr.place()),
            ("regex", descriptor.regex.place()),
        ];
        let mut given = given.into_iter().filter_map(|(key, place)| Some((key, place?)));
        if let (Some((first, _)), Some((second, place))) = (given.next(), given.next()) {
            let message = format!(
                "there is `{first}` beside it: a descriptor says in one way which values it is about"
            );
            self.problems.error(place, &Path::Key(path, second), message);
            return Matcher::Broken;
        }
        let is_broken = |key: bool| if key { Matcher::Broken } else { Matcher::Bare };
        match (&descriptor.values, &descriptor.cidr, &descriptor.regex) {
            (Field::Given(place, values), ..) => self.listed(*place, values, &Path::Key(path, "values")),
            (_, Field::Given(place, ranges), _) => self.ranges(*place, ranges, &Path::Key(path, "cidr")),
            (.., Field::Given(place, text)) => match tree::regex(text) {
                Ok(regex) => Matcher::Regex(text, Box::new(regex)),
                Err(error) => {
                    let message = format!("`{}` is no regular expression: {error}", shorten(text));
                    self.problems.error(*place, &Path::Key(path, "regex"), message);
                    Matcher::Broken
                }
            },
            (Field::Broken, ..) | (_, Field::Broken, _) | (.., Field::Broken) => Matcher::Broken,
            (Field::Absent, Field::Absent, Field::Absent) => match descriptor.value.get().map(String::as_str)
            {
                None | Some("") => is_broken(matches!(descriptor.value, Field::Broken)),
                Some(value) if value.contains('*') => Matcher::Wildcard(value),
                Some(value) => Matcher::Exact(value),
            },
        }
    }

    fn listed(&self, place: Place, values: &'f [Field<String>], path: &Path<'_>) -> Matcher<'f> {
        let mut listed = Vec::with_capacity(values.len());
        let mut is_broken = false;
        for (index, value) in values.iter().enumerate() {
            match value {
                Field::Given(place, value) if value.contains('*') => {
                    let message = "a list has no wildcards: a rule with a `value` of its own may have one";
                    self.problems.error(*place, &Path::Index(path, index), message);
                    is_broken = true;
                }
                Field::Given(_, value) => listed.push(value.as_str()),
                Field::Absent | Field::Broken => is_broken = true,
            }
        }
        if values.is_empty() {
            self.problems.error(
                place,
                path,
                "the list is empty, so it matches nothing: write a value into it",
            );
        }
        if is_broken || listed.is_empty() { Matcher::Broken } else { Matcher::Listed(listed) }
    }

    fn ranges(&self, place: Place, ranges: &OneOrMany, path: &Path<'_>) -> Matcher<'f> {
        let mut parsed = Vec::new();
        let mut is_broken = false;
        let mut add = |place: Place, path: &Path<'_>, text: &str| match text.parse::<Range>() {
            Ok(range) => parsed.push(range),
            Err(error) => {
                self.problems.error(place, path, format!("`{}` {error}", shorten(text)));
                is_broken = true;
            }
        };
        match ranges {
            OneOrMany::One(text) => add(place, path, text),
            OneOrMany::Many(list) => {
                if list.is_empty() {
                    let message = "the list is empty, so it matches nothing: write a range into it";
                    self.problems.error(place, path, message);
                }
                for (index, item) in list.iter().enumerate() {
                    if let Field::Given(place, text) = item {
                        add(*place, &Path::Index(path, index), text);
                    }
                }
                is_broken |= list.iter().any(|item| !matches!(item, Field::Given(..)));
            }
        }
        if is_broken || parsed.is_empty() { Matcher::Broken } else { Matcher::Ranges(parsed) }
    }

    /// Refuses more regular expressions than a lookup is to try.
    pub(super) fn count_regexes(&self, choices: &Choices, place: Place, path: &Path<'_>, key: &str) {
        if choices.patterns.regexes() == MAX_REGEXES {
            let message = format!(
                "key `{key}` has {MAX_REGEXES} regular expressions on this level, and each is tried on every value: \
                 use `values`, `cidr` or wildcards, or put several into one"
            );
            self.problems.error(place, &Path::Key(path, "regex"), message);
        }
    }
}
