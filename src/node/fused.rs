//! The mount of a `fuse` volume: what it shows, what it reads, and who keeps its descriptor.
//!
//! The mount at the target is the FUSE mount itself. It is handed to the keeper before the publish
//! answers, so that no pod ever reads through a mount that a restart of the plugin would end,
//! unless there is no keeper: then it is handed over as soon as there is one.
//!
//! ```text
//! <memory store>/volumes/<key>/ledger   what another process needs to go on with the mount
//! <memory store>/volumes/<key>/proofs   what S3 let its principal read
//! <disk store>/volumes/<key>/ledger     the part of the ledger that is too large for memory
//! ```

mod content;
mod near;
mod proofs;

use std::{io, path::Path, sync::Arc, time::Duration};

use parking_lot::Mutex;

pub(super) use self::content::VolumeContent;
use super::{
    Context, NodeError,
    published::Published,
    registry::{Entry, Shape, VolumeKey},
    revision::Recipe,
};
use crate::{
    failure::full_message,
    keeper::{EntryName, Kept, State},
    listing::Listing,
    mount::TargetPath,
    store::Medium,
    view::fuse::{AskToOpen, FuseMount, FuseOptions, LedgerPlace},
};

/// How long a publish waits for the keeper. One that is away is not waited for.
const HAND_OVER: Duration = Duration::from_secs(2);

/// How long processes that still have files of an unpublished volume open are served.
const GRACE: Duration = Duration::from_secs(10);

/// The mount of one volume, and its content.
#[derive(Debug)]
pub(super) struct Fused {
    pub(super) content: VolumeContent,
    /// `None` if nobody serves it: plugin and keeper both went.
    mount: Mutex<Option<Arc<FuseMount>>>,
}

impl Fused {
    /// A volume that nobody serves.
    pub(super) fn new(content: VolumeContent) -> Self {
        Self { content, mount: Mutex::new(None) }
    }

    fn served_by(self, mount: FuseMount) -> Self {
        *self.mount.lock() = Some(Arc::new(mount));
        self
    }

    fn mount(&self) -> Option<Arc<FuseMount>> {
        self.mount.lock().clone()
    }

    /// Whether somebody serves it.
    pub(super) fn is_served(&self) -> bool {
        self.mount().is_some_and(|mount| !mount.has_ended())
    }

    /// Whether it shows just this listing already. What nobody serves is not told of others: the
    /// next publish mounts it anew.
    ///
    /// # Blocking
    /// In proportion to the listing.
    pub(super) fn shows(&self, listing: &Listing) -> bool {
        self.mount().is_none_or(|mount| mount.shows(listing))
    }

    /// Shows another listing, at once for all lookups after it.
    ///
    /// # Errors
    /// The kernel could not be told, or what another process would need not be written.
    ///
    /// # Blocking
    /// In proportion to the listing.
    pub(super) fn show(&self, listing: &Listing) -> Result<(), NodeError> {
        if let Some(mount) = self.mount() {
            mount.show(listing)?;
        }
        Ok(())
    }

    /// Ends the session of a volume that was unmounted and released.
    ///
    /// # Cancellation
    /// The session ends by itself when nothing is open any more.
    pub(super) async fn close(&self) {
        self.content.give_up();
        let Some(mount) = self.mount.lock().take() else { return };
        // Nobody shows a listing in it any more: that is done under the target's lock.
        if let Some(mount) = Arc::into_inner(mount)
            && !mount.close(GRACE).await
        {
            tracing::error!("a FUSE session did not end; its thread is left behind");
        }
    }
}

impl Context {
    fn ledger(&self, key: &VolumeKey) -> LedgerPlace {
        let on = |medium| self.directory(medium, key).join("ledger");
        LedgerPlace { memory: on(Medium::Memory), disk: on(Medium::Disk) }
    }

    /// The content of a volume that is about to be published. Blocks.
    pub(super) fn content(&self, recipe: &Recipe, key: &VolumeKey) -> Result<Fused, NodeError> {
        let directory = self.directory(Medium::Memory, key);
        fresh(&directory).map_err(|error| NodeError::ledger(&directory, error))?;
        let content = VolumeContent::new(self, &directory);
        content.renew(&recipe.source, &self.seal(recipe));
        Ok(Fused::new(content))
    }

    /// Mounts a listing at the target, and hands the mount to the keeper. Nothing stays mounted if
    /// that fails. Blocks.
    ///
    /// Recorded first, as for the other views: an entry without a mount is garbage after a crash.
    pub(super) fn serve(
        &self,
        entry: &Entry,
        path: &TargetPath,
        fused: &Fused,
        listing: &Listing,
    ) -> Result<(), NodeError> {
        let key = VolumeKey::of(path.as_path());
        self.registry.write(entry)?;
        let ledger = self.ledger(&key);
        for directory in [&ledger.memory, &ledger.disk] {
            remove(directory).map_err(|error| NodeError::ledger(directory, error))?;
        }
        let target = self.kubelet.create_target(path)?;
        let (content, options) = (Arc::new(fused.content.clone()), self.options(entry));
        let mounted = FuseMount::new(&target, listing, options, content, &ledger);
        let mount = mounted.inspect_err(|_| {
            if let Err(error) = target.remove() {
                tracing::warn!(%error, "failed to remove a target that could not be mounted");
            }
        })?;
        self.hand_over(&key, &mount);
        *fused.mount.lock() = Some(Arc::new(mount));
        Ok(())
    }

    fn hand_over(&self, key: &VolumeKey, mount: &FuseMount) {
        let name = name(key);
        let handed = mount.device().and_then(|device| {
            let state = State::new(&mount.handover()).map_err(io::Error::other)?;
            self.custodian.put(name, Arc::new(device), state);
            Ok(())
        });
        if let Err(error) = handed {
            tracing::error!(%error, "a FUSE mount could not be handed over");
        } else if !self.custodian.is_held(name, HAND_OVER) {
            tracing::warn!(
                keeper = ?self.custodian.status().link,
                "the keeper does not hold a FUSE mount: until it does, a restart of the node plugin \
                 ends it"
            );
        }
    }

    /// Goes on with the mount of an earlier process. Blocks.
    pub(super) fn resume(&self, entry: &Entry, kept: Option<Kept>) -> Fused {
        let (key, options) = (entry.key(), self.options(entry));
        let content = VolumeContent::new(self, &self.directory(Medium::Memory, &key));
        let target_path = entry.target.display();
        let Some(Kept { fd, state, .. }) = kept else {
            tracing::error!(
                %target_path,
                "no keeper held this FUSE mount, so reads of it fail; the kubelet's next publish \
                 mounts it again for new containers of the pod"
            );
            return Fused::new(content);
        };
        let resumed = state.read().map_err(|error| full_message(&error)).and_then(|state| {
            let served = Arc::new(content.clone());
            FuseMount::resume(&*fd, &state, &self.ledger(&key), options, served)
                .map_err(|error| full_message(&error))
        });
        match resumed {
            Ok((mount, _)) => Fused::new(content).served_by(mount),
            Err(error) => {
                tracing::error!(%target_path, error, "failed to go on with a FUSE mount");
                // Its readers get an error instead of waiting for ever.
                self.custodian.release(name(&key));
                Fused::new(content)
            }
        }
    }

    fn options(&self, entry: &Entry) -> FuseOptions {
        let shape = entry.shape.expect("a volume that is served has a shape");
        let Shape { ownership, xattrs, .. } = shape;
        FuseOptions {
            ownership,
            xattrs,
            passthrough: true,
            ask_to_open: AskToOpen::UnlessSmall,
            resend: self.config().fuse.resend,
        }
    }

    /// Whether the keeper holds the mount of a volume.
    pub(super) fn keeps(&self, published: &Published) -> bool {
        self.custodian.is_held(name(&VolumeKey::of(&published.target)), Duration::ZERO)
    }

    /// Has the keeper let go of a mount that is there no more.
    pub(super) fn release(&self, key: &VolumeKey) {
        self.custodian.release(name(key));
    }
}

fn name(key: &VolumeKey) -> EntryName {
    key.as_str().parse().expect("a key is a name")
}

/// An empty directory.
fn fresh(directory: &Path) -> io::Result<()> {
    remove(directory)?;
    std::fs::create_dir_all(directory)
}

fn remove(directory: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
