//! What keys held at a moment, from the history that a versioned bucket keeps.
//!
//! S3 tells a history as versions and delete markers: keys in order, and of each key the newest
//! first. [`StateAt`] reads it once, in that order, and remembers one key at a time, so that a key
//! with a million versions costs no more memory than a key with one. For the same reason it may be
//! told a version twice, as happens when a page is cut inside a key.
//!
//! Last-Modified decides which of a key's versions is the newest at the moment, because it is what
//! the moment is compared with: judged by their places alone, a version that came late under an
//! early time would hide what everybody saw before it came. Places decide between equal times, and
//! there are many: S3's times are whole seconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

use crate::object::{Key, Object};

/// The version id of what was written without versioning, and the only one that is used again.
pub const NULL_VERSION: &str = "null";

/// One step in the history of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyVersion {
    /// Content came; the object's version id is set.
    Written(Object),
    /// The key was deleted: a delete marker.
    Deleted {
        /// The key.
        key: Key,
        /// When it was deleted.
        last_modified: SystemTime,
    },
}

/// What a history shows about the bucket's versioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evidence {
    /// Nothing at all: there is no history.
    Nothing,
    /// Only versions with the id `null`: so it looks in a bucket without versioning, and in one
    /// where nothing was written since versioning was switched on.
    OnlyNull,
    /// Version ids or delete markers: versioning is, or was, switched on.
    Versioned,
}

/// Picks the objects that existed at one moment. Pure; see the module for the order it relies on.
#[derive(Debug)]
pub struct StateAt {
    /// The first instant that is too late.
    end: SystemTime,
    evidence: Evidence,
    key: Option<Key>,
    /// The newest version of `key` so far that is not too late.
    newest: Option<KeyVersion>,
}

impl KeyVersion {
    /// The key whose history this belongs to.
    pub fn key(&self) -> &Key {
        match self {
            Self::Written(object) => &object.version.key,
            Self::Deleted { key, .. } => key,
        }
    }

    fn last_modified(&self) -> SystemTime {
        match self {
            Self::Written(object) => object.last_modified,
            Self::Deleted { last_modified, .. } => *last_modified,
        }
    }

    fn evidence(&self) -> Evidence {
        match self {
            Self::Written(object) if object.version_id.as_deref() == Some(NULL_VERSION) => {
                Evidence::OnlyNull
            }
            Self::Written(_) | Self::Deleted { .. } => Evidence::Versioned,
        }
    }

    fn into_object(self) -> Option<Object> {
        match self {
            Self::Written(object) => Some(object),
            Self::Deleted { .. } => None,
        }
    }
}

impl StateAt {
    /// The state at the end of the second that `moment` lies in: a version of the same second is
    /// part of it, since S3 does not say when in that second it came.
    pub fn new(moment: Timestamp) -> Self {
        let since = SystemTime::from(moment).duration_since(UNIX_EPOCH);
        // Nothing was written to S3 before 1970.
        let seconds = since.map_or(0, |since| since.as_secs() + 1);
        let end = UNIX_EPOCH + Duration::from_secs(seconds);
        Self { end, evidence: Evidence::Nothing, key: None, newest: None }
    }

    /// Takes the next version. With the first one of a key, what the key before it held is known,
    /// and returned if that is an object.
    pub fn add(&mut self, version: KeyVersion) -> Option<Object> {
        self.evidence = self.evidence.max(version.evidence());
        let is_same_key = self.key.as_ref() == Some(version.key());
        let before = if is_same_key { None } else { self.begin(version.key()) };
        let is_newer = |newest: &KeyVersion| newest.last_modified() < version.last_modified();
        if version.last_modified() < self.end && self.newest.as_ref().is_none_or(is_newer) {
            self.newest = Some(version);
        }
        before
    }

    fn begin(&mut self, key: &Key) -> Option<Object> {
        self.key = Some(key.clone());
        self.newest.take().and_then(KeyVersion::into_object)
    }

    /// Ends the history: what the last key held, and what all of it says about versioning.
    pub fn finish(self) -> (Option<Object>, Evidence) {
        (self.newest.and_then(KeyVersion::into_object), self.evidence)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;
    use crate::object::{Bucket, ETag, EndpointId, ObjectVersion};

    fn at(milliseconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(milliseconds)
    }

    fn moment(milliseconds: u64) -> Timestamp {
        Timestamp::try_from(at(milliseconds)).unwrap()
    }

    fn written(key: &str, id: &str, milliseconds: u64) -> KeyVersion {
        let version = ObjectVersion {
            endpoint: EndpointId::new("http://s3", None),
            bucket: Bucket::parse("bucket").unwrap(),
            key: Key::parse(key).unwrap(),
            etag: ETag::new(id),
            size: 1,
            sse_key: None,
        };
        let (version_id, last_modified) = (Some(Arc::from(id)), at(milliseconds));
        KeyVersion::Written(Object { version, version_id, last_modified })
    }

    fn deleted(key: &str, milliseconds: u64) -> KeyVersion {
        KeyVersion::Deleted { key: Key::parse(key).unwrap(), last_modified: at(milliseconds) }
    }

    /// Key and version id of each object at the moment.
    fn state(moment: Timestamp, history: impl IntoIterator<Item = KeyVersion>) -> Vec<[String; 2]> {
        let mut state = StateAt::new(moment);
        let mut objects: Vec<Object> =
            history.into_iter().filter_map(|version| state.add(version)).collect();
        objects.extend(state.finish().0);
        let named = |object: Object| {
            [object.version.key.to_string(), object.version_id.unwrap().to_string()]
        };
        objects.into_iter().map(named).collect()
    }

    #[test_case(999, &[]; "before all")]
    #[test_case(1000, &["one"]; "the very second")]
    #[test_case(1999, &["one"]; "until the next")]
    #[test_case(2000, &["two"]; "overwritten")]
    #[test_case(3000, &[]; "deleted")]
    #[test_case(4000, &["four"]; "created again")]
    #[test_case(9000, &["four"]; "and so it stays")]
    fn a_key_is_what_it_was(milliseconds: u64, expected: &[&str]) {
        let history = [
            written("k", "four", 4000),
            deleted("k", 3000),
            written("k", "two", 2000),
            written("k", "one", 1000),
        ];
        let ids: Vec<_> =
            state(moment(milliseconds), history).into_iter().map(|[_, id]| id).collect();
        assert_eq!(ids, expected);
    }

    #[test_case(&[written("k", "b", 1000), written("k", "a", 1000)], &["b"]; "overwritten at once")]
    #[test_case(&[deleted("k", 1000), written("k", "a", 1000)], &[]; "deleted at once")]
    #[test_case(&[written("k", "a", 1000), deleted("k", 1000)], &["a"]; "created at once")]
    #[test_case(&[written("k", "a", 1000), written("k", "b", 1500)], &["b"]; "the later time wins")]
    #[test_case(&[written("k", "null", 1000), written("k", "a", 500)], &["null"]; "null is a version")]
    #[test_case(&[written("k", "a", 1999)], &["a"]; "a fraction of the second")]
    #[test_case(&[written("k", "a", 2000)], &[]; "the next second")]
    fn of_one_second_the_first_is_the_newest(history: &[KeyVersion], expected: &[&str]) {
        let found = state(moment(1000), history.to_vec());
        let ids: Vec<_> = found.into_iter().map(|[_, id]| id).collect();
        assert_eq!(ids, expected);
    }

    #[test]
    fn keys_do_not_mix() {
        let history =
            [written("a", "1", 1000), deleted("b", 1000), deleted("c", 9000), written("c", "2", 0)];
        assert_eq!(state(moment(1000), history), [["a", "1"], ["c", "2"]]);
    }

    #[test]
    fn a_history_shows_whether_versions_are_kept() {
        let evidence = |history: &[KeyVersion]| {
            let mut state = StateAt::new(moment(0));
            for version in history {
                state.add(version.clone());
            }
            state.finish().1
        };
        let null = written("k", "null", 9000);
        assert_eq!(evidence(&[]), Evidence::Nothing);
        assert_eq!(evidence(std::slice::from_ref(&null)), Evidence::OnlyNull);
        assert_eq!(evidence(&[null.clone(), written("l", "id", 9000)]), Evidence::Versioned);
        assert_eq!(evidence(&[deleted("a", 9000), null]), Evidence::Versioned);
    }

    /// What people do to a bucket: a pause in seconds, a key, and content or a deletion.
    fn deeds() -> impl Strategy<Value = Vec<(u64, bool, bool)>> {
        prop::collection::vec((0..3_u64, any::<bool>(), any::<bool>()), 0..30)
    }

    proptest! {
        /// Whatever was done to two keys: the history, told as S3 tells it and with pages cut inside
        /// keys, gives the state that a reader of that second's end saw.
        #[test]
        fn the_state_is_what_a_reader_saw_then(deeds in deeds(), after in 0..40_u64, cut in 0..9_usize) {
            let mut now = 1;
            let mut seen: BTreeMap<String, String> = BTreeMap::new();
            let mut history: BTreeMap<&str, Vec<KeyVersion>> = BTreeMap::new();
            for (number, (pause, first, delete)) in deeds.into_iter().enumerate() {
                now += pause;
                let (key, id) = (if first { "a" } else { "b" }, number.to_string());
                let step = if delete {
                    deleted(key, now * 1000)
                } else {
                    written(key, &id, now * 1000)
                };
                history.entry(key).or_default().insert(0, step);
                match (now <= after, delete) {
                    (false, _) => {}
                    (true, true) => drop(seen.remove(key)),
                    (true, false) => drop(seen.insert(key.to_owned(), id)),
                }
            }
            // A cut page begins again with versions of the same key that were told before.
            let told = history.into_values().flat_map(|versions| {
                let again = versions.iter().take(cut).cloned().collect::<Vec<_>>();
                again.into_iter().chain(versions)
            });
            let expected: Vec<_> = seen.into_iter().map(|(key, id)| [key, id]).collect();
            prop_assert_eq!(state(moment(after * 1000), told), expected);
        }
    }
}
