//! What is certain of the values that a regular expression matches, without trying any.

use regex_syntax::ParserBuilder;
use regex_syntax::hir::Hir;
use regex_syntax::hir::literal::{ExtractKind, Extractor, Literal, Seq};

/// Reads a regular expression that works on bytes.
pub(super) fn parse(text: &str) -> Result<Hir, Box<regex_syntax::Error>> {
    ParserBuilder::new().unicode(false).utf8(false).build().parse(text).map_err(Box::new)
}

/// The values that a regular expression may match. It matches no others, and of these perhaps not all: anchors and word
/// boundaries are left out of account.
#[derive(Debug)]
pub(super) struct Language {
    /// The shortest has so many bytes; none if it matches nothing.
    shortest: Option<usize>,
    /// What they begin with, and what they end in.
    beginnings: Seq,
    ends: Seq,
}

impl Language {
    /// Of a text that is a regular expression.
    pub(super) fn of(text: &str) -> Option<Self> {
        let hir = parse(text).ok()?;
        let literals = |kind| Extractor::new().kind(kind).extract(&hir);
        Some(Self {
            shortest: hir.properties().minimum_len(),
            beginnings: literals(ExtractKind::Prefix),
            ends: literals(ExtractKind::Suffix),
        })
    }

    /// All values, if they are few.
    pub(super) fn values(&self) -> Option<Vec<Vec<u8>>> {
        let literals = self.beginnings.literals()?;
        let all = literals.iter().map(|literal| literal.is_exact().then(|| literal.as_bytes().to_vec()));
        all.collect()
    }

    /// Whether each value has these ends, which do not overlap in it.
    pub(super) fn has_ends(&self, prefix: &[u8], suffix: &[u8]) -> bool {
        let all = |literals: &Seq, is_so: &dyn Fn(&[u8]) -> bool| {
            literals.literals().is_some_and(|all| all.iter().map(Literal::as_bytes).all(is_so))
        };
        self.shortest.is_some_and(|shortest| shortest >= prefix.len() + suffix.len())
            && (prefix.is_empty() || all(&self.beginnings, &|text| text.starts_with(prefix)))
            && (suffix.is_empty() || all(&self.ends, &|text| text.ends_with(suffix)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Language {
        Language::of(text).unwrap()
    }

    #[test]
    fn few_values_are_listed_and_more_are_not() {
        let values = |text: &str| {
            let values = of(text).values()?;
            Some(values.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect::<Vec<_>>())
        };
        assert_eq!(values("get|post"), Some(vec!["get".into(), "post".into()]));
        assert_eq!(values("^a[bc]$"), Some(vec!["ab".into(), "ac".into()]));
        assert_eq!(values("v1?"), Some(vec!["v1".into(), "v".into()]));
        assert_eq!(values("v[0-9]*"), None);
        assert_eq!(values(".*"), None);
    }

    #[test]
    fn ends_are_told_of_what_has_them_for_certain() {
        for (text, prefix, suffix, has) in [
            ("/login/.*", "/login", "", true),
            ("/(login|logout)", "/log", "", true),
            ("/(login|health)", "/log", "", false),
            (".*[.](png|jpg)", "", "g", true),
            (".*[.](png|jpg)", "", ".png", false),
            ("a.*z", "a", "z", true),
            // `a` does not match `a*a`.
            ("a|ab*a", "a", "a", false),
            ("(?i)/login", "/l", "", false),
            (".*", "", "", true),
            ("[a&&b]", "x", "", false),
        ] {
            assert_eq!(of(text).has_ends(prefix.as_bytes(), suffix.as_bytes()), has, "{text}");
        }
    }
}
