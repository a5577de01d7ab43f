//! Follows the configuration file while the plugin runs.
//!
//! The content is read every second instead of waiting for an event: a `ConfigMap`'s update renames a
//! symlink two levels above the file, which a watch on the file never sees, and a few kilobytes a
//! second cost nothing. A content counts when two looks in a row found it, so that a file which is
//! written in place is not taken in half: half a policy may be well-formed.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, Config, Reloaded},
    problems::Problems,
    task::blocking,
    telemetry::metrics::Metrics,
};

/// How often the file is read.
const LOOK: Duration = Duration::from_secs(1);

/// The configuration file as it was read last.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    path: PathBuf,
    content: Result<String, String>,
    /// Wins over the file's.
    driver_name: Option<String>,
}

impl ConfigFile {
    /// Reads the file.
    ///
    /// # Blocking
    /// Reads a file.
    pub fn read(path: PathBuf, driver_name: Option<String>) -> Self {
        let content = config::read(&path);
        Self { path, content, driver_name }
    }

    /// What the file says.
    ///
    /// # Errors
    /// See [`Config::load`]; a `driverName` that loses is checked too.
    pub fn parse(&self) -> Result<Config, Problems> {
        match self.understand() {
            (Some(config), problems) => problems.into_result(config),
            (None, problems) => Err(problems),
        }
    }

    /// What can be understood of the file, and what is wrong with it; see
    /// [`Config::understand_file`].
    pub fn understand(&self) -> (Option<Config>, Problems) {
        let (mut config, mut problems) = Config::understand_file(&self.path, &self.content);
        if let (Some(config), Some(name)) = (&mut config, &self.driver_name)
            && let Err(found) = config.set_driver_name(name)
        {
            problems.extend(found);
        }
        (config, problems)
    }

    /// Takes in what the file says whenever that changes, until `stop`: by `reload`, which may block.
    pub(super) async fn follow(
        self,
        reload: impl Fn(&Config) -> Result<Reloaded, Problems> + Clone + Send + Sync + 'static,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) {
        show(&metrics, &Ok(Reloaded::default()));
        let (mut known, mut seen) = (self, None);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep(LOOK) => {}
            }
            let path = known.path.clone();
            let content = blocking(move || config::read(&path)).await;
            if content == known.content {
                seen = None;
            } else if seen.as_ref() == Some(&content) {
                (known.content, seen) = (content, None);
                let (reload, file) = (reload.clone(), known.clone());
                let outcome = blocking(move || reload(&file.parse()?)).await;
                metrics.config_reloads.with_label_values(&[outcome_name(&outcome)]).inc();
                show(&metrics, &outcome);
                tell(&outcome);
            } else {
                seen = Some(content);
            }
        }
    }
}

fn outcome_name(outcome: &Result<Reloaded, Problems>) -> &'static str {
    if outcome.is_ok() { "applied" } else { "refused" }
}

/// Sets the gauges that tell whether the file is what is in force.
fn show(metrics: &Metrics, outcome: &Result<Reloaded, Problems>) {
    let waits = outcome.as_ref().is_ok_and(|reloaded| !reloaded.need_restart.is_empty());
    for (reason, is_so) in [("refused", outcome.is_err()), ("restart", waits)] {
        metrics.config_stale.with_label_values(&[reason]).set(i64::from(is_so));
    }
}

fn tell(outcome: &Result<Reloaded, Problems>) {
    match outcome {
        Ok(Reloaded { in_force, need_restart }) => {
            let sections = in_force.join(", ");
            tracing::info!(sections, "the configuration file has changed and is in force");
            if !need_restart.is_empty() {
                let keys = need_restart.join(", ");
                tracing::warn!(keys, "these keys of the configuration file need a restart");
            }
        }
        Err(problems) => {
            tracing::error!("the changed configuration file is refused; the earlier one stays");
            for problem in problems.iter() {
                tracing::error!(field = problem.field, "{}: {}", problem.field, problem.text);
            }
        }
    }
}
