//! The `weir` command; see `weir --help`.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Threads give back and take memory without waiting for one another, nor for the system.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    weir::cli::run(std::env::args_os())
}
