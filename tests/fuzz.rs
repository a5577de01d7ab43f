//! Text that somebody hostile wrote costs bounded time and memory. That none of it panics is tested
//! beside each parser; here are the texts that are small and want to be large, and the large ones.
//!
//! `PROPTEST_CASES` says how many random ones there are.

#![allow(clippy::unwrap_used, clippy::panic, reason = "all of this file is a test")]

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant, SystemTime},
};

use proptest::prelude::*;
use s3view::{
    config::Config,
    volume::{ATTRIBUTES, Brings, ServiceTokens, SpecContext, VolumeSecrets, VolumeSpec},
};

/// What one text may take. Kubernetes stores no object of more than 1.5 MiB.
const LIMIT: Duration = Duration::from_secs(5);

/// The size of what is large here.
const LARGE: usize = 1 << 20;

/// Parses attributes, in bounded time.
fn attributes(attributes: &BTreeMap<String, String>) {
    let config = Config::default();
    let context = SpecContext {
        config: &config,
        namespace: Some("spark"),
        mount_group: None,
        brings: Some(Brings::default()),
        now: SystemTime::now(),
    };
    bounded(|| match VolumeSpec::parse(attributes, &context) {
        Ok(spec) => assert!(!spec.sources.is_empty()),
        Err(error) => {
            let length = error.to_string().len();
            let given: usize = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
            assert!(length < 100_000 + 4 * given, "{length} bytes of complaints");
        }
    });
}

fn attribute(name: &str, value: String) {
    attributes(&BTreeMap::from([("bucket".into(), "bucket".into()), (name.to_owned(), value)]));
}

fn bounded(work: impl FnOnce()) {
    let began = Instant::now();
    work();
    let took = began.elapsed();
    assert!(took < LIMIT, "it took {took:?}");
}

/// YAML that is small and wants to be large, or deep, or long.
fn bombs() -> Vec<String> {
    let laugh = |level: usize| {
        let below = if level == 0 { "x".to_owned() } else { format!("*a{}", level - 1) };
        format!("a{level}: &a{level} [{}]", vec![below; 9].join(", "))
    };
    let laughs: Vec<String> = (0..30).map(laugh).collect();
    let list: Vec<String> = laughs.iter().map(|laugh| format!("- {{ {laugh} }}")).collect();
    let repeated = |text: &str| text.repeat(LARGE / text.len());
    let indented = (0..1000).fold(String::new(), |text, deep| text + &" ".repeat(deep) + "a:\n");
    vec![
        laughs.join("\n"),
        list.join("\n"),
        "&a [*a]".to_owned(),
        "- &a { prefix: *a }".to_owned(),
        "a: &a { <<: *a }".to_owned(),
        repeated("["),
        repeated("{a: "),
        repeated("- "),
        repeated("? "),
        repeated("[]"),
        repeated("--- \n"),
        repeated("&a "),
        repeated("!a "),
        repeated("- {prefix: a}\n"),
        repeated("- {prefix: [}\n"),
        repeated("#"),
        repeated("\n"),
        repeated("'"),
        repeated("\\"),
        format!("[{{prefix: {}}}]", repeated("9")),
        format!("[{{prefix: 1e{}}}]", repeated("9")),
        format!("[{{versionId: 0x{}}}]", repeated("f")),
        format!("[{{prefix: \"{}\"}}]", repeated("\\u0041")),
        format!(
            "[{{{}}}]",
            (0..50_000).fold(String::new(), |text, n| text + &format!("k{n}: 1, "))
        ),
        format!("[{{include: [{}]}}]", repeated("'**/a*',")),
        indented,
    ]
}

#[test]
fn yaml_bombs_are_duds() {
    for bomb in bombs() {
        attribute("sources", bomb.clone());
        bounded(|| drop(Config::parse(&bomb)));
        for key in ["endpoints", "policy", "defaults"] {
            bounded(|| drop(Config::parse(&format!("{key}: {bomb}"))));
        }
    }
}

#[test]
fn large_values_are_read_in_bounded_time() {
    for name in ATTRIBUTES {
        for text in ["a", "9", "*", "**/", "[a-z]", "a,", "\n", "/", "-", "0", "\u{1f600}", "1h"] {
            attribute(name, text.repeat(LARGE / text.len()));
        }
    }
}

#[test]
fn many_attributes_are_read_in_bounded_time() {
    let many = (0..20_000).map(|number| (format!("prefiks{number}"), "x".repeat(20)));
    attributes(&many.collect());
}

#[test]
fn large_secrets_are_read_in_bounded_time() {
    for text in ["a", "=", "\n", "-----BEGIN CERTIFICATE-----\n", "{\"a\":", "[", "\u{1f600}"] {
        for name in s3view::volume::SECRET_KEYS.concat() {
            let value = text.repeat(LARGE / text.len());
            let secrets = HashMap::from([(name.to_owned(), value)]);
            bounded(|| drop(VolumeSecrets::parse(secrets)));
        }
        for frame in ["CERTIFICATE", "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"] {
            let framed =
                |text: &str| format!("-----BEGIN {frame}-----\n{text}\n-----END {frame}-----\n");
            for value in [framed(&text.repeat(LARGE / text.len())), framed(text).repeat(LARGE / 70)]
            {
                let names = ["tls.crt", "tls.key", "ca.crt"].map(str::to_owned);
                let secrets = names.map(|name| (name, value.clone())).into();
                bounded(|| drop(VolumeSecrets::parse(secrets)));
            }
        }
    }
}

#[test]
fn large_tokens_are_read_in_bounded_time() {
    let deep = |text: &str| text.repeat(LARGE / text.len());
    let one = |token: &str| format!("{{\"a\": {{\"token\": \"{token}\"}}}}");
    let many = (0..20_000).map(|n| format!("\"{n}\": {{\"token\": \"a.e30.b\"}}"));
    let many = format!("{{{}}}", many.collect::<Vec<_>>().join(","));
    for json in [deep("["), deep("{\"a\":"), deep("9"), many, one(&deep("a.")), one(&deep("e30"))] {
        bounded(|| assert!(ServiceTokens::parse(&json).is_err()));
    }
}

/// Pieces of a list of sources and of a configuration, in any order.
fn yaml() -> impl Strategy<Value = String> {
    let pieces = [
        "- ",
        "[",
        "]",
        "{",
        "}",
        ": ",
        ", ",
        "\n",
        "\n  ",
        "|",
        ">",
        "&a ",
        "*a",
        "<<: *a",
        "!!int ",
        "!x ",
        "---\n",
        "...",
        "%YAML 1.2\n",
        "? ",
        "#",
        "~",
        "'",
        "\"",
        "\\",
        "\t",
        "\u{feff}",
        "0x",
        "1e999",
        ".inf",
        "-0",
        "prefix",
        "key",
        "path",
        "include",
        "endpoints",
        "url",
        "policy",
        "defaults",
        "store",
        "memory",
        "size",
        "a/b",
        "..",
        "http://x",
        "true",
        "16Mi",
    ];
    proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..60)
        .prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_yaml_panics_or_lasts(yaml in yaml()) {
        attribute("sources", yaml.clone());
        bounded(|| drop(Config::parse(&yaml)));
    }

    #[test]
    fn no_attribute_lasts(
        name in proptest::sample::select(ATTRIBUTES.to_vec()),
        piece in "[-*?a/\\[\\]{}!,0-9\\n.]{1,6}",
        times in 1..2000_usize,
    ) {
        attribute(name, piece.repeat(times));
    }
}
