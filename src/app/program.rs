//! What the programs have in common: their flags, signals, log and exit codes.

use std::{error::Error, future::Future, io, path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};
use thiserror::Error;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use super::ConfigFile;
use crate::{
    config::Config,
    failure::full_message,
    mount,
    problems::Problems,
    telemetry::log::{self, LogFormat},
};

/// `EX_USAGE` of sysexits.h: the command line or the configuration is wrong.
const EX_USAGE: u8 = 64;

/// Where the configuration file is looked for when none is named.
const DEFAULT_CONFIG: &str = "/etc/s3view/config.yaml";

/// The flags of every plugin.
#[derive(Debug, Args)]
pub struct PluginArguments {
    /// CSI socket: `unix:///path` or `/path`.
    #[arg(long, env = "CSI_ENDPOINT")]
    endpoint: String,
    /// Name of the driver; overrides driverName of the configuration file.
    #[arg(long)]
    driver_name: Option<String>,
    /// Configuration file (YAML); /etc/s3view/config.yaml is read if it exists.
    #[arg(long)]
    config: Option<PathBuf>,
}

/// What [`PluginArguments`] say.
#[derive(Debug)]
pub struct PluginOptions {
    /// The CSI socket.
    pub socket: PathBuf,
    /// What the configuration file says.
    pub config: Config,
    /// The file, if there is one: it is followed.
    pub config_file: Option<ConfigFile>,
}

/// The flags for the log.
#[derive(Debug, Clone, Copy, Args)]
pub struct LogArguments {
    /// How log lines look.
    #[arg(long, value_enum, default_value = "text")]
    log_format: Format,
    /// off, error, warn, info, debug or trace; for s3view's own events.
    #[arg(long, default_value = "info")]
    log_level: LevelFilter,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// The process could not be prepared.
#[derive(Debug, Error)]
#[error("failed to {action}")]
pub struct PrepareError {
    action: &'static str,
    #[source]
    error: io::Error,
}

impl PluginArguments {
    /// Reads the configuration and checks it, with `check` for what this program needs of it besides.
    /// What is wrong goes to `problems`, and defaults stand in its place.
    ///
    /// # Blocking
    /// Reads files.
    pub fn understand(
        self,
        check: fn(&Config) -> Problems,
        problems: &mut Problems,
    ) -> PluginOptions {
        let Self { endpoint, driver_name, config: path } = self;
        let path = path.or_else(|| {
            let default = PathBuf::from(DEFAULT_CONFIG);
            default.exists().then_some(default)
        });
        let mut config = Config::default();
        // Told even where the file is wrong, and told once.
        let name = driver_name.filter(|name| {
            let told = config.set_driver_name(name);
            told.map_err(|found| problems.extend(found)).is_ok()
        });
        let config_file = path.map(|path| ConfigFile::read(path, name));
        let (understood, found) = match &config_file {
            Some(file) => file.understand(),
            None => (Some(std::mem::take(&mut config)), Problems::default()),
        };
        problems.extend(found);
        if let Some(understood) = understood {
            problems.extend_with_others(check(&understood));
            config = understood;
        }
        PluginOptions { socket: socket(&endpoint, problems), config, config_file }
    }
}

fn socket(endpoint: &str, problems: &mut Problems) -> PathBuf {
    let socket = PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    if !socket.is_absolute() {
        problems.add("--endpoint", format!("{endpoint:?} must be unix:///path/of/socket"));
    }
    // sun_path of unix(7) holds 108 bytes, with a NUL at the end.
    if socket.as_os_str().len() > 107 {
        problems.add("--endpoint", format!("{endpoint:?} must be at most 107 bytes long"));
    }
    socket
}

impl LogArguments {
    /// Sends all further events to standard error. Call once.
    pub fn init(self) {
        let format = match self.log_format {
            Format::Text => LogFormat::Text,
            Format::Json => LogFormat::Json,
        };
        log::init(format, self.log_level);
    }
}

/// Runs `work` on a runtime of its own, which ends with the process; the token that `work` gets is
/// cancelled at SIGTERM or SIGINT.
///
/// # Errors
/// The process cannot be prepared: secrets could reach a core file, or no thread can be started.
///
/// # Blocking
/// Until `work` is done.
pub fn run<T, W>(work: impl FnOnce(CancellationToken) -> W) -> Result<T, PrepareError>
where
    W: Future<Output = T>,
{
    let failed = |action| move |error| PrepareError { action, error };
    mount::forbid_core_dumps().map_err(failed("switch off core dumps"))?;
    mount::raise_descriptor_limit().map_err(failed("raise the descriptor limit"))?;
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(64)
        .build()
        .map_err(failed("start the runtime"))?;
    // Ended before the process, it would answer every read under way with an error, which the next
    // process could still serve; and work that hangs (a disk, a network file system) would keep the
    // process.
    let runtime: &'static Runtime = Box::leak(Box::new(runtime));
    runtime.block_on(async {
        let stopped = stopped().map_err(failed("receive signals"))?;
        let stop = CancellationToken::new();
        let working = work(stop.clone());
        tokio::pin!(working);
        tokio::select! {
            outcome = &mut working => return Ok(outcome),
            () = stopped => stop.cancel(),
        }
        Ok(working.await)
    })
}

/// Completes at SIGTERM or SIGINT, which are caught from the call on.
fn stopped() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Prints why the command line cannot be used, or what it asked for: help and version are no failure.
pub fn refuse(error: &clap::Error) -> ExitCode {
    let code = if error.use_stderr() { EX_USAGE } else { 0 };
    error.print().map_or(ExitCode::FAILURE, |()| ExitCode::from(code))
}

/// Logs why the program ends: each problem of a configuration on a line of its own.
pub fn report(error: &(dyn Error + 'static), problems: Option<&Problems>) -> ExitCode {
    let Some(problems) = problems else {
        tracing::error!(error = full_message(error), "failed");
        return ExitCode::FAILURE;
    };
    for problem in problems.iter() {
        tracing::error!(field = problem.field, "{}: {}", problem.field, problem.text);
    }
    ExitCode::from(EX_USAGE)
}
