//! Each connection takes a file, and the system says how many a process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that are wanted beside those of connections, about: rules, certificates, Redis, the runtime's own.
const OTHERS: u64 = 256;

/// Has the system allow as many open files as it can be asked for, and says so if that is too few.
///
/// The limit that a process starts with is often 1024, from the days of `select`; what it may ask for is far more.
pub fn make_room_for(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(OTHERS);
    if let Some(allowed) = allowed.filter(|allowed| *allowed < wanted) {
        tracing::warn!(
            allowed,
            wanted,
            "the system allows fewer open files than --max-connections asks for; raise the limit (ulimit -n, \
             LimitNOFILE) or lower the setting"
        );
    }
}
