//! Histories that went wrong once, or that are rare among the random ones.

use super::{
    generators::{Op, Step},
    model::{Credential, Refresh, Service, Shape, Sources, View},
};
use crate::tree::Layout;

/// Names and histories.
pub(super) fn all() -> Vec<(&'static str, Vec<Step>)> {
    vec![
        (
            "a_record_is_of_what_the_credential_saw_last",
            a_record_is_of_what_the_credential_saw_last(),
        ),
        ("new_credentials_bring_no_older_listing", new_credentials_bring_no_older_listing()),
        ("a_volume_that_is_too_large_hurts_no_other", a_volume_that_is_too_large_hurts_no_other()),
        ("who_comes_back_joins_the_others_listing", who_comes_back_joins_the_others_listing()),
    ]
}

const SHAPE: Shape = Shape {
    sources: Sources::P,
    view: View::Tmpfs,
    layout: Layout::Symlinks,
    refresh: Refresh::Often,
    cached: true,
    allow_empty: false,
    private: false,
    small: false,
};

fn settled(op: Op) -> Step {
    Step { op, settle: true }
}

/// The second credential's record is of an earlier listing when a republish brings it again.
fn a_record_is_of_what_the_credential_saw_last() -> Vec<Step> {
    let publish = |slot, credential| settled(Op::Publish { slot, shape: SHAPE, credential });
    vec![
        publish(0, Credential::Second),
        settled(Op::Unpublish { slot: 0 }),
        settled(Op::Put { key: "p/a", value: 1 }),
        publish(0, Credential::Owner),
        settled(Op::Republish { slot: 0, credential: Credential::Second }),
        settled(Op::Service(Service::Down)),
        publish(1, Credential::Second),
    ]
}

/// Another volume of the same credentials was listed before the object was written, and not since.
fn new_credentials_bring_no_older_listing() -> Vec<Step> {
    let shape = Shape { refresh: Refresh::Rarely, cached: false, ..SHAPE };
    let unsettled = |op| Step { op, settle: false };
    vec![
        unsettled(Op::Publish { slot: 0, shape, credential: Credential::Second }),
        unsettled(Op::Put { key: "p/a", value: 1 }),
        unsettled(Op::Publish { slot: 1, shape, credential: Credential::Owner }),
        settled(Op::Republish { slot: 1, credential: Credential::Second }),
    ]
}

/// One volume's listing exceeds its `maxSize`: no reason to take replaced revisions from readers.
fn a_volume_that_is_too_large_hurts_no_other() -> Vec<Step> {
    let publish = |slot, shape| settled(Op::Publish { slot, shape, credential: Credential::Owner });
    vec![
        publish(0, SHAPE),
        publish(1, Shape { sources: Sources::Q, small: true, ..SHAPE }),
        settled(Op::Put { key: "p/a", value: 1 }),
        settled(Op::Put { key: "q/b", value: 2 }),
        settled(Op::Put { key: "q/a", value: 2 }),
    ]
}

/// A volume that gets credentials after a restart is shown what another one of these had listed
/// less than an interval ago, though the bucket has moved on since.
fn who_comes_back_joins_the_others_listing() -> Vec<Step> {
    let shape = Shape { refresh: Refresh::Rarely, cached: false, ..SHAPE };
    let publish = |slot| Op::Publish { slot, shape, credential: Credential::Owner };
    let unsettled = |op| Step { op, settle: false };
    vec![
        settled(publish(0)),
        unsettled(Op::Kill),
        unsettled(Op::Put { key: "p/a", value: 1 }),
        settled(publish(1)),
        unsettled(Op::Put { key: "p/b", value: 1 }),
        unsettled(Op::RepublishAll),
        settled(Op::Put { key: "p/b", value: 0 }),
    ]
}
