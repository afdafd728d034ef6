//! What a server does when its memory is full, as it says itself.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::Address;

/// The policy under which no key is forgotten.
const NONE: &str = "noeviction";

/// What is known of one server: its connections share it, so that a change is said once.
#[derive(Debug, Default)]
pub(super) struct Eviction {
    policy: ArcSwapOption<String>,
}

impl Eviction {
    /// The server's `maxmemory-policy`, if it has been told.
    pub(super) fn policy(&self) -> Option<Arc<String>> {
        self.policy.load_full()
    }

    /// Whether it is one under which keys are forgotten.
    pub(super) fn evicts(&self) -> bool {
        self.policy.load().as_ref().is_some_and(|policy| policy.as_str() != NONE)
    }

    /// Reads what `INFO` says, and warns when the server has begun to forget keys.
    pub(super) fn learn(&self, address: &Address, info: &str) {
        let Some(policy) = told(info, "maxmemory_policy") else { return };
        let before = self.policy.swap(Some(Arc::new(policy.to_owned())));
        let before = before.as_ref().map_or(NONE, |before| before.as_str());
        if policy == before {
            return;
        }
        if policy == NONE {
            tracing::info!(redis = %address, policy, "this Redis does not forget keys any more");
        } else {
            tracing::warn!(
                redis = %address,
                policy,
                "this Redis forgets keys when its memory is full, and with them what callers have used: set \
                 maxmemory-policy to noeviction"
            );
        }
    }
}

/// A field of what `INFO` says.
pub(super) fn told<'i>(info: &'i str, field: &str) -> Option<&'i str> {
    info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::super::{Files, Target};
    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(text)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_server_that_begins_to_forget_and_one_that_does_no_longer_are_told_of_once_each() {
        let Ok(Target::Server(address)) = Target::parse("redis://redis.test", &Files::default()) else {
            panic!()
        };
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let eviction = Eviction::default();
        let mut evicts = Vec::new();
        tracing::subscriber::with_default(subscriber, || {
            for policy in ["noeviction", "allkeys-lru", "allkeys-lru", "noeviction", "noeviction"] {
                eviction.learn(&address, &format!("# Memory\r\nmaxmemory_policy:{policy}\r\nx:1\r\n"));
                evicts.push(eviction.evicts());
            }
            eviction.learn(&address, "# Memory\r\n");
        });
        assert_eq!(evicts, [false, true, true, false, false]);
        assert!(!eviction.evicts(), "a server that does not say it any more");
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(log.matches("this Redis forgets keys").count(), 1, "{log}");
        assert_eq!(log.matches("does not forget keys any more").count(), 1, "{log}");
    }
}
