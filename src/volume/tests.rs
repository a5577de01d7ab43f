use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use test_case::test_case;

use super::*;
use crate::config::Config;

const CONFIG: &str = "
endpoints:
  minio: { url: 'http://minio.spark:9000' }
  ceph: { url: 'https://ceph.example.com' }
defaultEndpoint: minio
limits: { maxSize: { tmpfs: 256Mi, disk: 16Gi } }
defaults:
  namespaces:
    spark: { uid: '185', refresh: 5m }
policy: { endpointUrls: ['https://*.allowed.com'] }
";

fn map(attributes: &[(&str, &str)]) -> BTreeMap<String, String> {
    attributes.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

/// The time of every request in these tests.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_hours(500_000)
}

struct Request<'a> {
    config: &'a str,
    namespace: Option<&'a str>,
    mount_group: Option<&'a str>,
    brings: Option<Brings>,
}

/// What a Secret with keys brings.
const KEYS: Brings = Brings { access_key: true, token: false };

const PLAIN: Request<'static> =
    Request { config: CONFIG, namespace: None, mount_group: None, brings: Some(KEYS) };

impl Request<'_> {
    fn parse(&self, attributes: &[(&str, &str)]) -> Result<VolumeSpec, SpecError> {
        let context = SpecContext {
            config: &Config::parse(self.config).unwrap(),
            namespace: self.namespace,
            mount_group: self.mount_group,
            brings: self.brings,
            now: now(),
        };
        VolumeSpec::parse(&map(attributes), &context)
    }
}

/// Parses with a good bucket, unless the attributes have another.
fn with(attributes: &[(&str, &str)]) -> Result<VolumeSpec, SpecError> {
    PLAIN.parse(&[&[("bucket", "certs")], attributes].concat())
}

fn sources(yaml: &str) -> Result<Vec<SourceSpec>, SpecError> {
    with(&[("sources", yaml)]).map(|spec| spec.sources)
}

fn message<T: std::fmt::Debug>(result: Result<T, SpecError>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Invalid, "{error}");
    error.to_string()
}

fn mode(text: &str) -> Mode {
    text.parse().unwrap()
}

#[test]
fn the_inline_volume_that_replaces_an_init_container() {
    let attributes = [
        ("bucket", "kafka-certs-bucket"),
        ("prefix", "certs/"),
        ("fileMode", "0400"),
        ("uid", "185"),
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", "driver"),
        ("storage.kubernetes.io/csiProvisionerIdentity", "x"),
    ];
    let spec = PLAIN.parse(&attributes).unwrap();
    let source = SourceSpec {
        bucket: Bucket::parse("kafka-certs-bucket").unwrap(),
        selection: Selection::Prefix(Prefix::parse("certs").unwrap()),
        path: None,
        filter: Filter::default(),
    };
    let expected = VolumeSpec {
        sources: vec![source],
        view: ViewKind::Tmpfs,
        layout: Layout::Symlinks,
        endpoint: EndpointChoice::Default,
        region: None,
        authentication: AuthenticationKind::Secret,
        role: Role::default(),
        refresh: Refresh::Every(Duration::from_mins(1)),
        settle: Duration::ZERO,
        as_of: None,
        ownership: Ownership { uid: 185, gid: 0, file_mode: mode("0400"), dir_mode: mode("0555") },
        max_size: Some(ByteSize::mebibytes(64)),
        max_objects: 100_000,
        allow_empty: false,
        when_unavailable: WhenUnavailable::Fail,
        expected_bucket_owner: None,
        request_payer: false,
        xattrs: false,
    };
    assert_eq!(spec, expected);
}

#[test_case("prefix", "certs/kafka"; "prefix")]
#[test_case("include", "*.jks\n*.p12"; "include")]
#[test_case("exclude", "*.bak,old/**"; "exclude")]
#[test_case("view", "disk"; "view")]
#[test_case("layout", "files"; "layout")]
#[test_case("endpoint", "ceph"; "endpoint name")]
#[test_case("endpoint", "https://s3.allowed.com"; "endpoint url")]
#[test_case("region", "eu-central-1"; "region")]
#[test_case("authentication", "secret"; "authentication")]
#[test_case("refresh", "never"; "refresh never")]
#[test_case("refresh", "1s"; "refresh at the limit")]
#[test_case("settle", "5s"; "settle")]
#[test_case("uid", "4294967294"; "uid")]
#[test_case("gid", "0"; "gid")]
#[test_case("fileMode", "0777"; "file mode")]
#[test_case("dirMode", "500"; "dir mode")]
#[test_case("maxSize", "256Mi"; "max size at the limit")]
#[test_case("maxObjects", "100000"; "max objects at the limit")]
#[test_case("allowEmpty", "true"; "allow empty")]
#[test_case("whenUnavailable", "cached"; "when unavailable")]
#[test_case("expectedBucketOwner", "123456789012"; "owner")]
#[test_case("requestPayer", "requester"; "payer")]
#[test_case("region", ""; "an empty value is none")]
fn good_values_are_taken(name: &str, value: &str) {
    let spec = with(&[(name, value)]);
    assert!(spec.is_ok(), "{spec:?}");
}

#[test_case("bucket", "Certs", "\"Certs\" must be a bucket name"; "bucket")]
#[test_case("prefix", "/certs", "\"/certs\" must not begin with '/'; write \"certs\""; "prefix")]
#[test_case("prefix", "/", "\"/\" must not begin with '/'; leave it out"; "root")]
#[test_case("include", "{a,b}", "'{' is not supported"; "include")]
#[test_case("exclude", "[a", "\"[a\" must be a glob"; "exclude")]
#[test_case("sources", "prefix: a", "must be a YAML list of mappings"; "sources mapping")]
#[test_case("sources", "[", "must be a YAML list of mappings"; "sources broken")]
#[test_case("sources", "[]", "must not be empty"; "sources empty")]
#[test_case("view", "tmfs", "must be \"tmpfs\", \"disk\" or \"fuse\"; did you mean \"tmpfs\"?"; "view")]
#[test_case("layout", "file", "must be \"symlinks\" or \"files\"; did you mean \"files\"?"; "layout")]
#[test_case("endpoint", "mino", "did you mean \"minio\"?"; "endpoint")]
#[test_case("endpoint", "aws", "configured are ceph, minio"; "far endpoint")]
#[test_case("endpoint", "ftp://minio", "must be only http(s), host and port"; "scheme")]
#[test_case("endpoint", "https://a.allowed.com/b", "must be only http(s), host and port"; "path")]
#[test_case("endpoint", "https://a.allowed.com?b", "must be only http(s), host and port"; "query")]
#[test_case("region", "eu/1", "must be letters, digits"; "region")]
#[test_case("authentication", "secrets", "did you mean \"secret\"?"; "authentication")]
#[test_case("roleArn", "reader", "must be a role, such as"; "role")]
#[test_case("roleArn", "arn:aws:iam::1:role/r", "and the Secret's access key is used"; "role beside keys")]
#[test_case("stsEndpoint", "minio", "must be only http(s), host and port"; "sts endpoint")]
#[test_case("stsEndpoint", "https://a.b", "policy.endpointUrls"; "sts endpoint policy")]
#[test_case("audience", "x", "applies to authentication \"pod\" only"; "audience beside keys")]
#[test_case("refresh", "60", "write \"never\" or a duration above zero"; "refresh")]
#[test_case("refresh", "500ms", "must be at least 1s (limits.minRefresh)"; "short refresh")]
#[test_case("settle", "soon", "is not a duration"; "settle")]
#[test_case("asOf", "yesterday", "must be an RFC 3339 time"; "as of")]
#[test_case("asOf", "2999-01-01T00:00:00Z", "must not be in the future"; "as of future")]
#[test_case("uid", "-1", "must be a number from 0 to 4294967294"; "uid")]
#[test_case("uid", "+1", "must be a number from 0 to 4294967294"; "signed uid")]
#[test_case("gid", "4294967295", "must be a number from 0 to 4294967294"; "gid")]
#[test_case("fileMode", "0888", "is not a file mode"; "file mode")]
#[test_case("dirMode", "1777", "is not a file mode"; "sticky")]
#[test_case("maxSize", "much", "is not a size"; "size")]
#[test_case("maxSize", "0", "must be above zero"; "no size")]
#[test_case("maxSize", "257Mi", "must be at most 256Mi (limits.maxSize.tmpfs)"; "large size")]
#[test_case("maxObjects", "1.5", "must be a whole number"; "objects")]
#[test_case("maxObjects", "100001", "must be at most 100000 (limits.maxObjects.tmpfs)"; "many")]
#[test_case("allowEmpty", "True", "must be \"true\" or \"false\"; did you mean \"true\"?"; "flag")]
#[test_case("whenUnavailable", "cache", "did you mean \"cached\"?"; "when unavailable")]
#[test_case("expectedBucketOwner", "12345", "must be an account id of 12 digits"; "owner")]
#[test_case("requestPayer", "true", "\"true\" must be \"requester\""; "payer")]
#[test_case("xattrs", "true", "applies to view \"fuse\" only"; "xattrs")]
#[test_case("buckt", "x", "did you mean \"bucket\"?"; "unknown")]
#[test_case("zzzzzz", "x", "is not known; known are bucket, prefix"; "far unknown")]
#[test_case("key", "a/b", "belongs into an entry of sources"; "key")]
#[test_case("region", "a\nb", "must not contain the control character '\\n'"; "control character")]
fn bad_values_are_explained(name: &str, value: &str, text: &str) {
    let message = message(with(&[(name, value)]));
    assert!(message.starts_with(&format!("{name}: ")), "{message}");
    assert!(message.contains(text), "{message}");
}

#[test]
fn every_problem_is_told_at_once() {
    let text = message(PLAIN.parse(&[
        ("prefx", "a"),
        ("view", "ramdisk"),
        ("fileMode", "rw"),
        ("authentication", "driver"),
        ("endpoint", "https://evil.org"),
        ("sources", "[{prefix: /a, kye: b}, {key: x/}]"),
    ]));
    for part in [
        "prefx: is not known; did you mean \"prefix\"?",
        "view: \"ramdisk\" must be",
        "fileMode: \"rw\" is not a file mode",
        "authentication: \"driver\" is not allowed by policy.authentication [secret, pod]",
        "endpoint: \"https://evil.org\" is not allowed; policy.endpointUrls",
        "sources[0].bucket: is required",
        "sources[0].prefix: \"/a\" must not begin with '/'",
        "sources[0].kye: is not known; did you mean \"key\"?",
        "sources[1].path: is required, because the last part of \"x/\" is no name",
    ] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
}

const TOKEN: Brings = Brings { access_key: false, token: true };
const BOTH: Brings = Brings { access_key: true, token: true };
const NOTHING: Brings = Brings { access_key: false, token: false };

#[test_case("[secret, pod]", BOTH => AuthenticationKind::Secret; "keys count before tokens")]
#[test_case("[secret, pod]", TOKEN => AuthenticationKind::Pod; "a token")]
#[test_case("[secret, driver]", NOTHING => AuthenticationKind::Driver; "the driver, where it may")]
#[test_case("[secret, pod]", NOTHING => AuthenticationKind::Secret; "keys are missing")]
#[test_case("[pod]", NOTHING => AuthenticationKind::Pod; "a token is missing")]
fn without_a_word_the_request_decides(allowed: &str, brings: Brings) -> AuthenticationKind {
    let config = &format!("policy: {{ authentication: {allowed} }}");
    let request = Request { config, brings: Some(brings), ..PLAIN };
    request.parse(&[("bucket", "certs")]).unwrap().authentication
}

#[test]
fn the_policy_judges_the_kind_that_the_request_makes() {
    let config = "policy: { authentication: [secret, driver] }";
    let request = Request { config, brings: Some(TOKEN), ..PLAIN };
    let error = request.parse(&[("bucket", "certs")]).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Denied);
    assert!(error.to_string().contains("\"pod\" is not allowed by policy.authentication"));
}

#[test]
fn a_role_is_for_tokens_alone() {
    let role = [
        ("bucket", "certs"),
        ("roleArn", "arn:aws:iam::1:role/r"),
        ("stsEndpoint", "https://sts.allowed.com"),
        ("audience", "sts"),
    ];
    let of = |brings, kind: &str| {
        let given = (!kind.is_empty()).then_some(("authentication", kind));
        let attributes: Vec<_> = role.into_iter().chain(given).collect();
        Request { brings, ..PLAIN }.parse(&attributes)
    };
    let spec = of(Some(TOKEN), "").unwrap();
    assert_eq!(spec.role, of(Some(BOTH), "pod").unwrap().role);
    assert_eq!(spec.role.audience.as_deref(), Some("sts"));
    let text = message(of(Some(BOTH), "secret"));
    assert_eq!(
        text.matches("applies to authentication \"pod\" only, not to \"secret\"").count(),
        3
    );
    assert!(message(of(Some(NOTHING), "")).contains("no service account token came"));
    // What the request brings cannot be told: that is a problem already.
    assert!(of(None, "").is_ok());
}

#[test]
fn a_default_role_does_not_count_beside_keys() {
    let config = "defaults: { roleArn: 'arn:aws:iam::1:role/r', audience: sts }";
    let spec = |brings| {
        let request = Request { config, brings: Some(brings), ..PLAIN };
        request.parse(&[("bucket", "certs")]).unwrap()
    };
    assert_eq!(spec(KEYS).role, Role::default());
    assert_eq!(spec(TOKEN).role.audience.as_deref(), Some("sts"));
}

#[test]
fn a_fuse_view_takes_what_applies_to_it() {
    let text = message(with(&[("view", "fuse"), ("layout", "files"), ("maxObjects", "10000001")]));
    assert!(text.contains("layout: applies to view \"tmpfs\" or \"disk\""), "{text}");
    assert!(text.contains("at most 10000000 (limits.maxObjects.fuse)"), "{text}");
    let text = message(with(&[("view", "fuse"), ("whenUnavailable", "cached")]));
    assert!(text.contains("whenUnavailable: applies to view \"tmpfs\" or \"disk\""), "{text}");
    let spec = with(&[("view", "fuse"), ("xattrs", "true"), ("maxSize", "1Ti")]).unwrap();
    assert!(spec.xattrs && spec.view == ViewKind::Fuse);
}

#[test]
fn long_values_are_refused() {
    let text = message(with(&[("prefix", &"x".repeat(4097))]));
    assert_eq!(text, "prefix: must be at most 4096 bytes long, and is 4097");
}

#[test]
fn a_password_is_not_repeated() {
    for name in ["endpoint", "stsEndpoint"] {
        for value in ["https://u:hunter2@a.allowed.com", "u:hunter2@a"] {
            let text = message(with(&[(name, value)]));
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}

#[test]
fn the_policy_alone_is_a_denial() {
    let error = with(&[("endpoint", "https://s3.evil.org")]).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Denied);
    assert_eq!(
        error.to_string(),
        "endpoint: \"https://s3.evil.org\" is not allowed; policy.endpointUrls in the driver's \
         configuration must list it"
    );
    let config = "policy: { authentication: [pod] }";
    let request = Request { config, ..PLAIN };
    let error = request.parse(&[("bucket", "certs"), ("authentication", "secret")]).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Denied);
    assert!(error.to_string().contains("policy.authentication [pod]"), "{error}");
}

#[test]
fn endpoints_have_names_or_urls() {
    let endpoint = |text| with(&[("endpoint", text)]).unwrap().endpoint;
    assert_eq!(endpoint("ceph"), EndpointChoice::Named("ceph".into()));
    let url = Url::parse("https://s3.allowed.com").unwrap();
    assert_eq!(endpoint("HTTPS://S3.allowed.com:443/"), EndpointChoice::Url(url));
}

#[test]
fn a_moment_leaves_nothing_to_refresh() {
    let as_of = ("asOf", "2020-01-01T00:00:00Z");
    for attributes in [&[as_of][..], &[as_of, ("refresh", "never")]] {
        let spec = with(attributes).unwrap();
        assert_eq!(spec.refresh, Refresh::Never);
        assert_eq!(spec.as_of.unwrap().to_string(), as_of.1);
    }
    let text = message(with(&[as_of, ("refresh", "60s")]));
    assert!(text.contains("refresh: must be \"never\" or left out beside asOf"), "{text}");
}

#[test]
fn the_mount_group_owns_the_files() {
    let request = Request { mount_group: Some("2000"), ..PLAIN };
    let ownership =
        |extra| Ok::<_, SpecError>(request.parse(&[("bucket", "certs"), extra])?.ownership);
    let expected = Ownership { uid: 0, gid: 2000, file_mode: mode("0440"), dir_mode: mode("0550") };
    assert_eq!(ownership(("gid", "2000")), Ok(expected));
    assert_eq!(ownership(("view", "disk")), Ok(expected));
    assert_eq!(ownership(("fileMode", "0444")).unwrap().file_mode, mode("0444"));
    let text = message(ownership(("gid", "5")));
    assert_eq!(text, "gid: \"5\" must be the pod's fsGroup 2000; leave it out");
    let request = Request { mount_group: Some("staff"), ..PLAIN };
    let text = message(request.parse(&[("bucket", "certs")]));
    assert!(text.starts_with("volume_mount_group: \"staff\" must be a number"), "{text}");
}

#[test]
fn sizes_follow_view_and_limits() {
    let size = |config, view| {
        let request = Request { config, ..PLAIN };
        request.parse(&[("bucket", "certs"), ("view", view)]).unwrap().max_size
    };
    assert_eq!(size("", "tmpfs"), Some(ByteSize::mebibytes(64)));
    assert_eq!(size("", "disk"), Some(ByteSize::mebibytes(16 << 10)));
    assert_eq!(size("limits: {maxSize: {tmpfs: 1Mi}}", "tmpfs"), Some(ByteSize::mebibytes(1)));
    let config = "defaults: {maxSize: 1Gi}";
    assert_eq!(size(config, "tmpfs"), Some(ByteSize::mebibytes(256)), "a default stops at it");
    assert_eq!(size(config, "disk"), Some(ByteSize::mebibytes(1024)));
}

#[test]
fn defaults_lie_below_what_the_user_wrote() {
    let config = "
defaults:
  refresh: 10m
  fileMode: '0400'
  namespaces: { spark: { refresh: 5m, uid: '185' } }";
    let parse = |namespace, extra: &[(&str, &str)]| {
        let request = Request { config, namespace, ..PLAIN };
        let spec = request.parse(&[extra, &[("bucket", "certs")]].concat()).unwrap();
        (spec.refresh.to_string(), spec.ownership.uid, spec.ownership.file_mode.to_string())
    };
    assert_eq!(parse(None, &[]), ("10m".into(), 0, "0400".into()));
    assert_eq!(parse(Some("spark"), &[]), ("5m".into(), 185, "0400".into()));
    assert_eq!(parse(Some("other"), &[]), ("10m".into(), 0, "0400".into()));
    let own = [("refresh", "never"), ("fileMode", ""), ("uid", "7")];
    assert_eq!(parse(Some("spark"), &own), ("never".into(), 7, "0400".into()));
}

#[test]
fn a_default_that_does_not_fit_gives_way() {
    let config = "defaults: {gid: '5', xattrs: 'true', prefix: p, refesh: 1s, include: '*.x'}";
    let request = Request { config, mount_group: Some("7"), ..PLAIN };
    let spec = request.parse(&[("sources", "[{bucket: certs}]")]).unwrap();
    assert_eq!(spec.ownership.gid, 7);
    assert!(!spec.xattrs);
    assert_eq!(spec.sources[0].selection, Selection::Prefix(Prefix::default()));
    let names = check_defaults(&Config::parse(config).unwrap().defaults).unwrap_err();
    assert_eq!(names.to_string(), "defaults.refesh: is not known; did you mean \"refresh\"?");
}

#[test]
fn a_wrong_default_is_told_as_one() {
    let request = Request { config: "defaults: {fileMode: rwx}", ..PLAIN };
    let text = message(request.parse(&[("bucket", "certs")]));
    assert!(text.ends_with("(from defaults in the driver's configuration)"), "{text}");
}

#[test]
fn sources_are_prefixes_and_keys() {
    let list = sources(
        "- prefix: jars
  path: lib/
  include: ['*.jar', '*.zip']
- {bucket: apps, key: jobs/main.py, versionId: v1}
- {key: a/b, path: c/d}
- {prefix: , path: }
",
    )
    .unwrap();
    let paths: Vec<_> =
        list.iter().map(|source| source.path.as_ref().map(RelPath::as_str)).collect();
    assert_eq!(paths, [Some("lib"), Some("main.py"), Some("c/d"), None]);
    let buckets: Vec<_> = list.iter().map(|source| source.bucket.as_str()).collect();
    assert_eq!(buckets, ["certs", "apps", "certs", "certs"]);
    assert!(list[0].filter.accepts("x/a.zip") && !list[0].filter.accepts("a.txt"));
    let key = Key::parse("jobs/main.py").unwrap();
    assert_eq!(list[1].selection, Selection::Key { key, version_id: Some("v1".into()) });
    assert_eq!(list[3].selection, Selection::Prefix(Prefix::default()));
}

#[test_case("[{prefix: a, key: b}]", "sources[0].prefix: must not stand beside key"; "both")]
#[test_case("[{prefix: a, versionId: v}]", "sources[0].versionId: selects a version of one object"; "version")]
#[test_case("[{key: a, include: b}]", "sources[0].include: applies to a prefix"; "filter")]
#[test_case("[{prefix: a, include: [1]}]", "sources[0].include: must be text"; "pattern number")]
#[test_case("[{prefix: a, exclude: '{x'}]", "sources[0].exclude: \"{x\" must be a glob"; "pattern")]
#[test_case("[{}, {prefix: /b}]", "sources[1].prefix: \"/b\" must not begin with '/'"; "slash")]
#[test_case("[{prefix: 2024}]", "sources[0].prefix: must be text; put it in quotes"; "number")]
#[test_case("[{path: ../x}]", "sources[0].path: \"../x\" must be a directory in the volume"; "escape")]
#[test_case("[{path: /x}]", "sources[0].path: \"/x\" must be a directory in the volume"; "absolute")]
#[test_case("[{key: a, path: x/}]", "sources[0].path: \"x/\" must be a file in the volume"; "directory")]
#[test_case("[{key: a/..}]", "sources[0].path: is required, because the last part"; "no name")]
#[test_case("[{bucket: A}]", "sources[0].bucket: \"A\" must be a bucket name"; "bucket")]
#[test_case("[{Prefix: a}]", "sources[0].Prefix: is not known; did you mean \"prefix\"?"; "unknown")]
#[test_case("[certs]", "sources[0]: must be a mapping"; "text entry")]
#[test_case("[{prefix: \"a\\n\"}]", "sources[0].prefix: \"a\\n\" must not contain control"; "escape sequence")]
#[test_case("[{prefix: a, prefix: b}]", "sources: must be a YAML list"; "duplicate")]
#[test_case("[&a {prefix: b}, *a]", "sources: must be a YAML list"; "alias")]
#[test_case("--- []\n--- []", "sources: must"; "two documents")]
fn bad_sources_are_explained(yaml: &str, text: &str) {
    let message = message(sources(yaml));
    assert!(message.starts_with(text), "{message}");
    assert!(!message.contains("; sources"), "one problem: {message}");
}

#[test]
fn top_level_selection_does_not_mix_with_sources() {
    let sources = ("sources", "[{}]");
    let text = message(with(&[sources, ("prefix", "a"), ("include", "b"), ("exclude", "c")]));
    for name in ["prefix", "include", "exclude"] {
        let part = format!("{name}: must stand in the entries of sources");
        assert!(text.contains(&part), "{text}");
    }
    let missing = "bucket: is required, here or in every entry of sources";
    assert_eq!(message(PLAIN.parse(&[])), missing);
    assert_eq!(message(with(&[("bucket", "")])), missing);
    let text = message(PLAIN.parse(&[("bucket", "A"), ("sources", "[{}, {}]")]));
    assert!(text.starts_with("bucket: ") && !text.contains("sources"), "{text}");
}

#[test]
fn volumes_with_one_key_resolve_to_one_listing() {
    let key = |attributes: &[(&str, &str)]| with(attributes).unwrap().sources_key();
    let base = key(&[("prefix", "a")]);
    for same in [
        &[("prefix", "a/")][..],
        &[("prefix", "a"), ("uid", "5"), ("view", "disk"), ("refresh", "never")],
        &[("prefix", "a"), ("maxSize", "1Mi"), ("endpoint", "minio")],
        &[("sources", "[{prefix: a}]")],
    ] {
        assert_eq!(key(same), base, "{same:?}");
    }
    for other in [
        &[("prefix", "b")][..],
        &[("prefix", "a"), ("include", "x")],
        &[("prefix", "a"), ("exclude", "x")],
        &[("prefix", "a"), ("maxObjects", "5")],
        &[("prefix", "a"), ("allowEmpty", "true")],
        &[("prefix", "a"), ("region", "x")],
        &[("prefix", "a"), ("requestPayer", "requester")],
        &[("prefix", "a"), ("expectedBucketOwner", "123456789012")],
        &[("sources", "[{prefix: a, path: b}]")],
        &[("sources", "[{prefix: a}, {prefix: b, path: c}]")],
        &[("sources", "[{key: a}]")],
    ] {
        assert_ne!(key(other), base, "{other:?}");
    }
    let keys = ["[{key: a}]", "[{key: a, path: a}]", "[{key: a, versionId: v}]"];
    let [natural, explicit, version] = keys.map(|yaml| key(&[("sources", yaml)]));
    assert_eq!(natural, explicit);
    assert_ne!(natural, version);
}

#[test]
fn views_are_words_in_the_registry() {
    for view in ViewKind::ALL {
        assert_eq!(serde_json::to_value(view).unwrap(), view.as_str());
    }
}

#[test]
fn every_name_is_documented() {
    let reference = include_str!("../../docs/CONFIGURATION.md");
    let (_, reference) = reference.split_once("\n## Volume attributes\n").unwrap();
    let secrets = SECRET_KEYS.iter().copied().flatten();
    for name in ATTRIBUTES.iter().chain(&SOURCE_KEYS).chain(secrets) {
        assert!(reference.contains(&format!("`{name}`")), "{name} is not in CONFIGURATION.md");
    }
}

/// Texts near the grammar, so that more than the first check is reached.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[a-z0-9./:,*{}\\[\\]\"'&|>\n -]{0,40}",
        Just("true".to_owned()),
        Just("https://x".to_owned()),
        Just("[{key: a}]".to_owned()),
        Just("fuse".to_owned()),
    ]
}

proptest! {
    #[test]
    fn no_attributes_panic(
        known in proptest::collection::btree_map(proptest::sample::select(&ATTRIBUTES[..]), value(), 0..8),
        unknown in proptest::collection::btree_map(any::<String>(), any::<String>(), 0..3),
        mount_group in proptest::option::of("[0-9a]{0,12}"),
    ) {
        let config = Config::parse(CONFIG).unwrap();
        let known = known.into_iter().map(|(name, value)| (name.to_owned(), value));
        let attributes: BTreeMap<String, String> = known.chain(unknown).collect();
        let mount_group = mount_group.as_deref();
        let brings = Some(Brings { access_key: false, token: true });
        let namespace = Some("spark");
        let context = SpecContext { config: &config, namespace, mount_group, brings, now: now() };
        match VolumeSpec::parse(&attributes, &context) {
            Ok(spec) => prop_assert!(!spec.sources.is_empty() && !spec.sources_key().is_empty()),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn no_sources_panic(
        yaml in "(- |\\[|\\{|\\}|\\]|, |: |prefix|key|path|versionId|include|a/b|'|\"|\n|  |&a|\\*a|~|1|#|\\||!){0,24}"
    ) {
        prop_assert!(sources(&yaml).map_or(true, |sources| !sources.is_empty()));
    }

    #[test]
    fn the_order_of_a_list_is_kept(names in proptest::collection::vec("[a-z]{1,8}", 1..6)) {
        let entries: Vec<String> = names.iter().map(|name| format!("{{prefix: '{name}'}}")).collect();
        let list = sources(&format!("[{}]", entries.join(", "))).unwrap();
        for (name, source) in names.iter().zip(&list) {
            prop_assert_eq!(&source.selection, &Selection::Prefix(Prefix::parse(name).unwrap()));
        }
    }
}
