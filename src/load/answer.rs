//! What of an answer is read: whether the request may pass, and whether there was a limit to it. Everything else is passed
//! over, but has to be well-formed.

use super::tally::Failure;
use crate::proto::Code;

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may pass.
    Ok,
    /// It may pass, and the server tells of no limit that it met.
    Unlimited,
    Over,
}

/// What the body of an answer says: one gRPC message, which is not compressed.
pub(super) fn verdict(body: &[u8]) -> Result<Verdict, Failure> {
    read(body).ok_or(Failure::Unreadable)
}

fn read(body: &[u8]) -> Option<Verdict> {
    let (frame, mut message) = body.split_first_chunk::<5>()?;
    let [compressed, length @ ..] = frame;
    if *compressed != 0 || usize::try_from(u32::from_be_bytes(*length)).ok()? != message.len() {
        return None;
    }
    let (mut code, mut is_limited) = (None, false);
    while !message.is_empty() {
        match field(&mut message)? {
            (1, Value::Number(number)) => code = Some(number),
            (2, Value::Bytes(status)) if !is_limited => is_limited = has_limit(status)?,
            _ => {}
        }
    }
    match Code::try_from(i32::try_from(code?).ok()?).ok()? {
        Code::Ok if is_limited => Some(Verdict::Ok),
        Code::Ok => Some(Verdict::Unlimited),
        Code::OverLimit => Some(Verdict::Over),
        Code::Unknown => None,
    }
}

/// Whether the status of a descriptor tells of a limit.
fn has_limit(mut status: &[u8]) -> Option<bool> {
    while !status.is_empty() {
        if let (2, Value::Bytes(_)) = field(&mut status)? {
            return Some(true);
        }
    }
    Some(false)
}

/// What a field of a message holds.
enum Value<'m> {
    Number(u64),
    Bytes(&'m [u8]),
    /// A number of four or eight bytes, whatever it is.
    Fixed,
}

/// Reads a field of protobuf: its number, and what it holds.
fn field<'m>(message: &mut &'m [u8]) -> Option<(u64, Value<'m>)> {
    let tag = varint(message)?;
    let value = match tag & 7 {
        0 => Value::Number(varint(message)?),
        2 => {
            let length = usize::try_from(varint(message)?).ok()?;
            let (bytes, rest) = message.split_at_checked(length)?;
            *message = rest;
            Value::Bytes(bytes)
        }
        1 => {
            *message = message.get(8..)?;
            Value::Fixed
        }
        5 => {
            *message = message.get(4..)?;
            Value::Fixed
        }
        // Groups are of protobuf's past.
        _ => return None,
    };
    (tag >> 3 != 0).then_some((tag >> 3, value))
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
    use crate::proto::{DescriptorStatus, HeaderValue, RateLimit, RateLimitResponse};

    fn framed(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap();
        [&[0][..], &length.to_be_bytes(), message].concat()
    }

    fn response(code: Code) -> Vec<u8> {
        told(code, Some(RateLimit { requests_per_unit: 300, ..RateLimit::default() }))
    }

    /// An answer on three descriptors, of which the last has this limit.
    fn told(code: Code, current_limit: Option<RateLimit>) -> Vec<u8> {
        let header = HeaderValue { key: "retry-after".into(), value: "7".into(), ..HeaderValue::default() };
        let status =
            DescriptorStatus { code: code.into(), limit_remaining: 300, ..DescriptorStatus::default() };
        let limited = DescriptorStatus { current_limit, ..status.clone() };
        let response = RateLimitResponse {
            overall_code: code.into(),
            statuses: vec![status.clone(), status, limited],
            response_headers_to_add: vec![header],
            ..RateLimitResponse::default()
        };
        framed(&response.encode_to_vec())
    }

    #[test]
    fn an_answer_says_ok_or_over() {
        assert_eq!(verdict(&response(Code::Ok)), Ok(Verdict::Ok));
        assert_eq!(verdict(&response(Code::OverLimit)), Ok(Verdict::Over));
        assert_eq!(verdict(&told(Code::Ok, None)), Ok(Verdict::Unlimited));
        assert_eq!(verdict(&told(Code::OverLimit, None)), Ok(Verdict::Over));
        assert_eq!(verdict(&framed(&[8, 1])), Ok(Verdict::Unlimited), "no descriptor at all");
        let unknown = [0x1d, 0, 0, 0, 0, 0x19, 0, 0, 0, 0, 0, 0, 0, 0, 8, 2];
        assert_eq!(verdict(&framed(&unknown)), Ok(Verdict::Over), "after fields of other versions");
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
            framed(&[8, 1, 0x12, 1, 0x12]),
            framed(&[8, 1, 0x0d, 0, 0, 0]),
            framed(&[8, 1, 0x09, 0, 0, 0, 0, 0, 0, 0]),
            framed(&[8, 1, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
            framed(&[0xff; 12]),
        ] {
            assert_eq!(verdict(&body), Err(Failure::Unreadable), "{body:?}");
        }
    }
}
