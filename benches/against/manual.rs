//! The table and the plots, where everybody reads them.

use std::fs;
use std::path::{Path, PathBuf};

/// What stands before the table in the manual, and after it.
const BEGIN: &str = "<!-- `make bench-manual` writes from here -->\n";
const END: &str = "<!-- to here -->\n";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where the plots are that the manual shows.
pub fn plots() -> PathBuf {
    root().join("benches/plots")
}

/// Puts a table into the manual, in place of the one that is there.
pub fn write(table: &str) {
    let path = root().join("README.md");
    let manual = fs::read_to_string(&path).unwrap();
    let (before, rest) = manual.split_once(BEGIN).expect("the manual says where the table begins");
    let (_, after) = rest.split_once(END).expect("the manual says where the table ends");
    fs::write(path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
}
