//! Random listings one after the other, and a stop at every change between two of them.

use proptest::{prelude::*, sample::Index};

use super::*;

/// Keys on a two-letter alphabet, so that files become directories and back; some are markers.
fn keys() -> impl Strategy<Value = Vec<(String, String)>> {
    let files = prop::collection::btree_map("[ab](/[ab]){0,2}", "[123]", 0..7);
    let markers = prop::collection::btree_set("[ab](/[ab]){0,2}/", 0..3);
    (files, markers).prop_map(|(files, markers)| {
        files.into_iter().chain(markers.into_iter().map(|key| (key, String::new()))).collect()
    })
}

fn layout() -> impl Strategy<Value = Layout> {
    prop_oneof![Just(Layout::Symlinks), Just(Layout::Files)]
}

fn first(fixture: &Fixture, listing: &Listing) {
    fixture.farm.create(listing, &fixture.leases(listing, |_| true)).unwrap();
}

/// Each path is whole, of one listing or the other; what both have as a file is never absent.
fn check_between(fixture: &Fixture, old: &Listing, new: &Listing) {
    let (old, new, visible) = (tree(old), tree(new), fixture.visible());
    for (path, found) in &visible {
        let is = |tree: &Tree| tree.get(path) == Some(found);
        assert!(is(&old) || is(&new), "{path} is {found:?}; {old:?} -> {new:?}");
    }
    for (path, content) in &old {
        if new.get(path).is_some_and(|new| new.is_some() == content.is_some()) {
            assert!(visible.contains_key(path), "{path} is absent; {old:?} -> {new:?}");
        }
    }
    if fixture.farm.layout == Layout::Symlinks {
        let mut data = Tree::new();
        for name in names(&fixture.root().join("..data")) {
            see(&fixture.root().join("..data").join(&name), &name, &mut data);
        }
        assert!(data == old || data == new, "{data:?}; {old:?} -> {new:?}");
    }
}

/// Goes from one listing to the other with a stop, and checks what is visible then.
fn stop(fixture: &Fixture, old: &Listing, new: &Listing, stop: Stop) -> Result<(), ViewError> {
    first(fixture, old);
    let shown: Vec<_> = old.entries().collect();
    let keep = |entry: &Entry| shown.contains(entry);
    let leases = fixture.leases(new, |entry| !keep(entry));
    let (result, _) = effect::with(stop, || fixture.farm.replace(new, keep, &leases));
    check_between(fixture, old, new);
    result.map(drop)
}

/// After whatever happened: tidies, replaces, and nothing is left of it.
fn recover(fixture: &Fixture, old: &Listing, new: &Listing) {
    LinkFarm::tidy(&fixture.farm.directory).unwrap();
    check_between(fixture, old, new);
    fixture.try_replace(new).unwrap();
    assert_eq!(fixture.visible(), tree(new));
    let older = LinkFarm::tidy(&fixture.farm.directory).unwrap();
    for retired in older {
        assert!(LinkFarm::remove_retired(&fixture.farm.directory, retired).unwrap());
    }
    assert_eq!(fixture.visible(), tree(new));
    let mut expected: BTreeSet<_> = top_names(new).into_iter().map(str::to_owned).collect();
    if fixture.farm.layout == Layout::Symlinks {
        let revision = fixture.farm.read().unwrap().revision;
        expected.extend([swap::revision_name(revision), swap::DATA.to_owned()]);
    }
    assert_eq!(fixture.names(), expected);
    assert_eq!(names(&fixture.farm.directory), set(["root"]));
}

/// How many changes the replacement makes.
fn changes(fixture: &Fixture, old: &Listing, new: &Listing) -> u64 {
    first(fixture, old);
    let leases = fixture.leases(new, |_| true);
    let shown: Vec<_> = old.entries().collect();
    let keep = |entry: &Entry| shown.contains(entry);
    effect::with(Stop::Never, || fixture.farm.replace(new, keep, &leases).unwrap()).1
}

#[test]
fn a_crash_at_any_change_is_recovered_from() {
    let old = list(&[("a", "1"), ("b/c", "2"), ("b/d", "3"), ("e/f", "4"), ("g/h/i", "5")]);
    let new = list(&[("a/x/y", "1"), ("b", "2"), ("e/f", "6"), ("e/k", "7"), ("l", "8")]);
    for layout in LAYOUTS {
        let fixture = Fixture::new(layout);
        for at in 0..changes(&fixture, &old, &new) {
            stop(&fixture, &old, &new, Stop::From(at)).unwrap_err();
            recover(&fixture, &old, &new);
        }
    }
}

#[test]
fn a_failed_change_leaves_nothing_behind_before_the_swap() {
    let (old, new) = (list(OLD), list(NEW));
    let fixture = Fixture::new(Layout::Symlinks);
    for at in 0..changes(&fixture, &old, &new) {
        let error = stop(&fixture, &old, &new, Stop::Once(at)).unwrap_err();
        assert_eq!(error.kind(), FailureKind::Exhausted, "{at}");
        if fixture.farm.read().unwrap().revision == 1 {
            assert_eq!(fixture.visible(), tree(&old), "{at}");
            assert_eq!(fixture.names(), set(["..1", "..data", "same", "d", "gone"]), "{at}");
        }
        recover(&fixture, &old, &new);
    }
}

#[test]
fn a_failed_change_of_files_leaves_no_staging_directory() {
    let (old, new) = (list(OLD), list(NEW));
    let fixture = Fixture::new(Layout::Files);
    for at in 0..changes(&fixture, &old, &new) {
        let error = stop(&fixture, &old, &new, Stop::Once(at)).unwrap_err();
        assert_eq!(error.kind(), FailureKind::Exhausted, "{at}");
        // Only its own removal can have failed.
        if fixture.visible() != tree(&new) {
            assert_eq!(names(&fixture.farm.directory), set(["root"]), "{at}");
        }
        recover(&fixture, &old, &new);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn each_replacement_shows_its_listing(
        layout in layout(),
        listings in prop::collection::vec(keys(), 2..5),
    ) {
        let fixture = Fixture::new(layout);
        let listings: Vec<_> = listings.iter().map(|keys| list(keys)).collect();
        first(&fixture, &listings[0]);
        for (number, [before, listing]) in listings.array_windows().enumerate() {
            let shown = fixture.farm.read().unwrap();
            let replaced = fixture.try_replace(listing).unwrap();
            prop_assert_eq!(fixture.visible(), tree(listing));
            let now = fixture.farm.read().unwrap();
            for entry in before.entries().filter(|entry| listing.entries().any(|it| it == *entry)) {
                prop_assert_eq!(shown.files[&entry.path], now.files[&entry.path]);
            }
            if layout == Layout::Symlinks {
                prop_assert_eq!(replaced.revision, number as u64 + 2);
                prop_assert!(LinkFarm::remove_retired(&fixture.farm.directory, replaced.retired.unwrap()).unwrap());
            }
        }
    }

    #[test]
    fn a_crash_at_any_moment_is_recovered_from(
        layout in layout(),
        old in keys(),
        new in keys(),
        at: Index,
        again in 0..8_u64,
    ) {
        let (old, new) = (list(&old), list(&new));
        let fixture = Fixture::new(layout);
        let at = at.index(usize::try_from(changes(&fixture, &old, &new)).unwrap());
        prop_assert!(stop(&fixture, &old, &new, Stop::From(at as u64)).is_err());
        // And once more while that is tidied.
        drop(effect::with(Stop::From(again), || LinkFarm::tidy(&fixture.farm.directory)));
        check_between(&fixture, &old, &new);
        recover(&fixture, &old, &new);
    }
}
