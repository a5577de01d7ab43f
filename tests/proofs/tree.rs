//! What a volume shows, read at one moment.

mod served;

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, ErrorKind},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

pub(crate) use self::served::forget_pages;

/// Until all of a swap of a `fuse` view is taken in: while it goes on, single names may still lead
/// to what was before.
const SWAP: Duration = Duration::from_secs(1);

/// Paths in a volume and what stands there.
pub(crate) type Tree = BTreeMap<String, Node>;

/// What stands at a path.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Directory,
    File(Vec<u8>),
    /// A file that could not be read: its length if it could be opened, and why.
    Unread {
        size: Option<u64>,
        errno: i32,
    },
    /// It was listed, and then it was something else, or nothing.
    Gone {
        directory: bool,
    },
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory => f.write_str("directory"),
            Self::File(content) => {
                let begin = &content[..content.len().min(24)];
                write!(f, "{}:{:?}", content.len(), String::from_utf8_lossy(begin))
            }
            Self::Unread { size, errno } => {
                write!(f, "{size:?}: {}", io::Error::from_raw_os_error(*errno))
            }
            Self::Gone { .. } => f.write_str("gone"),
        }
    }
}

/// How a volume's files are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layout {
    Symlinks,
    Files,
    /// Plain files whose content comes when it is read, as `fuse` views have them.
    Served,
}

impl Layout {
    /// The value of the attribute; a `fuse` view has none.
    pub(crate) fn attribute(self) -> Option<&'static str> {
        match self {
            Self::Symlinks => Some("symlinks"),
            Self::Files => Some("files"),
            Self::Served => None,
        }
    }

    /// Reads a volume: with symlinks, all of it through one resolution of `..data`, and then
    /// nothing may be missing; with plain files, each by itself, and what goes meanwhile is absent,
    /// or, where it is served, noted.
    pub(crate) fn read(self, target: &Path) -> io::Result<Tree> {
        let mut tree = Tree::new();
        match self {
            Self::Symlinks => {
                tree = read_below(&File::open(target.join("..data"))?)?;
            }
            // A directory may take the place of a file between two calls, and the reverse.
            Self::Files => walk(target, "", &mut tree, |error| match error.kind() {
                ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory => Ok(()),
                _ => Err(error),
            })?,
            Self::Served => return served::read(target),
        }
        Ok(tree)
    }
}

/// Reads all below an open directory; nothing may be missing.
pub(crate) fn read_below(directory: &File) -> io::Result<Tree> {
    let place = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let mut tree = Tree::new();
    walk(&place, "", &mut tree, Err)?;
    Ok(tree)
}

fn walk(
    directory: &Path,
    prefix: &str,
    tree: &mut Tree,
    missing: fn(io::Error) -> io::Result<()>,
) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return missing(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().into_string().expect("a UTF-8 name");
        let (path, name) = (entry.path(), format!("{prefix}{name}"));
        if entry.file_type()?.is_dir() {
            tree.insert(name.clone(), Node::Directory);
            walk(&path, &format!("{name}/"), tree, missing)?;
            continue;
        }
        match std::fs::read(&path) {
            Ok(content) => drop(tree.insert(name, Node::File(content))),
            Err(error) => missing(error)?,
        }
    }
    Ok(())
}

/// What one volume may show: trees, the oldest first.
#[derive(Debug)]
pub(crate) struct History {
    layout: Layout,
    trees: Vec<Arc<Tree>>,
    /// Whether it was seen to show another one since it was at rest.
    has_moved: bool,
    /// The oldest tree that a `fuse` view must have come to show, and since when.
    newer: Option<(Arc<Tree>, Instant)>,
}

impl History {
    pub(crate) fn new(layout: Layout, trees: Vec<Arc<Tree>>) -> Self {
        let mut history = Self { layout, trees: Vec::new(), has_moved: false, newer: None };
        for tree in trees {
            history.push(tree);
        }
        history
    }

    /// From now on it may show this as well.
    pub(crate) fn push(&mut self, tree: Arc<Tree>) {
        if self.trees.last() != Some(&tree) {
            self.trees.push(tree);
        }
    }

    /// It shows just this, and nothing is under way.
    pub(crate) fn settle(&mut self, tree: Arc<Tree>) {
        (self.trees, self.has_moved, self.newer) = (vec![tree], false, None);
    }

    /// Takes in what was seen.
    ///
    /// # Errors
    /// If it may not show that.
    pub(crate) fn see(&mut self, seen: &Tree) -> Result<(), String> {
        match self.layout {
            Layout::Symlinks => self.see_revision(seen),
            Layout::Files => self.see_files(seen),
            Layout::Served => self.see_served(seen),
        }
    }

    /// It is exactly one of the trees, and never an older one than before.
    fn see_revision(&mut self, seen: &Tree) -> Result<(), String> {
        let at = self.trees.iter().position(|tree| **tree == *seen);
        let at = at.ok_or_else(|| format!("shows {seen:#?}\nand not one of {:#?}", self.trees))?;
        self.trees.drain(..at);
        self.has_moved |= at > 0;
        Ok(())
    }

    /// Each path is whole, or absent; if nothing changes, all are there.
    fn see_files(&self, seen: &Tree) -> Result<(), String> {
        if let [only] = &self.trees[..]
            && **only != *seen
        {
            return Err(format!("shows {seen:#?}\nand not {only:#?}"));
        }
        for (path, node) in seen {
            if !self.trees.iter().any(|tree| tree.get(path) == Some(node)) {
                let known: Vec<_> = self.trees.iter().map(|tree| tree.get(path)).collect();
                return Err(format!("shows {node:?} at {path:?} and not one of {known:?}"));
            }
        }
        Ok(())
    }

    /// Each directory is as one tree has it, each file whole or unread; and once a newer tree has been
    /// seen for a while, no older one is seen again.
    fn see_served(&mut self, seen: &Tree) -> Result<(), String> {
        if let Some((newer, since)) = &self.newer
            && since.elapsed() > SWAP
        {
            let older = self.trees.iter().take_while(|tree| !Arc::ptr_eq(tree, newer)).count();
            self.trees.drain(..older);
            self.newer = None;
        }
        let at = served::fits(seen, &self.trees.iter().map(|tree| &**tree))?;
        if at > 0 && self.newer.is_none() {
            self.newer = Some((Arc::clone(&self.trees[at]), Instant::now()));
        }
        let gone = seen.iter().find(|(_, node)| matches!(node, Node::Gone { .. }));
        match gone {
            Some((path, _)) if self.trees.len() == 1 => Err(format!("{path:?} cannot be found")),
            _ => Ok(()),
        }
    }

    /// What it may show, the oldest first.
    pub(crate) fn trees(&self) -> impl Iterator<Item = &Tree> {
        self.trees.iter().map(|tree| &**tree)
    }

    /// The paths that must be files at every moment. With symlinks, names that are new at the top
    /// come after the revision that they lead to, so these are known until that is seen.
    pub(crate) fn lasting(&self) -> impl Iterator<Item = &String> {
        let is_file =
            |tree: &Arc<Tree>, path: &String| matches!(tree.get(path), Some(Node::File(_)));
        let is_known = self.layout != Layout::Symlinks || !self.has_moved;
        let first = self.trees.first().filter(|_| is_known);
        let first = first.into_iter().flat_map(|tree| tree.keys());
        first.filter(move |path| self.trees.iter().all(|tree| is_file(tree, path)))
    }
}

/// The names at the top of a volume, without those that are ours.
pub(crate) fn top_names(target: &Path) -> io::Result<Vec<String>> {
    let names = std::fs::read_dir(target)?.map(|entry| Ok(entry?.file_name()));
    let names: io::Result<Vec<_>> = names.collect();
    let mut names: Vec<String> =
        names?.into_iter().map(|name| name.into_string().expect("a UTF-8 name")).collect();
    names.retain(|name| !name.starts_with(".."));
    names.sort_unstable();
    Ok(names)
}

/// The numbers of all revisions of a volume, and of the one that is shown.
pub(crate) fn revisions(target: &Path) -> io::Result<(Vec<u64>, u64)> {
    let shown = std::fs::read_link(target.join("..data"))?;
    let number = |name: &str| name.strip_prefix("..").and_then(|number| number.parse().ok());
    let shown = shown.to_str().and_then(number).expect("..data leads to a revision");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(target)? {
        let name = entry?.file_name().into_string().expect("a UTF-8 name");
        if name.starts_with("..") && name != "..data" {
            all.push(number(&name).ok_or_else(|| io::Error::other(format!("{name} is left")))?);
        }
    }
    all.sort_unstable();
    Ok((all, shown))
}
