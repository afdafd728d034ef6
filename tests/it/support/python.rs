//! Python programs under `tests/it/support`, run in the virtual environment that `make test` makes.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The virtual environment's program of this name.
///
/// # Panics
/// When it is not there: a test that needs it fails, it is not skipped.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin").join(name);
    assert!(path.exists(), "{} is not there: run `make test`, which installs it", path.display());
    path
}

/// Runs a program and returns what it printed.
pub(crate) fn run(script: &str, arguments: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(program("python"))
        .arg(root.join("tests/it/support").join(script))
        .args(arguments)
        .current_dir(root)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script} ended with {}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}
