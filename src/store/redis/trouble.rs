//! What the client library says of a failure, as one of our classes: the only place where that is decided.

use std::error::Error;
use std::sync::Arc;

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::store::{Class, StoreError};

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) class: Class,
    pub(super) said: String,
}

impl Trouble {
    pub(super) fn new(class: Class, said: impl Into<String>) -> Self {
        Self { class, said: said.into() }
    }
}

impl From<RedisError> for Trouble {
    fn from(error: RedisError) -> Self {
        Self { class: class(&error), said: error.to_string() }
    }
}

impl From<&RedisError> for StoreError {
    fn from(error: &RedisError) -> Self {
        Self::Refused { class: class(error), said: error.to_string().into() }
    }
}

/// The kind of an error that Redis answered with, of those that have one.
pub(super) fn kind(error: &RedisError) -> Option<ServerErrorKind> {
    match error.kind() {
        ErrorKind::Server(kind) => Some(kind),
        _ => None,
    }
}

/// The class of an error.
pub(super) fn class(error: &RedisError) -> Class {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::BusyLoading) => Class::Loading,
        ErrorKind::Server(ServerErrorKind::ReadOnly) => Class::ReadOnly,
        ErrorKind::Server(ServerErrorKind::MasterDown) => Class::MasterDown,
        ErrorKind::Server(ServerErrorKind::ClusterDown) => Class::ClusterDown,
        ErrorKind::Server(
            ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::TryAgain
            | ServerErrorKind::CrossSlot,
        ) => Class::Moving,
        ErrorKind::Server(ServerErrorKind::NoPerm) => Class::Forbidden,
        ErrorKind::AuthenticationFailed => Class::Auth,
        ErrorKind::Extension | ErrorKind::Server(_) => match error.code() {
            Some("NOAUTH" | "WRONGPASS") => Class::Auth,
            Some("OOM") => Class::OutOfMemory,
            Some("MISCONF") => Class::Misconfigured,
            Some("BUSY") => Class::Busy,
            // An error that a script ran into comes in the script's name, with its own code in the text.
            _ => of_text(error.detail().unwrap_or_default()),
        },
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => Class::WrongShape,
        ErrorKind::Io if is_tls(error) => Class::Tls,
        ErrorKind::Io if error.is_timeout() => Class::Late,
        ErrorKind::Io => Class::Unreachable,
        _ if error.is_connection_dropped() || error.is_unrecoverable_error() => Class::Unreachable,
        _ => Class::Other,
    }
}

/// The class of an error from what it says: Redis 6 wraps what a command in a script ran into.
fn of_text(text: &str) -> Class {
    let codes = [
        ("-OOM ", Class::OutOfMemory),
        ("-MISCONF ", Class::Misconfigured),
        ("-READONLY ", Class::ReadOnly),
        ("-NOPERM ", Class::Forbidden),
        ("can't run this command or subcommand", Class::Forbidden),
        ("can't access at least one of the keys", Class::Forbidden),
    ];
    let found = codes.into_iter().find(|(code, _)| text.contains(code));
    found.map_or(Class::Other, |(_, class)| class)
}

/// Whether it is TLS that failed, which the client library tells as an error of the connection.
fn is_tls(error: &RedisError) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<Arc<dyn Error + Send + Sync>>());
    let io = cause.and_then(|cause| cause.downcast_ref::<std::io::Error>());
    io.and_then(std::io::Error::get_ref).is_some_and(|inner| inner.is::<rustls::Error>())
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;

    /// The class of what a server says.
    fn said(line: &str) -> Class {
        let reply = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        let Value::ServerError(error) = reply else { panic!("{reply:?}") };
        class(&error.into())
    }

    #[test]
    fn what_redis_says_is_told_apart() {
        for (line, expected) in [
            ("LOADING Redis is loading the dataset in memory", Class::Loading),
            ("READONLY You can't write against a read only replica.", Class::ReadOnly),
            ("MASTERDOWN Link with MASTER is down", Class::MasterDown),
            ("CLUSTERDOWN The cluster is down", Class::ClusterDown),
            ("MOVED 3999 127.0.0.1:6381", Class::Moving),
            ("ASK 3999 127.0.0.1:6381", Class::Moving),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Class::Moving),
            ("NOAUTH Authentication required.", Class::Auth),
            ("WRONGPASS invalid username-password pair or user is disabled.", Class::Auth),
            ("NOPERM this user has no permissions to run the 'eval' command", Class::Forbidden),
            ("OOM command not allowed when used memory > 'maxmemory'.", Class::OutOfMemory),
            ("MISCONF Redis is configured to save RDB snapshots", Class::Misconfigured),
            ("BUSY Redis is busy running a script.", Class::Busy),
            (
                "ERR Error running script (call to f_0): @user_script:1: -OOM command not allowed",
                Class::OutOfMemory,
            ),
            (
                "ERR Error running script (call to f_0): -READONLY You can't write against a read only replica",
                Class::ReadOnly,
            ),
            ("ERR weir: a batch that comes after a newer one", Class::Other),
        ] {
            assert_eq!(said(line), expected, "{line}");
        }
    }

    #[test]
    fn what_the_connection_says_is_told_apart() {
        let io = |kind: std::io::ErrorKind| class(&RedisError::from(std::io::Error::from(kind)));
        assert_eq!(io(std::io::ErrorKind::ConnectionRefused), Class::Unreachable);
        assert_eq!(io(std::io::ErrorKind::ConnectionReset), Class::Unreachable);
        assert_eq!(io(std::io::ErrorKind::TimedOut), Class::Late);
        let tls = std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            rustls::Error::General("handshake failure".to_owned()),
        );
        assert_eq!(class(&RedisError::from(tls)), Class::Tls);
    }
}
