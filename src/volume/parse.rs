//! From attributes to a [`VolumeSpec`]: the rules, attribute by attribute.
//!
//! A specification is always built to the end, with defaults where a value was wrong, so that
//! every problem is found; [`Reader::finish`] gives it out only if there was none.

use std::{collections::BTreeMap, fmt::Display, str::FromStr, time::Duration, time::SystemTime};

use jiff::Timestamp;
use url::Url;

use super::{
    EndpointChoice, Layout, Ownership, Role, SpecContext, SpecError, ViewKind, VolumeSpec,
    WhenUnavailable,
    attributes::{Reader, shown},
    policy::{denied_authentication, denied_url},
    sources,
};
use crate::{
    config::{AuthenticationKind, Config, Policy},
    problems::nearest,
    units::{ByteSize, Mode, Refresh, parse_duration},
};

/// The refresh interval of volumes that have none.
const REFRESH: Duration = Duration::from_mins(1);

/// The longest that a changed listing may be held back.
const LONGEST_SETTLE: Duration = Duration::from_hours(1);

/// The size of tmpfs volumes that have none: memory is dear, and keys are small.
const TMPFS_SIZE: ByteSize = ByteSize::mebibytes(64);

impl VolumeSpec {
    /// Parses the attributes of a publish request.
    ///
    /// # Errors
    /// [`SpecError::Invalid`] with all problems, or [`SpecError::Denied`] if only the policy
    /// stands against the request.
    pub fn parse(
        attributes: &BTreeMap<String, String>,
        context: &SpecContext<'_>,
    ) -> Result<Self, SpecError> {
        let mut reader = Reader::new(attributes, context);
        let spec = read(&mut reader, context);
        reader.finish(spec)
    }
}

fn read(reader: &mut Reader<'_>, context: &SpecContext<'_>) -> VolumeSpec {
    let config = context.config;
    let view = reader.get("view", choice(&ViewKind::ALL, |view| view.as_str()));
    let view = view.unwrap_or(ViewKind::Tmpfs);
    refuse_by_view(reader, view);
    let as_of = as_of(reader, context.now);
    let authentication = authentication(reader, context);
    VolumeSpec {
        sources: sources::read(reader),
        view,
        layout: reader.get("layout", layout).unwrap_or(Layout::Symlinks),
        endpoint: endpoint(reader, config),
        region: reader.get("region", region),
        authentication,
        role: role(reader, &config.policy),
        refresh: refresh(reader, config.limits.min_refresh),
        settle: reader.get("settle", settle).unwrap_or_default(),
        as_of,
        ownership: ownership(reader, context.mount_group),
        max_size: max_size(reader, view, config),
        max_objects: max_objects(reader, view, config),
        allow_empty: reader.get("allowEmpty", flag).unwrap_or(false),
        when_unavailable: reader
            .get("whenUnavailable", when_unavailable)
            .unwrap_or(WhenUnavailable::Fail),
        expected_bucket_owner: reader.get("expectedBucketOwner", account),
        request_payer: reader.get("requestPayer", requester).is_some(),
        xattrs: reader.get("xattrs", flag).unwrap_or(false),
    }
}

fn refuse_by_view(reader: &mut Reader<'_>, view: ViewKind) {
    match view {
        ViewKind::Fuse => {
            let why = "applies to view \"tmpfs\" or \"disk\"; a fuse view always shows plain files";
            reader.refuse(&["layout"], why);
            if reader.value("whenUnavailable") != Some("fail") {
                let why = "applies to view \"tmpfs\" or \"disk\": what a fuse view has not read, only S3 has";
                reader.refuse(&["whenUnavailable"], why);
            }
        }
        ViewKind::Tmpfs | ViewKind::Disk => {
            reader.refuse(&["xattrs"], "applies to view \"fuse\" only; leave it out");
        }
    }
}

/// Reads `asOf`. A moment that is over does not change, so it leaves nothing to refresh.
fn as_of(reader: &mut Reader<'_>, now: SystemTime) -> Option<Timestamp> {
    let moment = reader.get("asOf", |text| {
        let moment: Timestamp = text.parse().map_err(|_| {
            format!("{text:?} must be an RFC 3339 time, such as \"2026-01-31T12:00:00Z\"")
        })?;
        if SystemTime::from(moment) > now {
            return Err(format!("{text:?} must not be in the future"));
        }
        Ok(moment)
    });
    if reader.is_set("asOf") && reader.value("refresh") != Some("never") {
        reader.refuse(&["refresh"], "must be \"never\" or left out beside asOf");
    }
    moment
}

/// Reads how long a change has to stand still: not for ever.
fn settle(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).map_err(|error| error.to_string())?;
    if time > LONGEST_SETTLE {
        return Err(format!("{text:?} must be at most 1h"));
    }
    Ok(time)
}

fn refresh(reader: &mut Reader<'_>, least: Duration) -> Refresh {
    if reader.is_set("asOf") {
        return Refresh::Never;
    }
    let refresh = reader.get("refresh", |text| match text.parse() {
        Ok(Refresh::Every(interval)) if interval < least => Err(format!(
            "{text:?} must be at least {} (limits.minRefresh), or \"never\"",
            Refresh::Every(least)
        )),
        Ok(refresh) => Ok(refresh),
        Err(error) => Err(error.to_string()),
    });
    refresh.unwrap_or_else(|| Refresh::Every(REFRESH.max(least)))
}

/// Reads who the files belong to. The kubelet leaves ownership of a read-only volume to the
/// driver, so the pod's fsGroup must be the files' group, or nobody in the pod could read them.
fn ownership(reader: &mut Reader<'_>, mount_group: Option<&str>) -> Ownership {
    let fs_group = mount_group.and_then(|text| {
        identity(text).map_err(|text| reader.problem("volume_mount_group", text)).ok()
    });
    let gid = reader.get("gid", identity);
    if let (Some(gid), Some(group)) = (gid, fs_group)
        && gid != group
        && reader.is_given("gid")
    {
        let text = format!("\"{gid}\" must be the pod's fsGroup {group}; leave it out");
        reader.problem("gid", text);
    }
    let modes = if fs_group.is_some() { (0o440, 0o550) } else { (0o444, 0o555) };
    let permissions = |bits| Mode::from_bits(bits).expect("nine permission bits");
    Ownership {
        uid: reader.get("uid", identity).unwrap_or(0),
        gid: fs_group.or(gid).unwrap_or(0),
        file_mode: reader.get("fileMode", Mode::from_str).unwrap_or(permissions(modes.0)),
        dir_mode: reader.get("dirMode", Mode::from_str).unwrap_or(permissions(modes.1)),
    }
}

fn max_size(reader: &mut Reader<'_>, view: ViewKind, config: &Config) -> Option<ByteSize> {
    let limits = &config.limits.max_size;
    let (limit, default) = match view {
        ViewKind::Tmpfs => (Some(limits.tmpfs), Some(TMPFS_SIZE.min(limits.tmpfs))),
        ViewKind::Disk => (Some(limits.disk), Some(limits.disk)),
        ViewKind::Fuse => (None, None),
    };
    bounded(reader, "maxSize", limit, view).or(default)
}

fn max_objects(reader: &mut Reader<'_>, view: ViewKind, config: &Config) -> u64 {
    let limits = &config.limits.max_objects;
    let limit = match view {
        ViewKind::Tmpfs => limits.tmpfs,
        ViewKind::Disk => limits.disk,
        ViewKind::Fuse => limits.fuse,
    };
    bounded(reader, "maxObjects", Some(Count(limit)), view).map_or(limit, |Count(count)| count)
}

/// A number of objects.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Count(u64);

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = decimal(text).map(Self);
        count.ok_or_else(|| format!("{text:?} must be a whole number, such as \"1000\""))
    }
}

impl Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads an amount above zero and within the configured limit. A default beyond the limit of this
/// view stops at it: one default serves all views.
fn bounded<T>(
    reader: &mut Reader<'_>,
    name: &'static str,
    limit: Option<T>,
    view: ViewKind,
) -> Option<T>
where
    T: FromStr<Err: Display> + Display + Default + Ord + Copy,
{
    let given = reader.is_given(name);
    reader.get(name, |text| {
        let amount: T = text.parse().map_err(|error: T::Err| error.to_string())?;
        match limit {
            _ if amount == T::default() => {
                Err(format!("{text:?} must be above zero; leave it out for the default"))
            }
            Some(limit) if amount > limit && given => {
                let view = view.as_str();
                Err(format!("{text:?} must be at most {limit} (limits.{name}.{view})"))
            }
            Some(limit) => Ok(amount.min(limit)),
            None => Ok(amount),
        }
    })
}

fn endpoint(reader: &mut Reader<'_>, config: &Config) -> EndpointChoice {
    let Some(text) = reader.value("endpoint") else { return EndpointChoice::Default };
    if text.contains("://") {
        let url = allowed_url(reader, "endpoint", &config.policy);
        return url.map_or(EndpointChoice::Default, EndpointChoice::Url);
    }
    if !config.endpoints.contains_key(text) {
        let names: Vec<&str> = config.endpoints.keys().map(String::as_str).collect();
        let hint = match nearest(text, &names) {
            Some(name) => format!("did you mean {name:?}?"),
            None if names.is_empty() => "none is configured".to_owned(),
            None => format!("configured are {}", names.join(", ")),
        };
        let rule = "must be a configured endpoint or a URL such as \"https://s3.example.com\"";
        reader.problem("endpoint", format!("{:?} {rule}; {hint}", shown(text)));
    }
    EndpointChoice::Named(text.to_owned())
}

fn role(reader: &mut Reader<'_>, policy: &Policy) -> Role {
    Role {
        role_arn: reader.get("roleArn", role_arn),
        sts_endpoint: allowed_url(reader, "stsEndpoint", policy),
        audience: reader.get("audience", |text| Ok::<_, String>(text.to_owned())),
    }
}

/// Reads a URL that the node plugin will connect to: a pod must not choose that freely.
fn allowed_url(reader: &mut Reader<'_>, name: &'static str, policy: &Policy) -> Option<Url> {
    let url = reader.get(name, service_url)?;
    if let Some(text) = denied_url(&url, policy) {
        reader.deny(name, text);
    }
    Some(url)
}

fn service_url(text: &str) -> Result<Url, String> {
    let bare = |url: &Url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
    };
    Url::parse(text).ok().filter(bare).ok_or_else(|| {
        let example = "\"https://s3.example.com:9000\"";
        format!("{:?} must be only http(s), host and port, such as {example}", shown(text))
    })
}

/// Reads where the credentials come from; comes before what applies to one kind only.
fn authentication(reader: &mut Reader<'_>, context: &SpecContext<'_>) -> AuthenticationKind {
    let policy = &context.config.policy;
    let named =
        reader.get("authentication", choice(&AuthenticationKind::ALL, |kind| kind.as_str()));
    let brought = || context.brings.map(|brings| brings.authentication(policy));
    // What cannot be told is a problem already, and must not bring others.
    let Some(kind) = named.or_else(brought) else { return AuthenticationKind::Secret };
    if let Some(text) = denied_authentication(kind, policy) {
        reader.deny("authentication", text);
    }
    if kind != AuthenticationKind::Pod {
        let why = match named {
            Some(kind) => format!("not to {:?}", kind.as_str()),
            None if context.brings.is_some_and(|brings| brings.access_key) => {
                "and the Secret's access key is used unless authentication says so".to_owned()
            }
            None => "and no service account token came with the request".to_owned(),
        };
        let text = format!("applies to authentication \"pod\" only, {why}");
        reader.refuse(&["roleArn", "stsEndpoint", "audience"], &text);
    }
    kind
}

/// A parser of one word out of `words`, with "did you mean" for near misses.
fn choice<T: Copy>(
    words: &[T],
    word: fn(&T) -> &'static str,
) -> impl Fn(&str) -> Result<T, String> {
    move |text| {
        let found = words.iter().find(|candidate| word(candidate) == text);
        found.copied().ok_or_else(|| {
            let names: Vec<&str> = words.iter().map(word).collect();
            not_one_of(text, &names)
        })
    }
}

fn not_one_of(text: &str, words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    let list = match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    };
    let hint = nearest(text, words).map(|word| format!("; did you mean {word:?}?"));
    format!("{text:?} must be {list}{}", hint.unwrap_or_default())
}

fn layout(text: &str) -> Result<Layout, String> {
    match text {
        "symlinks" => Ok(Layout::Symlinks),
        "files" => Ok(Layout::Files),
        _ => Err(not_one_of(text, &["symlinks", "files"])),
    }
}

fn when_unavailable(text: &str) -> Result<WhenUnavailable, String> {
    match text {
        "fail" => Ok(WhenUnavailable::Fail),
        "cached" => Ok(WhenUnavailable::Cached),
        _ => Err(not_one_of(text, &["fail", "cached"])),
    }
}

fn flag(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| not_one_of(text, &["true", "false"]))
}

fn requester(text: &str) -> Result<(), String> {
    if text == "requester" { Ok(()) } else { Err(not_one_of(text, &["requester"])) }
}

fn account(text: &str) -> Result<String, String> {
    let digits = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    let error = || format!("{text:?} must be an account id of 12 digits");
    digits.then(|| text.to_owned()).ok_or_else(error)
}

fn region(text: &str) -> Result<String, String> {
    let named =
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    named.then(|| text.to_owned()).ok_or_else(|| {
        format!("{text:?} must be letters, digits, '-' and '_', such as \"eu-central-1\"")
    })
}

fn role_arn(text: &str) -> Result<String, String> {
    let arn = text.starts_with("arn:")
        && text.split(':').count() >= 6
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    arn.then(|| text.to_owned()).ok_or_else(|| {
        format!("{text:?} must be a role, such as \"arn:aws:iam::123456789012:role/reader\"")
    })
}

/// A user or group id. The highest number means "leave unchanged" to chown(2).
fn identity(text: &str) -> Result<u32, String> {
    let id = decimal(text).and_then(|id| u32::try_from(id).ok()).filter(|&id| id != u32::MAX);
    id.ok_or_else(|| format!("{text:?} must be a number from 0 to 4294967294, such as \"185\""))
}

/// Digits only: the standard parser would also take a sign.
fn decimal(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}
