//! Pages of listings.
//!
//! A page costs what it shows: it starts with a range query at the marker, and a common prefix is
//! passed with another range query instead of reading its keys. Keys that are deleted (their newest
//! version is a delete marker) are stepped over.

use std::collections::btree_map;
use std::ops::Bound::{self, Excluded, Included, Unbounded};

use s3s::dto::{CommonPrefix, ETag, Object, Timestamp};

use super::store::{Keys, Version};

/// What a page is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query<'a> {
    /// Only keys that begin so.
    pub(crate) prefix: &'a str,
    /// Rolls keys up to common prefixes.
    pub(crate) delimiter: Option<&'a str>,
    /// Begin after this key, or behind this common prefix.
    pub(crate) after: Option<&'a str>,
    /// With `after`: begin inside that key, after this version.
    pub(crate) after_version: Option<&'a str>,
    /// The largest number of entries.
    pub(crate) limit: usize,
    /// Whether names are percent-encoded.
    pub(crate) encode: bool,
}

impl Query<'_> {
    /// A name as the answer spells it.
    pub(crate) fn spell(&self, name: &str) -> String {
        if self.encode {
            url::form_urlencoded::byte_serialize(name.as_bytes())
                .collect::<String>()
                .replace("%2F", "/")
        } else {
            name.to_owned()
        }
    }

    fn common_prefix(&self, prefix: &str) -> CommonPrefix {
        CommonPrefix { prefix: Some(self.spell(prefix)) }
    }

    /// How many of the newest versions of `key` earlier pages have shown.
    fn skipped_versions(&self, key: &str, versions: &[Version]) -> usize {
        let Some(id) = self.after_version.filter(|_| self.after == Some(key)) else { return 0 };
        versions.iter().rev().position(|version| version.id == id).map_or(0, |at| at + 1)
    }
}

/// A page of objects.
#[derive(Debug, Default)]
pub(crate) struct ObjectPage {
    /// The objects.
    pub(crate) objects: Vec<Object>,
    /// The common prefixes.
    pub(crate) prefixes: Vec<CommonPrefix>,
    /// What to pass as `after` for the next page, not encoded; none if this is the last.
    pub(crate) next: Option<String>,
}

impl ObjectPage {
    /// The page that `query` asks for.
    pub(crate) fn of(keys: &Keys, query: Query<'_>) -> Self {
        let is_visible =
            |versions: &[Version]| versions.last().is_some_and(|newest| newest.object.is_some());
        let mut items = Walk::new(keys, query, is_visible);
        let mut page = Self::default();
        let mut last = None;
        for item in items.by_ref().take(query.limit) {
            match item {
                Item::Key(key, versions) => {
                    page.objects.extend(versions.last().and_then(|it| object(query, key, it)));
                    last = Some(key);
                }
                Item::Prefix(prefix) => {
                    page.prefixes.push(query.common_prefix(prefix));
                    last = Some(prefix);
                }
            }
        }
        page.next = last.filter(|_| items.next().is_some()).map(str::to_owned);
        page
    }
}

fn object(query: Query<'_>, key: &str, version: &Version) -> Option<Object> {
    let object = version.object.as_ref()?;
    let class = object.properties.storage_class.clone().unwrap_or_else(|| "STANDARD".to_owned());
    Some(Object {
        key: Some(query.spell(key)),
        e_tag: Some(ETag::Strong(object.etag.clone())),
        size: i64::try_from(object.content.size()).ok(),
        last_modified: Some(Timestamp::from(version.modified)),
        storage_class: Some(class.into()),
        ..Object::default()
    })
}

/// A version or delete marker on a page.
#[derive(Debug)]
pub(crate) struct Listed {
    /// Its key, not encoded.
    pub(crate) key: String,
    /// The version.
    pub(crate) version: Version,
    /// Whether it is the key's newest.
    pub(crate) is_latest: bool,
}

/// A page of versions. Names are not encoded.
#[derive(Debug, Default)]
pub(crate) struct VersionPage {
    /// Versions and delete markers, of each key the newest first.
    pub(crate) versions: Vec<Listed>,
    /// The common prefixes.
    pub(crate) prefixes: Vec<String>,
    /// Key and version to pass for the next page, not encoded; none if this is the last.
    pub(crate) next: Option<(String, Option<String>)>,
}

impl VersionPage {
    /// The page that `query` asks for.
    pub(crate) fn of(keys: &Keys, query: Query<'_>) -> Self {
        let mut page = Self::default();
        let mut last = None;
        let mut room = query.limit;
        let next = |last: Option<(&str, Option<&str>)>| {
            last.map(|(key, id)| (key.to_owned(), id.map(str::to_owned)))
        };
        for item in Walk::new(keys, query, |_| true) {
            match item {
                Item::Prefix(_) if room == 0 => return Self { next: next(last), ..page },
                Item::Prefix(prefix) => {
                    page.prefixes.push(prefix.to_owned());
                    last = Some((prefix, None));
                    room -= 1;
                }
                Item::Key(key, versions) => {
                    let skipped = query.skipped_versions(key, versions);
                    for (at, version) in versions.iter().rev().enumerate().skip(skipped) {
                        if room == 0 {
                            return Self { next: next(last), ..page };
                        }
                        page.versions.push(Listed {
                            key: key.to_owned(),
                            version: version.clone(),
                            is_latest: at == 0,
                        });
                        last = Some((key, Some(&version.id)));
                        room -= 1;
                    }
                }
            }
        }
        page
    }
}

enum Item<'a> {
    Key(&'a str, &'a [Version]),
    Prefix(&'a str),
}

/// The keys and common prefixes that a query selects, in order.
struct Walk<'a, 'q> {
    keys: &'a Keys,
    range: btree_map::Range<'a, String, Vec<Version>>,
    query: Query<'q>,
    is_visible: fn(&[Version]) -> bool,
    passed: Option<String>,
}

impl<'a, 'q> Walk<'a, 'q> {
    fn new(keys: &'a Keys, query: Query<'q>, is_visible: fn(&[Version]) -> bool) -> Self {
        let all = keys.range::<str, _>((Unbounded, Unbounded));
        let mut walk = Self { keys, range: all, query, is_visible, passed: None };
        match query.after.filter(|after| *after >= query.prefix) {
            Some(after) if walk.roll_up(after) == Some(after) => walk.pass(after),
            Some(after) if query.after_version.is_some() => walk.seek(Included(after)),
            Some(after) => walk.seek(Excluded(after)),
            None => walk.seek(Included(query.prefix)),
        }
        walk
    }

    fn seek(&mut self, from: Bound<&str>) {
        self.range = self.keys.range::<str, _>((from, Unbounded));
    }

    /// Goes on behind the keys below `common`. (A key that continues with the last code point of
    /// all may still follow: `passed` recognises it.)
    fn pass(&mut self, common: &str) {
        self.passed = Some(common.to_owned());
        self.seek(Included(&format!("{common}{}", char::MAX)));
    }

    fn roll_up<'k>(&self, key: &'k str) -> Option<&'k str> {
        let delimiter = self.query.delimiter?;
        let at = key.strip_prefix(self.query.prefix)?.find(delimiter)?;
        Some(&key[..self.query.prefix.len() + at + delimiter.len()])
    }
}

impl<'a> Iterator for Walk<'a, '_> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        loop {
            let (key, versions) = self.range.next()?;
            if !key.starts_with(self.query.prefix) {
                return None;
            }
            if !(self.is_visible)(versions) {
                continue;
            }
            match self.roll_up(key) {
                None => return Some(Item::Key(key, versions)),
                Some(common) if self.passed.as_deref() == Some(common) => {}
                Some(common) => {
                    self.pass(common);
                    return Some(Item::Prefix(common));
                }
            }
        }
    }
}
