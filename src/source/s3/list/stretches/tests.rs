use std::{
    collections::BTreeMap,
    ops::{Bound, RangeInclusive},
    time::SystemTime,
};

use proptest::prelude::*;

use super::*;
use crate::object::{Bucket, ETag, EndpointId, Key, ObjectVersion};

fn object(key: &str) -> Object {
    let version = ObjectVersion {
        endpoint: EndpointId::new("http://s3", None),
        bucket: Bucket::parse("bucket").unwrap(),
        key: Key::parse(key).unwrap(),
        etag: ETag::new("e"),
        size: 1,
        sse_key: None,
    };
    Object { version, version_id: None, last_modified: SystemTime::UNIX_EPOCH }
}

/// What is wrong with an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Keys are in the order of UTF-16.
    Utf16,
    /// `start-after` means nothing.
    NoStartAfter,
    /// A delimiter means nothing.
    NoDelimiter,
    /// It is an error to ask so.
    DeniesNames,
    /// Behind `a`, all of `a/` is left out.
    SkipsDirectories,
    /// Keys have no order.
    NoOrder,
}

/// Those with an order.
const FAULTS: [Fault; 6] = [
    Fault::None,
    Fault::Utf16,
    Fault::NoStartAfter,
    Fault::NoDelimiter,
    Fault::DeniesNames,
    Fault::SkipsDirectories,
];

/// The S3 API as its reference has it: `ListObjectsV2` of one bucket.
struct Endpoint {
    /// In the order in which they are listed.
    keys: BTreeMap<Vec<u16>, String>,
    fault: Fault,
    random: fastrand::Rng,
    /// How many keys a page has.
    page: RangeInclusive<usize>,
}

impl Endpoint {
    fn place(&self, key: &str) -> Vec<u16> {
        match self.fault {
            Fault::Utf16 => key.encode_utf16().collect(),
            // Some order of its own.
            Fault::NoOrder => {
                let mixed = |byte: u8| u16::from(byte.wrapping_mul(167).rotate_left(3));
                key.bytes().rev().map(mixed).collect()
            }
            _ => key.bytes().map(u16::from).collect(),
        }
    }

    fn put(&mut self, key: &str) {
        self.keys.insert(self.place(key), key.to_owned());
    }

    fn delete(&mut self, key: &str) {
        self.keys.remove(&self.place(key));
    }

    /// Keys behind a place, as many as a page has; the token to go on with.
    fn page(&mut self, prefix: &str, after: Option<&str>, token: Option<&str>) -> Page {
        // A token is good whatever `start-after` is: it is the last key.
        let after = after.filter(|_| self.fault != Fault::NoStartAfter).or(token);
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(self.place(after)));
        let skipped = after.filter(|_| self.fault == Fault::SkipsDirectories && token.is_none());
        let skipped = skipped.map(|after| format!("{after}/"));
        let below = self.keys.range((from, Bound::Unbounded)).map(|(_, key)| key);
        let mut below = below.filter(|key| {
            key.starts_with(prefix) && !skipped.as_ref().is_some_and(|it| key.starts_with(it))
        });
        let size = self.random.usize(self.page.clone());
        let keys: Vec<String> = below.by_ref().take(size).cloned().collect();
        let is_cut = below.next().is_some();
        let next = keys.last().filter(|_| is_cut).cloned();
        Page { objects: keys.iter().map(|key| object(key)).collect(), next }
    }

    fn names(&mut self, directory: &str, after: &str) -> Option<Names> {
        match self.fault {
            Fault::DeniesNames => return None,
            Fault::NoDelimiter => return Some(Names { names: Vec::new(), is_cut: true }),
            _ => {}
        }
        let mut names = BTreeSet::new();
        let after = self.place(after);
        for (_, key) in self.keys.range(after..) {
            if let Some((name, _)) = key.strip_prefix(directory).and_then(|it| it.split_once('/')) {
                names.insert(format!("{directory}{name}/"));
            }
        }
        let size = self.random.usize(self.page.clone());
        let is_cut = names.len() > size;
        Some(Names { names: names.into_iter().take(size).collect(), is_cut })
    }
}

/// What a listing came to.
#[derive(Debug, Default)]
struct Listed {
    keys: Vec<String>,
    requests: usize,
    /// How long it takes, in requests, if all take the same time.
    rounds: usize,
}

/// Lists; answers come in any order, and `meanwhile` happens before each.
fn list(
    endpoint: &mut Endpoint,
    prefix: &str,
    mut meanwhile: impl FnMut(&mut Endpoint),
) -> Result<Listed, Unusable> {
    let mut stretches = Stretches::new(prefix);
    let mut listed = Listed::default();
    let mut under_way = Vec::new();
    while !stretches.is_done() {
        while let Some(ask) = stretches.next() {
            under_way.push(ask);
            listed.requests += 1;
        }
        assert!((1..=AT_ONCE).contains(&under_way.len()), "{under_way:?}");
        let ask = under_way.swap_remove(endpoint.random.usize(..under_way.len()));
        meanwhile(endpoint);
        let objects = answer(&mut stretches, endpoint, prefix, ask)?;
        listed.keys.extend(objects.iter().map(|object| key(object).to_owned()));
    }
    Ok(listed)
}

fn answer(
    stretches: &mut Stretches,
    endpoint: &mut Endpoint,
    prefix: &str,
    ask: Ask,
) -> Result<Vec<Object>, Unusable> {
    match ask {
        Ask::Next { stretch, token } => {
            let page = endpoint.page(prefix, None, token.as_deref());
            stretches.take_next(stretch, token.as_deref(), page)
        }
        Ask::Behind(point) => {
            let page = endpoint.page(prefix, Some(&point), None);
            Ok(stretches.take_behind(&point, page))
        }
        Ask::Names { directory, after } => {
            let names = endpoint.names(&directory, &after);
            stretches.take_names(directory, names);
            Ok(Vec::new())
        }
    }
}

/// As above, where all that is under way is answered at once: counts the rounds.
fn list_in_step(endpoint: &mut Endpoint, prefix: &str) -> Listed {
    let mut stretches = Stretches::new(prefix);
    let mut listed = Listed::default();
    while !stretches.is_done() {
        let asks: Vec<Ask> = std::iter::from_fn(|| stretches.next()).collect();
        listed.requests += asks.len();
        listed.rounds += 1;
        for ask in asks {
            let objects = answer(&mut stretches, endpoint, prefix, ask).unwrap();
            listed.keys.extend(objects.iter().map(|object| key(object).to_owned()));
        }
    }
    listed
}

fn endpoint(
    keys: &BTreeSet<String>,
    fault: Fault,
    page: RangeInclusive<usize>,
    seed: u64,
) -> Endpoint {
    let random = fastrand::Rng::with_seed(seed);
    let mut endpoint = Endpoint { keys: BTreeMap::new(), fault, random, page };
    for key in keys {
        endpoint.put(key);
    }
    endpoint
}

/// Few names, so that much is below one directory, some beside their directories, and some of
/// letters that are ordered in two ways.
fn keys() -> impl Strategy<Value = BTreeSet<String>> {
    const KEY: &str = "(p/)?([ab\u{e9}\u{e000}\u{ff5e}\u{1f600}!0-]{0,2}/){0,3}[ab\u{e9}\u{e000}\u{ff5e}\u{1f600}!0-]{0,2}";
    prop::collection::btree_set(KEY, 0..120)
        .prop_map(|keys| keys.into_iter().filter(|key| !key.is_empty()).collect())
}

fn below(keys: &BTreeSet<String>, prefix: &str) -> Vec<String> {
    keys.iter().filter(|key| key.starts_with(prefix)).cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn every_key_is_handed_over_once(
        keys in keys(), page_size in 1_usize..5, seed: u64,
        prefix in prop::sample::select(vec!["", "p/", "a/"]),
        fault in prop::sample::select(FAULTS.to_vec()),
    ) {
        let mut endpoint = endpoint(&keys, fault, 1..=page_size, seed);
        let mut listed = list(&mut endpoint, prefix, |_| {}).unwrap().keys;
        listed.sort_unstable();
        prop_assert_eq!(listed, below(&keys, prefix));
    }

    #[test]
    fn what_stays_is_handed_over_once_whatever_comes_and_goes(
        keys in keys(), others in keys(), page_size in 1_usize..5, seed: u64,
    ) {
        let mut endpoint = endpoint(&keys, Fault::None, 1..=page_size, seed);
        let moving: Vec<_> = others.difference(&keys).cloned().collect();
        let mut turn = 0;
        let listed = list(&mut endpoint, "", |endpoint| {
            let Some(key) = moving.get(turn / 2 % moving.len().max(1)) else { return };
            if turn % 2 == 0 { endpoint.put(key) } else { endpoint.delete(key) }
            turn += 1;
        });
        let mut listed = listed.unwrap().keys;
        listed.sort_unstable();
        prop_assert!(listed.array_windows().all(|[a, b]| a != b), "twice: {:?}", listed);
        listed.retain(|key| keys.contains(key));
        prop_assert_eq!(listed, below(&keys, ""));
    }
}

/// Keys of so many directories with so many files each.
fn tree(top: &str, directories: usize, files: usize) -> BTreeSet<String> {
    let file = |n: usize| format!("{top}part={:04}/file-{:05}", n / files, n % files);
    (0..directories * files).map(file).collect()
}

/// Requests and rounds of a listing with whole pages, which must be right.
fn figures(keys: &BTreeSet<String>, page_size: usize, fault: Fault) -> (usize, usize) {
    let mut endpoint = endpoint(keys, fault, page_size..=page_size, 0);
    let mut listed = list_in_step(&mut endpoint, "");
    listed.keys.sort_unstable();
    assert_eq!(listed.keys, below(keys, ""));
    (listed.requests, listed.rounds)
}

#[test]
fn what_is_short_costs_one_request_for_each_page() {
    for directories in 1..=4 {
        let keys = tree("", directories, 100);
        assert_eq!(figures(&keys, 100, Fault::None), (directories, directories));
    }
    let nothing = BTreeSet::new();
    assert_eq!(figures(&nothing, 100, Fault::None), (1, 1));
}

#[test]
fn what_is_long_takes_little_more_requests_and_an_eighth_of_the_time() {
    let shapes = [
        ("a page each", tree("", 1000, 100)),
        ("many in a page", tree("", 10_000, 10)),
        ("a few large ones", tree("", 16, 6250)),
        ("far down", tree("data/2026/part/x/", 500, 200)),
        ("more names than in a page", tree("", 3000, 34)),
    ];
    for (shape, keys) in shapes {
        let pages = keys.len().div_ceil(100);
        let (requests, rounds) = figures(&keys, 100, Fault::None);
        eprintln!("{shape}: {pages} pages, {requests} requests, {rounds} rounds");
        assert!(requests <= pages + pages / 4, "{shape}: {requests} requests");
        assert!(rounds <= pages / 5, "{shape}: {rounds} rounds");
    }
}

#[test]
fn without_directories_it_goes_on_in_turn() {
    let flat = tree("", 1, 20_000).iter().map(|key| key.replace('/', "-")).collect();
    for (keys, fault) in [(&flat, Fault::None), (&tree("", 100, 200), Fault::DeniesNames)] {
        let (requests, rounds) = figures(keys, 100, fault);
        assert!(requests <= 202 && rounds >= 200, "{requests} requests in {rounds} rounds");
    }
}

#[test]
fn an_endpoint_that_knows_no_start_after_is_tried_twice() {
    for fault in [Fault::NoStartAfter, Fault::SkipsDirectories] {
        let (requests, _) = figures(&tree("", 100, 200), 100, fault);
        assert!(requests <= 200 + QUESTIONS + FAILURES, "{requests} requests");
    }
}

#[test]
fn an_endpoint_without_order_is_listed_in_turn() {
    assert_eq!(figures(&tree("", 100, 200), 100, Fault::NoOrder), (200, 200));
}

#[test]
fn an_order_that_is_lost_on_the_way_is_an_error() {
    let mut stretches = Stretches::new("");
    let page = |keys: &[&str], next: Option<&str>| Page {
        objects: keys.iter().map(|key| object(key)).collect(),
        next: next.map(str::to_owned),
    };
    let mut token = None;
    for key in ["a/1", "a/2", "a/3", "a/4"] {
        assert_eq!(stretches.next(), Some(Ask::Next { stretch: 0, token }));
        token = Some(key.to_owned());
        stretches.take_next(0, None, page(&[key], Some(key))).unwrap();
    }
    assert_eq!(stretches.next(), Some(Ask::Next { stretch: 0, token }));
    let Some(Ask::Names { directory, .. }) = stretches.next() else { panic!("a question") };
    let names = Names { names: vec!["a/".into(), "b/".into(), "c/".into()], is_cut: false };
    stretches.take_names(directory, Some(names));
    let Some(Ask::Behind(point)) = stretches.next() else { panic!("another stretch") };
    assert_eq!(point, "c");
    assert_eq!(stretches.take_behind(&point, page(&["c/1"], Some("c/1"))).len(), 1);
    let problem = stretches.take_next(0, Some("a/4"), page(&["a/0"], None)).unwrap_err();
    assert!(matches!(problem, Unusable::Unordered));
}

#[test]
fn the_same_token_twice_is_an_error() {
    let mut stretches = Stretches::new("");
    let page = || Page { objects: vec![], next: Some("token".to_owned()) };
    stretches.next();
    stretches.take_next(0, None, page()).unwrap();
    stretches.next();
    let problem = stretches.take_next(0, Some("token"), page()).unwrap_err();
    assert!(matches!(problem, Unusable::SameToken));
}

#[test]
fn keys_are_in_order_whichever_way_letters_are_ordered() {
    let is_in_order = |after, keys: &[&str]| {
        is_in_order(after, &keys.iter().map(|key| object(key)).collect::<Vec<_>>())
    };
    assert!(is_in_order("", &["a", "a!", "a/", "b"]));
    assert!(is_in_order("a", &["b\u{ff5e}", "b\u{1f600}"]));
    assert!(is_in_order("a", &["b\u{1f600}", "b\u{ff5e}"]));
    assert!(
        !is_in_order("a", &["a"]) && !is_in_order("", &["b", "a"]) && !is_in_order("b", &["a"])
    );
    assert!(!is_in_order("", &["\u{e000}", "\u{e9}"]));
}
