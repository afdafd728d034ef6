//! What the system says of this process: CPU time, memory, open files.

use std::fs;
use std::sync::LazyLock;

use super::collection::Collection;
use super::metrics::{PROCESS_CPU, PROCESS_FDS, PROCESS_MAX_FDS, PROCESS_MEMORY, PROCESS_START};

/// Tells what can be read; on a system without `/proc` that is nothing.
#[allow(clippy::cast_precision_loss, reason = "figures for people")]
pub(super) fn collect(to: &mut Collection) {
    if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Stat::parse) {
        let ticks = rustix::param::clock_ticks_per_second().max(1) as f64;
        to.number(&PROCESS_CPU, &[], stat.cpu_ticks as f64 / ticks);
        to.number(&PROCESS_MEMORY, &[], stat.resident_pages as f64 * rustix::param::page_size() as f64);
        if let Some(boot) = *BOOT {
            to.number(&PROCESS_START, &[], boot as f64 + stat.start_ticks as f64 / ticks);
        }
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        // The directory that is being read is one of them.
        to.number(&PROCESS_FDS, &[], files.count().saturating_sub(1) as f64);
    }
    if let Some(most) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        to.number(&PROCESS_MAX_FDS, &[], most as f64);
    }
}

/// When the machine was started, in seconds since the epoch.
static BOOT: LazyLock<Option<u64>> = LazyLock::new(|| {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
});

/// Fields of `/proc/self/stat`, see proc(5).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the command in parentheses, and may hold spaces and parentheses itself.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The first of these is field 3 of the manual.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self { cpu_ticks: field(14)? + field(15)?, start_ticks: field(22)?, resident_pages: field(24)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_spaces_and_parentheses_shifts_no_field() {
        let rest = "S 1 1 1 0 -1 4194560 1 0 0 0 70 30 0 0 20 0 3 0 12345 999 678 18446744073709551615";
        let stat = Stat::parse(&format!("17 (we ) (ir) {rest}"));
        assert_eq!(stat, Some(Stat { cpu_ticks: 100, start_ticks: 12_345, resident_pages: 678 }));
        assert_eq!(Stat::parse("17 (weir) S 1"), None);
    }

    #[test]
    fn this_process_has_memory_files_and_a_start_in_the_past() {
        let mut told = Collection::default();
        collect(&mut told);
        assert!(told.find(&PROCESS_MEMORY, &[]).unwrap() > 1e6);
        assert!(told.find(&PROCESS_FDS, &[]).unwrap() >= 3.0);
        assert!(told.find(&PROCESS_MAX_FDS, &[]).unwrap() >= told.find(&PROCESS_FDS, &[]).unwrap());
        assert!(told.find(&PROCESS_CPU, &[]).is_some());
        let now = crate::clock::Clock::system().now() as f64 / 1e6;
        let start = told.find(&PROCESS_START, &[]).unwrap();
        assert!(start > 1.6e9 && start < now + 60.0, "{start}");
    }
}
