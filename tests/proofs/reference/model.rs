//! What each volume must show, from what the bucket holds and what happened before.
//!
//! Written from docs/SEMANTICS.md and not from the code: it shares nothing with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use tonic::Code;

use crate::tree::{Layout, Node, Tree};

/// What a bucket holds.
pub(super) type Objects = BTreeMap<String, Bytes>;

/// Where a volume's content comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sources {
    P,
    Q,
    /// A prefix below another one.
    Nested,
    /// Two prefixes at one place: keys of one name are a conflict.
    Merged,
    /// Two prefixes side by side.
    Apart,
    /// One key.
    Key,
}

impl Sources {
    /// Prefixes, or the key, and their places in the volume: what is asked of S3.
    pub(super) fn parts(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::P => &[("p/", "")],
            Self::Q => &[("q/", "")],
            Self::Nested => &[("p/a/", "")],
            Self::Merged => &[("p/", ""), ("q/", "")],
            Self::Apart => &[("p/", "x/"), ("q/", "")],
            Self::Key => &[("p/a", "file")],
        }
    }

    fn attribute(self) -> String {
        let part = |(prefix, path): &(&str, &str)| {
            let path = if path.is_empty() { String::new() } else { format!(", path: {path}") };
            let kind = if self == Self::Key { "key" } else { "prefix" };
            format!("{{ {kind}: {prefix}{path} }}")
        };
        let parts: Vec<_> = self.parts().iter().map(part).collect();
        format!("[{}]", parts.join(", "))
    }
}

/// Where blobs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum View {
    Tmpfs,
    Disk,
    /// There are no blobs before somebody reads.
    Fuse,
}

/// How often a volume refreshes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refresh {
    Often,
    Slower,
    Rarely,
    Never,
}

/// What a volume's attributes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent attributes")]
pub(super) struct Shape {
    pub(super) sources: Sources,
    pub(super) view: View,
    pub(super) layout: Layout,
    pub(super) refresh: Refresh,
    pub(super) cached: bool,
    pub(super) allow_empty: bool,
    /// Whether its files have another mode, which makes them another variant of each blob.
    pub(super) private: bool,
    /// Whether it may show three pages only.
    pub(super) small: bool,
}

impl Shape {
    pub(super) fn attributes(self, bucket: &str) -> BTreeMap<String, String> {
        let view = match self.view {
            View::Tmpfs => "tmpfs",
            View::Disk => "disk",
            View::Fuse => "fuse",
        };
        let refresh = match self.refresh {
            Refresh::Often => "40ms",
            Refresh::Slower => "60ms",
            Refresh::Rarely => "1s",
            Refresh::Never => "never",
        };
        let sources = self.sources.attribute();
        let linked = |value| (self.view != View::Fuse).then_some(value);
        let when_unavailable = if self.is_cached() { "cached" } else { "fail" };
        let all = [
            ("bucket", Some(bucket)),
            ("sources", Some(&sources)),
            ("view", Some(view)),
            ("layout", self.layout.attribute()),
            ("refresh", Some(refresh)),
            ("whenUnavailable", linked(when_unavailable)),
            ("allowEmpty", Some(if self.allow_empty { "true" } else { "false" })),
            ("fileMode", Some(if self.private { "0400" } else { "0444" })),
            ("maxSize", if self.small { Some("12Ki") } else { linked("1Mi") }),
        ];
        let given = all.iter().filter_map(|(name, value)| Some((*name, (*value)?)));
        given.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// A volume that never refreshes would show what was read before for a minute after an outage:
    /// too long for a case. What a `fuse` view has not read, only S3 has.
    pub(super) fn is_cached(self) -> bool {
        self.cached && self.refresh != Refresh::Never && self.view != View::Fuse
    }

    /// Whether a key that can be at this path holds that content.
    pub(super) fn is_current(self, path: &str, content: &[u8], objects: &Objects) -> bool {
        self.sources.parts().iter().any(|(prefix, place)| {
            let key = match self.sources {
                Sources::Key => Some((*prefix).to_owned()),
                _ => path.strip_prefix(place).map(|below| format!("{prefix}{below}")),
            };
            key.and_then(|key| objects.get(&key)).is_some_and(|held| held == content)
        })
    }

    /// What the volume shows if it shows what S3 has.
    pub(super) fn tree(self, objects: &Objects) -> Result<Tree, Code> {
        let mut files: BTreeMap<String, (usize, &Bytes)> = BTreeMap::new();
        let mut directories: BTreeMap<String, usize> = BTreeMap::new();
        let mut conflict = false;
        if self.sources == Sources::Key {
            let (key, path) = self.sources.parts()[0];
            let content = objects.get(key).ok_or(Code::NotFound)?;
            files.insert(path.to_owned(), (0, content));
            return self.fits(files, directories);
        }
        for (source, (prefix, place)) in self.sources.parts().iter().enumerate() {
            let mut given = 0;
            for (key, content) in objects {
                let Some(below) = key.strip_prefix(prefix).filter(|below| !below.is_empty()) else {
                    continue;
                };
                let marker = below.ends_with('/');
                let path = format!("{place}{}", below.strip_suffix('/').unwrap_or(below));
                let mut names = path.split('/');
                if names.clone().any(|name| ["", ".", ".."].contains(&name))
                    || names.next().is_some_and(|name| name.starts_with(".."))
                {
                    continue;
                }
                given += 1;
                let slashes = path.match_indices('/').map(|(at, _)| path[..at].to_owned());
                for directory in slashes.chain(marker.then(|| path.clone())) {
                    directories.entry(directory).or_insert(source);
                }
                if !marker {
                    conflict |= files.insert(path, (source, content)).is_some();
                }
            }
            if given == 0 && !self.allow_empty {
                return Err(Code::NotFound);
            }
        }
        // Beside keys that need a directory there, a key of the same source is passed over; one of
        // another source is a conflict.
        let stands_in_the_way = |(path, (source, _)): &(&String, &(usize, &Bytes))| {
            directories.get(*path).is_some_and(|maker| maker != source)
        };
        if conflict || files.iter().any(|file| stands_in_the_way(&file)) {
            return Err(Code::InvalidArgument);
        }
        files.retain(|path, _| !directories.contains_key(path));
        self.fits(files, directories)
    }

    fn fits(
        self,
        files: BTreeMap<String, (usize, &Bytes)>,
        directories: BTreeMap<String, usize>,
    ) -> Result<Tree, Code> {
        let file = |(path, (_, content)): (_, (_, &Bytes))| (path, Node::File(content.to_vec()));
        let directories = directories.into_keys().map(|path| (path, Node::Directory));
        let tree = directories.chain(files.into_iter().map(file)).collect();
        if self.holds(&tree) { Ok(tree) } else { Err(Code::ResourceExhausted) }
    }

    /// Whether its `maxSize` allows that.
    fn holds(self, tree: &Tree) -> bool {
        let pages = |node: &Node| match node {
            Node::File(content) => content.len().div_ceil(4096),
            _ => 0,
        };
        !self.small || tree.values().map(pages).sum::<usize>() <= 3
    }
}

/// What a Secret holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Credential {
    Owner,
    Second,
    /// May read below `q/` only.
    Limited,
    /// A known id with another secret.
    Wrong,
    /// Half a pair.
    Unusable,
}

impl Credential {
    pub(super) const GOOD: [Self; 3] = [Self::Owner, Self::Second, Self::Limited];

    pub(super) fn secrets(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Owner => &[("accesskey", "minio"), ("secretkey", "minio123")],
            Self::Second => &[("accesskey", "second"), ("secretkey", "second-secret")],
            Self::Limited => &[("accesskey", "limited"), ("secretkey", "limited-secret")],
            Self::Wrong => &[("accesskey", "second"), ("secretkey", "wrong")],
            Self::Unusable => &[("accesskey", "minio")],
        }
    }

    pub(super) fn id(self) -> &'static str {
        self.secrets()[0].1
    }
}

/// How S3 is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Service {
    Up,
    /// Nobody listens.
    Down,
    /// Every answer is a 503.
    Overloaded,
    /// Every answer is a 403.
    Denying,
}

/// What of a listing is kept for a time without S3.
pub(super) type RecordKey = (Credential, Sources, bool, View);

/// The world but for the volumes.
#[derive(Debug)]
pub(super) struct World {
    pub(super) objects: Objects,
    /// What it held since everything was at rest.
    pub(super) before: Vec<Objects>,
    pub(super) service: Service,
    /// Whether some requests may fail all the same.
    pub(super) flaky: bool,
    pub(super) revoked: BTreeSet<Credential>,
    /// What may be recorded; an entry that is missing is known to hold nothing.
    pub(super) records: BTreeMap<RecordKey, Vec<Option<Arc<Tree>>>>,
}

/// What a publish must come to.
#[derive(Debug)]
pub(super) struct Verdict {
    /// What the volume may show.
    pub(super) shows: Vec<Arc<Tree>>,
    /// The code of a refusal.
    pub(super) refused: Option<Code>,
}

impl World {
    /// Whether S3 lets this credential read all that the sources are.
    pub(super) fn lets(&self, credential: Credential, sources: Sources) -> bool {
        let known = !self.revoked.contains(&credential);
        known
            && match credential {
                Credential::Owner | Credential::Second => true,
                Credential::Limited => {
                    sources.parts().iter().all(|(prefix, _)| prefix.starts_with("q/"))
                }
                Credential::Wrong | Credential::Unusable => false,
            }
    }

    /// What a publish of a new volume comes to.
    pub(super) fn verdict(&self, shape: Shape, credential: Credential) -> Verdict {
        let refused = |code| Verdict { shows: Vec::new(), refused: Some(code) };
        if credential == Credential::Unusable {
            return refused(Code::InvalidArgument);
        }
        match self.service {
            Service::Up if self.lets(credential, shape.sources) => {
                match shape.tree(&self.objects) {
                    Ok(tree) => Verdict { shows: vec![Arc::new(tree)], refused: None },
                    Err(code) => refused(code),
                }
            }
            Service::Up
                if credential == Credential::Wrong || self.revoked.contains(&credential) =>
            {
                refused(Code::Unauthenticated)
            }
            Service::Up | Service::Denying => refused(Code::PermissionDenied),
            Service::Down | Service::Overloaded => {
                let recorded = self.recorded(shape, credential);
                let refused = recorded.contains(&None).then_some(Code::Unavailable);
                Verdict { shows: recorded.into_iter().flatten().collect(), refused }
            }
        }
    }

    /// What may be recorded for a new volume.
    pub(super) fn recorded(&self, shape: Shape, credential: Credential) -> Vec<Option<Arc<Tree>>> {
        let known = self.records.get(&record_key(shape, credential));
        let fits = |tree: &Option<Arc<Tree>>| tree.clone().filter(|tree| shape.holds(tree));
        match known {
            Some(known) if shape.is_cached() => known.iter().map(fits).collect(),
            _ => vec![None],
        }
    }

    /// S3 refused that credential, in a volume that keeps a record.
    pub(super) fn forget(&mut self, shape: Shape, credential: Credential) {
        if shape.is_cached() {
            self.records.remove(&record_key(shape, credential));
        }
    }

    /// It may have.
    pub(super) fn perhaps_forget(&mut self, shape: Shape, credential: Credential) {
        if shape.is_cached()
            && let Some(known) = self.records.get_mut(&record_key(shape, credential))
            && !known.contains(&None)
        {
            known.push(None);
        }
    }

    /// Whether S3 says no to that credential.
    pub(super) fn refuses(&self, credential: Credential, sources: Sources) -> bool {
        match self.service {
            Service::Up => !self.lets(credential, sources),
            Service::Denying => true,
            Service::Down | Service::Overloaded => false,
        }
    }

    /// S3 confirmed a listing to that credential, in a volume that keeps it.
    pub(super) fn record(&mut self, shape: Shape, credential: Credential, tree: &Arc<Tree>) {
        if shape.is_cached() {
            let key = record_key(shape, credential);
            self.records.insert(key, vec![Some(Arc::clone(tree))]);
        }
    }

    /// It may have.
    pub(super) fn perhaps_record(
        &mut self,
        shape: Shape,
        credential: Credential,
        tree: &Arc<Tree>,
    ) {
        if shape.is_cached() {
            let key = record_key(shape, credential);
            let known = self.records.entry(key).or_insert_with(|| vec![None]);
            if !known.iter().flatten().any(|known| known == tree) {
                known.push(Some(Arc::clone(tree)));
            }
        }
    }
}

fn record_key(shape: Shape, credential: Credential) -> RecordKey {
    (credential, shape.sources, shape.allow_empty, shape.view)
}
