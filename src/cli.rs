//! The command line: `serve`, `check`, `explain`, `schema`, `hit` and `load`.
//!
//! Answers go to standard output, messages to standard error. Exit codes: 0; 64 (`EX_USAGE`) for a wrong command line or
//! wrong rules; 1 for what could not be started or reached.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::app::{self, App, Stop};
use crate::rules::{self, LoadError};
use crate::serve::files;
use crate::settings::{self, Settings};
use crate::telemetry::logs::Logs;

mod check;
mod descriptor;
mod explain;
mod hit;
mod load;
mod stores;

/// A wrong command line or wrong rules, as sysexits.h has it.
const EX_USAGE: u8 = 64;

/// What could not be started or reached.
const EX_FAILED: u8 = 1;

/// A rate-limit decision service that speaks Envoy's rate limit protocol
#[derive(Debug, Parser)]
#[command(name = "weir", version, arg_required_else_help = true, max_term_width = 100)]
enum Command {
    /// Answer rate limit calls until SIGTERM
    ///
    /// Rule files are loaded again when they change; rules that are wrong are refused, and those in force stay. SIGHUP
    /// has the files looked at, and the log say what was found.
    Serve(Box<Settings>),

    /// Say what a directory of rule files holds, or everything that is wrong with it
    ///
    /// Exits with 0 when the rules can be used and with 64 when they cannot, so it can be a step in CI.
    Check(check::Check),

    /// Say which limit a descriptor meets, which bucket it charges, and why other rules do not apply
    Explain(explain::Explain),

    /// Print the JSON Schema of rule files, for editors
    ///
    /// A first line `# yaml-language-server: $schema=PATH` in a rule file has editors complete and check it.
    Schema,

    /// Ask a running server about one request, and charge it
    Hit(Box<hit::Hit>),

    /// Put a load on a server that speaks the rate limit protocol, and tell how it fares
    ///
    /// The result is on standard output; standard error is told every second how it goes.
    Load(Box<load::Load>),
}

/// Runs the command that `arguments` give, the first of which is the program's own name.
#[must_use]
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let command = match Command::try_parse_from(arguments) {
        Ok(command) => command,
        Err(error) => {
            // Help and version come this way too.
            _ = error.print();
            return if error.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match command {
        Command::Serve(settings) => serve(*settings),
        Command::Check(check) => check.run(),
        Command::Explain(explain) => match explain.load() {
            Ok(set) => {
                set.warnings().iter().for_each(|warning| message(&warning.to_string()));
                match explain.run(set) {
                    Ok(text) => answer(&text),
                    Err(error) => fail(EX_USAGE, &error),
                }
            }
            Err(error) => refuse(&error),
        },
        Command::Schema => answer(&format!("{:#}\n", rules::schema().as_value())),
        Command::Hit(hit) => match runtime().and_then(|runtime| runtime.block_on(hit.run())) {
            Ok(text) => answer(&text),
            Err(error) => fail(EX_FAILED, &error),
        },
        Command::Load(load) => match load.run() {
            Ok(text) => answer(&text),
            Err(load::Refused::Usage(error)) => fail(EX_USAGE, &error),
            Err(load::Refused::Failed(error)) => fail(EX_FAILED, &error),
        },
    }
}

fn serve(settings: Settings) -> ExitCode {
    let logs = match Logs::start(&settings.telemetry.log, settings.telemetry.log_format) {
        Ok(logs) => logs,
        Err(error) => return fail(EX_USAGE, &error.to_string()),
    };
    for (name, nearest) in settings::unknown_variables(std::env::vars_os(), &Command::command()) {
        match nearest {
            Some(nearest) => tracing::warn!("{name} sets nothing; did you mean {nearest}?"),
            None => tracing::warn!("{name} sets nothing; `weir serve --help` lists the variables"),
        }
    }
    if let Some(odd) = settings.serving.odd() {
        tracing::warn!("{odd}");
    }
    files::make_room_for(settings.serving.max_connections.get());
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(EX_FAILED, &error),
    };
    let served = runtime.block_on(async {
        // Before anything else, so that a signal is heeded from the start.
        let mut signals = Signals::listen()?;
        tokio::spawn(logs.obey_signals());
        let app = tokio::select! {
            app = App::bind(settings) => app?,
            _ = signals.next() => return Ok(()),
        };
        let (stop, stopped) = oneshot::channel();
        let stopped = async { stopped.await.unwrap_or(Stop::Soon) };
        tokio::select! {
            served = app.run(stopped) => served,
            () = signals.stop(stop) => Ok(()),
        }
    });
    // What still reads files is not waited for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(app::Error::Rules(error)) => refuse(&error),
        Err(error @ app::Error::Settings(_)) => fail(EX_USAGE, &error.to_string()),
        Err(error) => fail(EX_FAILED, &error.to_string()),
    }
}

/// The signals that end the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens for them from now on.
    fn listen() -> Result<Self, app::Error> {
        let listen = |kind| {
            signal(kind).map_err(|error| app::Error::Start(format!("cannot wait for signals: {error}")))
        };
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits for one. SIGINT comes from a keyboard, before which somebody waits.
    async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.terminate.recv() => Stop::Gently,
            _ = self.interrupt.recv() => Stop::Soon,
        }
    }

    /// Passes the first one on, and returns at the second: that is for at once.
    async fn stop(mut self, stop: oneshot::Sender<Stop>) {
        // Nobody listens any more when serving has ended, which ends this too.
        _ = stop.send(self.next().await);
        self.next().await;
        tracing::warn!("a second signal: stopping without waiting for calls");
    }
}

/// Prints why rules cannot be used.
fn refuse(error: &LoadError) -> ExitCode {
    error.problems().iter().for_each(|problem| message(&problem.to_string()));
    fail(EX_USAGE, &error.to_string())
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start threads: {error}"))
}

fn answer(text: &str) -> ExitCode {
    // Whoever reads may have read enough and gone: no failure of ours.
    _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn message(text: &str) {
    _ = writeln!(std::io::stderr(), "{text}");
}

fn fail(code: u8, text: &str) -> ExitCode {
    message(&format!("weir: {text}"));
    ExitCode::from(code)
}
