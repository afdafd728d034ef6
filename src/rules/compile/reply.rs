//! From what is written about bodies and headers to what a client gets.

use std::sync::Arc;

use super::Scope;
use crate::rules::file::{Body, HeaderChoice};
use crate::rules::problem::{Path, Place};
use crate::rules::reply::{Denial, Headers};
use crate::rules::yaml::Field;

impl Scope<'_> {
    /// What a client who is denied gets, if anything is said about it.
    pub(super) fn denial(
        &self,
        message: &Field<String>,
        body: &Field<Body>,
        path: &Path<'_>,
    ) -> Option<Arc<Denial>> {
        if let (Field::Given(..), Field::Given(place, _)) = (message, body) {
            let text = "`message` beside it is short for a `body` of plain text: write one of them";
            self.problems.error(*place, &Path::Key(path, "body"), text);
        }
        if let Some(message) = message.get() {
            let content_type = "text/plain; charset=utf-8".into();
            return Some(Arc::new(Denial { content_type, body: message.as_bytes().into() }));
        }
        let Field::Given(place, body) = body else { return None };
        let path = &Path::Key(path, "body");
        for (field, key, message) in [
            (&body.text, "text", "missing: say what the client gets"),
            (&body.content_type, "content_type", "missing: say what it is, such as application/json"),
        ] {
            if field.is_absent() {
                self.problems.error(*place, &Path::Key(path, key), message);
            }
        }
        if let Field::Given(place, content_type) = &body.content_type
            && (content_type.is_empty() || !content_type.bytes().all(|byte| (b' '..=b'~').contains(&byte)))
        {
            let message = "a content type is printable ASCII, such as application/json";
            self.problems.error(*place, &Path::Key(path, "content_type"), message);
        }
        let (content_type, text) = (body.content_type.get()?, body.text.get()?);
        Some(Arc::new(Denial { content_type: content_type.as_str().into(), body: text.as_bytes().into() }))
    }

    /// The headers that a domain chooses.
    pub(super) fn headers(&self, place: Place, choice: &HeaderChoice) -> Headers {
        let path = &Path::Key(&Path::Root, "headers");
        let mut headers = Headers::default();
        match &choice.style {
            Field::Given(_, style) => headers = Headers::of(*style),
            Field::Absent => {
                let message = "missing: write none, draft, ratelimit or x-ratelimit";
                self.problems.error(place, &Path::Key(path, "style"), message);
                return headers;
            }
            Field::Broken => return headers,
        }
        for (key, field) in choice.names() {
            let Field::Given(place, name) = field else { continue };
            if let Err(message) = headers.rename(key, name) {
                self.problems.error(*place, &Path::Key(path, key), message);
            }
        }
        headers
    }
}
