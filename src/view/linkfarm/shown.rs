//! What stands on the disk, read back.

use std::collections::{BTreeSet, HashMap};

use super::{
    ViewError,
    directory::{Directory, Kind},
};
use crate::relpath::RelPath;

/// The files of a volume as they stand on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// Each file, and the number of its inode.
    pub files: HashMap<RelPath, u64>,
    /// Every directory below the top.
    pub directories: BTreeSet<RelPath>,
    /// The number of the revision; plain files have none, which is 0.
    pub revision: u64,
}

impl Shown {
    /// Reads everything below `top`.
    ///
    /// What cannot be ours (a socket, a name that is not UTF-8) is passed over.
    pub(super) fn read(top: &Directory, revision: u64) -> Result<Self, ViewError> {
        let mut shown = Self { revision, ..Self::default() };
        shown.add(top, None)?;
        Ok(shown)
    }

    fn add(&mut self, directory: &Directory, at: Option<&RelPath>) -> Result<(), ViewError> {
        for child in directory.children()? {
            let path = child.text().map(|name| (name, RelPath::join(at, name)));
            let Some((name, Ok(path))) = path else { continue };
            match child.kind {
                Kind::File => drop(self.files.insert(path, child.inode)),
                Kind::Directory => {
                    if let Some(below) = directory.find(name)? {
                        self.add(&below, Some(&path))?;
                    }
                    self.directories.insert(path);
                }
                Kind::Other => {}
            }
        }
        Ok(())
    }
}
