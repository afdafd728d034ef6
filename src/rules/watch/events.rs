//! What the system tells of changes to directories: Linux's inotify (inotify(7)), elsewhere nothing.
//!
//! An event is no more than a reason to look. What is in force follows from what a look finds, so an event that is
//! missed, doubled or about something else does no harm.

#[cfg(target_os = "linux")]
pub(super) use linux::Events;
#[cfg(not(target_os = "linux"))]
pub(super) use polling::Events;

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::{BTreeSet, HashMap, HashSet};
    use std::ffi::{OsStr, OsString};
    use std::io;
    use std::mem::MaybeUninit;
    use std::os::fd::OwnedFd;
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::Path;

    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
    use rustix::io::Errno;
    use tokio::io::unix::AsyncFd;

    use crate::rules::files::{Where, is_rule_file};

    /// Watches directories.
    #[derive(Debug)]
    pub(in crate::rules::watch) struct Events {
        inotify: AsyncFd<OwnedFd>,
        /// By the system's number of each.
        watched: HashMap<i32, Names>,
        /// Files that somebody has written to and not closed yet.
        unfinished: HashSet<(i32, OsString)>,
    }

    /// Names in a directory.
    #[derive(Debug)]
    enum Names {
        All,
        Only(BTreeSet<OsString>),
    }

    impl Events {
        pub(in crate::rules::watch) fn new() -> io::Result<Self> {
            Self::of(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?)
        }

        /// One that cannot watch anything, as when the system's limit is reached.
        #[cfg(test)]
        pub(in crate::rules::watch) fn broken() -> io::Result<Self> {
            let (socket, _) = std::os::unix::net::UnixStream::pair()?;
            Self::of(socket.into())
        }

        fn of(inotify: OwnedFd) -> io::Result<Self> {
            #[allow(deprecated, reason = "its successor is unsafe; this descriptor is ours alone and stays")]
            let inotify = AsyncFd::new(inotify)?;
            Ok(Self { inotify, watched: HashMap::new(), unfinished: HashSet::new() })
        }

        /// Watches these directories from now on, and no others. One that is not there is passed over. Returns whether
        /// there are some that were not watched before.
        ///
        /// # Errors
        /// When the system refuses to watch more.
        pub(in crate::rules::watch) fn watch(&mut self, places: &BTreeSet<Where>) -> io::Result<bool> {
            let flags = WatchFlags::CREATE
                | WatchFlags::MODIFY
                | WatchFlags::CLOSE_WRITE
                | WatchFlags::ATTRIB
                | WatchFlags::MOVED_FROM
                | WatchFlags::MOVED_TO
                | WatchFlags::DELETE
                | WatchFlags::DELETE_SELF
                | WatchFlags::MOVE_SELF
                | WatchFlags::ONLYDIR;
            let mut watched = HashMap::new();
            for Where { directory, name } in places {
                // The same directory has the same number, however often and by whatever path it is named.
                let number = match inotify::add_watch(self.inotify.get_ref(), directory, flags) {
                    Ok(number) => number,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP) => continue,
                    Err(error) => return Err(error.into()),
                };
                let names = watched.entry(number).or_insert_with(|| Names::Only(BTreeSet::new()));
                match (name, names) {
                    (None, names) => *names = Names::All,
                    (Some(name), Names::Only(names)) => _ = names.insert(name.clone()),
                    (Some(_), Names::All) => {}
                }
            }
            for number in self.watched.keys().filter(|number| !watched.contains_key(number)) {
                // One whose directory is gone has ended by itself.
                _ = inotify::remove_watch(self.inotify.get_ref(), *number);
            }
            self.unfinished.retain(|(number, _)| watched.contains_key(number));
            let more = watched.keys().any(|number| !self.watched.contains_key(number));
            self.watched = watched;
            Ok(more)
        }

        /// Whether somebody is in the middle of writing to a rule file.
        pub(in crate::rules::watch) fn is_unfinished(&self) -> bool {
            !self.unfinished.is_empty()
        }

        /// Takes files for finished, whoever still holds them open.
        pub(in crate::rules::watch) fn forget_unfinished(&mut self) {
            self.unfinished.clear();
        }

        /// Returns when something has changed that matters. May be dropped and called again without missing anything.
        pub(in crate::rules::watch) async fn changed(&mut self) -> io::Result<()> {
            loop {
                let mut ready = self.inotify.readable().await?;
                let mut matters = false;
                let mut buffer = [MaybeUninit::uninit(); 4096];
                let mut reader = Reader::new(self.inotify.get_ref(), &mut buffer);
                loop {
                    match reader.next() {
                        Ok(event) => {
                            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                            matters |=
                                note(&self.watched, &mut self.unfinished, event.wd(), event.events(), name);
                        }
                        Err(Errno::AGAIN) => break ready.clear_ready(),
                        Err(Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                if matters {
                    return Ok(());
                }
            }
        }
    }

    /// Whether an event matters. Keeps account of files that are being written.
    fn note(
        watched: &HashMap<i32, Names>,
        unfinished: &mut HashSet<(i32, OsString)>,
        number: i32,
        events: ReadFlags,
        name: Option<&OsStr>,
    ) -> bool {
        if events.contains(ReadFlags::QUEUE_OVERFLOW) {
            // Whatever it was; what has been closed is not known any more.
            unfinished.clear();
            return true;
        }
        let Some(names) = watched.get(&number) else { return false };
        let Some(name) = name else {
            // The directory itself.
            if events.contains(ReadFlags::IGNORED) {
                unfinished.retain(|(other, _)| *other != number);
            }
            return true;
        };
        let is_rules = match names {
            Names::All => is_rule_file(Path::new(name)) && !is_hidden(name),
            Names::Only(names) => names.contains(name),
        };
        if is_rules && events.contains(ReadFlags::MODIFY) {
            unfinished.insert((number, name.to_owned()));
        } else if events.intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_FROM | ReadFlags::DELETE) {
            unfinished.remove(&(number, name.to_owned()));
        }
        // Names come and go that are no rule files: directories, and links to them. Swap files are hidden; the links by
        // which a ConfigMap is switched begin with two dots.
        let renamed = ReadFlags::CREATE | ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO;
        let may_lead_somewhere = !is_hidden(name) || name.as_bytes().starts_with(b"..");
        is_rules
            || matches!(names, Names::All)
                && may_lead_somewhere
                && events.intersects(renamed | ReadFlags::ISDIR)
    }

    fn is_hidden(name: &OsStr) -> bool {
        name.as_bytes().starts_with(b".")
    }
}

#[cfg(not(target_os = "linux"))]
mod polling {
    use std::collections::BTreeSet;
    use std::io;

    use crate::rules::files::Where;

    /// Cannot be made, so that the directory is polled.
    #[derive(Debug)]
    pub(in crate::rules::watch) enum Events {}

    impl Events {
        pub(in crate::rules::watch) fn new() -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(in crate::rules::watch) fn watch(&mut self, _: &BTreeSet<Where>) -> io::Result<bool> {
            match *self {}
        }

        pub(in crate::rules::watch) fn is_unfinished(&self) -> bool {
            match *self {}
        }

        pub(in crate::rules::watch) fn forget_unfinished(&mut self) {
            match *self {}
        }

        pub(in crate::rules::watch) async fn changed(&mut self) -> io::Result<()> {
            match *self {}
        }
    }
}
