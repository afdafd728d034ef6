use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::time::Duration;

use super::events::Events;
use super::follow::Sight;
use super::*;
use crate::rules::{Allowance, Entry};

/// The clock of these tests stands still but for waiting, so no wait takes any time.
const LONG: Duration = Duration::from_secs(60);

/// Rules for the domain `api` of which the limit can be told.
fn good(limit: u32) -> String {
    format!(
        "domain: api\ndescriptors: [ {{ key: a, rate_limit: {{ unit: day, requests_per_unit: {limit} }} }} ]\n"
    )
}

fn watch() -> (tempfile::TempDir, Arc<Watch>) {
    let directory = tempfile::tempdir().unwrap();
    let watch = Arc::new(Watch::new(&directory.path().join("rules"), Clock::manual(0)));
    (directory, watch)
}

/// Follows with events alone, or with looks each ten seconds alone.
fn follow(watch: &Arc<Watch>, events: bool) -> tokio::task::JoinHandle<std::convert::Infallible> {
    let poll = Duration::from_secs(if events { 1_000_000 } else { 10 });
    tokio::spawn(Arc::clone(watch).follow(Following { poll, events }))
}

fn write(watch: &Watch, text: &str) {
    fs::create_dir_all(&watch.path).unwrap();
    fs::write(watch.path.join("api.yaml"), text).unwrap();
}

/// The limit that is in force, 0 for none.
fn limit(watch: &Watch) -> u32 {
    let set = watch.current().load_full();
    let entry = Entry { key: b"a", value: b"" };
    let rule = set.as_ref().and_then(|set| set.domain("api")?.find(&[entry]));
    rule.map_or(0, |rule| match rule.limits[0].allowance {
        Allowance::Limited { requests_per_unit, .. } => requests_per_unit,
        Allowance::Unlimited => 0,
    })
}

/// Waits until the status is as it should be.
async fn until(watch: &Watch, what: impl Fn(&Status) -> bool) {
    let mut changes = watch.changes();
    let waited = tokio::time::timeout(LONG, changes.wait_for(|status| what(status))).await;
    assert!(waited.is_ok(), "{:?}", watch.status());
}

async fn until_version(watch: &Watch, version: u64) {
    until(watch, |status| status.in_force.as_ref().is_some_and(|in_force| in_force.version == version)).await;
}

#[tokio::test(start_paused = true)]
async fn a_bad_set_leaves_the_last_good_one_in_force_and_is_told_of_whole_until_it_is_gone() {
    let (_directory, watch) = watch();
    write(&watch, &good(1));
    watch.start().unwrap();
    let first = watch.status().in_force.clone().unwrap();
    assert_eq!((first.version, first.files, first.limits), (1, 1, 1));
    follow(&watch, true);

    write(&watch, "domain: api\ndescriptors: [ { key: '' }, { value: x } ]\n");
    until(&watch, |status| status.refused.is_some()).await;
    let status = watch.status();
    let refused = status.refused.as_ref().unwrap();
    assert_eq!((refused.problems.len(), refused.reason.as_str()), (2, "2 errors in the rule files"));
    assert_ne!(refused.hash, first.hash);
    assert_eq!((status.in_force.as_ref().unwrap().hash, limit(&watch)), (first.hash, 1));

    fs::remove_dir_all(&watch.path).unwrap();
    until(&watch, |status| status.refusals == 2).await;
    assert!(watch.status().refused.as_ref().unwrap().reason.contains("No such file"));
    assert_eq!(limit(&watch), 1);

    write(&watch, &good(1));
    until(&watch, |status| status.refused.is_none()).await;
    assert_eq!(watch.status().in_force.as_ref().unwrap().version, 1, "what is in force is not loaded again");
    write(&watch, &good(2));
    until_version(&watch, 2).await;
    assert_eq!(limit(&watch), 2);
    assert_eq!(watch.status().refusals, 2);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_first_rules_tells_what_is_wrong_when_that_changes_and_ends_with_good_ones() {
    let (_directory, watch) = watch();
    assert!(matches!(watch.start(), Err(LoadError::Nothing { .. })));
    follow(&watch, false);
    tokio::time::sleep(LONG).await;
    assert_eq!(watch.status().refusals, 1, "the same, and so told once");
    write(&watch, "domain: [");
    until(&watch, |status| status.refusals == 2).await;
    assert!(watch.status().refused.as_ref().unwrap().problems[0].message.contains("not YAML"));
    assert!(!watch.is_loaded());
    write(&watch, &good(1));
    until_version(&watch, 1).await;
    assert!(watch.is_loaded() && watch.status().refused.is_none());
}

/// What is done to a directory that holds `api.yaml`, after which it holds another text.
type Way = fn(&Path, &str);

/// The ways in which files are replaced: by editors, by commands, by tools.
const WAYS: [(&str, Way); 13] = [
    ("a new file in its place, as of mv, rsync and sed -i", |rules, text| {
        fs::write(rules.join(".api.yaml.X7rq"), text).unwrap();
        fs::rename(rules.join(".api.yaml.X7rq"), rules.join("api.yaml")).unwrap();
    }),
    ("written over, as of cp", |rules, text| fs::write(rules.join("api.yaml"), text).unwrap()),
    ("written over in part, as of rsync --inplace", |rules, text| {
        let file = File::options().write(true).open(rules.join("api.yaml")).unwrap();
        (&file).write_all(text.as_bytes()).unwrap();
        file.set_len(text.len() as u64).unwrap();
    }),
    ("put away and written anew, as of vim", |rules, text| {
        fs::write(rules.join(".api.yaml.swp"), "b0VIM").unwrap();
        fs::write(rules.join("4913"), "").unwrap();
        fs::remove_file(rules.join("4913")).unwrap();
        fs::rename(rules.join("api.yaml"), rules.join("api.yaml~")).unwrap();
        fs::write(rules.join("api.yaml"), text).unwrap();
        fs::remove_file(rules.join("api.yaml~")).unwrap();
        fs::remove_file(rules.join(".api.yaml.swp")).unwrap();
    }),
    ("removed and written anew, as of git", |rules, text| {
        fs::remove_file(rules.join("api.yaml")).unwrap();
        fs::write(rules.join("api.yaml"), text).unwrap();
    }),
    ("another name", |rules, text| {
        fs::write(rules.join("new.txt"), text).unwrap();
        fs::remove_file(rules.join("api.yaml")).unwrap();
        fs::rename(rules.join("new.txt"), rules.join("new.yml")).unwrap();
    }),
    ("from outside, by mv", |rules, text| {
        let outside = rules.parent().unwrap().join("outside");
        fs::write(&outside, text).unwrap();
        fs::rename(outside, rules.join("api.yaml")).unwrap();
    }),
    ("a directory below", |rules, text| {
        let outside = rules.parent().unwrap().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("api.yaml"), text).unwrap();
        fs::remove_file(rules.join("api.yaml")).unwrap();
        fs::rename(outside, rules.join("more")).unwrap();
    }),
    ("a directory below, that is made and filled", |rules, text| {
        fs::remove_file(rules.join("api.yaml")).unwrap();
        fs::create_dir(rules.join("more")).unwrap();
        fs::write(rules.join("more/api.yaml"), text).unwrap();
    }),
    ("a directory that is deleted and made again", |rules, text| {
        fs::remove_dir_all(rules).unwrap();
        fs::create_dir(rules).unwrap();
        fs::write(rules.join("api.yaml"), text).unwrap();
    }),
    ("another directory in its place", |rules, text| {
        let parent = rules.parent().unwrap();
        fs::create_dir(parent.join("next")).unwrap();
        fs::write(parent.join("next/api.yaml"), text).unwrap();
        fs::rename(rules, parent.join("last")).unwrap();
        fs::rename(parent.join("next"), rules).unwrap();
    }),
    ("a link in its place", |rules, text| {
        let parent = rules.parent().unwrap();
        fs::create_dir(parent.join("release")).unwrap();
        fs::write(parent.join("release/api.yaml"), text).unwrap();
        fs::rename(rules, parent.join("last")).unwrap();
        symlink("release", rules).unwrap();
    }),
    ("a link to a file, whose target changes", |rules, text| {
        let outside = rules.parent().unwrap().join("outside.yaml");
        fs::write(&outside, "not yet").unwrap();
        fs::remove_file(rules.join("api.yaml")).unwrap();
        symlink(&outside, rules.join("api.yaml")).unwrap();
        fs::write(outside, text).unwrap();
    }),
];

#[tokio::test(start_paused = true)]
async fn every_way_of_replacing_files_is_seen_by_events_alone_again_and_again() {
    for (way, replace) in WAYS {
        let (_directory, watch) = watch();
        write(&watch, &good(1));
        watch.start().unwrap();
        follow(&watch, true);
        until(&watch, |status| status.events).await;
        replace(&watch.path, &good(2));
        until_version(&watch, 2).await;
        assert_eq!(limit(&watch), 2, "{way}");
        assert_eq!(watch.status().refusals, 0, "{way}");
        // What is there now is watched like what was there at first.
        let now = watch.path.join(watch.judged().names.first().unwrap());
        fs::write(now, good(3)).unwrap();
        until_version(&watch, 3).await;
        assert_eq!(limit(&watch), 3, "{way}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_no_event_tells_of_is_seen_by_the_next_look() {
    for (way, replace) in WAYS {
        let (_directory, watch) = watch();
        write(&watch, &good(1));
        watch.start().unwrap();
        follow(&watch, false);
        replace(&watch.path, &good(2));
        until_version(&watch, 2).await;
        assert_eq!((limit(&watch), watch.status().events), (2, false), "{way}");
    }
}

/// Makes a volume as Kubernetes mounts a ConfigMap: files are links through `..data` to a directory with a date.
fn config_map(rules: &Path, date: &str, text: &str) {
    fs::create_dir_all(rules.join(date)).unwrap();
    fs::write(rules.join(date).join("api.yaml"), text).unwrap();
    symlink(date, rules.join("..data_tmp")).unwrap();
    fs::rename(rules.join("..data_tmp"), rules.join("..data")).unwrap();
    if !rules.join("api.yaml").is_symlink() {
        symlink("..data/api.yaml", rules.join("api.yaml")).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_config_map_is_read_through_its_links_once_and_seen_when_it_is_switched() {
    let (_directory, watch) = watch();
    config_map(&watch.path, "..2026_11_21_06_00", &good(1));
    watch.start().unwrap();
    assert_eq!(watch.status().in_force.as_ref().unwrap().files, 1);
    follow(&watch, true);
    for version in 2..5 {
        let date = format!("..2026_11_21_07_0{version}");
        config_map(&watch.path, &date, &good(version));
        until_version(&watch, version.into()).await;
        assert_eq!(limit(&watch), version);
        fs::remove_dir_all(watch.path.join("..2026_11_21_06_00")).unwrap_or_default();
    }
    assert_eq!(watch.status().refusals, 0);
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_is_made_first_and_filled_later_is_watched_too() {
    let (_directory, watch) = watch();
    write(&watch, &good(1));
    watch.start().unwrap();
    follow(&watch, true);
    until(&watch, |status| status.events).await;
    fs::create_dir_all(watch.path.join("more/and/more")).unwrap();
    tokio::time::sleep(LONG).await;
    assert_eq!(watch.status().in_force.as_ref().unwrap().version, 1, "there is nothing in it yet");
    fs::write(watch.path.join("more/and/more/b.yaml"), "domain: b\n").unwrap();
    until_version(&watch, 2).await;
    fs::write(watch.path.join("more/a.yaml"), "domain: a\n").unwrap();
    until_version(&watch, 3).await;
    assert_eq!(watch.status().in_force.as_ref().unwrap().files, 3);
}

thread_local! {
    /// What happens between a reading and the moment from which its directories are watched.
    static MEANWHILE: std::cell::RefCell<Option<Box<dyn FnOnce()>>> = const { std::cell::RefCell::new(None) };
}

#[tokio::test(start_paused = true)]
async fn what_changes_after_a_directory_is_read_and_before_it_is_watched_is_not_missed() {
    let (_directory, watch) = watch();
    write(&watch, &good(1));
    watch.start().unwrap();
    let path = watch.path.clone();
    MEANWHILE.set(Some(Box::new(move || fs::write(path.join("api.yaml"), good(2)).unwrap())));
    let sight = Sight::new(Some(|| {
        if let Some(change) = MEANWHILE.take() {
            change();
        }
        Events::new()
    }));
    // With no other reason to look in the next days.
    tokio::spawn(Arc::clone(&watch).follow_with(sight, Duration::from_secs(1_000_000)));
    until_version(&watch, 2).await;
    assert_eq!((limit(&watch), watch.status().events), (2, true));
}

#[tokio::test(start_paused = true)]
async fn the_same_content_is_no_reload_unless_somebody_asks_and_then_it_is_none_either() {
    let (_directory, watch) = watch();
    write(&watch, &good(1));
    watch.start().unwrap();
    let set = watch.current().load_full().unwrap();
    follow(&watch, true);
    for (_, replace) in WAYS.iter().take(4) {
        replace(&watch.path, &good(1));
        tokio::time::sleep(LONG).await;
    }
    watch.look();
    tokio::time::sleep(LONG).await;
    assert!(Arc::ptr_eq(&set, &watch.current().load_full().unwrap()));
    assert_eq!(watch.status().in_force.as_ref().unwrap().version, 1);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_being_written_is_waited_for_also_when_its_beginning_is_valid() {
    let (_directory, watch) = watch();
    write(&watch, &good(1));
    watch.start().unwrap();
    follow(&watch, true);
    until(&watch, |status| status.events).await;

    let mut file = File::create(watch.path.join("api.yaml")).unwrap();
    file.write_all(b"domain: api\n").unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((limit(&watch), watch.status().refusals), (1, 0), "half a file is not believed");
    file.write_all(b"descriptors: [ { key: a, rate_limit: { unit: day, requests_per_unit: 2 } } ]\n")
        .unwrap();
    drop(file);
    until_version(&watch, 2).await;
    assert_eq!(limit(&watch), 2);

    let mut file = File::create(watch.path.join("api.yaml")).unwrap();
    file.write_all(good(3).as_bytes()).unwrap();
    until_version(&watch, 3).await;
    assert_eq!(limit(&watch), 3, "one that nobody closes is believed in the end");
    drop(file);
}

#[tokio::test(start_paused = true)]
async fn files_that_keep_changing_are_believed_when_they_are_still() {
    let (_directory, watch) = watch();
    write(&watch, &good(1));
    watch.start().unwrap();
    follow(&watch, false);
    // Two readings are a second apart at least.
    for n in 0..400 {
        write(&watch, &good(1_000 + n));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!((limit(&watch), watch.status().refusals), (1, 0));
    }
    write(&watch, &good(2));
    until_version(&watch, 2).await;
    assert_eq!(limit(&watch), 2);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_away_for_a_moment_leaves_its_rules_in_force() {
    let (_directory, watch) = watch();
    write(&watch, &good(1));
    fs::write(watch.path.join("other.yaml"), "domain: other\n").unwrap();
    watch.start().unwrap();
    follow(&watch, true);
    until(&watch, |status| status.events).await;

    fs::remove_file(watch.path.join("api.yaml")).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(limit(&watch), 1);
    write(&watch, &good(2));
    until_version(&watch, 2).await;
    assert_eq!((limit(&watch), watch.status().in_force.as_ref().unwrap().files), (2, 2));

    fs::remove_file(watch.path.join("api.yaml")).unwrap();
    until_version(&watch, 3).await;
    assert_eq!(limit(&watch), 0, "one that stays away takes its rules with it");
}

#[tokio::test(start_paused = true)]
async fn where_the_system_refuses_to_watch_the_files_are_looked_at_and_the_log_says_so_once() {
    let log = Log::default();
    let writer = log.clone();
    let logs = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _logging = tracing::subscriber::set_default(logs);
    let (_directory, watch) = watch();
    write(&watch, &good(1));
    watch.start().unwrap();
    let sight = Sight::new(Some(Events::broken));
    tokio::spawn(Arc::clone(&watch).follow_with(sight, Duration::from_secs(10)));
    for version in 2..5 {
        write(&watch, &good(version));
        until_version(&watch, version.into()).await;
        assert_eq!((limit(&watch), watch.status().events), (version, false));
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    assert!(log.contains("fs.inotify.max_user_watches"), "{log}");
}

#[test]
fn instances_with_the_same_files_have_the_same_hash_wherever_those_stand() {
    let read = |name: &str, files: &[(&str, &str)]| {
        let directory = tempfile::tempdir().unwrap();
        let rules = directory.path().join(name);
        for (file, text) in files {
            let path = rules.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Files::read(&rules).hash()
    };
    let one = read("here", &[("a.yaml", "x"), ("b/c.yaml", "y")]);
    assert_eq!(one, read("there/deep", &[("b/c.yaml", "y"), ("a.yaml", "x"), ("notes.txt", "z")]));
    for other in [
        &[("a.yaml", "x"), ("b/c.yaml", "z")][..],
        &[("a.yaml", "x"), ("b/d.yaml", "y")],
        &[("a.yaml", "x")],
        &[],
    ] {
        assert_ne!(one, read("here", other));
    }
}

#[test]
fn a_set_that_calls_still_use_is_taken_apart_later_and_not_by_them() {
    let (_directory, watch) = watch();
    write(&watch, &good(1));
    watch.start().unwrap();
    let used = watch.current().load_full().unwrap();
    write(&watch, &good(2));
    watch.start().unwrap();
    assert_eq!(Arc::strong_count(&used), 2, "it is kept for as long as somebody uses it");
    let weak = Arc::downgrade(&used);
    drop(used);
    assert!(weak.upgrade().is_some());
    watch.judged().clear_retired();
    assert!(weak.upgrade().is_none());
}

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
