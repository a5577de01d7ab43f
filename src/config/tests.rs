//! Whole files: what they mean, and what is said about wrong ones.

use proptest::prelude::*;
use test_case::test_case;

use super::*;

fn parse(yaml: &str) -> Config {
    Config::parse(yaml).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The problems of a wrong file as `field: text`, sorted.
fn problems(yaml: &str) -> Vec<String> {
    let problems = Config::parse(yaml).expect_err("the file is wrong");
    let mut texts: Vec<_> = problems.iter().map(|p| format!("{}: {}", p.field, p.text)).collect();
    texts.sort();
    texts
}

#[test]
fn an_empty_file_is_the_default() {
    let config = Config::default();
    assert_eq!(parse("# nothing\n"), config);
    assert_eq!(parse("store:\nlimits: {}\nmetrics: { address: '' }\n"), config);
    assert_eq!(config.driver_name, "csi.s3view.dev");
    assert_eq!(config.kubelet_dir, Path::new("/var/lib/kubelet"));
    assert_eq!(config.default_endpoint_name(), None);
    assert_eq!(config.metrics.address, None);
    assert_eq!(config.limits.namespace.volumes, 0);
}

#[test]
fn the_defaults_are_those_of_the_written_file() {
    let written = parse(
        "
        driverName: csi.s3view.dev
        kubeletDir: /var/lib/kubelet
        store: { share: node, memory: { size: 512Mi, allowSwap: false }, disk: { path: /var/lib/s3view/disk, size: 20Gi } }
        keeper: { socket: /run/s3view/keeper.sock, holdFor: 10m }
        fuse: { waitForS3: 60s, waitForCredentials: 3m, resend: true }
        fetch: { requests: 64, bytesInFlight: 64Mi, partSize: 8Mi }
        authorization: { lifetime: 10m, cachedFor: 24h }
        trust: { podInfo: false, contextTokens: false }
        metrics: { address: '' }
        limits:
          maxSize: { tmpfs: 256Mi, disk: 16Gi }
          maxObjects: { tmpfs: 100000, disk: 100000, fuse: 10000000 }
          minRefresh: 1s
          namespace: { volumes: 0, memory: 0, disk: 0 }
        policy: { endpointUrls: [], authentication: [secret, pod], driverCredentials: [] }
        ",
    );
    assert_eq!(written, Config::default());
}

#[test]
fn a_typical_file_differs_from_the_default_in_what_it_says() {
    let config = parse(
        r#"
        driverName: csi.s3view.dev
        kubeletDir: /var/lib/kubelet        # target paths must lie below it
        defaultEndpoint: minio
        endpoints:
          minio:
            url: http://minio.spark:9000
            region: us-east-1
            pathStyle: true
            caBundle: /etc/s3view/minio-ca.crt
            sts: { url: http://minio.spark:9000, roleArn: "", audience: s3view }
        store:
          memory: { size: 512Mi }
          disk: { path: /var/lib/s3view/disk, size: 20Gi }
        keeper: { socket: /run/s3view/keeper.sock }
        fetch: { requests: 64, bytesInFlight: 64Mi, partSize: 8Mi }
        limits: { maxSize: { tmpfs: 256Mi, disk: 16Gi } }
        defaults: { refresh: 60s }
        policy:
          endpointUrls: []
          authentication: [secret, pod]
          driverCredentials: []
        "#,
    );
    let url = Url::parse("http://minio.spark:9000").unwrap();
    let minio = EndpointConfig {
        ca_bundle: Some("/etc/s3view/minio-ca.crt".into()),
        sts: Some(StsConfig {
            url: Some(url.clone()),
            role_arn: None,
            audience: Some("s3view".to_owned()),
        }),
        ..EndpointConfig::for_url(url, "us-east-1")
    };
    let expected = Config {
        default_endpoint: Some("minio".to_owned()),
        endpoints: [("minio".to_owned(), minio)].into(),
        defaults: Defaults {
            attributes: [("refresh".to_owned(), "60s".to_owned())].into(),
            namespaces: BTreeMap::new(),
        },
        ..Config::default()
    };
    assert_eq!(config, expected);
}

#[test]
fn an_endpoint_is_read_with_all_its_keys() {
    let config = parse(
        r#"
        defaultEndpoint: minio
        endpoints:
          minio:
            url: http://minio.spark:9000
            region: eu-central-1
            pathStyle: false
            caBundle: /etc/s3view/minio-ca.crt
            sts: { url: http://minio.spark:9000, roleArn: "", audience: s3view }
            timeouts: { connect: 1s, stall: 2s, total: 1h }
            retries: 0
          aws: { url: https://s3.us-east-1.amazonaws.com }
        "#,
    );
    let url = Url::parse("http://minio.spark:9000").unwrap();
    let minio = EndpointConfig {
        url: url.clone(),
        region: "eu-central-1".to_owned(),
        path_style: false,
        ca_bundle: Some("/etc/s3view/minio-ca.crt".into()),
        sts: Some(StsConfig { url: Some(url), role_arn: None, audience: Some("s3view".into()) }),
        timeouts: Timeouts {
            connect: Duration::from_secs(1),
            stall: Duration::from_secs(2),
            total: Duration::from_hours(1),
        },
        retries: 0,
    };
    assert_eq!(config.endpoints["minio"], minio);
    assert_eq!(config.default_endpoint_name(), Some("minio"));
    let aws = &config.endpoints["aws"];
    assert_eq!(*aws, EndpointConfig::aws("us-east-1"));
    assert!(!aws.path_style);
}

#[test]
fn a_url_alone_makes_an_endpoint() {
    let config = parse("endpoints: { minio: { url: 'http://minio:9000' } }");
    let minio = &config.endpoints["minio"];
    assert_eq!(*minio, EndpointConfig::for_url(minio.url.clone(), "us-east-1"));
    assert!(minio.path_style);
    assert_eq!((minio.retries, minio.timeouts.stall), (5, Duration::from_secs(20)));
}

#[test_case("{ a: { url: http://a } }", Some("a"); "the only one")]
#[test_case("{ a: { url: http://a }, b: { url: http://b } }", None; "one of two")]
#[test_case("{}", None; "none")]
fn without_a_name_the_only_endpoint_is_the_default(endpoints: &str, name: Option<&str>) {
    assert_eq!(parse(&format!("endpoints: {endpoints}")).default_endpoint_name(), name);
}

#[test_case("eu-west-1", "https://s3.eu-west-1.amazonaws.com/"; "a region")]
#[test_case("cn-north-1", "https://s3.cn-north-1.amazonaws.com.cn/"; "china")]
#[test_case("evil.org/", "https://s3.us-east-1.amazonaws.com/"; "a path")]
#[test_case("evil.org:443", "https://s3.us-east-1.amazonaws.com/"; "a port")]
#[test_case("xn--a", "https://s3.us-east-1.amazonaws.com/"; "broken punycode")]
#[test_case("", "https://s3.us-east-1.amazonaws.com/"; "empty")]
fn a_region_never_leads_away_from_aws(region: &str, url: &str) {
    assert_eq!(EndpointConfig::aws(region).url.as_str(), url);
}

#[test_case("eu-west-1", "https://sts.eu-west-1.amazonaws.com/"; "a region")]
#[test_case("cn-north-1", "https://sts.cn-north-1.amazonaws.com.cn/"; "china")]
#[test_case("evil.org/", "https://sts.us-east-1.amazonaws.com/"; "a path")]
fn the_token_service_of_aws_is_regional(region: &str, url: &str) {
    assert_eq!(sts_of_aws(region).as_str(), url);
}

#[test]
fn defaults_are_text_for_all_and_by_namespace() {
    let config = parse(
        "
        defaults:
          refresh: 60s
          uid: 185
          allowEmpty: true
          fileMode: 0400
          prefix:
          namespaces: { spark: { view: disk, include: '' } }
        ",
    );
    let texts = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let all = [("refresh", "60s"), ("uid", "185"), ("allowEmpty", "true"), ("fileMode", "0400")];
    assert_eq!(config.defaults.attributes, texts(&all));
    assert_eq!(config.defaults.namespaces["spark"], texts(&[("view", "disk"), ("include", "")]));
}

#[test]
fn who_shares_is_read() {
    let share = |word: &str| parse(&format!("store: {{ share: {word} }}")).store.share;
    assert_eq!(["node", "namespace"].map(share), Sharing::ALL);
    assert_eq!(parse("").store.share, Sharing::Node);
}

#[test]
fn the_policy_is_read() {
    let policy = parse(
        "
        endpoints: { minio: { url: http://minio } }
        policy:
          endpointUrls: ['https://*.example.com']
          authentication: [driver, anonymous]
          driverCredentials:
            - { namespace: spark, bucket: jars }
            - { endpoint: minio, namespace: ml, serviceAccount: train, bucket: models, prefix: v1/ }
        ",
    )
    .policy;
    assert_eq!(policy.endpoint_urls, ["https://*.example.com".parse().unwrap()]);
    let kinds = [AuthenticationKind::Driver, AuthenticationKind::Anonymous];
    assert_eq!(policy.authentication, kinds.into());
    let jars = DriverGrant {
        endpoint: None,
        namespace: "spark".to_owned(),
        service_account: None,
        bucket: "jars".to_owned(),
        prefix: None,
    };
    let models = DriverGrant {
        endpoint: Some("minio".to_owned()),
        namespace: "ml".to_owned(),
        service_account: Some("train".to_owned()),
        bucket: "models".to_owned(),
        prefix: Some("v1/".to_owned()),
    };
    assert_eq!(policy.driver_credentials, [jars, models]);
}

#[test]
fn five_mistakes_are_five_problems() {
    let found = problems(
        "
        driverName: s3_view
        kubeletDir: var/lib/kubelet
        endpoints: { minio: { url: ftp://minio, timeouts: { connect: 5 } } }
        fetch: { requests: 0 }
        ",
    );
    assert_eq!(
        found,
        [
            "driverName: \"s3_view\" must be a domain name of at most 63 characters that begins \
             and ends with a letter, such as \"csi.s3view.dev\"",
            "endpoints.minio.timeouts.connect: \"5\" is not a duration; write numbers with h, m, \
             s or ms, such as \"1m30s\"",
            "endpoints.minio.url: \"ftp://minio\" must be only http(s), host and port, such as \
             \"https://s3.example.com:9000\"",
            "fetch.requests: 0 must be from 1 to 10000",
            "kubeletDir: \"var/lib/kubelet\" must begin with \"/\"",
        ]
    );
}

#[test_case("stroe: {}", "stroe: is not known; did you mean \"store\"?"; "top")]
#[test_case("store: { memory: { sise: 1 } }", "store.memory.sise: is not known; did you mean \"size\"?"; "nested")]
#[test_case("endpoints: { a: { url: http://a, sts: { arn: x } } }", "endpoints.a.sts.arn: is not known; known are url, roleArn, audience"; "named")]
#[test_case("policy: { driverCredentials: [{ namespace: n, bucket: b, prefx: p }] }", "policy.driverCredentials[0].prefx: is not known; did you mean \"prefix\"?"; "in a list")]
#[test_case("defaultEndpoint: mino\nendpoints: { minio: { url: http://a } }", "defaultEndpoint: \"mino\" must be one of the configured endpoints; did you mean \"minio\"?"; "endpoint")]
#[test_case("policy: { driverCredentials: [{ endpoint: x, namespace: n, bucket: b }] }", "policy.driverCredentials[0].endpoint: \"x\" must be one of the configured endpoints; there are none"; "endpoint of a grant")]
#[test_case("endpoints: { 'http://a': { url: http://a } }", "endpoints: the name \"http://a\" must be letters, digits, '-', '_' and '.', such as \"minio\""; "endpoint named as a url")]
#[test_case("endpoints: { a: }", "endpoints.a.url: is required"; "no url")]
#[test_case("policy: { authentication: [secret, pods] }", "policy.authentication[1]: \"pods\" must be \"secret\", \"pod\", \"driver\" or \"anonymous\""; "authentication")]
#[test_case("policy: { endpointUrls: https://a }", "policy.endpointUrls: must be a list, not text"; "text for a list")]
#[test_case("store: 5", "store: must be a mapping of keys, not a number"; "number for a mapping")]
#[test_case("[]", "configuration: must be a mapping of keys, not a list"; "list for the file")]
#[test_case("driverName: []", "driverName: must be a single value, not a list"; "list for text")]
#[test_case("defaults: { sources: [] }", "defaults.sources: must be a single value, not a list"; "list for an attribute")]
#[test_case("trust: { podInfo: yes }", "trust.podInfo: \"yes\" must be true or false"; "boolean")]
#[test_case("store: { share: pod }", "store.share: \"pod\" must be \"node\" or \"namespace\""; "sharing")]
#[test_case("store: { disk: { size: 0 } }", "store.disk.size: \"0\" must be at least 1"; "no size")]
#[test_case("limits: { minRefresh: 0s }", "limits.minRefresh: \"0s\" must be above zero, such as \"5s\""; "no interval")]
#[test_case("metrics: { address: ':9090' }", "metrics.address: \":9090\" must be an IP address and a port, such as \"0.0.0.0:9090\""; "address")]
#[test_case("fetch: { partSize: 128Mi }", "fetch.partSize: 128Mi must be at most fetch.bytesInFlight, 64Mi"; "part")]
#[test_case("store: { memory: { size: 64Mi } }\nlimits: { maxSize: { tmpfs: 65Mi } }", "limits.maxSize.tmpfs: 65Mi must be at most store.memory.size, 64Mi"; "volume above the store")]
fn a_mistake_is_named_with_its_remedy(yaml: &str, problem: &str) {
    assert_eq!(problems(yaml), [problem]);
}

#[test_case("fuse: {}\nfuse: {}"; "duplicate key")]
#[test_case("fuse: {"; "unfinished")]
#[test_case("fuse: {}\n---\nfuse: {}"; "two documents")]
fn broken_yaml_is_one_problem_on_one_line(yaml: &str) {
    let found = problems(yaml);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("configuration: must be valid YAML: "), "{found:?}");
    assert!(!found[0].contains('\n'), "{found:?}");
}

#[test]
fn a_default_gives_way_to_a_smaller_one_that_is_given() {
    let config = parse("store: { memory: { size: 64Mi } }\nfetch: { bytesInFlight: 1Mi }");
    assert_eq!(config.limits.max_size.tmpfs, ByteSize::mebibytes(64));
    assert_eq!(config.fetch.part_size, ByteSize::mebibytes(1));
}

#[test]
fn a_file_is_loaded_or_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.yaml");
    let name = path.display().to_string();
    let missing = Config::load(&path).unwrap_err().to_string();
    assert!(missing.starts_with(&format!("{name}: failed to read")), "{missing}");
    std::fs::write(&path, "{").unwrap();
    let broken = Config::load(&path).unwrap_err().to_string();
    assert!(broken.starts_with(&format!("{name}: must be valid YAML")), "{broken}");
    std::fs::write(&path, "retries: 5").unwrap();
    assert!(Config::load(&path).unwrap_err().to_string().starts_with("retries: is not known"));
    std::fs::write(&path, "driverName: example.org").unwrap();
    assert_eq!(Config::load(&path).unwrap().driver_name, "example.org");
}

/// An unknown key in every mapping makes the reader say which ones it knows.
#[test]
fn every_key_stands_in_the_reference() {
    let nowhere = "qqqqqqqq";
    let yaml = "
        Q
        endpoints: { NAME: { url: http://a, sts: { Q }, timeouts: { Q }, Q } }
        store: { memory: { Q }, disk: { Q }, Q }
        keeper: { Q }
        fuse: { Q }
        fetch: { Q }
        authorization: { Q }
        trust: { Q }
        metrics: { Q }
        limits: { maxSize: { Q }, maxObjects: { Q }, namespace: { Q }, Q }
        policy: { driverCredentials: [{ namespace: a, bucket: a, Q }], Q }
        ";
    let reference = include_str!("../../docs/CONFIGURATION.md");
    let found = Config::parse(&yaml.replace('Q', &format!("{nowhere}: 0"))).unwrap_err();
    let mut sections = 0;
    for problem in found.iter() {
        let path = problem.field.strip_suffix(nowhere).expect("only unknown keys are wrong");
        let path = path.replace("[0]", "[]");
        let (_, keys) = problem.text.split_once("known are ").expect("no known key is near");
        for key in keys.split(", ") {
            assert!(reference.contains(&format!("| `{path}{key}` |")), "{path}{key} is missing");
        }
        sections += 1;
    }
    assert_eq!(sections, yaml.matches('Q').count());
}

proptest! {
    #[test]
    fn no_text_makes_parse_panic(yaml in "\\PC{0,200}") {
        drop(Config::parse(&yaml));
    }

    #[test]
    fn no_value_makes_parse_panic(value in "[-+.0-9a-zA-Z:/*@{}\\[\\], ]{0,40}") {
        for key in ["driverName", "endpoints", "store", "limits", "policy", "defaults"] {
            drop(Config::parse(&format!("{key}: {value}")));
        }
        drop(Config::parse(&format!("policy: {{ endpointUrls: ['{value}'] }}")));
        drop(Config::parse(&format!("endpoints: {{ a: {{ url: '{value}', region: '{value}' }} }}")));
    }
}
