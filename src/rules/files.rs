//! The rule files of a directory as they stand at one moment: their texts, and where changes to them would show.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::compile::Compiler;
use super::problem::Place;
use super::{LoadError, MAX_FILE_BYTES, RuleSet};
use crate::clock::Micros;

/// Says of files whether they are the same: a SHA-256 over their names below the directory and their bytes.
///
/// Instances that were given the same files have the same, wherever the directory stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash([u8; 32]);

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What was found in one reading.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    found: Vec<(PathBuf, Found)>,
    /// Why there is nothing, if there is nothing.
    nothing: Option<String>,
    places: BTreeSet<Where>,
    hash: ContentHash,
}

#[derive(Debug)]
enum Found {
    Bytes(Vec<u8>),
    Trouble(String),
}

/// A directory in which changes matter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Where {
    pub(super) directory: PathBuf,
    /// The only name in it that matters; without one, all do.
    pub(super) name: Option<std::ffi::OsString>,
}

impl Files {
    /// Reads every `*.yaml` and `*.yml` file below a directory, in the order of their names; names that begin with a dot
    /// are passed over, with what is below them. A path to a single file is taken as well.
    pub(super) fn read(path: &Path) -> Self {
        let mut reading = Reading::default();
        reading.above(path);
        let nothing = match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => {
                reading.file(path.to_owned());
                None
            }
            Ok(_) => {
                reading.directory(path);
                reading.found.is_empty().then(|| "no *.yaml or *.yml file in this directory".to_owned())
            }
            Err(error) => Some(error.to_string()),
        };
        let Reading { found, places, .. } = reading;
        let hash = hash(path, &found, nothing.as_deref());
        Self { path: path.to_owned(), found, nothing, places, hash }
    }

    /// Reads until two readings in a row are the same, so that what changes in the meantime is not half old and half
    /// new; after some attempts it makes do with the last.
    pub(super) fn read_steadily(path: &Path) -> Self {
        const ATTEMPTS: usize = 10;
        let mut last = Self::read(path);
        for _ in 0..ATTEMPTS {
            let next = Self::read(path);
            if next.hash == last.hash {
                return next;
            }
            last = next;
        }
        last
    }

    pub(super) fn hash(&self) -> ContentHash {
        self.hash
    }

    /// The names of the files, below the directory.
    pub(super) fn names(&self) -> BTreeSet<PathBuf> {
        self.found.iter().map(|(path, _)| below(&self.path, path).to_owned()).collect()
    }

    /// The directories in which changes would show.
    pub(super) fn places(&self) -> &BTreeSet<Where> {
        &self.places
    }

    /// Makes rules of the files.
    ///
    /// # Errors
    /// [`LoadError::Nothing`] when there is no rule file, [`LoadError::Rejected`] when one of them is wrong or could not
    /// be read.
    pub(super) fn compile(&self, since: Micros) -> Result<RuleSet, LoadError> {
        if let Some(reason) = &self.nothing {
            return Err(LoadError::Nothing { path: self.path.clone(), reason: reason.clone() });
        }
        let mut compiler = Compiler::new(since);
        for (path, found) in &self.found {
            let name: Arc<str> = path.to_string_lossy().into();
            let bytes = match found {
                Found::Bytes(bytes) => bytes,
                Found::Trouble(reason) => {
                    compiler.unreadable(name, Place::START, reason.as_str());
                    continue;
                }
            };
            match std::str::from_utf8(bytes) {
                Ok(text) => compiler.add(name, text),
                Err(error) => {
                    let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
                    compiler.unreadable(name, end(good), "not UTF-8 from here on");
                }
            }
        }
        let set = RuleSet::finish(compiler, self.found.len())?;
        Ok(RuleSet { hash: Some(self.hash), ..set })
    }
}

/// The place behind a text.
fn end(text: &[u8]) -> Place {
    let line = 1 + text.iter().filter(|byte| **byte == b'\n').count();
    let column = text
        .iter()
        .rev()
        .take_while(|byte| **byte != b'\n')
        // Characters, not the bytes that go on with one.
        .filter(|byte| **byte & 0xC0 != 0x80)
        .count();
    Place::new(line, column)
}

fn below<'p>(directory: &Path, path: &'p Path) -> &'p Path {
    let name = path.strip_prefix(directory).unwrap_or(path);
    // The directory itself is a file then.
    if name.as_os_str().is_empty() { path.file_name().map_or(path, Path::new) } else { name }
}

fn hash(directory: &Path, found: &[(PathBuf, Found)], nothing: Option<&str>) -> ContentHash {
    let mut hasher = Sha256::new();
    let mut part = |kind: u8, bytes: &[u8]| {
        hasher.update([kind]);
        hasher.update((bytes.len() as u64).to_be_bytes());
        hasher.update(bytes);
    };
    for (path, found) in found {
        part(0, below(directory, path).as_os_str().as_encoded_bytes());
        match found {
            Found::Bytes(bytes) => part(1, bytes),
            Found::Trouble(reason) => part(2, reason.as_bytes()),
        }
    }
    if let Some(reason) = nothing {
        part(3, reason.as_bytes());
    }
    ContentHash(hasher.finalize().into())
}

#[derive(Default)]
struct Reading {
    found: Vec<(PathBuf, Found)>,
    places: BTreeSet<Where>,
    /// The directories that lead to where it stands, each as a device and an inode: a link back to one of them is not
    /// followed, since what it leads to is being read.
    way: Vec<(u64, u64)>,
}

impl Reading {
    /// Notes where it would show that `path` itself is replaced, deleted or made: in the nearest directory above that is
    /// there.
    fn above(&mut self, path: &Path) {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let mut path = &*absolute;
        while let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
            if parent.is_dir() {
                self.places.insert(Where { directory: parent.to_owned(), name: Some(name.to_owned()) });
                return;
            }
            path = parent;
        }
    }

    fn trouble(&mut self, path: &Path, reason: String) {
        self.found.push((path.to_owned(), Found::Trouble(reason)));
    }

    fn directory(&mut self, directory: &Path) {
        match std::fs::metadata(directory).map(|metadata| (metadata.dev(), metadata.ino())) {
            Ok(here) if self.way.contains(&here) => return,
            Ok(here) => self.way.push(here),
            Err(error) => return self.trouble(directory, format!("cannot be read: {error}")),
        }
        self.places.insert(Where { directory: directory.to_owned(), name: None });
        match std::fs::read_dir(directory).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
            Ok(entries) => {
                let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
                paths.sort();
                paths.into_iter().for_each(|path| self.entry(path));
            }
            Err(error) => self.trouble(directory, format!("cannot be listed: {error}")),
        }
        self.way.pop();
    }

    fn entry(&mut self, path: PathBuf) {
        if path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b".")) {
            return;
        }
        let is_rules = is_rule_file(&path);
        // Follows links: a ConfigMap's files are links.
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => self.directory(&path),
            Ok(metadata) if is_rules && metadata.is_file() => self.file(path),
            Err(error) if is_rules => self.trouble(&path, format!("cannot be read: {error}")),
            Ok(_) | Err(_) => {}
        }
    }

    fn file(&mut self, path: PathBuf) {
        // A change to what a link leads to shows where that is.
        if path.is_symlink()
            && let Ok(target) = path.canonicalize()
            && let (Some(parent), Some(name)) = (target.parent(), target.file_name())
        {
            self.places.insert(Where { directory: parent.to_owned(), name: Some(name.to_owned()) });
        }
        let found = read_file(&path).map_or_else(Found::Trouble, Found::Bytes);
        self.found.push((path, found));
    }
}

pub(super) fn is_rule_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let read = || {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        let mut bytes = Vec::new();
        if length <= MAX_FILE_BYTES {
            // What grows in the meantime is bounded too.
            file.by_ref().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        }
        Ok((length.max(bytes.len() as u64), bytes))
    };
    match read() {
        Ok((length, _)) if length > MAX_FILE_BYTES => {
            Err(format!("{length} bytes long, and {MAX_FILE_BYTES} at most are read: split it up"))
        }
        Ok((_, bytes)) => Ok(bytes),
        Err(error) => {
            let error: std::io::Error = error;
            Err(format!("cannot be read: {error}"))
        }
    }
}
