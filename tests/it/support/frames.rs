//! HTTP/2 by hand, for what no client does of its own accord.

use prost::Message as _;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use weir::proto::{RateLimitRequest, SERVICE_NAME};

/// What a client begins with: the preface, and settings that say nothing.
pub(crate) const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Kinds of frames (RFC 9113, section 6).
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;

/// Flags of frames: of DATA, of HEADERS, of PING.
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const ACK: u8 = 1;

/// A frame (RFC 9113, section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A frame as it comes: its kind, its flags, its stream and its payload.
pub(crate) async fn read_frame(connection: &mut TcpStream) -> (u8, u8, u32, Vec<u8>) {
    let mut begin = [0; 9];
    connection.read_exact(&mut begin).await.unwrap();
    let [high, middle, low, kind, flags, stream @ ..] = begin;
    let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]).try_into().unwrap()];
    connection.read_exact(&mut payload).await.unwrap();
    (kind, flags, u32::from_be_bytes(stream), payload)
}

/// A rate limit call, in two frames.
pub(crate) fn call(stream: u32, request: &RateLimitRequest) -> Vec<u8> {
    // A header that is written out (RFC 7541, section 6.2.2).
    let header = |name: &str, value: &str| {
        let part = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        [vec![0], part(name), part(value)].concat()
    };
    let head = [
        header(":method", "POST"),
        header(":scheme", "http"),
        header(":path", &format!("/{SERVICE_NAME}/ShouldRateLimit")),
        header(":authority", "weir"),
        header("content-type", "application/grpc"),
        header("te", "trailers"),
    ]
    .concat();
    let message = request.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = [&[0][..], &length, &message].concat();
    [frame(HEADERS, END_HEADERS, stream, &head), frame(DATA, END_STREAM, stream, &body)].concat()
}

/// That a call is given up.
pub(crate) fn cancel(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])
}
