//! Rule files replaced in every way there is, while calls come in: none fails, and each is decided by a whole set.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use tonic::transport::Channel;
use weir::proto::{Code, RateLimitServiceClient};

use crate::support::server::request;
use crate::support::weir::Weir;

/// Version 1 has this limit, and each further one has one more.
const LIMIT: u32 = 10_000;

/// So many calls in a row are counted in one bucket. So few of so many come back in a year that none does meanwhile.
const TURN: u32 = 1_000;

fn text(version: u32) -> String {
    let changing = LIMIT - 1 + version;
    format!(
        "domain: api
descriptors:
  - {{ key: changing, rate_limit: {{ unit: year, requests_per_unit: {changing} }} }}
  - {{ key: steady, rate_limit: {{ unit: year, requests_per_unit: {LIMIT} }} }}
  - {{ key: open, rate_limit: {{ unlimited: true }} }}
  - {{ key: shut, rate_limit: {{ unit: day, requests_per_unit: 0 }} }}
"
    )
}

/// What callers may meet.
#[derive(Default)]
struct Versions {
    /// Has been seen to be in force, so that nobody meets an older one.
    in_force: AtomicU32,
    /// Has been begun to be written, so that nobody meets a newer one.
    written: AtomicU32,
    stop: AtomicBool,
}

/// Calls in a row until it is told to stop, each of which must be answered as one of the sets says that may be in force.
async fn call(name: usize, mut client: RateLimitServiceClient<Channel>, versions: Arc<Versions>) -> u32 {
    let mut calls = 0;
    while !versions.stop.load(Ordering::SeqCst) {
        let (turn, used) = (calls / TURN, calls % TURN + 1);
        let key = format!("{name}-{turn}");
        let entries = [("changing", key.as_bytes()), ("steady", key.as_bytes()), ("open", b"".as_slice())];
        let oldest = versions.in_force.load(Ordering::SeqCst);
        let answer =
            client.should_rate_limit(request("api", &entries)).await.expect("no call fails").into_inner();
        let newest = versions.written.load(Ordering::SeqCst);

        assert_eq!(answer.overall_code(), Code::Ok, "{answer:?}");
        let [changing, steady, open] = &answer.statuses[..] else { panic!("{answer:?}") };
        let limit = changing.current_limit.as_ref().unwrap().requests_per_unit;
        assert!((oldest..=newest).contains(&(limit - LIMIT + 1)), "{limit}: {oldest} to {newest}");
        assert_eq!(changing.limit_remaining, limit - used, "what was used is kept when a limit changes");
        assert_eq!(steady.limit_remaining, LIMIT - used, "and when it does not");
        assert_eq!((open.limit_remaining, &open.current_limit), (u32::MAX, &None));

        let denied = client.should_rate_limit(request("api", &[("shut", b"")])).await.expect("no call fails");
        assert_eq!(denied.into_inner().overall_code(), Code::OverLimit);
        calls += 1;
    }
    calls
}

/// Serves `rules` with these arguments, calls all the time, and has `change` change the rules meanwhile.
async fn under_load(
    rules: &Path,
    arguments: &[&str],
    change: impl FnOnce(&Weir, &Versions) + Send + 'static,
) {
    let versions = Arc::new(Versions::default());
    versions.in_force.store(1, Ordering::SeqCst);
    versions.written.store(1, Ordering::SeqCst);
    let arguments: Vec<_> =
        [&["--grpc", "127.0.0.1:0"], arguments, &["--rules", rules.to_str().unwrap()]].concat();
    let weir = Weir::start_with(arguments.iter().map(std::ffi::OsStr::new));
    let client = RateLimitServiceClient::connect(format!("http://{}", weir.grpc())).await.unwrap();
    let callers: Vec<_> =
        (0..4).map(|name| tokio::spawn(call(name, client.clone(), Arc::clone(&versions)))).collect();
    let ends = Arc::clone(&versions);
    let changed = tokio::task::spawn_blocking(move || {
        // Callers end also when this fails.
        struct Stop<'v>(&'v Versions);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.stop.store(true, Ordering::SeqCst);
            }
        }
        let _stop = Stop(&ends);
        change(&weir, &ends);
        weir
    });
    let weir = changed.await.unwrap();
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
    tokio::task::spawn_blocking(|| weir.stop()).await.unwrap();
}

/// Writes the next version in some way, and waits until it is in force.
fn replace(weir: &Weir, versions: &Versions, way: &str, replace: impl FnOnce(&str)) {
    let next = versions.written.fetch_add(1, Ordering::SeqCst) + 1;
    replace(&text(next));
    eprintln!("version {next}: {way}");
    weir.await_log(&format!(" version={next} "), 1);
    versions.in_force.store(next, Ordering::SeqCst);
}

fn run(directory: &Path, command: &str) {
    let status = Command::new("sh").args(["-ec", command]).current_dir(directory).status().unwrap();
    assert!(status.success(), "{command}");
}

/// A directory of rules, where it is.
struct Place {
    root: PathBuf,
    rules: PathBuf,
    api: PathBuf,
}

impl Place {
    fn beside(&self, text: &str) {
        fs::write(self.root.join("new"), text).unwrap();
    }
}

type Way = fn(&Place, &str);

/// Ways of putting another file in the place of one.
const WAYS: [(&str, Way); 10] = [
    ("mv", |place, text| {
        place.beside(text);
        run(&place.root, "mv new rules/api.yaml");
    }),
    ("cp", |place, text| {
        place.beside(text);
        run(&place.root, "cp new rules/api.yaml");
    }),
    ("sed -i", |place, text| {
        let (_, limit) = text.split_once("requests_per_unit: ").unwrap();
        let limit = limit.split(' ').next().unwrap();
        let replace = format!("/changing/s/requests_per_unit: [0-9]*/requests_per_unit: {limit}/");
        run(&place.root, &format!("sed -i '{replace}' rules/api.yaml"));
    }),
    ("an editor that puts the old file away and writes a new one", |Place { rules, api, .. }, text| {
        fs::write(rules.join(".api.yaml.swp"), "b0VIM 9.1").unwrap();
        fs::rename(api, rules.join("api.yaml~")).unwrap();
        fs::write(api, text).unwrap();
        fs::remove_file(rules.join("api.yaml~")).unwrap();
        fs::remove_file(rules.join(".api.yaml.swp")).unwrap();
    }),
    ("an editor that takes its time between", |Place { rules, api, .. }, text| {
        fs::rename(api, rules.join("api.yaml.bak")).unwrap();
        thread::sleep(Duration::from_secs(1));
        fs::write(api, text).unwrap();
    }),
    ("rsync: a hidden file, renamed", |Place { rules, api, .. }, text| {
        fs::write(rules.join(".api.yaml.hQ3x2"), text).unwrap();
        fs::rename(rules.join(".api.yaml.hQ3x2"), api).unwrap();
    }),
    ("rsync --inplace", |Place { api, .. }, text| {
        let file = File::options().write(true).open(api).unwrap();
        (&file).write_all(text.as_bytes()).unwrap();
        file.set_len(text.len() as u64).unwrap();
    }),
    ("a directory below, that is made and filled", |Place { rules, api, .. }, text| {
        fs::remove_file(api).unwrap();
        fs::create_dir_all(rules.join("below")).unwrap();
        fs::write(rules.join("below/api.yaml"), text).unwrap();
    }),
    ("and back", |Place { rules, api, .. }, text| {
        fs::remove_dir_all(rules.join("below")).unwrap();
        fs::write(api, text).unwrap();
    }),
    ("a directory that is deleted and made again", |Place { root, api, .. }, text| {
        run(root, "rm -r rules; mkdir rules");
        fs::write(api, text).unwrap();
    }),
];

/// Ways of putting another directory in the place of one.
const WAYS_OF_DIRECTORIES: [(&str, Way); 4] = [
    ("another directory in its place", |Place { root, .. }, text| {
        run(root, "mkdir next");
        fs::write(root.join("next/api.yaml"), text).unwrap();
        run(root, "mv rules last; mv next rules");
    }),
    ("a link in its place", |place, text| switch_link(place, "one", text)),
    ("a link that is switched", |place, text| switch_link(place, "two", text)),
    ("a link that is switched again", |place, text| switch_link(place, "three", text)),
];

fn switch_link(Place { root, .. }: &Place, release: &str, text: &str) {
    run(root, &format!("mkdir {release}; test -L rules || rm -r rules"));
    fs::write(root.join(release).join("api.yaml"), text).unwrap();
    run(root, &format!("ln -s {release} link; mv -T link rules"));
}

fn place(directory: &TempDir) -> Place {
    let root = directory.path().to_owned();
    let rules = root.join("rules");
    fs::create_dir(&rules).unwrap();
    let api = rules.join("api.yaml");
    fs::write(&api, text(1)).unwrap();
    Place { root, rules, api }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_replaced_in_every_way_under_load_fail_no_call_and_decide_none_wrongly() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(&directory);
    under_load(&place.rules.clone(), &[], move |weir, versions| {
        let Place { rules, api, .. } = &place;
        for (way, change) in WAYS {
            replace(weir, versions, way, |text| change(&place, text));
        }
        replace(weir, versions, "a slow copy whose beginning is valid", |text| {
            let mut file = File::create(api).unwrap();
            file.write_all(b"domain: api\n").unwrap();
            thread::sleep(Duration::from_secs(1));
            file.write_all(text.strip_prefix("domain: api\n").unwrap().as_bytes()).unwrap();
        });
        replace(weir, versions, "SIGHUP", |text| {
            fs::write(api, text).unwrap();
            weir.hang_up();
        });
        assert_eq!(weir.logged("refused"), 0);

        fs::write(api, "domain: api\ndescriptors: [ { key: '' }, { kye: a } ]\n").unwrap();
        weir.await_log("rules refused; those loaded before stay in force", 1);
        assert_eq!(
            weir.logged("the key is empty") + weir.logged("did you mean `key`?"),
            2,
            "every mistake is told"
        );
        replace(weir, versions, "what is good again", |text| fs::write(api, text).unwrap());
        assert_eq!(weir.logged("refused;"), 1);

        fs::remove_dir_all(rules).unwrap();
        weir.await_log("refused;", 2);
        replace(weir, versions, "a directory that comes back", |text| {
            fs::create_dir(rules).unwrap();
            fs::write(api, text).unwrap();
        });
        for (way, change) in WAYS_OF_DIRECTORIES {
            replace(weir, versions, way, |text| change(&place, text));
        }
        assert_eq!(weir.logged("refused;"), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_tells_of_changes_files_are_replaced_under_load_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(&directory);
    let looks = ["--rules-events=false", "--rules-poll", "200ms"];
    under_load(&place.rules.clone(), &looks, move |weir, versions| {
        for (way, change) in WAYS.iter().chain(&WAYS_OF_DIRECTORIES) {
            replace(weir, versions, way, |text| change(&place, text));
        }
        assert_eq!(weir.logged("refused"), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_has_files_looked_at_that_nobody_tells_of() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(&directory);
    let seldom = ["--rules-events=false", "--rules-poll", "10s"];
    under_load(&place.rules.clone(), &seldom, move |weir, versions| {
        let start = weir::clock::instant();
        for _ in 0..4 {
            replace(weir, versions, "SIGHUP", |text| {
                fs::write(&place.api, text).unwrap();
                weir.hang_up();
            });
        }
        assert!(start.elapsed() < Duration::from_secs(30), "by looks alone it takes 40");
    })
    .await;
}

/// The same with so many more that they take a while to be read.
fn with_many_rules(text: &str) -> String {
    let mut text = text.to_owned();
    (0..30_000)
        .for_each(|n| text.push_str(&format!("  - {{ key: user, value: u{n}, rate_limit: 5/minute }}\n")));
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_answered_while_tens_of_thousands_of_rules_are_read_and_put_in_force() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(&directory);
    fs::write(&place.api, with_many_rules(&text(1))).unwrap();
    let longest = Arc::new(Mutex::new(Duration::ZERO));
    let watched = Arc::clone(&longest);
    let rules = place.rules.clone();
    under_load(&rules, &[], move |weir, versions| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (url, stopped) = (format!("http://{}", weir.grpc()), Arc::clone(&stop));
        let timed = thread::spawn(move || {
            runtime.block_on(async move {
                let mut client = RateLimitServiceClient::connect(url).await.unwrap();
                while !stopped.load(Ordering::SeqCst) {
                    let start = weir::clock::instant();
                    client.should_rate_limit(request("api", &[("open", b"")])).await.unwrap();
                    let mut longest = watched.lock().unwrap();
                    *longest = start.elapsed().max(*longest);
                }
            });
        });
        let mut loads = Duration::ZERO;
        for _ in 0..3 {
            let start = weir::clock::instant();
            replace(weir, versions, "many rules", |text| {
                fs::write(&place.api, with_many_rules(text)).unwrap();
            });
            loads += start.elapsed();
        }
        stop.store(true, Ordering::SeqCst);
        timed.join().unwrap();
        let longest = *longest.lock().unwrap();
        // Half of what one of the three took.
        assert!(longest < loads / 6, "{longest:?} for one call while three loads took {loads:?}");
    })
    .await;
}

/// Switches a volume as the kubelet does for a ConfigMap: files are links through `..data` to a directory with a date.
fn switch_config_map(volume: &Path, version: u32, text: &str) {
    let date = format!("..2026_11_21_08_00_00.{version}");
    fs::create_dir_all(volume.join(&date)).unwrap();
    fs::write(volume.join(&date).join("api.yaml"), text).unwrap();
    let last = fs::read_link(volume.join("..data")).ok();
    symlink(&date, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    match last {
        Some(last) => fs::remove_dir_all(volume.join(last)).unwrap(),
        None => symlink("..data/api.yaml", volume.join("api.yaml")).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_config_map_that_is_switched_under_load_is_seen_with_events_and_without() {
    for arguments in [&[][..], &["--rules-events=false", "--rules-poll", "200ms"]] {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().to_owned();
        switch_config_map(&volume, 1, &text(1));
        under_load(&volume.clone(), arguments, move |weir, versions| {
            for version in 2..5 {
                replace(weir, versions, "a ConfigMap", |text| switch_config_map(&volume, version, text));
            }
            assert_eq!(weir.logged("refused"), 0);
        })
        .await;
    }
}
