//! What of an answer is read: whether the request may pass. Everything else is passed over, but has to be well-formed.

use super::tally::Failure;
use crate::proto::Code;

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Ok,
    Over,
}

/// What the body of an answer says: one gRPC message, which is not compressed.
pub(super) fn verdict(body: &[u8]) -> Result<Verdict, Failure> {
    overall_code(body).ok_or(Failure::Unreadable)
}

fn overall_code(body: &[u8]) -> Option<Verdict> {
    let (frame, mut message) = body.split_first_chunk::<5>()?;
    let [compressed, length @ ..] = frame;
    if *compressed != 0 || usize::try_from(u32::from_be_bytes(*length)).ok()? != message.len() {
        return None;
    }
    let mut code = None;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match (tag >> 3, tag & 7) {
            (0, _) => return None,
            (1, 0) => code = Some(varint(&mut message)?),
            (_, 0) => _ = varint(&mut message)?,
            (_, 1) => message = message.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (_, 5) => message = message.get(4..)?,
            // Groups are of protobuf's past.
            _ => return None,
        }
    }
    match Code::try_from(i32::try_from(code?).ok()?).ok()? {
        Code::Ok => Some(Verdict::Ok),
        Code::OverLimit => Some(Verdict::Over),
        Code::Unknown => None,
    }
}

/// Reads a number of up to 64 bits.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto::{DescriptorStatus, HeaderValue, RateLimitResponse};

    fn framed(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap();
        [&[0][..], &length.to_be_bytes(), message].concat()
    }

    fn response(code: Code) -> Vec<u8> {
        let header = HeaderValue { key: "retry-after".into(), value: "7".into(), ..HeaderValue::default() };
        let status =
            DescriptorStatus { code: code.into(), limit_remaining: 300, ..DescriptorStatus::default() };
        let response = RateLimitResponse {
            overall_code: code.into(),
            statuses: vec![status; 3],
            response_headers_to_add: vec![header],
            ..RateLimitResponse::default()
        };
        framed(&response.encode_to_vec())
    }

    #[test]
    fn an_answer_says_ok_or_over() {
        assert_eq!(verdict(&response(Code::Ok)), Ok(Verdict::Ok));
        assert_eq!(verdict(&response(Code::OverLimit)), Ok(Verdict::Over));
    }

    #[test]
    fn what_is_no_answer_is_unreadable() {
        let good = response(Code::Ok);
        for length in 0..good.len() {
            assert_eq!(verdict(&good[..length]), Err(Failure::Unreadable), "cut at {length}");
        }
        // Cut, with a frame that fits: unless what is left happens to be a whole number of fields.
        let message = &good[5..];
        let refused =
            (0..message.len()).filter(|length| verdict(&framed(&message[..*length])).is_err()).count();
        assert!(refused > message.len() / 2, "{refused}");
        let mut compressed = good.clone();
        compressed[0] = 1;
        for body in [
            compressed,
            [&good[..], &[0]].concat(),
            response(Code::Unknown),
            framed(&[]),
            framed(&[8, 3]),
            framed(&[8, 1, 0x0b]),
            framed(&[8, 1, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
            framed(&[0xff; 12]),
        ] {
            assert_eq!(verdict(&body), Err(Failure::Unreadable), "{body:?}");
        }
    }
}
