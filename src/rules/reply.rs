//! What a client is told besides yes or no: the body of a denial, and headers.

use std::str::FromStr;

/// The body of a denial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// As a header may say it.
    pub content_type: Box<str>,
    /// What the client gets.
    pub body: Box<[u8]>,
}

/// Headers about limits, and what they are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Which.
    pub style: HeaderStyle,
    /// Names that are not the style's own.
    names: Vec<(Header, Box<str>)>,
}

/// Which headers tell of limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderStyle {
    /// None but `retry-after`.
    #[default]
    None,
    /// `ratelimit` and `ratelimit-policy` of all limits, as in draft-ietf-httpapi-ratelimit-headers-10.
    Draft,
    /// `ratelimit-limit`, `-remaining` and `-reset` of the tightest limit, as in that draft up to its version 06.
    RateLimit,
    /// The same with `x-` before them.
    XRateLimit,
}

/// A header that can be renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// What is left of each limit.
    State,
    /// What each limit is.
    Policy,
    /// What the tightest limit is.
    Limit,
    /// What is left of it.
    Remaining,
    /// When it is full, or a denied request would fit.
    Reset,
    /// When a denied request would be admitted.
    RetryAfter,
    /// That a limit's `warn_at` is reached.
    Warning,
}

pub(super) const STYLES: [(&str, HeaderStyle); 4] = [
    ("none", HeaderStyle::None),
    ("draft", HeaderStyle::Draft),
    ("ratelimit", HeaderStyle::RateLimit),
    ("x-ratelimit", HeaderStyle::XRateLimit),
];

/// What headers are called in files and settings.
const HEADERS: [(&str, Header); 7] = [
    ("ratelimit", Header::State),
    ("policy", Header::Policy),
    ("limit", Header::Limit),
    ("remaining", Header::Remaining),
    ("reset", Header::Reset),
    ("retry_after", Header::RetryAfter),
    ("warning", Header::Warning),
];

impl FromStr for HeaderStyle {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let style = STYLES.iter().find(|(name, _)| *name == text);
        let unknown = || format!("unknown style `{text}`: write none, draft, ratelimit or x-ratelimit");
        style.map(|(_, style)| *style).ok_or_else(unknown)
    }
}

impl HeaderStyle {
    /// The headers of this style.
    fn headers(self) -> &'static [Header] {
        use Header::{Limit, Policy, Remaining, Reset, RetryAfter, State, Warning};
        match self {
            Self::None => &[RetryAfter, Warning],
            Self::Draft => &[State, Policy, RetryAfter, Warning],
            Self::RateLimit | Self::XRateLimit => &[Limit, Remaining, Reset, RetryAfter, Warning],
        }
    }
}

impl Headers {
    /// Headers of a style by their usual names.
    #[must_use]
    pub fn of(style: HeaderStyle) -> Self {
        Self { style, names: Vec::new() }
    }

    /// Calls one of them otherwise.
    ///
    /// # Errors
    /// When the style has no such header, or the name is none that HTTP allows.
    pub fn rename(&mut self, header: &str, name: &str) -> Result<(), String> {
        let known = HEADERS.iter().filter(|(_, header)| self.style.headers().contains(header));
        let Some((_, header)) = known.clone().find(|(known, _)| *known == header) else {
            let known = known.map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            return Err(format!("there is no header `{header}` in this style; there is {known}"));
        };
        // RFC 9110, section 5.1. Of what HTTP/2 does not allow, capitals are made small.
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || name.len() > 256 || !name.bytes().all(is_token) {
            return Err("a header's name is made of letters, digits and `-`".into());
        }
        self.names.push((*header, name.to_ascii_lowercase().into()));
        Ok(())
    }

    /// What a header is called.
    #[must_use]
    pub fn name(&self, header: Header) -> &str {
        let x = self.style == HeaderStyle::XRateLimit;
        let own = self.names.iter().rev().find(|(other, _)| *other == header);
        own.map_or_else(
            || match header {
                Header::State => "ratelimit",
                Header::Policy => "ratelimit-policy",
                Header::Limit if x => "x-ratelimit-limit",
                Header::Limit => "ratelimit-limit",
                Header::Remaining if x => "x-ratelimit-remaining",
                Header::Remaining => "ratelimit-remaining",
                Header::Reset if x => "x-ratelimit-reset",
                Header::Reset => "ratelimit-reset",
                Header::RetryAfter => "retry-after",
                Header::Warning => "x-ratelimit-warning",
            },
            |(_, name)| name,
        )
    }
}

/// As a setting has it: `x-ratelimit`, or `x-ratelimit,limit=X-Quota,reset=X-Quota-Reset`.
impl FromStr for Headers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let mut headers = Self::of(parts.next().unwrap_or_default().parse()?);
        for part in parts {
            let Some((header, name)) = part.split_once('=') else {
                return Err(format!("`{part}` has no `=`: write header=name after the style"));
            };
            headers.rename(header, name)?;
        }
        Ok(headers)
    }
}
