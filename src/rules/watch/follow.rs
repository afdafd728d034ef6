//! When files are looked at, and when what was found is believed.
//!
//! There is a look when the system tells of a change, when somebody asks (SIGHUP), and otherwise every so often: events
//! do not cover everything (another machine's writes to a shared volume, a link switched further up), and may not be had
//! at all. A look that finds what the last one found ends there.
//!
//! What is new is believed when it has been the same twice, with quiet in between:
//! - [`QUIET`] without an event; longer where there are no events ([`QUIET_UNSEEN`]), and while a file is missing that the
//!   set in force is from ([`QUIET_WITHOUT`]): editors and copying put files away before they put new ones there, and rules
//!   without that file would admit what they should limit.
//! - With no file open that has been written to and not closed. Its beginning may be valid, and mean something else. One
//!   that is not closed within [`LONGEST_WRITE`] is taken as it is.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::events::Events;
use super::{Files, Watch};
use crate::clock::instant;

/// How long nothing must have happened before files are believed.
const QUIET: Duration = Duration::from_millis(300);

/// The same where the system does not tell of changes.
const QUIET_UNSEEN: Duration = Duration::from_secs(1);

/// The same while a file is missing.
const QUIET_WITHOUT: Duration = Duration::from_secs(2);

/// How long a file that is being written is waited for, and after which files that keep changing are complained about.
const LONGEST_WRITE: Duration = Duration::from_secs(10);

/// How often a directory is looked at for its first good rules.
const FIRST_RULES: Duration = Duration::from_secs(1);

/// By which means changes are seen.
#[derive(Clone, Copy, Debug)]
pub struct Following {
    /// How often the files are looked at without any other reason.
    pub poll: Duration,
    /// Whether the system is asked to tell of changes.
    pub events: bool,
}

impl Watch {
    /// Keeps in force what the files say, for ever.
    pub async fn follow(self: Arc<Self>, following: Following) -> Infallible {
        let sight = Sight::new(following.events.then_some(Events::new));
        self.follow_with(sight, following.poll).await
    }

    pub(super) async fn follow_with(self: Arc<Self>, mut sight: Sight, poll: Duration) -> Infallible {
        let mut asked = false;
        loop {
            self.look_at(&mut sight, asked).await;
            let pause = if self.is_loaded() { poll } else { poll.min(FIRST_RULES) };
            asked = tokio::select! {
                () = self.asked.notified() => true,
                () = sight.changed() => false,
                () = tokio::time::sleep(pause) => false,
            };
        }
    }

    async fn look_at(self: &Arc<Self>, sight: &mut Sight, asked: bool) {
        let Some(mut files) = self.read(sight).await else { return };
        if !asked && self.judged().hash == Some(files.hash()) {
            return;
        }
        let start = instant();
        let mut warned = false;
        loop {
            let missing = !self.judged().names.is_subset(&files.names());
            sight.quiet(missing).await;
            let Some(again) = self.read(sight).await else { return };
            let same = again.hash() == files.hash();
            files = again;
            if same {
                break;
            }
            if !warned && start.elapsed() > LONGEST_WRITE {
                warned = true;
                tracing::warn!(path = %self.path.display(), "the rule files keep changing; waiting until they do not");
            }
        }
        let this = Arc::clone(self);
        let judged = tokio::task::spawn_blocking(move || {
            if let Err(error) = this.judge(&files, asked) {
                this.tell(&error);
            }
        });
        if let Err(error) = judged.await {
            tracing::error!(%error, "loading the rules ended");
        }
    }

    /// Reads the files, and watches the directories that they are in.
    async fn read(self: &Arc<Self>, sight: &mut Sight) -> Option<Files> {
        loop {
            let this = Arc::clone(self);
            let reading = tokio::task::spawn_blocking(move || {
                this.judged().clear_retired();
                Files::read(&this.path)
            });
            let files =
                reading.await.inspect_err(|error| tracing::error!(%error, "reading the rules ended")).ok()?;
            let more = sight.watch(&files);
            let events = sight.events.is_some();
            if self.status().events != events {
                self.change(|status| status.events = events);
            }
            // What changed in a directory before it was watched is in this reading or in the next.
            if !more {
                return Some(files);
            }
        }
    }
}

/// Sees changes, if it can.
pub(super) struct Sight {
    events: Option<Events>,
    /// How to have events, if they are wanted.
    make: Option<fn() -> io::Result<Events>>,
    /// Whether it has been said that there are none.
    warned: bool,
}

impl Sight {
    pub(super) fn new(make: Option<fn() -> io::Result<Events>>) -> Self {
        Self { events: None, make, warned: false }
    }

    /// Watches the directories of these files. Whether there are some that were not watched before.
    fn watch(&mut self, files: &Files) -> bool {
        let Some(make) = self.make else { return false };
        let watched = match self.events.take() {
            Some(events) => Ok(events),
            None => make(),
        }
        .and_then(|mut events| Ok((events.watch(files.places())?, events)));
        match watched {
            Ok((more, events)) => {
                self.events = Some(events);
                self.warned = false;
                more
            }
            Err(error) => {
                self.blind(&error);
                false
            }
        }
    }

    /// Returns when something has changed; never without events.
    async fn changed(&mut self) {
        if let Some(events) = &mut self.events {
            match events.changed().await {
                Ok(()) => return,
                Err(error) => self.blind(&error),
            }
        }
        std::future::pending().await
    }

    /// Returns when nothing has happened for a while, or things happen all the time.
    async fn quiet(&mut self, missing: bool) {
        let end = instant() + LONGEST_WRITE;
        loop {
            let quiet = match (&self.events, missing) {
                (_, true) => QUIET_WITHOUT,
                (Some(_), false) => QUIET,
                (None, false) => QUIET_UNSEEN,
            };
            let unfinished = self.events.as_ref().is_some_and(Events::is_unfinished);
            let until = if unfinished { end } else { end.min(instant() + quiet) };
            tokio::select! {
                () = self.changed() => {}
                () = tokio::time::sleep_until(until) => {
                    if let Some(events) = &mut self.events {
                        events.forget_unfinished();
                    }
                    return;
                }
            }
        }
    }

    /// Goes on without events, and says so once.
    fn blind(&mut self, error: &io::Error) {
        self.events = None;
        if !self.warned {
            self.warned = true;
            tracing::warn!(
                %error,
                "changes to the rule files are not told of by the system, and seen only when they are looked at \
                 (--rules-poll); fs.inotify.max_user_watches and max_user_instances may be too low"
            );
        }
    }
}
