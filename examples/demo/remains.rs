//! What published volumes leave on a node: all of it must be gone with the last one.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::support::plugin::Home;

/// How many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Remains {
    /// Mounts below the kubelet's directory.
    pub(crate) mounts: usize,
    /// Volume directories in the stores, in memory and on disk.
    pub(crate) directories: usize,
    /// Entries of the registry, which is what a restarted plugin knows.
    pub(crate) entries: usize,
}

impl Remains {
    /// Looks at the node.
    pub(crate) fn of(home: &Home) -> Result<Self> {
        let (memory, disk) = (home.state_dir().join("memory"), home.path().join("disk"));
        Ok(Self {
            mounts: home.mounts().len(),
            directories: count(&memory.join("v1/volumes"))? + count(&disk.join("v1/volumes"))?,
            entries: count(&home.state_dir().join("memory/registry"))?,
        })
    }

    /// What so many volumes with a view in memory take.
    pub(crate) fn of_volumes(count: usize) -> Self {
        Self { mounts: count, directories: count, entries: count }
    }
}

/// A directory that is missing is an error: a wrong path would always look clean.
fn count(directory: &Path) -> Result<usize> {
    let entries = fs::read_dir(directory);
    Ok(entries.with_context(|| format!("failed to look at {}", directory.display()))?.count())
}
