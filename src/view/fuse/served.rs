//! What a session serves: the answers to the kernel's questions, in words that no library owns.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::{runtime::Handle, time::sleep};

use super::{
    Content, OpenFile, Refusal,
    directories::Directories,
    handles::{Handles, Opened, Opening},
    notice,
    opens::{Open, Shown},
    session::{FuseOptions, Negotiated},
    siblings::Siblings,
    table::{Attributes, Table},
    unasked::Unasked,
};
use crate::{failure::FailureKind, object::Object, task::Tasks};

/// What the names of all our extended attributes begin with.
const XATTRS: &[u8] = b"user.s3view.";

/// How long the former table is kept: as long as a revision of a link farm.
const FORMER: Duration = Duration::from_secs(10);

/// How many rows they may have together, but for the last one.
const MOST_FORMER: usize = 1 << 20;

/// The state of one volume, shared by its session and whoever swaps its listing.
#[derive(Debug)]
pub(super) struct Served {
    /// Whoever answers with what a table says holds the lock until the answer is sent: then a
    /// notice that is sent after the swap finds the answer, whichever the kernel heard first.
    table: RwLock<Arc<Table>>,
    /// The tables before, for a while, oldest first: whoever looked a name up just before a swap can
    /// still open what it found.
    former: Mutex<VecDeque<Arc<Table>>>,
    /// The same of a former process: the files that its last swap took away.
    gone: Mutex<HashMap<u64, Shown>>,
    content: Arc<dyn Content>,
    pub(super) device: Arc<OwnedFd>,
    pub(super) handles: Mutex<Handles>,
    pub(super) directories: Mutex<Directories>,
    /// What may be open, if the kernel opens files by itself.
    unasked: Arc<Mutex<Unasked>>,
    pub(super) options: FuseOptions,
    negotiated: OnceLock<Negotiated>,
    /// Whether the kernel opens files by itself.
    opens_itself: AtomicBool,
    /// The reads under way.
    pub(super) tasks: Tasks,
    pub(super) runtime: Handle,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Missing {
    /// A directory has no such name.
    Name,
    /// The number is of something that is gone.
    Inode,
    /// The content was refused.
    Refused(Refusal),
    /// It could not be noted for the process that comes next.
    Unnoted(io::Error),
}

impl Served {
    /// Within the runtime that then runs the reads.
    pub(super) fn new(
        table: Table,
        content: Arc<dyn Content>,
        device: Arc<OwnedFd>,
        handles: Handles,
        options: FuseOptions,
    ) -> Self {
        Self {
            table: RwLock::new(Arc::new(table)),
            former: Mutex::default(),
            gone: Mutex::default(),
            content,
            device,
            handles: Mutex::new(handles),
            directories: Mutex::new(Directories::new()),
            unasked: Arc::default(),
            options,
            negotiated: OnceLock::new(),
            opens_itself: AtomicBool::new(false),
            tasks: Tasks::default(),
            runtime: Handle::current(),
        }
    }

    /// The table that counts now, and goes on counting while the guard is held.
    pub(super) fn table(&self) -> RwLockReadGuard<'_, Arc<Table>> {
        self.table.read()
    }

    /// Stops all that asks the table, until the guard is dropped.
    #[cfg(test)]
    pub(super) fn freeze(&self) -> parking_lot::RwLockWriteGuard<'_, Arc<Table>> {
        self.table.write()
    }

    /// Shows another table, which succeeds `old`. One caller at a time.
    pub(super) fn swap(self: &Arc<Self>, old: &Arc<Table>, new: &Arc<Table>) {
        self.keep(Arc::clone(old));
        *self.table.write() = Arc::clone(new);
        if self.opens_itself() {
            self.unasked.lock().replaced(old.gone(new).map(|gone| self.as_shown(gone)));
        }
        self.forget_later(Arc::downgrade(old));
    }

    fn keep(&self, old: Arc<Table>) {
        let mut former = self.former.lock();
        former.push_back(old);
        let rows = |tables: &VecDeque<Arc<Table>>| tables.iter().map(|it| it.rows.len()).sum();
        while former.len() > 1 && MOST_FORMER < rows(&former) {
            former.pop_front();
        }
    }

    /// Keeps for a while what the last swap of a former process took away.
    pub(super) fn remember(self: &Arc<Self>, gone: Vec<(u64, Object)>) {
        let gone = gone.into_iter().map(|gone| self.as_shown(gone));
        if self.opens_itself() {
            self.unasked.lock().replaced(gone);
        } else {
            *self.gone.lock() = gone.collect();
        }
        let (served, closed) = (Arc::downgrade(self), self.tasks.token().clone());
        let _runtime = self.runtime.enter();
        self.tasks.spawn(async move {
            if closed.run_until_cancelled(sleep(FORMER)).await.is_some()
                && let Some(served) = served.upgrade()
            {
                let gone = std::mem::take(&mut *served.gone.lock());
                drop(gone);
                served.forget_replaced();
            }
        });
    }

    fn as_shown(&self, (number, object): (u64, Object)) -> (u64, Shown) {
        let attributes = Attributes::of_file(number, &object, &self.options.ownership);
        (number, Shown { object: Arc::new(object), attributes })
    }

    /// All files that could still be opened, and that `new` does not have: some more than once.
    pub(super) fn gone<'a>(
        former: &'a [Arc<Table>],
        left: Vec<(u64, Object)>,
        new: &'a Table,
    ) -> impl Iterator<Item = (u64, Object)> + 'a {
        former.iter().flat_map(|table| table.gone(new)).chain(left)
    }

    /// The tables before, and what a former process left: whose files can still be opened.
    pub(super) fn former(&self) -> (Vec<Arc<Table>>, Vec<(u64, Object)>) {
        let left = self.gone.lock();
        let left = left.iter().map(|(number, shown)| (*number, (*shown.object).clone()));
        let mut left: Vec<_> = left.collect();
        let unasked = self.unasked.lock();
        left.extend(unasked.all_replaced().map(|(number, object)| (number, object.clone())));
        (self.former.lock().iter().cloned().collect(), left)
    }

    fn forget_later(self: &Arc<Self>, old: Weak<Table>) {
        let (served, closed) = (Arc::downgrade(self), self.tasks.token().clone());
        let _runtime = self.runtime.enter();
        self.tasks.spawn(async move {
            if closed.run_until_cancelled(sleep(FORMER)).await.is_none() {
                return;
            }
            let Some(served) = served.upgrade() else { return };
            served.forget_replaced();
            // It may have had to make room earlier.
            let Some(old) = old.upgrade() else { return };
            served.former.lock().retain(|table| !Arc::ptr_eq(table, &old));
        });
    }

    /// Asks the tables that may know a number: the one that counts, then the former ones.
    fn ask<T>(&self, current: &Table, question: impl Fn(&Table) -> Option<T>) -> Option<T> {
        question(current)
            .or_else(|| self.former.lock().iter().rev().find_map(|former| question(former)))
    }

    /// The child of that name.
    pub(super) fn lookup(table: &Table, parent: u64, name: &[u8]) -> Result<Attributes, Missing> {
        let directory = table.find(parent).ok_or(Missing::Inode)?;
        let child = table.lookup(directory, name).ok_or(Missing::Name)?;
        Ok(table.attributes(child))
    }

    /// Makes the kernel forget names that it took in from an old listing of a directory.
    pub(super) fn forget_names(&self) {
        if let Err(error) = notice::forget_names(&*self.device) {
            tracing::debug!(%error, "failed to make the kernel look up all names again");
        }
    }

    /// What is known about a number, be it listed or only open.
    pub(super) fn attributes(&self, table: &Table, number: u64) -> Result<Attributes, Missing> {
        let listed = self.ask(table, |table| Some(table.attributes(table.find(number)?)));
        let other = || self.unlisted(number).map(|shown| shown.attributes);
        listed.or_else(other).ok_or(Missing::Inode)
    }

    /// What a file shows, be it listed or only open.
    pub(super) fn shown(&self, number: u64) -> Result<Shown, Missing> {
        let table = Arc::clone(&self.table());
        let listed = self.ask(&table, |table| {
            let id = table.find(number)?;
            let object = Arc::new(table.object(id)?);
            Some(Shown { object, attributes: table.attributes(id) })
        });
        listed.or_else(|| self.unlisted(number)).ok_or(Missing::Inode)
    }

    /// What a file shows that no table has.
    fn unlisted(&self, number: u64) -> Option<Shown> {
        let open = self.handles.lock().opens.shown(number).cloned();
        open.or_else(|| self.unasked.lock().shown(number).cloned())
            .or_else(|| self.gone.lock().get(&number).cloned())
    }

    /// Opens a file for a request.
    pub(super) fn open(&self, request: u64, number: u64) -> Result<Opened, Missing> {
        let content = self.shown(number).and_then(|shown| {
            let file = self.content(&shown.object)?;
            Ok(Opening { request, shown, file })
        });
        if let Ok(open) = &content {
            self.tell_beside(number, &*open.file);
        }
        let whole = match &content {
            Ok(open) if self.handles.lock().takes_backing() => open.file.whole(),
            _ => None,
        };
        let mut handles = self.handles.lock();
        match content {
            Ok(open) => handles.open(open, whole.as_deref()).map_err(Missing::Unnoted),
            Err(missing) => {
                handles.give_up(request);
                Err(missing)
            }
        }
    }

    fn tell_beside(&self, number: u64, file: &dyn OpenFile) {
        let table = Arc::clone(&self.table());
        if let Some(siblings) = table.find(number).and_then(|id| Siblings::of(&table, id)) {
            let _runtime = self.runtime.enter();
            self.content.beside(&siblings, file.whole().is_some());
        }
    }

    /// Opens the content of an object.
    fn content(&self, object: &Object) -> Result<Arc<dyn OpenFile>, Missing> {
        let _runtime = self.runtime.enter();
        self.content.open(object).map_err(Missing::Refused)
    }

    /// The bytes of a read, cut at the end of the file.
    ///
    /// A handle of a former process is opened again first.
    pub(super) fn read(
        &self,
        number: u64,
        handle: u64,
        offset: u64,
        size: u32,
    ) -> Result<BoxFuture<'static, Result<Bytes, Refusal>>, Missing> {
        let known = {
            let Handles { opens, .. } = &*self.handles.lock();
            opens.file(handle).zip(opens.shown(number).map(|shown| shown.attributes.size))
        };
        let (file, length) = match known {
            Some(known) => known,
            None if self.opens_itself() => self.unopened(number, offset)?,
            None => self.reopen(number, handle)?,
        };
        let left = u32::try_from(length.saturating_sub(offset)).unwrap_or(u32::MAX);
        let size = size.min(left);
        if size == 0 {
            return Ok(Box::pin(async { Ok(Bytes::new()) }));
        }
        let _runtime = self.runtime.enter();
        let reading = file.read(offset, size);
        let unasked = self.opens_itself().then(|| Arc::clone(&self.unasked));
        Ok(Box::pin(async move {
            let answer = whole_answer(reading.await?, size)?;
            if let Some((unasked, hold)) = unasked.zip(file.hold()) {
                let former = unasked.lock().hold(number, hold);
                drop(former);
            }
            Ok(answer)
        }))
    }

    /// A file that the kernel opened by itself. Reads at one time share it.
    fn unopened(&self, number: u64, offset: u64) -> Result<(Arc<dyn OpenFile>, u64), Missing> {
        let shown = self.shown(number)?;
        let length = shown.attributes.size;
        let file = self.unasked.lock().file(number);
        if let Some(file) = file {
            return Ok((file, length));
        }
        let file = self.content(&shown.object)?;
        if offset == 0 {
            self.tell_beside(number, &*file);
        }
        Ok((self.unasked.lock().share(number, file), length))
    }

    /// What was agreed upon with the kernel, unless that is still to come.
    pub(super) fn agreed(&self) -> Option<Negotiated> {
        self.negotiated.get().copied()
    }

    /// Notes what was agreed upon, once and for all.
    pub(super) fn agree(&self, negotiated: Negotiated) -> Negotiated {
        self.opens_itself.store(negotiated.opens_itself, Ordering::Relaxed);
        *self.negotiated.get_or_init(|| negotiated)
    }

    /// The kernel has to ask before it opens a file, after all.
    pub(super) fn ask_to_open(&self) {
        self.opens_itself.store(false, Ordering::Relaxed);
    }

    /// Whether the kernel opens files by itself.
    pub(super) fn opens_itself(&self) -> bool {
        self.opens_itself.load(Ordering::Relaxed)
    }

    /// The kernel forgets an inode.
    pub(super) fn forget(&self, number: u64) {
        if self.opens_itself() {
            let hold = self.unasked.lock().let_go(number);
            drop(hold);
        }
    }

    /// How many replaced files may be open.
    #[cfg(test)]
    pub(super) fn replaced(&self) -> usize {
        self.unasked.lock().all_replaced().count()
    }

    /// Forgets replaced files that the kernel does not know any more. Blocks for a system call each.
    fn forget_replaced(&self) {
        let mut old = self.unasked.lock().replaced_for(FORMER);
        // What cannot be asked stays.
        old.retain(|number| notice::is_known(&*self.device, *number).is_ok_and(|known| !known));
        self.unasked.lock().forget_replaced(&old);
    }

    fn reopen(&self, number: u64, handle: u64) -> Result<(Arc<dyn OpenFile>, u64), Missing> {
        let shown = self.shown(number)?;
        let (file, length) = (self.content(&shown.object)?, shown.attributes.size);
        let open = Open { request: 0, shown, file: Arc::clone(&file), backing: None };
        self.handles.lock().opens.add(number, handle, open);
        Ok((file, length))
    }

    /// An extended attribute of a file; `None` if it has none of that name.
    pub(super) fn xattr(&self, number: u64, name: &[u8]) -> Result<Option<Vec<u8>>, Missing> {
        // `ls -l` asks for attributes of others, for every file.
        if !name.starts_with(XATTRS) {
            return Ok(None);
        }
        let found = self.xattrs(number)?;
        Ok(found.into_iter().find(|(known, _)| known.as_bytes() == name).map(|(_, value)| value))
    }

    /// The names and values of what tells an object version; a directory has none.
    pub(super) fn xattrs(&self, number: u64) -> Result<Vec<(&'static str, Vec<u8>)>, Missing> {
        let is_directory = |table: &Table| table.find(number).map(|id| table.is_directory(id));
        if is_directory(&self.table()) == Some(true) {
            return Ok(Vec::new());
        }
        let Shown { object, .. } = self.shown(number)?;
        let version_id = object.version_id.as_deref().map(str::as_bytes);
        let all = [
            ("user.s3view.etag", Some(object.version.etag.as_str().as_bytes())),
            ("user.s3view.key", Some(object.version.key.as_str().as_bytes())),
            ("user.s3view.version-id", version_id),
        ];
        Ok(all.into_iter().filter_map(|(name, value)| Some((name, value?.to_vec()))).collect())
    }
}

/// A short answer would be filled up with zeros by the kernel: never pass one on.
fn whole_answer(bytes: Bytes, size: u32) -> Result<Bytes, Refusal> {
    if u32::try_from(bytes.len()) == Ok(size) {
        return Ok(bytes);
    }
    let text = format!("{} bytes were read where there must be {size}", bytes.len());
    Err(Refusal::new(FailureKind::Internal, text))
}
