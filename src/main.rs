//! The `weir` command; see `weir --help`.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// Threads give back and take memory without waiting for one another, nor for the system.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    weir::cli::run(std::env::args_os())
}
