//! What each namespace uses on this node, and how much more it may: `limits.namespace`.
//!
//! A volume claims its place before it is prepared and its bytes before anything is fetched, and both
//! count from then on, whether the publish has come to its end or not. The claims hang on the states
//! of the target paths (`volumes`) and are looked at under their lock, so that calls at one time
//! cannot overshoot together, and a volume that is gone cannot count.
//!
//! Bytes are those of a volume's listing in whole pages. Volumes of a namespace that show the same
//! content as the same owner and with the same mode have one copy in the store, and count once:
//! twenty executors with one set of jars are one set of jars. What differs in one object counts in
//! full. What two namespaces share counts for each of them, or else what a team may use would depend
//! on its neighbours.
//!
//! A refresh is judged as if all volumes with the same content had moved to the new one, since they
//! do so together; it is never refused for what does not grow. A limit that was lowered below what is
//! used takes nothing away.

use std::{collections::HashMap, fmt, sync::Arc};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{
    config::NamespaceLimits,
    listing::Listing,
    store::{BlobId, Medium, PAGE, Variant},
    units::ByteSize,
};

/// What a volume holds in a store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Share {
    /// Equal for equal content as equal variants; empty for nothing, or if it is not known.
    content: String,
    /// In whole pages.
    bytes: u64,
}

impl Share {
    /// What a listing holds, shown as one variant. Takes time in proportion to the entries.
    pub(super) fn of(listing: &Listing, variant: Variant) -> Self {
        let mut digest = Sha256::new();
        let Variant { uid, gid, mode, sharers } = variant;
        digest
            .update([uid.to_le_bytes(), gid.to_le_bytes(), u32::from(mode).to_le_bytes()].concat());
        if let Some(sharers) = sharers {
            digest.update(sharers.as_bytes());
        }
        for entry in listing.entries() {
            digest.update(BlobId::of(&entry.object.version).as_bytes());
        }
        Self { content: hex::encode(&digest.finalize()[..16]), bytes: listing.bytes(PAGE) }
    }

    /// Whether somebody has looked at the content.
    pub(super) fn is_known(&self) -> bool {
        !self.content.is_empty()
    }
}

/// What one volume counts for.
#[derive(Debug)]
pub(super) struct Claim {
    /// The namespace that somebody vouches for. All others are one, without a name.
    namespace: Option<String>,
    medium: Medium,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    now: Share,
    /// What a refresh is about to show instead.
    coming: Option<Share>,
}

/// What a refresh brings counts beside what is shown, until this is dropped.
#[derive(Debug)]
pub(super) struct Coming(Arc<Claim>);

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.held.lock().coming = None;
    }
}

impl Claim {
    /// A volume that holds so much.
    pub(super) fn new(namespace: Option<String>, medium: Medium, now: Share) -> Self {
        Self { namespace, medium, held: Mutex::new(Held { now, coming: None }) }
    }

    /// What the volume shows, or is about to be published with.
    pub(super) fn share(&self) -> Share {
        self.held.lock().now.clone()
    }

    /// Notes what the volume shows now, which nobody can refuse any more.
    pub(super) fn shows(&self, share: &Share) {
        self.held.lock().now.clone_from(share);
    }
}

/// A namespace would use more than `limits.namespace` allows.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct OverLimit {
    kind: Kind,
    namespace: Option<String>,
    allowed: u64,
    used: u64,
    needed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Volumes,
    Bytes(Medium),
}

impl fmt::Display for OverLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, allowed, used, needed } = self;
        match namespace {
            Some(namespace) => write!(f, "namespace {namespace:?}")?,
            None => f.write_str("all volumes of namespaces that nothing vouches for together")?,
        }
        match kind {
            Kind::Volumes => write!(
                f,
                " may have {allowed} volumes on this node (limits.namespace.volumes), {used} are \
                 there, and this is {needed} more"
            ),
            Kind::Bytes(medium) => {
                let [allowed, used, needed] = [*allowed, *used, *needed].map(ByteSize::from_bytes);
                write!(
                    f,
                    " may hold {allowed} in the {0} store of this node (limits.namespace.{0}), \
                     {used} are held, and this volume needs {needed} more",
                    medium.as_str()
                )
            }
        }
    }
}

/// The claims on the node at one moment, which the caller keeps from changing.
pub(super) struct Claims<'a> {
    all: Vec<&'a Arc<Claim>>,
    limits: &'a NamespaceLimits,
}

impl<'a> Claims<'a> {
    pub(super) fn new(
        all: impl Iterator<Item = &'a Arc<Claim>>,
        limits: &'a NamespaceLimits,
    ) -> Self {
        Self { all: all.collect(), limits }
    }

    /// Whether there may be one more volume.
    ///
    /// # Errors
    /// [`OverLimit`].
    pub(super) fn admit(&self, new: &Claim) -> Result<(), OverLimit> {
        let used = self.of_namespace(new).count() as u64;
        let (namespace, allowed) = (new.namespace.clone(), self.limits.volumes);
        if allowed > 0 && used >= allowed {
            return Err(OverLimit { kind: Kind::Volumes, namespace, allowed, used, needed: 1 });
        }
        Ok(())
    }

    /// Takes `share` for a volume that is being published, in the place of what it claimed before.
    ///
    /// # Errors
    /// [`OverLimit`]; the claim is then as it was.
    pub(super) fn take(&self, claim: &Arc<Claim>, share: Share) -> Result<(), OverLimit> {
        let others = self.of_medium(claim).filter(|it| !Arc::ptr_eq(it, claim));
        let contents = contents(others.map(|it| it.held.lock()).map(|held| held.shares()));
        let used = sum(&contents);
        if !contents.contains_key(&share.content) {
            self.check(claim, used, used.saturating_add(share.bytes))?;
        }
        claim.held.lock().now = share;
        Ok(())
    }

    /// Takes `share` for a volume that is about to show it instead of what it shows.
    ///
    /// # Errors
    /// [`OverLimit`].
    pub(super) fn grow(&self, claim: &Arc<Claim>, share: Share) -> Result<Coming, OverLimit> {
        let old = claim.held.lock().now.clone();
        if share.bytes > old.bytes {
            let moved =
                |held: Share| if held.content == old.content { share.clone() } else { held };
            let shares = || self.of_medium(claim).map(|it| it.held.lock().shares());
            let before = sum(&contents(shares()));
            let after = contents(shares().map(|it| it.map(|share| share.map(moved))));
            self.check(claim, before, sum(&after))?;
        }
        claim.held.lock().coming = Some(share);
        Ok(Coming(Arc::clone(claim)))
    }

    fn check(&self, claim: &Claim, before: u64, after: u64) -> Result<(), OverLimit> {
        let allowed = match claim.medium {
            Medium::Memory => self.limits.memory,
            Medium::Disk => self.limits.disk,
        };
        let allowed = allowed.bytes();
        if allowed == 0 || after <= allowed || after <= before {
            return Ok(());
        }
        let (kind, namespace) = (Kind::Bytes(claim.medium), claim.namespace.clone());
        Err(OverLimit { kind, namespace, allowed, used: before, needed: after - before })
    }

    fn of_namespace(&self, claim: &Claim) -> impl Iterator<Item = &'a Arc<Claim>> {
        self.all.iter().copied().filter(|it| it.namespace == claim.namespace)
    }

    fn of_medium(&self, claim: &Claim) -> impl Iterator<Item = &'a Arc<Claim>> {
        let medium = claim.medium;
        self.of_namespace(claim).filter(move |it| it.medium == medium)
    }
}

impl Held {
    fn shares(&self) -> [Option<Share>; 2] {
        [Some(self.now.clone()), self.coming.clone()]
    }
}

/// Each content once.
fn contents(shares: impl Iterator<Item = [Option<Share>; 2]>) -> HashMap<String, u64> {
    shares.flatten().flatten().map(|share| (share.content, share.bytes)).collect()
}

fn sum(contents: &HashMap<String, u64>) -> u64 {
    contents.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Sharers;

    fn limits(volumes: u64, memory: u64, disk: u64) -> NamespaceLimits {
        let (memory, disk) = (ByteSize::from_bytes(memory), ByteSize::from_bytes(disk));
        NamespaceLimits { volumes, memory, disk }
    }

    fn share(content: &str, bytes: u64) -> Share {
        Share { content: content.into(), bytes }
    }

    fn claim(namespace: &str, content: &str, bytes: u64) -> Arc<Claim> {
        let namespace = Some(namespace.to_owned()).filter(|name| !name.is_empty());
        Arc::new(Claim::new(namespace, Medium::Memory, share(content, bytes)))
    }

    #[test]
    fn volumes_are_counted_by_namespace() {
        let limits = limits(2, 0, 0);
        let all = [claim("a", "x", 1), claim("a", "x", 1), claim("b", "x", 1)];
        let claims = Claims::new(all.iter(), &limits);
        let text = claims.admit(&claim("a", "", 0)).unwrap_err().to_string();
        assert_eq!(
            text,
            "namespace \"a\" may have 2 volumes on this node (limits.namespace.volumes), 2 are \
             there, and this is 1 more"
        );
        assert!(claims.admit(&claim("b", "", 0)).is_ok());
        assert!(claims.admit(&claim("", "", 0)).is_ok());
    }

    #[test]
    fn those_that_nothing_vouches_for_are_one_namespace() {
        let limits = limits(1, 0, 0);
        let all = [claim("", "x", 1)];
        let error = Claims::new(all.iter(), &limits).admit(&claim("", "", 0)).unwrap_err();
        assert!(
            error.to_string().starts_with("all volumes of namespaces that nothing vouches for")
        );
    }

    #[test]
    fn equal_content_counts_once_for_each_namespace() {
        let limits = limits(0, 100, 0);
        let all =
            [claim("a", "x", 60), claim("a", "x", 60), claim("b", "x", 60), claim("a", "", 0)];
        let claims = Claims::new(all.iter(), &limits);
        assert!(claims.take(&all[3], share("x", 60)).is_ok());
        assert!(claims.take(&all[3], share("y", 40)).is_ok());
        let error = claims.take(&all[3], share("y", 41)).unwrap_err();
        assert_eq!((error.allowed, error.used, error.needed), (100, 60, 41));
        assert_eq!(all[3].held.lock().now, share("y", 40), "a refusal leaves the claim");
    }

    #[test]
    fn equal_content_for_other_sharers_is_another_copy() {
        let variant = |sharers| Variant { uid: 0, gid: 0, mode: 0o444, sharers };
        let share = |sharers| Share::of(&Listing::default(), variant(sharers)).content;
        let [a, b] = ["a", "b"].map(|name| Some(Sharers::of_volume(name)));
        assert_eq!(share(a), share(a));
        assert!(share(a) != share(b) && share(a) != share(None));
    }

    #[test]
    fn media_are_counted_apart() {
        let limits = limits(0, 100, 10);
        let disk = Arc::new(Claim::new(Some("a".into()), Medium::Disk, Share::default()));
        let all = [claim("a", "x", 100), Arc::clone(&disk)];
        let claims = Claims::new(all.iter(), &limits);
        assert!(claims.take(&disk, share("x", 10)).is_ok());
        let text = claims.take(&disk, share("y", 11)).unwrap_err().to_string();
        assert!(
            text.contains("limits.namespace.disk") && text.contains("the disk store"),
            "{text}"
        );
    }

    #[test]
    fn volumes_with_equal_content_move_together() {
        let limits = limits(0, 100, 0);
        let all = [claim("a", "x", 60), claim("a", "x", 60), claim("a", "z", 10)];
        let claims = Claims::new(all.iter(), &limits);
        let coming = claims.grow(&all[0], share("y", 90)).unwrap();
        let error = claims.grow(&all[1], share("w", 91)).unwrap_err();
        assert_eq!(error.allowed, 100);
        let second = claims.grow(&all[1], share("y", 90)).unwrap();
        all[0].shows(&share("y", 90));
        all[1].shows(&share("y", 90));
        drop((coming, second));
        assert_eq!(sum(&contents(all.iter().map(|it| it.held.lock().shares()))), 100);
    }

    #[test]
    fn what_is_coming_counts_for_others_until_it_is_given_up() {
        let limits = limits(0, 100, 0);
        let all = [claim("a", "x", 10), claim("a", "", 0)];
        let claims = Claims::new(all.iter(), &limits);
        let coming = claims.grow(&all[0], share("y", 80)).unwrap();
        assert!(claims.take(&all[1], share("z", 20)).is_err());
        drop(coming);
        assert!(claims.take(&all[1], share("z", 20)).is_ok());
    }

    #[test]
    fn a_lowered_limit_takes_nothing_away() {
        let limits = limits(0, 50, 0);
        let all = [claim("a", "x", 60), claim("a", "", 0)];
        let claims = Claims::new(all.iter(), &limits);
        assert!(claims.take(&all[1], share("x", 60)).is_ok(), "what is there costs nothing");
        assert!(claims.grow(&all[0], share("y", 60)).is_ok());
        assert!(claims.grow(&all[0], share("y", 61)).is_err());
        assert!(claims.take(&all[1], share("z", 1)).is_err());
    }
}
