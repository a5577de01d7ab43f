//! The volume attributes by name, and a reader that collects every problem with their values.
//!
//! What a user wrote stands over the defaults of the user's namespace, and these over the defaults
//! for all. The difference is kept: a default that does not fit a volume gives way, while the same
//! value written by the user is a contradiction that must be named.

use std::{borrow::Cow, collections::BTreeMap, fmt::Display, time::SystemTime};

use super::{SOURCE_KEYS, SpecError};
use crate::{
    config::{AuthenticationKind, Config, Defaults, Policy},
    problems::Problems,
};

/// Every volume attribute, in the order of the reference.
pub const ATTRIBUTES: [&str; 27] = [
    "bucket",
    "prefix",
    "sources",
    "include",
    "exclude",
    "view",
    "layout",
    "endpoint",
    "region",
    "authentication",
    "roleArn",
    "stsEndpoint",
    "audience",
    "refresh",
    "settle",
    "asOf",
    "uid",
    "gid",
    "fileMode",
    "dirMode",
    "maxSize",
    "maxObjects",
    "allowEmpty",
    "whenUnavailable",
    "expectedBucketOwner",
    "requestPayer",
    "xattrs",
];

/// Keys that Kubernetes itself adds; they are no attributes.
const RESERVED: [&str; 2] = ["csi.storage.k8s.io/", "storage.kubernetes.io/"];

/// Attributes that may span lines.
const MULTILINE: [&str; 3] = ["sources", "include", "exclude"];

/// The longest value, in bytes.
const MAX_VALUE: usize = 4096;

/// What a specification depends on besides the attributes.
#[derive(Debug)]
pub struct SpecContext<'a> {
    /// Endpoints, limits, defaults and policy.
    pub config: &'a Config,
    /// The pod's namespace, only if the request can be believed about it.
    pub namespace: Option<&'a str>,
    /// The pod's fsGroup as the request has it.
    pub mount_group: Option<&'a str>,
    /// What the request brings; `None` if that cannot be told, which is a problem of its own.
    pub brings: Option<Brings>,
    /// The time of the request.
    pub now: SystemTime,
}

/// What a request brings that S3 could be asked with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Brings {
    /// Its Secret holds an access key.
    pub access_key: bool,
    /// It holds a service account token that may be used.
    pub token: bool,
}

impl Brings {
    /// The kind of authentication of a volume that names none. With nothing to go by, the driver's
    /// own credentials are meant; where these are not allowed, what is allowed is missing.
    pub(super) fn authentication(self, policy: &Policy) -> AuthenticationKind {
        use AuthenticationKind::{Driver, Pod, Secret};
        match self {
            Self { access_key: true, .. } => Secret,
            Self { token: true, .. } => Pod,
            Self { .. } => {
                let allowed = |kind: &AuthenticationKind| policy.authentication.contains(kind);
                [Driver, Secret, Pod].into_iter().find(allowed).unwrap_or(Driver)
            }
        }
    }
}

/// Whether a key of a volume context belongs to Kubernetes and not to the user.
pub fn is_reserved(key: &str) -> bool {
    RESERVED.iter().any(|prefix| key.starts_with(prefix))
}

/// Checks the names of the attributes in the configuration's `defaults`.
///
/// For the start of the program: a publish passes over a default that it does not know, because
/// the pod's author could not correct it.
///
/// # Errors
/// Every name that is no attribute.
pub fn check_defaults(defaults: &Defaults) -> Result<(), Problems> {
    let mut problems = Problems::default();
    let unknown = |attributes: &BTreeMap<String, String>| {
        let names = attributes.keys().filter(|name| !ATTRIBUTES.contains(&name.as_str()));
        names.cloned().collect::<Vec<_>>()
    };
    for name in unknown(&defaults.attributes) {
        problems.add_unknown(&format!("defaults.{name}"), &ATTRIBUTES);
    }
    for (namespace, attributes) in &defaults.namespaces {
        for name in unknown(attributes) {
            problems.add_unknown(&format!("defaults.namespaces.{namespace}.{name}"), &ATTRIBUTES);
        }
    }
    problems.into_result(())
}

/// The values of one volume, and what is wrong with them.
pub(super) struct Reader<'a> {
    given: BTreeMap<&'a str, &'a str>,
    defaults: BTreeMap<&'a str, &'a str>,
    problems: Problems,
    denied: Problems,
}

impl<'a> Reader<'a> {
    /// Merges attributes and defaults; reports unknown names, values that are no text, and what
    /// this release cannot do. An empty value counts as none.
    pub(super) fn new(attributes: &'a BTreeMap<String, String>, context: &SpecContext<'a>) -> Self {
        let defaults = &context.config.defaults;
        let of_namespace = context.namespace.and_then(|name| defaults.namespaces.get(name));
        let defaults = defaults.attributes.iter().chain(of_namespace.into_iter().flatten());
        let defaults = defaults.filter(|(name, _)| ATTRIBUTES.contains(&name.as_str()));
        let mut reader = Self {
            given: texts(attributes.iter()),
            defaults: texts(defaults),
            problems: Problems::default(),
            denied: Problems::default(),
        };
        for (name, value) in reader.values() {
            reader.check(name, value);
        }
        reader
    }

    /// The value of an attribute as `parse` understands it; `None` if it is absent or wrong.
    pub(super) fn get<T, E: Display>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.value(name)?;
        parse(value).map_err(|error| self.problem(name, error.to_string())).ok()
    }

    /// The value of an attribute, the user's or a default; `None` if it is absent or no text.
    pub(super) fn value(&self, name: &'static str) -> Option<&'a str> {
        debug_assert!(ATTRIBUTES.contains(&name), "{name} is missing in ATTRIBUTES");
        let value = self.given.get(name).or_else(|| self.defaults.get(name)).copied();
        value.filter(|value| check_text(name, value).is_ok())
    }

    /// Whether the user gave this attribute, be it right or wrong.
    pub(super) fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// Whether the attribute has any value, be it right or wrong.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.is_given(name) || self.defaults.contains_key(name)
    }

    /// Reports attributes that the user gave where they have no meaning; such defaults just do not
    /// count.
    pub(super) fn refuse(&mut self, names: &[&'static str], why: &str) {
        for name in names {
            if self.is_given(name) {
                self.problem(name, why);
            }
            self.defaults.remove(name);
        }
    }

    /// Reports that something is wrong with an attribute, or with a `field` inside one.
    pub(super) fn problem(&mut self, field: &str, text: impl Into<String>) {
        self.problems.add(field, self.attributed(field, text.into()));
    }

    /// Reports an unknown `field` inside an attribute.
    pub(super) fn unknown(&mut self, field: &str, known: &[&str]) {
        self.problems.add_unknown(field, known);
    }

    /// Reports that the policy forbids an attribute's value.
    pub(super) fn deny(&mut self, name: &str, text: impl Into<String>) {
        self.denied.add(name, self.attributed(name, text.into()));
    }

    /// `value`, if nothing is wrong and nothing is forbidden.
    ///
    /// # Errors
    /// [`SpecError::Denied`] if the policy is the only obstacle; else everything is told together.
    pub(super) fn finish<T>(self, value: T) -> Result<T, SpecError> {
        let Self { mut problems, denied, .. } = self;
        if problems.is_empty() && !denied.is_empty() {
            return Err(SpecError::Denied(denied.to_string()));
        }
        problems.extend(denied);
        Ok(problems.into_result(value)?)
    }

    fn values(&self) -> BTreeMap<&'a str, &'a str> {
        self.defaults.iter().chain(&self.given).map(|(name, value)| (*name, *value)).collect()
    }

    fn check(&mut self, name: &'a str, value: &str) {
        if SOURCE_KEYS.contains(&name) && !ATTRIBUTES.contains(&name) {
            self.problem(name, "belongs into an entry of sources, such as \"[{key: app/job.py}]\"");
        } else if !ATTRIBUTES.contains(&name) {
            self.problems.add_unknown(name, &ATTRIBUTES);
        } else if let Err(text) = check_text(name, value) {
            self.problem(name, text);
        }
    }

    /// Tells the user of a problem that it comes from a default nobody can see in the manifest.
    fn attributed(&self, field: &str, text: String) -> String {
        let name = field.split(['.', '[']).next().unwrap_or(field);
        if !self.is_given(name) && self.defaults.contains_key(name) {
            format!("{text} (from defaults in the driver's configuration)")
        } else {
            text
        }
    }
}

/// A value as a message may quote it: what stands before an `@` may be a password.
pub(super) fn shown(value: &str) -> &str {
    if value.contains('@') { "a value with user information" } else { value }
}

fn texts<'a>(
    attributes: impl Iterator<Item = (&'a String, &'a String)>,
) -> BTreeMap<&'a str, &'a str> {
    attributes
        .filter(|(name, value)| !is_reserved(name) && !value.is_empty())
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

/// Whether a value is text of a reasonable length that can be shown in messages and headers.
fn check_text(name: &str, value: &str) -> Result<(), Cow<'static, str>> {
    if value.len() > MAX_VALUE {
        let length = value.len();
        return Err(format!("must be at most {MAX_VALUE} bytes long, and is {length}").into());
    }
    let line_break = |c| MULTILINE.contains(&name) && matches!(c, '\n' | '\r');
    match value.chars().find(|&c| c.is_control() && !line_break(c)) {
        Some(c) => Err(format!("{value:?} must not contain the control character {c:?}").into()),
        None => Ok(()),
    }
}
