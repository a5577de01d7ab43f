//! Random histories, over alphabets so small that things collide.

use proptest::{collection::vec, prelude::*, sample::select};

use super::model::{Credential, Refresh, Service, Shape, Sources, View};
use crate::{can_serve, tree::Layout};

/// How many pods there may be at a time.
pub(super) const SLOTS: usize = 5;

/// All keys that are ever written.
pub(super) const KEYS: [&str; 14] = [
    "p/a", "p/b", "p/a/b", "p/a/", "p/d/", "p/d/e", "p/..x", "q/a", "q/b", "q/a/b", "q/c/",
    "q/d/e", "q/..x", "q//c",
];

/// What happens next.
#[derive(Debug, Clone)]
pub(super) enum Op {
    /// Writes a key; few values, so that old content comes back.
    Put {
        key: &'static str,
        value: u8,
    },
    /// Writes several keys at one moment.
    PutTogether {
        objects: Vec<(&'static str, u8)>,
    },
    Delete {
        key: &'static str,
    },
    Publish {
        slot: usize,
        shape: Shape,
        credential: Credential,
    },
    /// Another pod with the volume and credentials of one that is there.
    PublishLike {
        other: usize,
    },
    Unpublish {
        slot: usize,
    },
    Republish {
        slot: usize,
        credential: Credential,
    },
    /// All pods' republishes with what their Secrets hold.
    RepublishAll,
    /// SIGKILL, and a new start.
    Kill,
    /// SIGTERM, and a new start.
    Stop,
    /// SIGKILL of plugin and keeper, and a new start of both.
    KillBoth,
    /// SIGKILL of the keeper alone, and a new start.
    KillKeeper,
    Service(Service),
    /// Some requests fail from now on.
    Flaky {
        fault: Flake,
        times: u32,
    },
    /// No faults any more.
    Heal,
    Revoke(Credential),
    Restore(Credential),
}

/// A failure that passes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Flake {
    SlowListing,
    ErrorOnGet,
    ResetOnGet,
    Truncated,
    CutListing,
    Corrupt,
    ChangedObject,
}

/// An operation, and whether everything comes to rest after it.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) op: Op,
    pub(super) settle: bool,
}

/// Some volumes come first: without any, nothing that happens matters.
pub(super) fn history() -> impl Strategy<Value = Vec<Step>> {
    let credential = select(&[Credential::Owner, Credential::Second][..]);
    let publishes = vec((shape(), credential), 2..SLOTS);
    (publishes, vec(step(), 10..18)).prop_map(|(publishes, steps)| {
        let publish = |(slot, (shape, credential))| Step {
            op: Op::Publish { slot, shape, credential },
            settle: false,
        };
        publishes.into_iter().enumerate().map(publish).chain(steps).collect()
    })
}

fn step() -> impl Strategy<Value = Step> {
    (op(), prop::bool::weighted(0.65)).prop_map(|(op, settle)| Step { op, settle })
}

fn op() -> impl Strategy<Value = Op> {
    let slot = || 0..SLOTS;
    let key = || select(&KEYS[..]);
    prop_oneof![
        8 => (key(), 0..3_u8).prop_map(|(key, value)| Op::Put { key, value }),
        4 => vec((key(), 0..3_u8), 2..5).prop_map(|objects| Op::PutTogether { objects }),
        3 => key().prop_map(|key| Op::Delete { key }),
        3 => (slot(), shape(), credential())
            .prop_map(|(slot, shape, credential)| Op::Publish { slot, shape, credential }),
        5 => slot().prop_map(|other| Op::PublishLike { other }),
        2 => slot().prop_map(|slot| Op::Unpublish { slot }),
        3 => (slot(), credential())
            .prop_map(|(slot, credential)| Op::Republish { slot, credential }),
        6 => Just(Op::RepublishAll),
        2 => Just(Op::Kill),
        1 => Just(Op::Stop),
        1 => Just(Op::KillBoth),
        1 => Just(Op::KillKeeper),
        3 => select(&[Service::Down, Service::Overloaded, Service::Denying, Service::Up][..])
            .prop_map(Op::Service),
        2 => (flake(), 1..4_u32).prop_map(|(fault, times)| Op::Flaky { fault, times }),
        4 => Just(Op::Heal),
        1 => good().prop_map(Op::Revoke),
        1 => good().prop_map(Op::Restore),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    let sources = prop_oneof![
        3 => Just(Sources::P),
        3 => Just(Sources::Q),
        1 => Just(Sources::Nested),
        1 => Just(Sources::Merged),
        1 => Just(Sources::Apart),
        1 => Just(Sources::Key),
    ];
    let refresh = prop_oneof![
        6 => Just(Refresh::Often),
        3 => Just(Refresh::Slower),
        1 => Just(Refresh::Never),
    ];
    let linked = select(&[Layout::Symlinks, Layout::Files][..]);
    let linked = (select(&[View::Tmpfs, View::Disk][..]), linked);
    let served = Just((View::Fuse, Layout::Served));
    // Where nothing can be served, the histories are of the other views.
    let shown = prop_oneof![3 => linked, if can_serve() { 2 } else { 0 } => served];
    let rare = || prop::bool::weighted(0.25);
    (sources, shown, refresh, (prop::bool::weighted(0.7), rare(), rare(), rare())).prop_map(
        |(sources, (view, layout), refresh, (cached, allow_empty, private, small))| Shape {
            sources,
            view,
            layout,
            refresh,
            cached,
            allow_empty,
            private,
            small,
        },
    )
}

fn good() -> impl Strategy<Value = Credential> {
    select(&Credential::GOOD[..])
}

fn credential() -> impl Strategy<Value = Credential> {
    prop_oneof![
        5 => Just(Credential::Owner),
        4 => Just(Credential::Second),
        2 => Just(Credential::Limited),
        1 => Just(Credential::Wrong),
        1 => Just(Credential::Unusable),
    ]
}

fn flake() -> impl Strategy<Value = Flake> {
    use Flake::{
        ChangedObject, Corrupt, CutListing, ErrorOnGet, ResetOnGet, SlowListing, Truncated,
    };
    select(
        &[SlowListing, ErrorOnGet, ResetOnGet, Truncated, CutListing, Corrupt, ChangedObject][..],
    )
}
