//! A real `s3view-node keeper` process.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use s3view::keeper::Client;

use crate::fixture::PROGRAM;

/// A running keeper with a directory of its own; killed when dropped.
pub(super) struct Keeper {
    pub(super) directory: tempfile::TempDir,
    pub(super) child: Child,
}

/// How long anything may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

impl Keeper {
    pub(super) fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("s3view-keeper-").tempdir().unwrap();
        let child = Self::spawn(&directory, arguments);
        let keeper = Self { directory, child };
        drop(keeper.connect());
        keeper
    }

    pub(super) fn spawn(directory: &tempfile::TempDir, arguments: &[&str]) -> Child {
        let log = File::options().create(true).append(true).open(directory.path().join("log"));
        Command::new(PROGRAM)
            .args(["keeper", "--log-level=debug", "--socket"])
            .arg(directory.path().join("run/keeper.sock"))
            .args(arguments)
            // What a plugin's container has set must not matter.
            .env("CSI_ENDPOINT", "unix:///nowhere")
            .stdin(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .unwrap()
    }

    pub(super) fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.directory, &[]);
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("run/keeper.sock")
    }

    pub(super) fn connect(&self) -> Client {
        Client::connect(&self.socket(), PATIENCE)
            .unwrap_or_else(|e| panic!("{e:?}: {}", self.log()))
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    pub(super) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    pub(super) fn memory_kib(&self, figure: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(figure)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
