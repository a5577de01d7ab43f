//! The node plugin, and the keeper of its mounts: parse, compose, run, shut down.

use std::{future::Future, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::{Args, CommandFactory, FromArgMatches, Parser, ValueEnum};
use s3view::{
    allocator::Allocator,
    app::{ConfigFile, KeepOptions, NodeApp, NodeOptions, RunError, keep},
    config::Config,
    failure::full_message,
    node::StartError,
    problems::Problems,
    telemetry::log::{self, LogFormat},
    units::parse_duration,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

/// A request of the SDK makes some hundred allocations: they are a seventh of its time with glibc's.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// `EX_USAGE` of sysexits.h: the command line or the configuration is wrong.
const EX_USAGE: u8 = 64;

/// Where the configuration file is looked for when none is named.
const DEFAULT_CONFIG: &str = "/etc/s3view/config.yaml";

/// Mounts S3 prefixes as read-only volumes: the CSI node plugin.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// CSI socket: `unix:///path` or `/path`.
    #[arg(long, env = "CSI_ENDPOINT")]
    endpoint: String,
    /// Name of this node, as Kubernetes knows it.
    #[arg(long, env = "NODE_ID")]
    node_id: String,
    /// Name of the driver; overrides driverName of the configuration file.
    #[arg(long)]
    driver_name: Option<String>,
    /// Directory of the registry and the memory store.
    #[arg(long, default_value = "/var/lib/s3view")]
    state_dir: PathBuf,
    /// Configuration file (YAML); /etc/s3view/config.yaml is read if it exists.
    #[arg(long)]
    config: Option<PathBuf>,
    #[command(flatten)]
    log: LogArguments,
}

/// Holds FUSE mounts while the node plugin restarts.
#[derive(Debug, Parser)]
#[command(name = "keeper")]
struct KeeperArguments {
    /// Unix socket; its directory is made if it is missing, and is the keeper's own.
    #[arg(long, default_value = "/run/s3view/keeper.sock")]
    socket: PathBuf,
    /// How long a mount is held that no plugin takes back; then reads fail.
    #[arg(long, value_parser = parse_duration, default_value = "10m")]
    hold_for: Duration,
    #[command(flatten)]
    log: LogArguments,
}

#[derive(Debug, Clone, Copy, Args)]
struct LogArguments {
    /// How log lines look.
    #[arg(long, value_enum, default_value = "text")]
    log_format: Format,
    /// off, error, warn, info, debug or trace; for s3view's own events.
    #[arg(long, default_value = "info")]
    log_level: LevelFilter,
}

/// What the command line asks for.
enum Command {
    Node(Arguments),
    Keeper(KeeperArguments),
}

impl Command {
    /// Without a subcommand it is the plugin, whose flags are then required.
    fn parse() -> Result<Self, clap::Error> {
        let command = Arguments::command()
            .subcommand(KeeperArguments::command())
            .subcommand_negates_reqs(true)
            .args_conflicts_with_subcommands(true)
            .disable_help_subcommand(true);
        let matches = command.try_get_matches()?;
        match matches.subcommand_matches("keeper") {
            Some(matches) => Ok(Self::Keeper(KeeperArguments::from_arg_matches(matches)?)),
            None => Ok(Self::Node(Arguments::from_arg_matches(&matches)?)),
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn main() -> ExitCode {
    let command = match Command::parse() {
        Ok(command) => command,
        Err(error) => {
            // Help and version go to standard output and are no failure.
            let code = if error.use_stderr() { EX_USAGE } else { 0 };
            return error.print().map_or(ExitCode::FAILURE, |()| ExitCode::from(code));
        }
    };
    let (Command::Node(Arguments { log, .. }) | Command::Keeper(KeeperArguments { log, .. })) =
        &command;
    let format = match log.log_format {
        Format::Text => LogFormat::Text,
        Format::Json => LogFormat::Json,
    };
    log::init(format, log.log_level);
    let outcome = match command {
        Command::Node(arguments) => options(arguments).map_err(anyhow::Error::from).and_then(run),
        Command::Keeper(KeeperArguments { socket, hold_for, .. }) => {
            let options = KeepOptions::new(socket, hold_for).map_err(anyhow::Error::from);
            options.and_then(|options| Ok(keep(options)?))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// Everything that the user configured, or all that is wrong with it.
fn options(arguments: Arguments) -> Result<NodeOptions, Problems> {
    let mut problems = Problems::default();
    let path = arguments.config.or_else(|| {
        let default = PathBuf::from(DEFAULT_CONFIG);
        default.exists().then_some(default)
    });
    let mut config = Config::default();
    // Told even where the file is wrong, and told once.
    let name = arguments.driver_name.filter(|name| {
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
        problems.extend_with_others(s3view::node::check(&understood));
        config = understood;
    }
    let endpoint = arguments.endpoint;
    let socket = PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(&endpoint));
    if !socket.is_absolute() {
        problems.add("--endpoint", format!("{endpoint:?} must be unix:///path/of/socket"));
    }
    // sun_path of unix(7) holds 108 bytes, with a NUL at the end.
    if socket.as_os_str().len() > 107 {
        problems.add("--endpoint", format!("{endpoint:?} must be at most 107 bytes long"));
    }
    if !arguments.state_dir.is_absolute() {
        let text = format!("{} must be an absolute path", arguments.state_dir.display());
        problems.add("--state-dir", text);
    }
    if arguments.node_id.is_empty() || arguments.node_id.len() > 256 {
        problems.add("--node-id", "must be the node's name, 1 to 256 bytes long");
    }
    let (node_id, state_dir) = (arguments.node_id, arguments.state_dir);
    problems.into_result(NodeOptions { socket, node_id, state_dir, config, config_file })
}

fn run(options: NodeOptions) -> anyhow::Result<()> {
    s3view::mount::forbid_core_dumps().context("failed to switch off core dumps")?;
    s3view::mount::raise_descriptor_limit().context("failed to raise the descriptor limit")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(64)
        .build()
        .context("failed to start the runtime")?;
    let outcome = runtime.block_on(async {
        let stopped = stopped()?;
        let app = NodeApp::build(options).await?;
        let stop = CancellationToken::new();
        let running = app.run(stop.clone());
        tokio::pin!(running);
        tokio::select! {
            outcome = &mut running => return Ok(outcome?),
            () = stopped => stop.cancel(),
        }
        Ok(running.await?)
    });
    // Blocking work that hangs (a disk, a network file system) must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Completes at SIGTERM or SIGINT, which are caught from the call on.
fn stopped() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Logs why the plugin ends: each problem of a configuration on a line of its own.
fn report(error: &anyhow::Error) -> ExitCode {
    let problems =
        error.downcast_ref::<Problems>().or_else(|| match error.downcast_ref::<RunError>() {
            Some(RunError::Start(StartError::Config(problems))) => Some(problems),
            _ => None,
        });
    let Some(problems) = problems else {
        tracing::error!(error = full_message(error.as_ref()), "failed");
        return ExitCode::FAILURE;
    };
    for problem in problems.iter() {
        tracing::error!(field = problem.field, "{}: {}", problem.field, problem.text);
    }
    ExitCode::from(EX_USAGE)
}
