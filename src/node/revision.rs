//! Making a revision: from a listing to blobs that are here, pinned, and may be shown.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    Context, NodeError,
    quota::Share,
    registry::{Shape, Summary},
};
use crate::{
    fetch::{ListingKey, Order, Progress},
    listing::{Entry, Listing},
    object::{Object, SseKeyDigest},
    relpath::RelPath,
    source::{Principal, s3::S3Source},
    store::{BlobId, PAGE, Sharers, Store, Variant, Wanted},
    task::blocking,
    units::ByteSize,
    view::linkfarm::{Leases, LinkFarm},
    volume::{Tenant, VolumeSpec},
};

/// How often a listing is made again because an object changed under it.
pub(super) const RELISTS: u32 = 5;

/// All that a volume's revisions are made from and with.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    pub(super) spec: Arc<VolumeSpec>,
    /// Whose pod it is for, if that is certain.
    pub(super) tenant: Option<Tenant>,
    /// The way to S3, credentials included.
    pub(super) source: S3Source,
    pub(super) store: Store,
    pub(super) view: View,
    /// As the volume was published, whatever the configured defaults are now.
    pub(super) shape: Shape,
    /// Who may have links to the files that it shows.
    pub(super) sharers: Option<Sharers>,
}

/// How revisions are made visible.
#[derive(Debug, Clone)]
pub(super) enum View {
    /// As links to blobs, all of which are here first.
    LinkFarm(LinkFarm),
    /// By serving the mount; content comes when it is read.
    Fuse,
}

impl Recipe {
    /// What tells this way to S3 from others.
    pub(super) fn access(&self) -> (Principal, Option<SseKeyDigest>) {
        access(&self.source)
    }

    /// Recipes with equal keys resolve to equal listings.
    pub(super) fn listing_key(&self) -> ListingKey {
        ListingKey::new(&self.source, &self.spec)
    }

    /// What the volume's files are.
    pub(super) fn variant(&self) -> Variant {
        LinkFarm::variant(&self.shape.ownership, self.sharers)
    }

    /// What a listing counts for the volume's namespace. Takes time in proportion to its entries.
    pub(super) fn share(&self, listing: &Listing) -> Share {
        match self.view {
            View::LinkFarm(_) => Share::of(listing, self.variant()),
            // Nothing of it is pinned: what was read can be evicted.
            View::Fuse => Share::default(),
        }
    }

    fn order(&self, progress: &Arc<Progress>) -> Order {
        Order {
            source: self.source.clone(),
            store: self.store.clone(),
            variant: self.variant(),
            progress: Arc::clone(progress),
        }
    }
}

/// The principal behind a source, and the key that its objects are encrypted with.
pub(super) fn access(source: &S3Source) -> (Principal, Option<SseKeyDigest>) {
    (source.principal(), source.sse_key_digest())
}

/// Which entries of a listing need a blob.
#[derive(Debug, Clone)]
pub(super) enum Need {
    /// All: nothing is shown yet, or nothing says that this principal may read it.
    All,
    /// Only these: the rest stands in the volume already.
    Only(Arc<HashSet<RelPath>>),
}

impl Need {
    /// Whether no entry needs one.
    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Self::Only(none) if none.is_empty())
    }

    fn includes(&self, entry: &Entry) -> bool {
        match self {
            Self::All => true,
            Self::Only(paths) => paths.contains(&entry.path),
        }
    }
}

/// What a listing finds in the store.
pub(super) struct Admitted {
    pub(super) leases: Leases,
    missing: Vec<Object>,
}

impl Admitted {
    /// Whether nothing has to be fetched.
    pub(super) fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }
}

/// Pins what is here and sets room aside for the rest, before anything is fetched. Blocks.
///
/// # Errors
/// `Exhausted` if the store has no room.
pub(super) fn admit(
    recipe: &Recipe,
    listing: &Listing,
    need: &Need,
) -> Result<Admitted, NodeError> {
    let (store, principal) = (&recipe.store, recipe.source.principal());
    let variant = recipe.variant();
    let mut blobs = HashMap::with_capacity(listing.len());
    let mut missing: HashMap<BlobId, Object> = HashMap::new();
    let mut wanted = Vec::new();
    for entry in listing.entries().filter(|entry| need.includes(entry)) {
        let (object, id) = (&entry.object, BlobId::of(&entry.object.version));
        if blobs.contains_key(&id) || missing.contains_key(&id) {
            continue;
        }
        let lease = store.lookup(principal, &object.version);
        // What is here for somebody else is compared with, not written again.
        if !store.holds(&object.version, variant) {
            wanted.push(Wanted { id, variant, size: object.version.size });
        }
        match lease {
            Some(lease) => drop(blobs.insert(id, Arc::new(lease))),
            None => drop(missing.insert(id, entry.object)),
        }
    }
    let reservation = Arc::new(store.reserve(wanted, LinkFarm::names(listing))?);
    let leases = Leases { variant, blobs, reservation };
    Ok(Admitted { leases, missing: missing.into_values().collect() })
}

/// Fetches what was missing.
///
/// # Errors
/// The first failure; of kind `Stale` if the listing is not true any more.
///
/// # Cancellation
/// Safe.
pub(super) async fn complete(
    context: &Context,
    recipe: &Recipe,
    admitted: Admitted,
    progress: &Arc<Progress>,
) -> Result<Leases, NodeError> {
    let Admitted { mut leases, missing } = admitted;
    let order = recipe.order(progress);
    let fetched = context.fetcher.fetch(&order, missing, &leases.reservation).await?;
    leases.blobs.extend(fetched);
    Ok(leases)
}

/// [`admit`], then [`complete`].
///
/// # Errors
/// As both.
///
/// # Cancellation
/// Safe.
pub(super) async fn bring(
    context: &Context,
    recipe: &Arc<Recipe>,
    listing: &Arc<Listing>,
    need: Need,
) -> Result<Leases, NodeError> {
    let admitted = {
        let (recipe, listing) = (Arc::clone(recipe), Arc::clone(listing));
        blocking(move || admit(&recipe, &listing, &need)).await?
    };
    if admitted.is_complete() {
        return Ok(admitted.leases);
    }
    complete(context, recipe, admitted, &Arc::default()).await
}

/// Whether the volume may show that much.
///
/// # Errors
/// [`NodeError::TooLarge`].
pub(super) fn check_size(listing: &Listing, spec: &VolumeSpec) -> Result<(), NodeError> {
    let size = listing.bytes(PAGE);
    match spec.max_size {
        Some(limit) if size > limit.bytes() => {
            Err(NodeError::TooLarge { size, limit: limit.bytes() })
        }
        _ => Ok(()),
    }
}

/// What a volume shows, for its condition and figures.
pub(super) fn summarise(
    listing: &Listing,
    spec: &VolumeSpec,
    revision: u64,
    share: Share,
) -> Summary {
    let skipped = listing.skipped();
    Summary {
        revision,
        objects: listing.len() as u64,
        directories: listing.directories().len() as u64,
        bytes: listing.bytes(1),
        share,
        max_bytes: spec.max_size.map(ByteSize::bytes),
        max_objects: spec.max_objects,
        skipped: if skipped.count() > 0 { skipped.to_string() } else { String::new() },
        resolved_at: now(),
    }
}

/// Seconds since the epoch, for people.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The pause before a listing is made again.
pub(super) fn pause_before(relist: u32) -> Duration {
    Duration::from_millis(50 << relist)
}
