//! Reading a `fuse` view: every file by itself, and what cannot be read now is noted as such.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{Node, Tree};

/// Reads all of it. Files are read side by side: each may wait for something.
///
/// # Errors
/// What a directory answers, but that it went meanwhile.
pub(super) fn read(target: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    list(target, "", &mut tree)?;
    thread::scope(|scope| {
        let listed = tree.iter_mut().filter(|(_, node)| **node == Node::Gone { directory: false });
        let reading: Vec<_> = listed
            .map(|(path, node)| (node, scope.spawn(move || file(&target.join(path)))))
            .collect();
        for (node, file) in reading {
            *node = file.join().expect("reading does not panic");
        }
    });
    Ok(tree)
}

/// Notes all names; what is at them comes later.
fn list(directory: &Path, prefix: &str, tree: &mut Tree) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().into_string().expect("a UTF-8 name");
        let (path, name) = (entry.path(), format!("{prefix}{name}"));
        let is_directory = entry.file_type()?.is_dir();
        tree.insert(name.clone(), Node::Gone { directory: is_directory });
        if is_directory {
            // Noted first: what is below it sorts after it.
            match list(&path, &format!("{name}/"), tree) {
                Ok(()) => drop(tree.insert(name, Node::Directory)),
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn file(path: &Path) -> Node {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, mut file) = match opened {
        Ok(opened) => opened,
        Err(error) if is_missing(&error) => return Node::Gone { directory: false },
        // It may be refused as it is opened, too.
        Err(error) => return unread(None, &error),
    };
    if metadata.is_dir() {
        return Node::Gone { directory: false };
    }
    forget_pages(&file);
    let mut content = Vec::new();
    match file.read_to_end(&mut content) {
        Ok(_) => Node::File(content),
        Err(error) => unread(Some(metadata.size()), &error),
    }
}

fn unread(size: Option<u64>, error: &io::Error) -> Node {
    Node::Unread { size, errno: error.raw_os_error().unwrap_or_default() }
}

/// Has the kernel ask again for what it knows of a file's content.
pub(crate) fn forget_pages(file: &File) {
    let forgotten = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    forgotten.expect("a file");
}

/// Whether what was seen is what one of `trees`, or several of them one after the other, show. Each
/// directory was listed at one moment, and each file is whole or could not be read.
///
/// Returns the place of the oldest tree that must have been shown by now.
pub(super) fn fits<'a>(
    seen: &Tree,
    trees: &(impl Iterator<Item = &'a Tree> + Clone),
) -> Result<usize, String> {
    let mut newest = 0;
    let listed = seen.iter().filter(|(_, node)| **node == Node::Directory).map(|(path, _)| &**path);
    for directory in std::iter::once("").chain(listed) {
        let names = children(seen, directory);
        let is_there =
            |tree: &Tree| directory.is_empty() || tree.get(directory) == Some(&Node::Directory);
        let at = trees.clone().position(|it| is_there(it) && children(it, directory) == names);
        let at = at.ok_or_else(|| {
            let known: Vec<_> = trees.clone().map(|tree| children(tree, directory)).collect();
            format!("lists {names:?} in {directory:?} and not one of {known:?}")
        })?;
        newest = newest.max(at);
    }
    for (path, node) in seen {
        let at = trees.clone().position(|tree| can_be(node, tree.get(path)));
        let at = at.ok_or_else(|| {
            let known: Vec<_> = trees.clone().map(|tree| tree.get(path)).collect();
            format!("shows {node:?} at {path:?} and not one of {known:?}")
        })?;
        newest = newest.max(at);
    }
    Ok(newest)
}

/// What was seen at a path, and what a tree has there.
fn can_be(seen: &Node, shown: Option<&Node>) -> bool {
    match (seen, shown) {
        (Node::Unread { size, .. }, Some(Node::File(content))) => {
            size.is_none_or(|size| size == content.len() as u64)
        }
        // It was listed, and something else was there when it was looked for.
        (Node::Gone { .. }, _) => true,
        (seen, shown) => Some(seen) == shown,
    }
}

/// The names in a directory, and which are directories.
fn children<'a>(tree: &'a Tree, directory: &str) -> Vec<(&'a str, bool)> {
    let below = |path: &'a String| {
        let rest = match directory {
            "" => Some(path.as_str()),
            _ => path.strip_prefix(directory)?.strip_prefix('/'),
        };
        rest.filter(|rest| !rest.contains('/'))
    };
    let is_directory = |node: &Node| match node {
        Node::Directory => true,
        Node::Gone { directory } => *directory,
        Node::File(_) | Node::Unread { .. } => false,
    };
    tree.iter().filter_map(|(path, node)| Some((below(path)?, is_directory(node)))).collect()
}
