use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use nix::{
    mount::{MsFlags, mount, umount},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
    unistd::{getegid, geteuid},
};
use test_case::test_case;

use super::{
    effect::{self, Stop},
    *,
};
use crate::{
    glob::Filter,
    listing::ListingBuilder,
    mount::scratch::in_private_namespace,
    object::{Bucket, ETag, EndpointId, Key, Object, ObjectVersion},
    source::Principal,
    store::{Content, Medium, PAGE, Store, Wanted},
    telemetry::metrics::Metrics,
    units::{ByteSize, Mode},
};

mod random;

const LAYOUTS: [Layout; 2] = [Layout::Symlinks, Layout::Files];

/// Keys and contents; a key that ends in `/` is a directory.
type Keys<'a> = &'a [(&'a str, &'a str)];

/// What a pod sees: the content of files; directories have none.
type Tree = BTreeMap<String, Option<String>>;

struct Fixture {
    store: Store,
    farm: LinkFarm,
    /// Of blobs that are here for good.
    inodes: RefCell<HashMap<BlobId, u64>>,
    /// Removed when the fixture is dropped.
    directory: Option<tempfile::TempDir>,
}

impl Fixture {
    fn new(layout: Layout) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut fixture = Self::at(directory.path(), layout);
        fixture.directory = Some(directory);
        fixture
    }

    fn at(directory: &Path, layout: Layout) -> Self {
        let capacity = ByteSize::from_bytes(100_000 * PAGE);
        let store = Store::open(Medium::Disk, directory, capacity, &Metrics::new()).unwrap();
        let mode = |bits| Mode::from_bits(bits).unwrap();
        let ownership = Ownership {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            file_mode: mode(0o440),
            dir_mode: mode(0o750),
        };
        let farm = LinkFarm::new(store.volumes().join("volume"), layout, ownership);
        Self { store, farm, inodes: RefCell::default(), directory: None }
    }

    fn root(&self) -> PathBuf {
        LinkFarm::root(&self.farm.directory)
    }

    /// Leases on the blobs of the entries that are wanted.
    fn leases(&self, listing: &Listing, wanted: impl Fn(&Entry) -> bool) -> Leases {
        let entries = listing.entries().filter(|entry| wanted(entry));
        let lease = |entry: Entry| {
            (BlobId::of(&entry.object.version), Arc::new(self.lease(&entry.object.version)))
        };
        let blobs = entries.map(lease).collect();
        let reservation = Arc::new(self.store.reserve(Vec::new(), 0).unwrap());
        Leases { variant: LinkFarm::variant(&self.farm.ownership, None), blobs, reservation }
    }

    /// A lease on a blob, which is put if need be; its ETag is its content.
    fn lease(&self, version: &ObjectVersion) -> Lease {
        let who = Principal::credential(&version.endpoint, "key", "secret", None);
        let (id, variant) = (BlobId::of(version), LinkFarm::variant(&self.farm.ownership, None));
        self.store.lookup(who, version).unwrap_or_else(|| {
            let wanted = vec![Wanted { id, variant, size: version.size }];
            let reservation = Arc::new(self.store.reserve(wanted, 1).unwrap());
            let fill = self.store.fill(version, reservation).unwrap();
            let content = version.etag.quoted().trim_matches('"').to_owned();
            let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, content.as_bytes());
            fill.write_at(0, &[Bytes::from(content)]).unwrap();
            fill.commit(who, variant, Content { crc, modified: modified() }).unwrap()
        })
    }

    /// The inode of an entry's blob.
    fn inode(&self, entry: &Entry) -> u64 {
        let id = BlobId::of(&entry.object.version);
        *self.inodes.borrow_mut().entry(id).or_insert_with(|| self.find_inode(entry))
    }

    fn find_inode(&self, entry: &Entry) -> u64 {
        let scratch = tempfile::tempdir_in(self.store.volumes()).unwrap();
        let directory = fs::File::open(scratch.path()).unwrap();
        let variant = LinkFarm::variant(&self.farm.ownership, None);
        self.lease(&entry.object.version).link(variant, &directory, "x").unwrap();
        fs::metadata(scratch.path().join("x")).unwrap().ino()
    }

    fn create(&self, keys: Keys<'_>) -> Listing {
        let listing = list(keys);
        self.farm.create(&listing, &self.leases(&listing, |_| true)).unwrap();
        listing
    }

    /// Replaces as a plugin does that was just started: what is kept is decided by inodes, and only
    /// the rest is leased.
    fn try_replace(&self, listing: &Listing) -> Result<Replaced, ViewError> {
        let shown = self.farm.read()?;
        let keep = |entry: &Entry| {
            shown.files.get(&entry.path).is_some_and(|inode| *inode == self.inode(entry))
        };
        self.farm.replace(listing, keep, &self.leases(listing, |entry| !keep(entry)))
    }

    fn replace(&self, keys: Keys<'_>) -> Replaced {
        self.try_replace(&list(keys)).unwrap()
    }

    /// What a pod sees. A name at the top that leads nowhere is absent.
    fn visible(&self) -> Tree {
        let mut tree = Tree::new();
        let names = self.names().into_iter().filter(|name| !name.starts_with(".."));
        names.for_each(|name| see(&self.root().join(&name), &name, &mut tree));
        tree
    }

    /// All names in the root.
    fn names(&self) -> BTreeSet<String> {
        names(&self.root())
    }
}

fn names(directory: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

fn see(path: &Path, name: &str, tree: &mut Tree) {
    match fs::metadata(path) {
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound, "{name}"),
        Ok(metadata) if metadata.is_dir() => {
            tree.insert(name.to_owned(), None);
            for below in names(path) {
                see(&path.join(&below), &format!("{name}/{below}"), tree);
            }
        }
        Ok(_) => drop(tree.insert(name.to_owned(), Some(fs::read_to_string(path).unwrap()))),
    }
}

/// What a pod is to see.
fn tree(listing: &Listing) -> Tree {
    let content = |entry: Entry| entry.object.version.etag.quoted().trim_matches('"').to_owned();
    let files = listing.entries().map(|entry| (entry.path.to_string(), Some(content(entry))));
    files.chain(listing.directories().iter().map(|path| (path.to_string(), None))).collect()
}

fn list<K: AsRef<str>, C: AsRef<str>>(keys: &[(K, C)]) -> Listing {
    let mut builder = ListingBuilder::new(10_000);
    for (key, content) in keys {
        let (key, content) = (key.as_ref(), content.as_ref());
        let version = ObjectVersion {
            endpoint: EndpointId::new("http://s3", None),
            bucket: Bucket::parse("bucket").unwrap(),
            key: Key::parse(key).unwrap(),
            etag: ETag::new(content),
            size: content.len() as u64,
            sse_key: None,
        };
        let object = Object { version, version_id: None, last_modified: modified() };
        builder.add_below(None, key, &Filter::default(), &object).unwrap();
    }
    builder.finish().unwrap()
}

fn modified() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

const OLD: Keys<'static> = &[("same", "s"), ("d/changed", "1"), ("d/same", "s"), ("gone/x", "x")];
const NEW: Keys<'static> = &[("same", "s"), ("d/changed", "2"), ("d/same", "s"), ("new/y/z", "z")];

#[test_case(&[("a", "1")], &[("a", "2")]; "content changes")]
#[test_case(&[("a", "1")], &[("b", "1")]; "a name changes")]
#[test_case(&[("a", "1")], &[("a/b", "2")]; "a file becomes a directory")]
#[test_case(&[("a/b/c", "1"), ("a/d", "2")], &[("a", "3")]; "a directory becomes a file")]
#[test_case(&[("a/b", "1")], &[("a/b/c", "1")]; "a file below becomes a directory")]
#[test_case(&[("a/b/c", "1"), ("a/d", "2")], &[("a/", "")]; "a directory becomes empty")]
#[test_case(&[("a", "1"), ("b/c", "2")], &[]; "all goes")]
#[test_case(&[], &[("a/b/c", "1"), ("d", "2")]; "all comes")]
#[test_case(OLD, OLD; "nothing changes")]
#[test_case(OLD, NEW; "a bit of everything")]
fn a_replacement_shows_exactly_the_listing(old: Keys<'_>, new: Keys<'_>) {
    for layout in LAYOUTS {
        let fixture = Fixture::new(layout);
        fixture.create(old);
        assert_eq!(fixture.visible(), tree(&list(old)), "{layout:?}");
        fixture.replace(new);
        assert_eq!(fixture.visible(), tree(&list(new)), "{layout:?}");
        assert_eq!(names(&fixture.farm.directory), set(["root"]), "{layout:?}");
    }
}

#[test]
fn a_revision_is_swapped_and_the_one_before_stays() {
    let fixture = Fixture::new(Layout::Symlinks);
    fixture.create(OLD);
    let before = fs::metadata(fixture.root()).unwrap().ino();
    let replaced = fixture.replace(NEW);
    assert_eq!(replaced, Replaced { revision: 2, retired: Some(Retired { revision: 1 }) });
    assert_eq!(fs::read_link(fixture.root().join("..data")).unwrap(), Path::new("..2"));
    assert_eq!(fixture.names(), set(["..1", "..2", "..data", "same", "d", "new"]));
    let mut retired = Tree::new();
    see(&fixture.root().join("..1"), "..1", &mut retired);
    assert_eq!(retired.len(), 1 + tree(&list(OLD)).len(), "the old one is whole");
    assert_eq!(retired["..1/d/changed"].as_deref(), Some("1"));
    assert_eq!(fs::metadata(fixture.root()).unwrap().ino(), before, "mounts refer to the root");
}

#[test]
fn plain_files_that_are_kept_are_not_touched() {
    let fixture = Fixture::new(Layout::Files);
    fixture.create(OLD);
    let look = |name: &str| fs::metadata(fixture.root().join(name)).unwrap();
    let before = ["same", "d/same", "d"].map(|name| look(name).ino());
    let changed = look("d/changed").ino();
    let replaced = fixture.replace(NEW);
    assert_eq!(replaced, Replaced { revision: 0, retired: None });
    assert_eq!(["same", "d/same", "d"].map(|name| look(name).ino()), before);
    assert_ne!(look("d/changed").ino(), changed);
}

#[test_case(Layout::Symlinks, "", "..data"; "the swap")]
#[test_case(Layout::Files, "d", "changed"; "a file")]
fn who_watches_a_directory_sees_what_changed_move_in(layout: Layout, place: &str, name: &str) {
    let fixture = Fixture::new(layout);
    fixture.create(OLD);
    let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
    let what = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
    watch.add_watch(&fixture.root().join(place), what).unwrap();
    fixture.replace(NEW);
    let events = watch.read_events().unwrap();
    let moved = events.iter().filter(|event| event.mask.contains(AddWatchFlags::IN_MOVED_TO));
    assert_eq!(moved.map(|event| event.name.clone().unwrap()).collect::<Vec<_>>(), [name]);
    let told = |name: &str| events.iter().any(|event| event.name.as_deref() == Some(name.as_ref()));
    assert!(!told("same"));
    assert_eq!(told("gone"), place.is_empty(), "it was at the top");
}

#[test]
fn what_was_linked_and_not_kept_is_right_all_the_same() {
    for layout in LAYOUTS {
        let fixture = Fixture::new(layout);
        let listing = fixture.create(OLD);
        let leases = fixture.leases(&listing, |_| true);
        fixture.farm.replace(&listing, |_| false, &leases).unwrap();
        assert_eq!(fixture.visible(), tree(&listing));
        assert_eq!(names(&fixture.farm.directory), set(["root"]));
    }
}

#[test]
fn new_directories_and_changed_files_have_owner_mode_and_mtime() {
    for layout in LAYOUTS {
        let fixture = Fixture::new(layout);
        fixture.create(OLD);
        fixture.replace(NEW);
        let look = |name: &str| fs::metadata(fixture.root().join(name)).unwrap();
        for (name, mode) in [("new", 0o750), ("new/y", 0o750), ("d/changed", 0o440)] {
            let found = look(name);
            assert_eq!(found.permissions().mode() & 0o7777, mode, "{name}");
            assert_eq!(found.uid(), geteuid().as_raw());
        }
        assert_eq!(look("d/changed").modified().unwrap(), modified());
    }
}

#[test]
fn what_is_to_be_kept_and_is_not_there_is_linked() {
    for layout in LAYOUTS {
        let fixture = Fixture::new(layout);
        fixture.create(&[("a", "1"), ("d/x", "x")]);
        let listing = list(&[("a/b", "1"), ("d", "2"), ("e/f", "3")]);
        let leases = fixture.leases(&listing, |_| true);
        fixture.farm.replace(&listing, |_| true, &leases).unwrap();
        assert_eq!(fixture.visible(), tree(&listing));
    }
}

#[test]
fn a_blob_that_is_missing_is_stale_and_changes_nothing() {
    for layout in LAYOUTS {
        let fixture = Fixture::new(layout);
        let old = fixture.create(OLD);
        let before = fixture.names();
        let new = list(NEW);
        let leases = fixture.leases(&new, |entry| entry.path.as_str() != "new/y/z");
        let error = fixture.farm.replace(&new, |_| false, &leases).unwrap_err();
        assert_eq!(error.kind(), FailureKind::Stale);
        assert_eq!(fixture.visible(), tree(&old));
        assert_eq!(fixture.names(), before);
        assert_eq!(names(&fixture.farm.directory), set(["root"]));
    }
}

#[test]
fn what_stands_is_read_back() {
    for layout in LAYOUTS {
        let fixture = Fixture::new(layout);
        fixture.create(OLD);
        fixture.replace(NEW);
        let listing = list(NEW);
        let shown = fixture.farm.read().unwrap();
        let inodes = listing.entries().map(|e| (e.path.clone(), fixture.inode(&e)));
        assert_eq!(shown.files, inodes.collect());
        assert_eq!(shown.directories, listing.directories().iter().cloned().collect());
        assert_eq!(shown.revision, if layout == Layout::Symlinks { 2 } else { 0 });
    }
}

#[test]
fn a_swap_costs_little_more_than_its_links() {
    let keys = |changed| {
        let content = |number| if number < 3 { changed } else { "same" };
        let key = |number| format!("d{}/{number:04}", number % 10);
        (0..1000).map(|number| (key(number), content(number))).collect::<Vec<_>>()
    };
    let (old, new) = (list(&keys("1")), list(&keys("2")));
    for (layout, most) in [(Layout::Symlinks, 1060), (Layout::Files, 20)] {
        let fixture = Fixture::new(layout);
        fixture.farm.create(&old, &fixture.leases(&old, |_| true)).unwrap();
        let shown: Vec<_> = old.entries().collect();
        let keep = |entry: &Entry| shown.contains(entry);
        let leases = fixture.leases(&new, |entry| !keep(entry));
        let replace = || fixture.farm.replace(&new, keep, &leases).unwrap();
        let (_, changes) = effect::with(Stop::Never, replace);
        assert!(changes <= most, "{layout:?}: {changes}");
        assert_eq!(fixture.visible(), tree(&new));
    }
}

#[test]
fn a_retired_revision_is_removed_once() {
    let fixture = Fixture::new(Layout::Symlinks);
    fixture.create(OLD);
    let retired = fixture.replace(NEW).retired.unwrap();
    assert!(LinkFarm::remove_retired(&fixture.farm.directory, retired).unwrap());
    assert_eq!(fixture.names(), set(["..2", "..data", "same", "d", "new"]));
    assert!(LinkFarm::remove_retired(&fixture.farm.directory, retired).unwrap());
    assert_eq!(fixture.visible(), tree(&list(NEW)));
    fixture.farm.remove().unwrap();
    assert!(
        LinkFarm::remove_retired(&fixture.farm.directory, retired).unwrap(),
        "a volume that is gone is fine"
    );
}

#[test]
fn what_is_shown_is_never_removed() {
    let fixture = Fixture::new(Layout::Symlinks);
    fixture.create(OLD);
    let retired = fixture.replace(NEW).retired.unwrap();
    // Published anew, and so counted anew.
    fixture.create(OLD);
    assert!(!LinkFarm::remove_retired(&fixture.farm.directory, retired).unwrap());
    assert_eq!(fixture.visible(), tree(&list(OLD)));
}

#[test_case("d"; "a directory")]
#[test_case("same"; "a file")]
#[test_case(""; "all of it")]
fn a_revision_stays_while_a_part_of_it_is_bound(part: &'static str) {
    in_private_namespace(|directory| {
        let (store, target) = (directory.join("store"), directory.join("target"));
        fs::create_dir(&store).unwrap();
        let fixture = Fixture::at(&store, Layout::Symlinks);
        fixture.create(OLD);
        let part = fixture.root().join("..1").join(part);
        if part.is_dir() {
            fs::create_dir(&target).unwrap();
        } else {
            fs::write(&target, "").unwrap();
        }
        mount(Some(&part), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let retired = fixture.replace(NEW).retired.unwrap();
        assert!(!LinkFarm::remove_retired(&fixture.farm.directory, retired).unwrap());
        assert!(part.exists());
        umount(&target).unwrap();
        assert!(LinkFarm::remove_retired(&fixture.farm.directory, retired).unwrap());
        assert!(!part.exists());
    });
}

#[test]
fn tidying_finds_older_revisions_and_removes_newer_ones() {
    let fixture = Fixture::new(Layout::Symlinks);
    fixture.create(OLD);
    fixture.replace(NEW);
    fixture.replace(OLD);
    let root = fixture.root();
    fs::create_dir_all(root.join("..4/half/built")).unwrap();
    fs::write(root.join("..4/half/built/file"), "").unwrap();
    std::os::unix::fs::symlink("..4", root.join("..data.new")).unwrap();
    fs::remove_file(root.join("same")).unwrap();
    std::os::unix::fs::symlink("..data/vanished", root.join("vanished")).unwrap();
    fs::create_dir_all(fixture.farm.directory.join("next/0")).unwrap();
    let older = LinkFarm::tidy(&fixture.farm.directory).unwrap();
    assert_eq!(older, [1, 2].map(|revision| Retired { revision }));
    assert_eq!(fixture.names(), set(["..1", "..2", "..3", "..data", "same", "d", "gone"]));
    assert_eq!(fixture.visible(), tree(&list(OLD)));
    assert_eq!(names(&fixture.farm.directory), set(["root"]));
}

#[test]
fn tidying_what_is_not_there_is_fine() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(LinkFarm::tidy(&directory.path().join("missing")).unwrap(), []);
    assert_eq!(LinkFarm::tidy(directory.path()).unwrap(), []);
}

#[test]
fn a_leftover_of_a_failed_attempt_does_not_stop_the_next() {
    let fixture = Fixture::new(Layout::Symlinks);
    fixture.create(OLD);
    fs::create_dir_all(fixture.root().join("..2/same/stale")).unwrap();
    std::os::unix::fs::symlink("..2", fixture.root().join("..data.new")).unwrap();
    assert_eq!(fixture.replace(NEW).revision, 2);
    assert_eq!(fixture.visible(), tree(&list(NEW)));
}

#[test]
fn a_symlink_in_the_way_is_not_followed() {
    for layout in LAYOUTS {
        let fixture = Fixture::new(layout);
        fixture.create(OLD);
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "").unwrap();
        for name in ["next", "root/..2", "root/planted"] {
            let name = fixture.farm.directory.join(name);
            std::os::unix::fs::symlink(outside.path(), name).unwrap();
        }
        LinkFarm::tidy(&fixture.farm.directory).unwrap();
        fixture.replace(NEW);
        assert_eq!(names(outside.path()), set(["precious"]));
    }
}

#[test]
fn a_symlink_in_a_volumes_place_is_removed_and_not_followed() {
    for layout in LAYOUTS {
        let fixture = Fixture::new(layout);
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("root")).unwrap();
        fs::write(outside.path().join("precious"), "").unwrap();
        for _ in 0..2 {
            fixture.farm.remove().unwrap();
            fs::create_dir_all(fixture.farm.directory.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(outside.path(), &fixture.farm.directory).unwrap();
            assert_eq!(LinkFarm::layout_of(&fixture.farm.directory), None);
        }
        // What stands there is no volume of ours, whatever it leads to.
        fixture.create(OLD);
        assert!(!fixture.farm.directory.is_symlink());
        fixture.farm.remove().unwrap();
        assert!(!fixture.farm.directory.exists());
        assert_eq!(names(outside.path()), set(["precious", "root"]));
    }
}

#[test]
fn no_name_leads_out_of_a_directory() {
    let top = tempfile::tempdir().unwrap();
    fs::create_dir_all(top.path().join("in/a/b")).unwrap();
    fs::create_dir(top.path().join("out")).unwrap();
    std::os::unix::fs::symlink("../out", top.path().join("in/link")).unwrap();
    std::os::unix::fs::symlink("../../out", top.path().join("in/a/link")).unwrap();
    let directory = Directory::open(&top.path().join("in")).unwrap().unwrap();
    assert!(directory.find("a").unwrap().is_some());
    let absolute = top.path().join("out");
    let names = ["link", "../out", "a/../../out", "a/link", absolute.to_str().unwrap(), "a/b/c"];
    for name in names {
        assert!(directory.find(name).unwrap().is_none(), "{name}");
    }
}

/// Whoever could write to a volume's files while they are replaced and removed would gain nothing.
#[test]
fn a_raced_symlink_leads_nowhere() {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    for layout in LAYOUTS {
        let fixture = Fixture::new(layout);
        let outside = tempfile::tempdir().unwrap();
        for name in ["precious", "sub/a", "sub/precious"] {
            let path = outside.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "precious").unwrap();
        }
        let planted = fixture.farm.directory.with_file_name("planted");
        std::os::unix::fs::symlink(outside.path(), &planted).unwrap();
        let (stop, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
        let volume = &fixture.farm.directory;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let places = ["root", "root/d", "root/..1", "root/..1/d", "root/..2/d", "next"];
                for place in places.iter().cycle() {
                    let place = volume.join(place);
                    let flags = RenameFlags::RENAME_EXCHANGE;
                    if renameat2(AT_FDCWD, &planted, AT_FDCWD, &place, flags).is_ok() {
                        swaps.fetch_add(1, Ordering::Relaxed);
                        std::thread::yield_now();
                        // Back, so that there is something to swap.
                        let _back = renameat2(AT_FDCWD, &planted, AT_FDCWD, &place, flags);
                    }
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let began = std::time::Instant::now();
            let (old, new) = (list(&[("d/sub/a", "1"), ("x", "1")]), list(&[("d/sub/b", "2")]));
            let (first, second) = (fixture.leases(&old, |_| true), fixture.leases(&new, |_| true));
            // What fails, fails: only what is outside counts.
            while swaps.load(Ordering::Relaxed) < 200 && began.elapsed().as_secs() < 20 {
                drop(fixture.farm.create(&old, &first));
                drop(fixture.farm.replace(&new, |_| false, &second));
                drop(LinkFarm::tidy(volume));
                drop(fixture.farm.replace(&old, |_| false, &first));
                drop(fixture.farm.read());
                drop(fixture.farm.remove());
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(swaps.into_inner() >= 200, "nothing was raced");
        assert_eq!(names(outside.path()), set(["precious", "sub"]));
        assert_eq!(names(&outside.path().join("sub")), set(["a", "precious"]));
    }
}
