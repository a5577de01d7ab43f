//! The node plugin, and the keeper of its mounts: parse, compose, run, shut down.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{CommandFactory, FromArgMatches, Parser};
use s3view::{
    allocator::Allocator,
    app::{
        KeepOptions, LogArguments, NodeApp, NodeOptions, PluginArguments, PluginOptions, RunError,
        keep, program,
    },
    node::{self, StartError},
    problems::Problems,
    units::parse_duration,
};

/// A request of the SDK makes some hundred allocations: they are a seventh of its time with glibc's.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Mounts S3 prefixes as read-only volumes: the CSI node plugin.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    plugin: PluginArguments,
    /// Name of this node, as Kubernetes knows it.
    #[arg(long, env = "NODE_ID")]
    node_id: String,
    /// Directory of the registry and the memory store.
    #[arg(long, default_value = "/var/lib/s3view")]
    state_dir: PathBuf,
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

fn main() -> ExitCode {
    let command = match Command::parse() {
        Ok(command) => command,
        Err(error) => return program::refuse(&error),
    };
    let (Command::Node(Arguments { log, .. }) | Command::Keeper(KeeperArguments { log, .. })) =
        &command;
    log.init();
    let outcome = match command {
        Command::Node(arguments) => options(arguments).map_err(anyhow::Error::from).and_then(run),
        Command::Keeper(KeeperArguments { socket, hold_for, .. }) => {
            let options = KeepOptions::new(socket, hold_for).map_err(anyhow::Error::from);
            options.and_then(|options| Ok(keep(options)?))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => program::report(error.as_ref(), problems(&error)),
    }
}

/// Everything that the user configured, or all that is wrong with it.
fn options(arguments: Arguments) -> Result<NodeOptions, Problems> {
    let mut problems = Problems::default();
    let Arguments { plugin, node_id, state_dir, log: _ } = arguments;
    let PluginOptions { socket, config, config_file } =
        plugin.understand(node::check, &mut problems);
    if !state_dir.is_absolute() {
        let text = format!("{} must be an absolute path", state_dir.display());
        problems.add("--state-dir", text);
    }
    if node_id.is_empty() || node_id.len() > 256 {
        problems.add("--node-id", "must be the node's name, 1 to 256 bytes long");
    }
    problems.into_result(NodeOptions { socket, node_id, state_dir, config, config_file })
}

fn run(options: NodeOptions) -> anyhow::Result<()> {
    program::run(|stop| async {
        let app = NodeApp::build(options).await?;
        Ok(app.run(stop).await?)
    })?
}

/// What is wrong with the configuration, if that is why the program ends.
fn problems(error: &anyhow::Error) -> Option<&Problems> {
    error.downcast_ref().or_else(|| match error.downcast_ref() {
        Some(RunError::Start(StartError::Config(problems))) => Some(problems),
        _ => None,
    })
}
