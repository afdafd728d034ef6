//! Descriptors as they are written on a command line: `key=value,key=value`.

use std::fmt;
use std::str::FromStr;

use crate::rules::{Entry, text};

/// A descriptor, read from an argument. `\,` `\=` and `\\` are those characters, `\xff` is any byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DescriptorArg {
    pub(super) entries: Vec<(Vec<u8>, Vec<u8>)>,
}

impl DescriptorArg {
    pub(super) fn entries(&self) -> Vec<Entry<'_>> {
        self.entries.iter().map(|(key, value)| Entry { key, value }).collect()
    }
}

/// A descriptor that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadDescriptor {
    #[error("`{0}` has no `=`; write key=value, and a comma between entries")]
    NoValue(String),
    #[error("an entry has no key; write key=value")]
    NoKey,
    #[error("`\\{0}` means nothing; there is `\\,` `\\=` `\\\\` and `\\xff`")]
    Escape(String),
}

impl FromStr for DescriptorArg {
    type Err = BadDescriptor;

    fn from_str(text: &str) -> Result<Self, BadDescriptor> {
        let mut entries = Vec::new();
        let (mut key, mut value) = (Vec::new(), None);
        let mut chars = text.chars();
        loop {
            let bytes = &mut [0; 4];
            let part: &[u8] = match chars.next() {
                Some('\\') => &[escaped(&mut chars)?],
                Some('=') if value.is_none() => {
                    value = Some(Vec::new());
                    continue;
                }
                Some(other) if other != ',' => other.encode_utf8(bytes).as_bytes(),
                end => {
                    let key = std::mem::take(&mut key);
                    let Some(value) = value.take() else {
                        return Err(BadDescriptor::NoValue(String::from_utf8_lossy(&key).into()));
                    };
                    if key.is_empty() {
                        return Err(BadDescriptor::NoKey);
                    }
                    entries.push((key, value));
                    match end {
                        None => return Ok(Self { entries }),
                        Some(_) => continue,
                    }
                }
            };
            value.as_mut().unwrap_or(&mut key).extend_from_slice(part);
        }
    }
}

fn escaped(chars: &mut std::str::Chars<'_>) -> Result<u8, BadDescriptor> {
    match chars.next() {
        Some(',') => Ok(b','),
        Some('=') => Ok(b'='),
        Some('\\') => Ok(b'\\'),
        Some('x') => {
            let digits: String = chars.take(2).collect();
            let byte = if digits.len() == 2 { u8::from_str_radix(&digits, 16).ok() } else { None };
            byte.ok_or(BadDescriptor::Escape(format!("x{digits}")))
        }
        other => Err(BadDescriptor::Escape(other.map(String::from).unwrap_or_default())),
    }
}

impl fmt::Display for DescriptorArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.entries.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{}={}", text(key), text(value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<(String, Vec<u8>)>, BadDescriptor> {
        let entries = text.parse::<DescriptorArg>()?.entries;
        Ok(entries.into_iter().map(|(key, value)| (String::from_utf8(key).unwrap(), value)).collect())
    }

    #[test]
    fn entries_are_parted_by_commas_and_may_hold_any_byte() {
        let pair = |key: &str, value: &[u8]| (key.to_owned(), value.to_vec());
        assert_eq!(parse("a=b").unwrap(), [pair("a", b"b")]);
        assert_eq!(parse("a=b,c=").unwrap(), [pair("a", b"b"), pair("c", b"")]);
        assert_eq!(parse("path=/x?y=z").unwrap(), [pair("path", b"/x?y=z")]);
        assert_eq!(
            parse(r"a\=b=c\,d\\\xff,ü=é").unwrap(),
            [pair("a=b", b"c,d\\\xff"), pair("ü", "é".as_bytes())]
        );
    }

    #[test]
    fn what_cannot_be_printed_is_shown_as_it_is_typed() {
        let descriptor =
            DescriptorArg { entries: vec![(b"a\x1b".to_vec(), "é\u{9b}".bytes().chain([0xff]).collect())] };
        assert_eq!(descriptor.to_string(), r"a\x1b=é\xc2\x9b\xff");
    }

    #[test]
    fn what_is_no_descriptor_is_refused() {
        assert_eq!(parse("a"), Err(BadDescriptor::NoValue("a".into())));
        assert_eq!(parse("a=b,"), Err(BadDescriptor::NoValue(String::new())));
        assert_eq!(parse("=b"), Err(BadDescriptor::NoKey));
        assert_eq!(parse(r"a=\n"), Err(BadDescriptor::Escape("n".into())));
        assert_eq!(parse(r"a=\xg0"), Err(BadDescriptor::Escape("xg0".into())));
        assert_eq!(parse(r"a=\"), Err(BadDescriptor::Escape(String::new())));
    }
}
