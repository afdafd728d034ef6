//! Reads serde types from a tree: everything that is wrong is noted with its place, and reading goes on.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

use super::field::{FIELD, TEXT_OR};
use super::{Kind, Node};
use crate::rules::file::unknown_key;
use crate::rules::problem::{Path, Place, Problems};

/// Reads a `T` from a tree; `None` if it could not be made sense of, which has been noted then.
pub(in crate::rules) fn read<'n, T: Deserialize<'n>>(node: &'n Node<'_>, problems: &Problems) -> Option<T> {
    T::deserialize(Reader { node, path: &Path::Root, problems, is_item: false }).ok()
}

/// A mistake on its way up: noted already, or still a message that wants a place.
#[derive(Debug)]
enum Mistake {
    Noted,
    Message(String),
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Noted => f.write_str("noted"),
            Self::Message(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Mistake {}

impl de::Error for Mistake {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Message(message.to_string())
    }
}

/// Reads one node.
#[derive(Clone, Copy)]
struct Reader<'n, 'p, 's> {
    node: &'n Node<'s>,
    path: &'p Path<'p>,
    problems: &'p Problems,
    /// Whether it is an item of a list, where there must be something.
    is_item: bool,
}

impl Reader<'_, '_, '_> {
    fn note<T>(&self, message: impl Into<String>) -> Result<T, Mistake> {
        self.problems.error(self.node.place, self.path, message);
        Err(Mistake::Noted)
    }

    fn expected<T>(&self, what: &str) -> Result<T, Mistake> {
        self.note(format!("expected {what}, found {}", self.node.describe()))
    }

    /// Gives a message that has come up a place.
    fn place<T>(&self, result: Result<T, Mistake>) -> Result<T, Mistake> {
        match result {
            Err(Mistake::Message(message)) => self.note(message),
            result => result,
        }
    }

    /// A whole number from 0 to `max`.
    fn whole_number(&self, max: u64) -> Result<u64, Mistake> {
        let what = || format!("a whole number from 0 to {max}");
        let Kind::Scalar { text, plain } = &self.node.resolve().kind else { return self.expected(&what()) };
        if !plain {
            return self.expected(&format!("{}, without quotes", what()));
        }
        match parse_number(text) {
            Number::Whole(number) if number <= max => Ok(number),
            Number::Octal => self.note(format!(
                "`{text}` is octal to some readers of YAML and decimal to others: write it without the leading zero"
            )),
            _ => self.expected(&what()),
        }
    }
}

enum Number {
    Whole(u64),
    Octal,
    Other,
}

/// The whole numbers of YAML 1.1 and 1.2: decimal, `0x`, `0o`, `0b`, with `_` between digits.
fn parse_number(text: &str) -> Number {
    let digits = text.strip_prefix('+').unwrap_or(text).replace('_', "");
    let parsed = match digits.get(..2) {
        Some("0x") => u64::from_str_radix(digits.get(2..).unwrap_or(""), 16),
        Some("0o") => u64::from_str_radix(digits.get(2..).unwrap_or(""), 8),
        Some("0b") => u64::from_str_radix(digits.get(2..).unwrap_or(""), 2),
        Some(two) if two.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            return Number::Octal;
        }
        _ if digits.starts_with(|first: char| first.is_ascii_digit()) => digits.parse(),
        _ => return Number::Other,
    };
    parsed.map_or(Number::Other, Number::Whole)
}

/// A whole number as it may stand in a file.
pub(in crate::rules) fn parse_whole(text: &str) -> Option<u64> {
    match parse_number(text) {
        Number::Whole(number) => Some(number),
        Number::Octal | Number::Other => None,
    }
}

/// The words of YAML 1.1, which the reference's parser takes too.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => Some(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => Some(false),
        _ => None,
    }
}

impl<'n> Deserializer<'n> for Reader<'n, '_, '_> {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.node.resolve().kind {
            Kind::Scalar { text, plain } => {
                let plain_text = if *plain { Some(&**text) } else { None };
                if self.node.is_null() {
                    visitor.visit_unit()
                } else if let Some(value) = plain_text.and_then(parse_bool) {
                    visitor.visit_bool(value)
                } else if let Some(number) = plain_text.and_then(parse_float) {
                    visitor.visit_f64(number)
                } else {
                    visitor.visit_str(text)
                }
            }
            Kind::List(_) => self.deserialize_seq(visitor),
            Kind::Map { .. } | Kind::Alias(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.node.resolve().kind {
            Kind::Scalar { text, plain: true } if parse_bool(text).is_some() => {
                self.place(visitor.visit_bool(parse_bool(text).unwrap_or_default()))
            }
            Kind::Scalar { plain: false, .. } => self.expected("`true` or `false`, without quotes"),
            _ => self.expected("`true` or `false`"),
        }
    }

    fn deserialize_u32<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Mistake> {
        let number = self.whole_number(u64::from(u32::MAX))?;
        self.place(visitor.visit_u64(number))
    }

    /// Text as it is written: `123`, `1.0` and `true` are text too where text is wanted.
    fn deserialize_str<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.node.resolve().kind {
            Kind::Scalar { text, .. } => self.place(visitor.visit_str(text)),
            _ => self.expected("text"),
        }
    }

    fn deserialize_string<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_str(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'n>>(
        self,
        name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        if name != FIELD {
            return self.expected("text, a number, a list or a map");
        }
        if self.node.is_null() {
            let message = "nothing is written here, so it says nothing";
            if self.is_item {
                self.problems.error(self.node.place, self.path, message);
            } else {
                self.problems.warning(self.node.place, self.path, message);
            }
            return visitor.visit_unit();
        }
        visitor.visit_seq(Parts { reader: self, part: 0 })
    }

    fn deserialize_seq<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Mistake> {
        let Kind::List(items) = &self.node.resolve().kind else { return self.expected("a list") };
        self.place(visitor.visit_seq(Items { reader: self, items, index: 0 }))
    }

    fn deserialize_map<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Mistake> {
        let entries = self.entries(|| "a map".to_owned(), Keys::Any)?;
        self.place(visitor.visit_map(Entries { reader: self, entries, value: None }))
    }

    /// Keys that the type does not have are noted here, every one of them, and passed over.
    fn deserialize_struct<V: Visitor<'n>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        let what = || format!("a map with {}", or(fields));
        let mut entries = self.entries(what, Keys::Text)?;
        entries.retain(|(key, key_place, _)| {
            let known = fields.contains(key);
            if !known {
                self.problems.error(*key_place, &Path::Key(self.path, key), unknown_key(key, fields));
            }
            known
        });
        self.place(visitor.visit_map(Entries { reader: self, entries, value: None }))
    }

    fn deserialize_newtype_struct<V: Visitor<'n>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        match &self.node.resolve().kind {
            Kind::Scalar { text, .. } if name == TEXT_OR => self.place(visitor.visit_str(text)),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_option<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Mistake> {
        if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    forward_to_deserialize_any! {
        <V: Visitor<'n>>
        i8 i16 i32 i64 i128 u8 u16 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple enum
        identifier ignored_any
    }
}

/// `a` or `b`; of a longer list only the beginning.
fn or(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => format!("`{one}`"),
        [one, two] => format!("`{one}` or `{two}`"),
        [one, two, ..] => format!("`{one}`, `{two}`, …"),
    }
}

fn parse_float(text: &str) -> Option<f64> {
    let looks_like_one = text
        .starts_with(|first: char| first.is_ascii_digit() || matches!(first, '-' | '+' | '.'))
        && text.contains(|c: char| c.is_ascii_digit());
    let number = if looks_like_one { text.parse::<f64>().ok() } else { None };
    number.filter(|number| number.is_finite())
}

type Entry<'n, 's> = (&'n str, Place, &'n Node<'s>);

/// Which keys a map may have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// What YAML takes for text: keys of ours.
    Text,
    /// Any scalar, as it is written: keys of somebody else's.
    Any,
}

impl<'n, 's> Reader<'n, '_, 's> {
    /// The entries of a map, the last one first: its own, and those of the maps that it merges and that it has not itself.
    ///
    /// `what` says what is wanted here, in case it is no map.
    fn entries(&self, what: impl Fn() -> String, keys: Keys) -> Result<Vec<Entry<'n, 's>>, Mistake> {
        let mut found = Vec::new();
        let mut seen = BTreeMap::new();
        let mut queue = vec![self.node.resolve()];
        let mut own = true;
        while let Some(map) = queue.pop() {
            let Kind::Map { entries, merged } = &map.kind else { return self.expected(&what()) };
            for (key, value) in entries {
                let Kind::Scalar { text, .. } = &key.resolve().kind else {
                    self.problems.error(
                        key.place,
                        self.path,
                        format!("a key is text, not {}", key.describe()),
                    );
                    continue;
                };
                let quoted = matches!(&key.resolve().kind, Kind::Scalar { plain: false, .. });
                if keys == Keys::Text && !quoted && !is_plain_text(text) {
                    let message =
                        format!("a key is text, and `{text}` is not: write it in quotes if it is meant");
                    self.problems.error(key.place, self.path, message);
                    continue;
                }
                match seen.insert(&**text, key.place) {
                    None => found.push((&**text, key.place, value)),
                    Some(first) if own => {
                        let message = format!("`{text}` is written twice; the first time is at {first}");
                        self.problems.error(key.place, &Path::Key(self.path, text), message);
                    }
                    // A merged key gives way to one that stands closer.
                    Some(first) => _ = seen.insert(&**text, first),
                }
            }
            own = false;
            queue.extend(merged.iter().rev().map(|map| map.resolve()));
        }
        found.reverse();
        Ok(found)
    }
}

/// Whether a plain scalar is a string to YAML, not a number, a truth value or null.
fn is_plain_text(text: &str) -> bool {
    // Most keys begin with a letter, which no number does.
    let may_be_number = text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first));
    if may_be_number && (!matches!(parse_number(text), Number::Other) || parse_float(text).is_some()) {
        return false;
    }
    !matches!(text, "" | "~" | "null" | "Null" | "NULL") && parse_bool(text).is_none_or(|_| text.len() == 1)
}

/// Line, column and value of a field.
struct Parts<'n, 'p, 's> {
    reader: Reader<'n, 'p, 's>,
    part: u8,
}

impl<'n> SeqAccess<'n> for Parts<'n, '_, '_> {
    type Error = Mistake;

    fn next_element_seed<T: DeserializeSeed<'n>>(&mut self, seed: T) -> Result<Option<T::Value>, Mistake> {
        self.part += 1;
        match self.part {
            1 => seed.deserialize(self.reader.node.place.line.into_deserializer()).map(Some),
            2 => seed.deserialize(self.reader.node.place.column.into_deserializer()).map(Some),
            3 => self.reader.place(seed.deserialize(self.reader)).map(Some),
            _ => Ok(None),
        }
    }
}

/// The items of a list.
struct Items<'n, 'p, 's> {
    reader: Reader<'n, 'p, 's>,
    items: &'n [Node<'s>],
    index: usize,
}

impl<'n> SeqAccess<'n> for Items<'n, '_, '_> {
    type Error = Mistake;

    fn next_element_seed<T: DeserializeSeed<'n>>(&mut self, seed: T) -> Result<Option<T::Value>, Mistake> {
        let Some(node) = self.items.get(self.index) else { return Ok(None) };
        let path = Path::Index(self.reader.path, self.index);
        self.index += 1;
        let reader = Reader { node, path: &path, problems: self.reader.problems, is_item: true };
        reader.place(seed.deserialize(reader)).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len() - self.index)
    }
}

/// The entries of a map.
struct Entries<'n, 'p, 's> {
    reader: Reader<'n, 'p, 's>,
    /// Still to come, the next one last.
    entries: Vec<Entry<'n, 's>>,
    value: Option<(&'n str, &'n Node<'s>)>,
}

impl<'n> MapAccess<'n> for Entries<'n, '_, '_> {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'n>>(&mut self, seed: K) -> Result<Option<K::Value>, Mistake> {
        let Some((key, _, value)) = self.entries.pop() else { return Ok(None) };
        self.value = Some((key, value));
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'n>>(&mut self, seed: V) -> Result<V::Value, Mistake> {
        let Some((key, node)) = self.value.take() else { return self.reader.expected("a value") };
        let path = Path::Key(self.reader.path, key);
        let reader = Reader { node, path: &path, problems: self.reader.problems, is_item: false };
        reader.place(seed.deserialize(reader))
    }
}
