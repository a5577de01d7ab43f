//! The controller plugin: parse, compose, run, shut down.

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use s3view::{
    app::{
        ControllerApp, ControllerRunError, LogArguments, PluginArguments, PluginOptions, program,
    },
    controller,
    problems::Problems,
};

/// As in the node plugin: the SDK makes many small allocations.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Makes volumes of a StorageClass: the CSI controller plugin.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    plugin: PluginArguments,
    #[command(flatten)]
    log: LogArguments,
}

fn main() -> ExitCode {
    let Arguments { plugin, log } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return program::refuse(&error),
    };
    log.init();
    match options(plugin).map_err(anyhow::Error::from).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => program::report(error.as_ref(), problems(&error)),
    }
}

/// Everything that the user configured, or all that is wrong with it.
fn options(plugin: PluginArguments) -> Result<PluginOptions, Problems> {
    let mut problems = Problems::default();
    let options = plugin.understand(controller::check, &mut problems);
    problems.into_result(options)
}

fn run(options: PluginOptions) -> anyhow::Result<()> {
    program::run(|stop| async {
        let app = ControllerApp::build(options).await?;
        Ok(app.run(stop).await?)
    })?
}

/// What is wrong with the configuration, if that is why the program ends.
fn problems(error: &anyhow::Error) -> Option<&Problems> {
    error.downcast_ref().or_else(|| match error.downcast_ref() {
        Some(ControllerRunError::Config(problems)) => Some(problems),
        _ => None,
    })
}
