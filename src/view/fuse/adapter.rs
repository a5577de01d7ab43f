//! The wire: each request is one question to [`Served`], and its answer.
//!
//! The mount is read-only, so the kernel refuses every write by itself; what still came through
//! would be refused here.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType,
    Filesystem, FopenFlags, Generation, INodeNo, KernelConfig, LockOwner, OpenAccMode, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use futures::future::BoxFuture;

use super::{
    Refusal,
    directories::Line,
    errno::errno,
    handles::Opened,
    served::{Missing, Served},
    session::negotiate,
    table::{Attributes, Id, Table},
};
use crate::{failure::full_message, relpath::MAX_NAME};

/// How long the kernel may believe what it is told: until it is told otherwise.
const FOR_EVER: Duration = Duration::from_hours(24 * 365);

/// Numbers are never given out again, so they need no generations.
const GENERATION: Generation = Generation(0);

/// The block size of `statfs(2)`, and what `stat(2)` recommends for reading.
const BLOCK: u32 = 4096;

/// The unit of `st_blocks`.
const SECTOR: u64 = 512;

#[derive(Debug)]
pub(super) struct Adapter(pub(super) Arc<Served>);

impl From<Missing> for Errno {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Name => Self::ENOENT,
            Missing::Inode => Self::ESTALE,
            Missing::Refused(refusal) => refused(&refusal),
            Missing::Unnoted(error) => {
                tracing::error!(%error, "failed to note an open file for the next process");
                Self::EIO
            }
        }
    }
}

/// The reason goes to the log, since a process is told a number only.
fn refused(refusal: &Refusal) -> Errno {
    let (kind, error) = (refusal.kind(), full_message(refusal));
    tracing::warn!(kind = kind.as_str(), error, "failed to serve a read");
    errno(kind)
}

fn file_attr(attributes: &Attributes) -> FileAttr {
    let Attributes { number, is_directory, size, modified, links, mode, uid, gid } = *attributes;
    FileAttr {
        ino: INodeNo(number),
        size,
        blocks: size.div_ceil(SECTOR),
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind: if is_directory { FileType::Directory } else { FileType::RegularFile },
        perm: mode,
        nlink: links,
        uid,
        gid,
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    }
}

impl Adapter {
    /// Answers at once what is there at once, and leaves the rest to a task.
    fn answer_read(&self, mut read: BoxFuture<'static, Result<Bytes, Refusal>>, reply: ReplyData) {
        let _runtime = self.0.runtime.enter();
        if let Poll::Ready(answer) = read.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return send(answer, reply);
        }
        let closed = self.0.tasks.token().clone();
        self.0.tasks.spawn(async move {
            match closed.run_until_cancelled(read).await {
                Some(answer) => send(answer, reply),
                None => reply.error(Errno::EIO),
            }
        });
    }

    /// The kernel has taken in what it was told by way of a handle before.
    fn asks(&self, handle: FileHandle) {
        let is_old = self.0.directories.lock().asks(handle.0);
        if is_old {
            self.0.forget_names();
        }
    }

    /// The table and the row that an open directory lists at a position.
    fn listed(&self, number: u64, handle: FileHandle, offset: u64) -> Option<(Arc<Table>, Id)> {
        self.asks(handle);
        let current = Arc::clone(&self.0.table());
        let table = self.0.directories.lock().table(handle.0, number, offset, &current);
        let id = table.find(number)?;
        Some((table, id))
    }
}

fn send(answer: Result<Bytes, Refusal>, reply: ReplyData) {
    match answer {
        Ok(bytes) => reply.data(&bytes),
        Err(refusal) => reply.error(refused(&refusal)),
    }
}

fn send_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    match size {
        0 => reply.size(length),
        _ if size < length => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Who goes on with a connection has the terms of the process that made it.
        let options = &self.0.options;
        let is_small = self.0.table().is_small();
        let agreed =
            self.0.agreed().unwrap_or_else(|| self.0.agree(negotiate(config, options, is_small)));
        if agreed.passthrough && options.passthrough {
            self.0.handles.lock().offer_backing();
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let table = self.0.table();
        match Served::lookup(&table, parent.0, name.as_bytes()) {
            Ok(found) => reply.entry(&FOR_EVER, &file_attr(&found), GENERATION),
            Err(missing) => reply.error(missing.into()),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, _: u64) {
        self.0.forget(ino.0);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let table = self.0.table();
        match self.0.attributes(&table, ino.0) {
            Ok(found) => reply.attr(&FOR_EVER, &file_attr(&found)),
            Err(missing) => reply.error(missing.into()),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        if self.0.opens_itself() {
            return reply.error(Errno::ENOSYS);
        }
        let flags = FopenFlags::FOPEN_NOFLUSH;
        match self.0.open(request.unique().0, ino.0) {
            Ok(Opened { handle, backing: Some(backing) }) => {
                backing.answer(reply, FileHandle(handle), flags);
            }
            // What is cached for a number stays right.
            Ok(Opened { handle, backing: None }) => {
                reply.opened(FileHandle(handle), flags | FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(missing) => reply.error(missing.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.read(ino.0, fh.0, offset, size) {
            Ok(read) => self.answer_read(read, reply),
            Err(missing) => reply.error(missing.into()),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let closed = self.0.handles.lock().release(fh.0);
        // What is closed here takes a system call, or more.
        drop(closed);
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        #[cfg(test)]
        super::tests::dies_at("flushed");
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let table = Arc::clone(&self.0.table());
        if table.find(ino.0).is_none() {
            return reply.error(Errno::ESTALE);
        }
        let handle = FileHandle(self.0.directories.lock().add(table));
        reply.opened(handle, FopenFlags::empty());
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some((table, id)) = self.listed(ino.0, fh, offset) else {
            return reply.error(Errno::ESTALE);
        };
        for Line { name, attributes, next } in table.lines(id, offset) {
            let FileAttr { ino, kind, .. } = file_attr(&attributes);
            if reply.add(ino, next, kind, OsStr::from_bytes(name)) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let Some((table, id)) = self.listed(ino.0, fh, offset) else {
            return reply.error(Errno::ESTALE);
        };
        let current = self.0.table();
        let mut is_empty = true;
        for Line { name, attributes, next } in table.lines(id, offset) {
            let attr = file_attr(&attributes);
            // What an old handle tells must not be believed for longer than it takes to tell it.
            let is_current = current.find(attributes.number).is_some();
            let ttl = if is_current { FOR_EVER } else { Duration::ZERO };
            if reply.add(attr.ino, next, OsStr::from_bytes(name), &ttl, &attr, GENERATION) {
                break;
            }
            is_empty = false;
        }
        if !is_empty {
            self.0.directories.lock().tells(fh.0);
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.asks(fh);
        let table = self.0.directories.lock().remove(fh.0);
        // The last handle of an old table takes it along.
        drop(table);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let table = Arc::clone(&self.0.table());
        let blocks = table.bytes.div_ceil(BLOCK.into());
        let longest = u32::try_from(MAX_NAME).unwrap_or(u32::MAX);
        reply.statfs(blocks, 0, 0, table.rows.len() as u64, 0, BLOCK, longest, BLOCK);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !self.0.options.xattrs {
            return reply.error(Errno::ENOSYS);
        }
        match self.0.xattr(ino.0, name.as_bytes()) {
            Ok(Some(value)) => send_xattr(&value, size, reply),
            Ok(None) => reply.error(Errno::NO_XATTR),
            Err(missing) => reply.error(missing.into()),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.0.options.xattrs {
            return reply.error(Errno::ENOSYS);
        }
        match self.0.xattrs(ino.0) {
            Ok(all) => {
                let names: Vec<_> = all.iter().map(|(name, _)| format!("{name}\0")).collect();
                send_xattr(names.concat().as_bytes(), size, reply);
            }
            Err(missing) => reply.error(missing.into()),
        }
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions (default_permissions).
        reply.error(Errno::ENOSYS);
    }

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }
}
