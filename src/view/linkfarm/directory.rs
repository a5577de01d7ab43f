//! An open directory: the one way in which a link farm touches a file system.
//!
//! What is opened is opened below an open descriptor by openat2(2), which neither leaves it nor
//! follows a symlink, whatever the name is and whoever changes the tree meanwhile. Other calls take
//! a single name and do not follow it. Every change passes [`effect::permit`].
//!
//! Only a volume's directory itself is opened by its path, which lies in directories of root's.

use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    NixPath,
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2, readlinkat, renameat},
    sys::stat::{FileStat, Mode as Permissions, SFlag, fchmod, fstatat, mkdirat},
    unistd::{Gid, Uid, UnlinkatFlags, fchown, linkat, symlinkat, unlinkat},
};

use super::{ViewError, effect, io_error};
use crate::{relpath::RelPath, volume::Ownership};

const FLAGS: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// An open directory, and where it is, for messages.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

/// A name in a directory.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) name: CString,
    pub(super) kind: Kind,
    pub(super) inode: u64,
}

/// What a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Other,
}

impl Child {
    /// The name, unless it is none that we could have given.
    pub(super) fn text(&self) -> Option<&str> {
        self.name.to_str().ok()
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Directory {
    /// Opens the directory at `path`; `None` if there is none.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, ViewError> {
        Self::opened(open(path, FLAGS, Permissions::empty()), path.to_owned())
    }

    /// Opens a directory in this one; `None` if the name is missing or something else.
    pub(super) fn find(&self, name: &str) -> Result<Option<Self>, ViewError> {
        Self::open_at(self, name, self.path.join(name))
    }

    /// Opens a directory in this one that must be there.
    pub(super) fn enter(&self, name: &str) -> Result<Self, ViewError> {
        self.find(name)?.ok_or_else(|| self.failed("open", name, Errno::ENOENT))
    }

    /// Linux 5.6+.
    fn open_at<P: NixPath + ?Sized>(
        at: impl AsFd,
        name: &P,
        path: PathBuf,
    ) -> Result<Option<Self>, ViewError> {
        let beneath = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        Self::opened(openat2(at, name, OpenHow::new().flags(FLAGS).resolve(beneath)), path)
    }

    fn opened(fd: nix::Result<OwnedFd>, path: PathBuf) -> Result<Option<Self>, ViewError> {
        match fd {
            Ok(fd) => Ok(Some(Self { fd, path })),
            // EXDEV: the name leads out of the directory.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => Ok(None),
            Err(errno) => Err(io_error("open", &path, errno.into())),
        }
    }

    /// Makes a directory for root alone.
    pub(super) fn make_private(&self, name: &str) -> Result<Self, ViewError> {
        self.change("create", name, || mkdirat(self, name, Permissions::S_IRWXU))?;
        self.enter(name)
    }

    /// Makes a directory with the volume's owner and mode.
    pub(super) fn make(&self, name: &str, ownership: &Ownership) -> Result<Self, ViewError> {
        let made = self.make_private(name)?;
        made.own(ownership)?;
        Ok(made)
    }

    /// Gives this directory the volume's owner and mode.
    pub(super) fn own(&self, ownership: &Ownership) -> Result<(), ViewError> {
        let Ownership { uid, gid, dir_mode, .. } = *ownership;
        // What we make is root's already: no directory of the store hands its group on.
        if (uid, gid) != (0, 0) {
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            self.change("set the owner of", "", || fchown(self, owner.0, owner.1))?;
        }
        let mode = Permissions::from_bits_truncate(u32::from(dir_mode.bits()));
        self.change("set the mode of", "", || fchmod(self, mode))
    }

    /// Makes a symlink.
    pub(super) fn symlink(&self, target: &str, name: &str) -> Result<(), ViewError> {
        self.change("link", name, || symlinkat(target, self, name))
    }

    /// Where a symlink leads; `None` if the name is missing or something else.
    pub(super) fn target(&self, name: &str) -> Result<Option<String>, ViewError> {
        match readlinkat(self, name) {
            Ok(target) => Ok(target.into_string().ok()),
            Err(Errno::ENOENT | Errno::EINVAL) => Ok(None),
            Err(errno) => Err(self.failed("read", name, errno)),
        }
    }

    /// Hard-links the file that has the same name in `from`; whether that was possible.
    ///
    /// It is not if the file is missing, is none, or has as many links as its file system allows.
    pub(super) fn link_from(&self, from: &Self, name: &str) -> Result<bool, ViewError> {
        effect::permit().map_err(|errno| self.failed("link", name, errno))?;
        match linkat(from, name, self, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT | Errno::EPERM | Errno::EMLINK) => Ok(false),
            Err(errno) => Err(self.failed("link", name, errno)),
        }
    }

    /// Moves `old` of `from` here, over whatever has that name.
    pub(super) fn take(&self, from: &Self, old: &str, name: &str) -> Result<(), ViewError> {
        self.change("replace", name, || renameat(from, old, self, name))
    }

    /// Removes a name with everything below it; a missing one is fine.
    pub(super) fn remove(&self, name: &str) -> Result<(), ViewError> {
        match self.find(name)? {
            Some(directory) => {
                directory.clear()?;
                drop(directory);
                self.unlink(name, UnlinkatFlags::RemoveDir)
            }
            None => self.unlink(name, UnlinkatFlags::NoRemoveDir),
        }
    }

    fn clear(&self) -> Result<(), ViewError> {
        for Child { name, kind, .. } in self.children()? {
            if kind == Kind::Directory {
                let path = self.path.join(&*name.to_string_lossy());
                if let Some(below) = Self::open_at(self, name.as_c_str(), path)? {
                    below.clear()?;
                }
                self.unlink(name.as_c_str(), UnlinkatFlags::RemoveDir)?;
            } else {
                self.unlink(name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
            }
        }
        Ok(())
    }

    fn unlink<P: NixPath + ?Sized>(&self, name: &P, flag: UnlinkatFlags) -> Result<(), ViewError> {
        let unlink = || match unlinkat(self, name, flag) {
            Err(Errno::ENOENT) => Ok(()),
            answer => answer,
        };
        effect::permit().and_then(|()| unlink()).map_err(|errno| self.failed("remove", name, errno))
    }

    /// Everything in this directory, in no order, without a question about each.
    pub(super) fn children(&self) -> Result<Vec<Child>, ViewError> {
        // Opened anew: a duplicate of our descriptor would share its position.
        let mut read = Dir::openat(self, ".", FLAGS, Permissions::empty())
            .map_err(|errno| self.failed("read", "", errno))?;
        let mut children = Vec::new();
        for entry in read.iter() {
            let entry = entry.map_err(|errno| self.failed("read", "", errno))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let kind = match entry.file_type() {
                Some(Type::File) => Kind::File,
                Some(Type::Directory) => Kind::Directory,
                Some(_) => Kind::Other,
                // XFS without ftype.
                None => self.kind_of(name)?,
            };
            children.push(Child { name: name.to_owned(), kind, inode: entry.ino() });
        }
        Ok(children)
    }

    fn kind_of(&self, name: &CStr) -> Result<Kind, ViewError> {
        let FileStat { st_mode, .. } = fstatat(self, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| self.failed("inspect", name, errno))?;
        Ok(match SFlag::from_bits_truncate(st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => Kind::File,
            SFlag::S_IFDIR => Kind::Directory,
            _ => Kind::Other,
        })
    }

    fn change(
        &self,
        action: &'static str,
        name: &str,
        change: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), ViewError> {
        effect::permit().and_then(|()| change()).map_err(|errno| self.failed(action, name, errno))
    }

    /// What the system answered about `name` in this directory, or about itself if that is empty.
    pub(super) fn failed<P: NixPath + ?Sized>(
        &self,
        action: &'static str,
        name: &P,
        errno: Errno,
    ) -> ViewError {
        let name = name.with_nix_path(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        let path = if name.is_empty() { self.path.clone() } else { self.path.join(name) };
        io_error(action, &path, errno.into())
    }
}

/// A walk below a directory that visits paths in order and so opens each directory once.
///
/// No more descriptors are open than the tree is deep.
#[derive(Debug)]
pub(super) struct Descent<'a> {
    top: &'a Directory,
    open: Vec<(RelPath, Directory)>,
}

impl<'a> Descent<'a> {
    /// Starts at `top`.
    pub(super) fn new(top: &'a Directory) -> Self {
        Self { top, open: Vec::new() }
    }

    /// The directory that holds `path`; `None` if it is missing.
    pub(super) fn find(&mut self, path: &RelPath) -> Result<Option<&Directory>, ViewError> {
        while self.open.last().is_some_and(|(open, _)| !is_below(path, open)) {
            self.open.pop();
        }
        let known = self.open.last().map(|(open, _)| open);
        let mut missing: Vec<_> = path.ancestors().take_while(|path| Some(path) != known).collect();
        while let Some(path) = missing.pop() {
            let Some(found) = self.last().find(path.file_name())? else { return Ok(None) };
            self.open.push((path, found));
        }
        Ok(Some(self.last()))
    }

    /// The directory that holds `path`, which must be there.
    pub(super) fn enter(&mut self, path: &RelPath) -> Result<&Directory, ViewError> {
        self.find(path)?;
        if self.open.last().map(|(open, _)| open) == path.parent().as_ref() {
            return Ok(self.last());
        }
        let parent = path.parent().map_or_else(String::new, |parent| parent.to_string());
        Err(self.top.failed("open", parent.as_str(), Errno::ENOENT))
    }

    /// Goes on in a directory that was just made in the one that was entered last.
    pub(super) fn push(&mut self, path: &RelPath, made: Directory) {
        self.open.push((path.clone(), made));
    }

    fn last(&self) -> &Directory {
        self.open.last().map_or(self.top, |(_, directory)| directory)
    }
}

fn is_below(path: &RelPath, directory: &RelPath) -> bool {
    let rest = path.as_str().strip_prefix(directory.as_str());
    rest.is_some_and(|rest| rest.starts_with('/'))
}
