//! What must never be said. Every case is searched for its secrets when it ends (see
//! `support::secrecy`); here is what shows that the search finds something, and what it cannot see.

use std::fs::File;
use std::io::Write;

use base64::{Engine, engine::general_purpose::STANDARD};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::{
    fixture::Fixture,
    support::{secrecy::spellings, tls::Authority},
};

/// Has something to escape in every notation.
const SECRET: &str = r#"a"long/and+odd%secret\key"#;

pub(crate) async fn a_leak_would_be_found(mut fixture: Fixture) {
    fixture.put_certificates().await;
    fixture.embedded().rights().add_credential("team", SECRET);
    let pair = Authority::new("clients").issue("team");
    let keys = [&[("accesskey", "team"), ("secretkey", SECRET)][..], &pair.secret()].concat();
    fixture.publish(&fixture.pod("certs").with_secrets(&keys)).await;
    assert_eq!(fixture.home.leaks(), Vec::<String>::new());
    let state = fixture.home.state_dir();
    let said = fixture.home.log();
    assert!(!said.is_empty(), "the log is looked through");
    let places = [
        fixture.home.path().join("log"),
        state.join("memory/registry/planted.jsonl"),
        state.join("memory/v1/records/planted"),
        state.join("planted"),
        fixture.home.path().join("disk/v1/records/planted"),
    ];
    for place in &places {
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    }
    let in_something = (0..3).map(|length| STANDARD.encode(format!("{:length$}{SECRET}:", "")));
    let node_key = hex::encode(std::fs::read(state.join("node.key")).unwrap());
    let line = pair.key.lines().nth(1).unwrap();
    let key =
        STANDARD.decode(pair.key.lines().filter(|l| !l.starts_with("--")).collect::<String>());
    let private = [line.to_owned(), hex::encode(&key.unwrap()[36..68])];
    let all = spellings(SECRET.as_bytes()).into_iter().chain(in_something).chain([node_key]);
    for text in all.chain(private) {
        for place in &places {
            let mut file = File::options().create(true).append(true).open(place).unwrap();
            let length = file.metadata().unwrap().len();
            write!(file, "some text {text}, and more").unwrap();
            let is_found = |leak: &String| leak.contains("log") || leak.contains("planted");
            let leaks = fixture.home.leaks();
            assert!(leaks.iter().any(is_found), "{text} in {}: {leaks:?}", place.display());
            file.set_len(length).unwrap();
        }
    }
    places.iter().skip(1).for_each(|place| std::fs::remove_file(place).unwrap());
    assert_eq!(fixture.home.leaks(), Vec::<String>::new());
    // What it answers and counts is looked through as well.
    fixture.plugin.take().expect("it runs").kill();
    let watch = fixture.home.watch();
    assert!(watch.has_heard("the metrics") && watch.has_heard("a volume's condition"));
    watch.said("the metrics", format!("s3view_planted{{of=\"{SECRET}\"}} 1"));
    assert_eq!(fixture.home.leaks().len(), 1);
    watch.forget_what_was_said();
}

pub(crate) async fn no_core_holds_a_secret(mut fixture: Fixture) {
    // Else the plugin might have nothing to give up.
    let hard = getrlimit(Resource::Core).maximum;
    let limit = rustix::process::Rlimit { current: hard, maximum: hard };
    setrlimit(Resource::Core, limit).unwrap();
    fixture.restart().await;
    let pid = fixture.plugin.as_ref().unwrap().pid();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let figures: Vec<&str> = core.split_whitespace().skip(4).collect();
    assert_eq!(figures, ["0", "0", "bytes"], "{core}");
}
