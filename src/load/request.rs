//! Requests, encoded beforehand but for the digits of their values.

use bytes::Bytes;
use prost::Message as _;

use super::Order;
use super::keys::Keys;
use crate::proto::{Entry, RateLimitDescriptor, RateLimitRequest};

/// What each request holds.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) domain: String,
    /// The key of every descriptor's entry. Values are numbers, all of one length.
    pub(crate) key: String,
    /// How many values there are.
    pub(crate) keys: u64,
    /// How many descriptors a request has, each with another value.
    pub(crate) descriptors: u64,
    /// What each descriptor charges, if it says so.
    pub(crate) hits: Option<u64>,
}

impl Shape {
    /// A request whose descriptors all have this value, as it goes into a call's body: not compressed, and how long it is,
    /// come before it.
    fn framed(&self, value: &[u8]) -> Bytes {
        let descriptor = RateLimitDescriptor {
            entries: vec![Entry { key: self.key.clone().into(), value: value.to_vec().into() }],
            hits_addend: self.hits,
            ..RateLimitDescriptor::default()
        };
        let descriptors = (0..self.descriptors).map(|_| descriptor.clone()).collect();
        let message =
            RateLimitRequest { domain: self.domain.clone(), descriptors, hits_addend: 0 }.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        [&[0][..], &length.to_be_bytes(), &message].concat().into()
    }
}

/// Makes one request after the other.
#[derive(Debug)]
pub(super) struct Requests {
    keys: Keys,
    /// A framed message, with some digit where digits go.
    template: Bytes,
    /// Where that is, in the order of the descriptors.
    holes: Vec<usize>,
    digits: usize,
    /// How many values there are: not fewer than a request has descriptors.
    values: u64,
}

impl Requests {
    pub(super) fn new(shape: &Shape, order: Order, thread: u64, threads: u64) -> Self {
        let values = shape.keys.max(shape.descriptors);
        let digits = (values - 1).to_string().len();
        let template = shape.framed(&vec![b'0'; digits]);
        let other = shape.framed(&vec![b'1'; digits]);
        // Where they differ, and nowhere else, are digits; those of a value lie together.
        let digits_at = template.iter().zip(&other).enumerate().filter(|(_, (one, other))| one != other);
        let holes = digits_at.map(|(place, _)| place).step_by(digits).collect();
        let keys = Keys::new(order, shape.keys, thread, threads);
        Self { keys, template, holes, digits, values }
    }

    /// How long a request is.
    pub(super) fn len(&self) -> usize {
        self.template.len()
    }

    /// Writes the next request, as it goes into a call's body, behind what is there.
    pub(super) fn write(&mut self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend_from_slice(&self.template);
        let Some(request) = out.get_mut(begin..) else { return };
        let first = self.keys.draw();
        // Far apart, so that they do not all fall together when keys come in turn.
        let step = self.values / self.holes.len().max(1) as u64;
        for (index, place) in (0..).zip(&self.holes) {
            let mut value = (first + index * step) % self.values;
            for byte in request.iter_mut().skip(*place).take(self.digits).rev() {
                *byte = b'0' + u8::try_from(value % 10).unwrap_or_default();
                value /= 10;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(keys: u64, descriptors: u64) -> Shape {
        Shape { domain: "api".into(), key: "user".into(), keys, descriptors, hits: None }
    }

    fn next(requests: &mut Requests) -> Vec<u8> {
        // Behind something else, as on a connection.
        let mut out = b"else".to_vec();
        requests.write(&mut out);
        assert_eq!(out.len(), 4 + requests.len());
        out.split_off(4)
    }

    fn values(requests: &mut Requests) -> Vec<String> {
        let request = next(requests);
        let (frame, message) = request.split_at(5);
        assert_eq!(frame[0], 0);
        assert_eq!(u32::from_be_bytes(frame[1..].try_into().unwrap()) as usize, message.len());
        let request = RateLimitRequest::decode(message).unwrap();
        assert_eq!(request.domain, "api");
        let value = |descriptor: &RateLimitDescriptor| {
            assert_eq!(descriptor.entries.len(), 1);
            assert_eq!(descriptor.entries[0].key, "user");
            String::from_utf8(descriptor.entries[0].value.to_vec()).unwrap()
        };
        request.descriptors.iter().map(value).collect()
    }

    #[test]
    fn requests_have_their_values_and_one_length() {
        let mut requests = Requests::new(&shape(1_001, 1), Order::InTurn, 7, 10);
        assert_eq!(values(&mut requests), ["0007"]);
        assert_eq!(values(&mut requests), ["0017"]);
        for n in 2..2_000 {
            assert_eq!(values(&mut requests), [format!("{:04}", (7 + 10 * n) % 1_001)]);
        }
    }

    #[test]
    fn descriptors_of_a_request_have_different_values_also_where_there_is_one_key() {
        assert_eq!(values(&mut Requests::new(&shape(1, 3), Order::Uniform, 0, 1)), ["0", "1", "2"]);
        let mut requests = Requests::new(&shape(100_000, 10), Order::Uniform, 0, 1);
        for _ in 0..1_000 {
            let mut values = values(&mut requests);
            values.sort();
            values.dedup();
            assert_eq!(values.len(), 10);
        }
    }

    #[test]
    fn hits_are_those_of_each_descriptor() {
        // As protobuf writes them, some of these are of bytes that no text has.
        for hits in [0, 1, 255, 511, 1_023, 16_383, u64::MAX] {
            let shape = Shape { hits: Some(hits), ..shape(10, 2) };
            let mut requests = Requests::new(&shape, Order::InTurn, 0, 1);
            assert_eq!(values(&mut requests), ["0", "5"], "{hits}");
            let request = RateLimitRequest::decode(&next(&mut requests)[5..]).unwrap();
            assert!(
                request.descriptors.iter().all(|descriptor| descriptor.hits_addend == Some(hits)),
                "{hits}"
            );
        }
    }

    #[test]
    fn requests_of_any_length_have_their_values() {
        for keys in [1, 10, 100_000] {
            for descriptors in 1..=60 {
                let mut requests = Requests::new(&shape(keys, descriptors), Order::InTurn, 0, 1);
                let all = values(&mut requests);
                let step = keys.max(descriptors) / descriptors;
                let expected = (0..descriptors).map(|index| index * step);
                let is: Vec<u64> = all.iter().map(|value| value.parse().unwrap()).collect();
                assert_eq!(is, expected.collect::<Vec<_>>(), "{keys} keys, {} bytes", requests.len());
            }
        }
    }
}
