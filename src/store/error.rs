//! Why a shared store has no answer, told apart by what is to be done about it.

use std::sync::Arc;

/// Why a shared store has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The deadline passed before there was an answer.
    #[error("Redis did not answer in time")]
    Late,
    /// The deadline passed while this process did not run: Redis may well have answered. To the caller it is all the same.
    #[error("Redis did not answer in time")]
    Stalled,
    /// The deadline passed before the call was sent.
    #[error("Redis was still busy with earlier calls at the deadline")]
    Unsent,
    /// As many calls wait as may, or more than Redis decides by this one's deadline.
    #[error("too many calls are waiting for Redis")]
    Full,
    /// The circuit is open: Redis has failed lately, and is not asked.
    #[error("Redis has failed lately, and is left in peace")]
    Open,
    /// There is no connection, and what was wrong when one was last tried for.
    #[error("there is no connection to Redis")]
    Disconnected(Class),
    /// The connection broke after the call was sent, and there was none to ask again over.
    #[error("the connection to Redis broke before it answered")]
    Lost,
    /// It answered with an error, or with something that is no answer.
    #[error("Redis answered: {said}")]
    Refused {
        /// What kind of error.
        class: Class,
        /// In its words.
        said: Arc<str>,
    },
    /// A bucket's key holds something else.
    #[error("a bucket of this request cannot be read in Redis: its key holds something else")]
    Unreadable,
}

impl StoreError {
    /// What kind of failure it is.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Late | Self::Unsent => Class::Late,
            Self::Stalled => Class::Stalled,
            Self::Full => Class::Full,
            Self::Open => Class::Open,
            Self::Lost => Class::Lost,
            Self::Unreadable => Class::Unreadable,
            Self::Disconnected(class) | Self::Refused { class, .. } => *class,
        }
    }

    /// Whether the charges may have landed all the same. Of all others it is certain that they have not.
    #[must_use]
    pub fn may_have_landed(&self) -> bool {
        match self {
            Self::Late | Self::Stalled | Self::Lost => true,
            Self::Refused { class, .. } => *class == Class::WrongShape,
            Self::Unsent | Self::Full | Self::Open | Self::Disconnected(_) | Self::Unreadable => false,
        }
    }
}

/// Kinds of failure, each with a name for metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// No answer before the deadline, or no answer at all.
    Late,
    /// This process did not run for a while: no failure of Redis.
    Stalled,
    /// Too many calls wait already.
    Full,
    /// It has failed lately, and is not asked.
    Open,
    /// Nobody is there, or the connection was refused or reset.
    Unreachable,
    /// No TLS connection came about.
    Tls,
    /// NOAUTH, WRONGPASS: it does not let us in.
    Auth,
    /// NOPERM: it does not let us do this.
    Forbidden,
    /// LOADING: it reads its data from disk.
    Loading,
    /// READONLY: it is a replica.
    ReadOnly,
    /// OOM: its memory is full.
    OutOfMemory,
    /// MISCONF: it cannot write to disk, and is set to refuse writes then.
    Misconfigured,
    /// MASTERDOWN: it is a replica that has lost its primary.
    MasterDown,
    /// CLUSTERDOWN, or a slot that no node serves.
    ClusterDown,
    /// MOVED, ASK or TRYAGAIN, more often than is followed: slots are being moved.
    Moving,
    /// BUSY: somebody's script does not end.
    Busy,
    /// A server that is too old.
    TooOld,
    /// A reply that is none to what was asked.
    WrongShape,
    /// The connection broke before the reply.
    Lost,
    /// A key that holds something else: no failure of Redis.
    Unreadable,
    /// Any other error.
    Other,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::Late,
        Self::Stalled,
        Self::Full,
        Self::Open,
        Self::Unreachable,
        Self::Tls,
        Self::Auth,
        Self::Forbidden,
        Self::Loading,
        Self::ReadOnly,
        Self::OutOfMemory,
        Self::Misconfigured,
        Self::MasterDown,
        Self::ClusterDown,
        Self::Moving,
        Self::Busy,
        Self::TooOld,
        Self::WrongShape,
        Self::Lost,
        Self::Unreadable,
        Self::Other,
    ];

    /// A short name that does not change.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Late => "late",
            Self::Stalled => "stalled",
            Self::Full => "queue_full",
            Self::Open => "circuit_open",
            Self::Unreachable => "unreachable",
            Self::Tls => "tls",
            Self::Auth => "auth",
            Self::Forbidden => "noperm",
            Self::Loading => "loading",
            Self::ReadOnly => "readonly",
            Self::OutOfMemory => "oom",
            Self::Misconfigured => "misconf",
            Self::MasterDown => "masterdown",
            Self::ClusterDown => "clusterdown",
            Self::Moving => "moving",
            Self::Busy => "busy",
            Self::TooOld => "too_old",
            Self::WrongShape => "wrong_shape",
            Self::Lost => "lost",
            Self::Unreadable => "unreadable",
            Self::Other => "other",
        }
    }

    /// Whether the connection that it came over is of no use any more. One that is not logged in, or that leads to a server
    /// which is no primary, is of none either: the next one has the password that is valid by then, and asks anew where
    /// the name leads to.
    #[must_use]
    pub fn condemns(self) -> bool {
        matches!(self, Self::Unreachable | Self::Tls | Self::Auth | Self::ReadOnly | Self::MasterDown)
    }

    /// Whether it is Redis that failed, rather than this process or what somebody put under a key.
    #[must_use]
    pub fn is_of_redis(self) -> bool {
        !matches!(self, Self::Stalled | Self::Unreadable | Self::Open)
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_class_is_listed_once_and_has_a_name_of_its_own() {
        let names: HashSet<_> = Class::ALL.iter().map(|class| class.name()).collect();
        assert_eq!(names.len(), Class::ALL.len());
        let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        assert!(names.iter().all(|name| plain(name)), "{names:?}");
    }
}
