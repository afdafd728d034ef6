//! The protocol as proto3 JSON, by its published descriptors.

use std::sync::LazyLock;

use http::StatusCode;
use http::header::{HeaderValue, RETRY_AFTER};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::Deserializer;
use tonic::{Code as Grpc, Status};

use super::{Answer, JSON, error, respond};
use crate::proto::{Code, DESCRIPTOR_SET, RateLimitRequest, RateLimitResponse};

/// What describes a request and a response; nothing, if they are not described, which a test rules out.
static DESCRIBED: LazyLock<Option<(MessageDescriptor, MessageDescriptor)>> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(DESCRIPTOR_SET).ok()?;
    let message = |name: &str| pool.get_message_by_name(&format!("envoy.service.ratelimit.v3.{name}"));
    Some((message("RateLimitRequest")?, message("RateLimitResponse")?))
});

const UNDESCRIBED: &str = "the protocol is not described";

/// Reads a request. What is unknown is an error: a field that is misspelt would be a limit that does not apply.
pub(super) fn request(body: &[u8]) -> Result<RateLimitRequest, String> {
    let (descriptor, _) = DESCRIBED.as_ref().ok_or(UNDESCRIBED)?;
    let mut reader = Deserializer::from_slice(body);
    let wrong = |error: serde_json::Error| format!("the body is no RateLimitRequest as JSON: {error}");
    let message = DynamicMessage::deserialize(descriptor.clone(), &mut reader).map_err(wrong)?;
    reader.end().map_err(wrong)?;
    RateLimitRequest::decode(message.encode_to_vec().as_slice()).map_err(|error| error.to_string())
}

/// Writes a response: 200 or 429, and an error as the HTTP status that comes nearest.
pub(super) fn answer(decided: Result<RateLimitResponse, Status>) -> Answer {
    let response = match decided {
        Ok(response) => response,
        Err(status) => {
            let code = match status.code() {
                Grpc::InvalidArgument => StatusCode::BAD_REQUEST,
                Grpc::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            return error(code, status.message());
        }
    };
    let json = match write(&response) {
        Ok(json) => json,
        Err(unexpected) => return error(StatusCode::INTERNAL_SERVER_ERROR, &unexpected),
    };
    let status = match response.overall_code() {
        Code::OverLimit => StatusCode::TOO_MANY_REQUESTS,
        Code::Ok | Code::Unknown => StatusCode::OK,
    };
    let mut answer = respond(status, JSON, json);
    // The one header that HTTP clients heed themselves.
    let retry = response.response_headers_to_add.iter().find(|header| header.key == RETRY_AFTER.as_str());
    if let Some(Ok(seconds)) = retry.map(|header| HeaderValue::from_str(&header.value)) {
        answer.headers_mut().insert(RETRY_AFTER, seconds);
    }
    answer
}

fn write(response: &RateLimitResponse) -> Result<Vec<u8>, String> {
    let (_, descriptor) = DESCRIBED.as_ref().ok_or(UNDESCRIBED)?;
    let encoded = response.encode_to_vec();
    let message =
        DynamicMessage::decode(descriptor.clone(), encoded.as_slice()).map_err(|error| error.to_string())?;
    let mut json = serde_json::to_vec(&message).map_err(|error| error.to_string())?;
    json.push(b'\n');
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_by_either_name_of_a_field_and_nothing_unknown_is_passed_over() {
        for body in [
            r#"{"domain":"api","descriptors":[{"entries":[{"key":"a","value":"ü"}],"hitsAddend":"3"}]}"#,
            r#"{"domain":"api","descriptors":[{"entries":[{"key":"a","value":"ü"}],"hits_addend":3}]}"#,
        ] {
            let request = request(body.as_bytes()).unwrap();
            let [descriptor] = &request.descriptors[..] else { panic!("{request:?}") };
            assert_eq!((request.domain.as_str(), descriptor.hits_addend), ("api", Some(3)));
            assert_eq!(descriptor.entries[0].value, "ü".as_bytes());
        }
        for (body, said) in [
            ("", "EOF while parsing"),
            ("[]", "invalid"),
            ("{", "EOF while parsing"),
            ("{} {}", "trailing characters"),
            (r#"{"domian":"api"}"#, "domian"),
            (r#"{"descriptors":[{"entries":[{"key":7}]}]}"#, "line 1 column"),
            ("{\"domain\":\"\u{0}\"}", "control character"),
            (r#"{"domain":"api","hitsAddend":-1}"#, "line 1 column"),
        ] {
            let error = request(body.as_bytes()).unwrap_err();
            assert!(error.contains(said), "{body}: {error}");
        }
        assert!(request(b"{\"domain\":\"\xff\"}").is_err());
        assert!(request(&[b'['; 100_000]).is_err(), "however deep it is");
    }
}
