//! The documents, held to the code: proofs that exist, links that lead somewhere, examples that
//! parse, commands that CI runs.
//!
//! The notation of docs/SEMANTICS.md: a list item is a promise, and inline code with `::` in it is
//! the name of a test. `it::views::x` is the function `x` in tests/it/views.rs, and
//! `listing::tests::x` the one in src/listing/tests.rs or in `mod tests` of src/listing.rs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "all of this file is a test")]

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::SystemTime,
};

use s3view::{
    config::Config,
    controller::{Controller, CreateRequest},
    volume::{Brings, SpecContext, VolumeSpec},
};
use tokio::time::Instant;

#[test]
fn every_named_test_exists() {
    for document in ["docs/SEMANTICS.md", "docs/SECURITY.md"] {
        let text = read(document);
        let is_name = |code: &&str| code.contains("::") && !code.contains('\n');
        let names: Vec<_> = inline_code(&text).filter(is_name).collect();
        assert!(names.len() > 50, "the notation changed");
        let missing: Vec<_> = names
            .into_iter()
            .filter(|name| !name.ends_with("...")) // the form of a name, not one
            .filter(|name| !test_exists(name))
            .collect();
        assert!(missing.is_empty(), "{document} names tests that do not exist: {missing:#?}");
    }
}

#[test]
fn every_promise_names_a_test_or_says_that_it_has_none() {
    let text = read("docs/SEMANTICS.md");
    let promises = list_items(&text);
    assert!(promises.len() > 50, "the notation changed");
    for promise in promises {
        let proved = inline_code(&promise).any(|code| code.contains("::"));
        assert_ne!(proved, promise.contains("*Untested"), "{promise}");
    }
}

#[test]
fn no_link_is_dead() {
    for document in documents() {
        for link in links(&document) {
            assert!(leads_somewhere(&document, &link), "{} links to {link}", document.display());
        }
    }
}

#[test]
fn documents_are_ascii() {
    for document in documents().into_iter().filter(|it| !it.ends_with("README.ru.md")) {
        let text = fs::read_to_string(&document).unwrap();
        let line = text.lines().position(|line| !line.is_ascii());
        assert_eq!(line, None, "{}: the line (from 0) is not ASCII", document.display());
    }
}

#[test]
fn the_inline_volume_is_a_good_one() {
    let volume: serde_json::Value =
        serde_saphyr::from_str(&block("README.md", "volumeAttributes:")).unwrap();
    let attributes = &volume["volumes"][0]["csi"]["volumeAttributes"];
    let attributes: BTreeMap<String, String> = serde_json::from_value(attributes.clone()).unwrap();
    let context = SpecContext {
        config: &Config::default(),
        namespace: None,
        mount_group: None,
        brings: Some(Brings { access_key: true, token: false }),
        now: SystemTime::now(),
    };
    VolumeSpec::parse(&attributes, &context).unwrap();
}

#[test]
fn the_configuration_is_a_good_one() {
    let text = read("docs/CONFIGURATION.md");
    let blocks = text.split("\n```yaml\n").skip(1).filter_map(|it| it.split("\n```").next());
    let configurations: Vec<_> = blocks.filter(|block| block.starts_with("endpoints:")).collect();
    assert!(configurations.len() > 2, "the notation changed");
    for text in configurations {
        assert_ne!(Config::parse(text).unwrap(), Config::default());
    }
}

#[test]
fn the_policies_of_s3_are_json_and_ask_for_what_is_said() {
    let text = read("docs/SECURITY.md");
    let blocks: Vec<&str> = text.split("\n```json\n").skip(1).collect();
    assert!(blocks.len() > 3, "the notation changed");
    let listed = |action: &str| text.contains(&format!("| `{action}`"));
    for block in blocks {
        let policy: serde_json::Value =
            serde_json::from_str(block.split("\n```").next().unwrap()).unwrap();
        let statements = policy["Statement"].as_array().cloned();
        for statement in statements.unwrap_or_else(|| vec![policy]) {
            let action = statement["Action"].as_str().unwrap();
            assert!(listed(action) || action.starts_with("sts:"), "{action} is not in the table");
        }
    }
    Config::parse(&block("docs/SECURITY.md", "driverCredentials:")).unwrap();
}

#[test]
fn the_flags_are_those_of_the_program() {
    let program = env!("CARGO_BIN_EXE_s3view-node");
    let help = Command::new(program).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let command = block("docs/CONFIGURATION.md", "s3view-node --endpoint");
    let text = read("docs/CONFIGURATION.md");
    let (_, told) = text.split_once("\n## The node plugin\n").unwrap();
    let (told, _) = told.split_once("\n## ").unwrap();
    let flags = |text: &'_ str| -> Vec<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        words.filter(|word| word.starts_with("--")).map(str::to_owned).collect()
    };
    for flag in flags(&command).iter().filter(|flag| *flag != "--release") {
        assert!(help.contains(flag), "a command gives {flag}, which {program} does not know");
    }
    for flag in flags(&help).iter().filter(|flag| !["--help", "--version"].contains(&&***flag)) {
        assert!(told.contains(&format!("| `{flag}`")), "docs/CONFIGURATION.md lacks {flag}");
    }
}

#[test]
fn the_flags_of_the_keeper_are_told() {
    let program = env!("CARGO_BIN_EXE_s3view-node");
    let help = Command::new(program).args(["keeper", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let text = read("docs/CONFIGURATION.md");
    let (_, told) = text.split_once("\n## The keeper\n").unwrap();
    let words = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let flags: Vec<_> = words.filter(|word| word.starts_with("--") && *word != "--help").collect();
    assert!(flags.contains(&"--hold-for"), "{help}");
    for flag in flags {
        assert!(told.contains(&format!("| `{flag}`")), "docs/CONFIGURATION.md lacks {flag}");
    }
}

#[test]
fn the_flags_of_the_controller_are_told() {
    let program = env!("CARGO_BIN_EXE_s3view-controller");
    let help = Command::new(program).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let text = read("docs/CONFIGURATION.md");
    let (_, told) = text.split_once("\n## The controller\n").unwrap();
    let words = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let flags: Vec<_> = words.filter(|word| word.starts_with("--") && *word != "--help").collect();
    assert!(flags.contains(&"--endpoint"), "{help}");
    for flag in flags {
        assert!(told.contains(&format!("| `{flag}`")), "docs/CONFIGURATION.md lacks {flag}");
    }
}

#[tokio::test]
async fn the_storage_class_is_a_good_one() {
    let class: serde_json::Value =
        serde_saphyr::from_str(&block("docs/CONFIGURATION.md", "kind: StorageClass")).unwrap();
    let parameters: BTreeMap<String, String> =
        serde_json::from_value(class["parameters"].clone()).unwrap();
    // The provisioner keeps the names of Secrets to itself, and tells of the claim.
    let parameters = parameters.into_iter().filter(|(name, _)| !name.contains("-secret-"));
    let claim = [("namespace", "spark"), ("name", "jars")];
    let claim = claim.map(|(key, name)| (format!("csi.storage.k8s.io/pvc/{key}"), name.into()));
    let controller = Controller::new(Config::default(), Arc::default(), None).unwrap();
    let created = controller
        .create(CreateRequest::new(
            "pvc-1".to_owned(),
            parameters.chain(claim).collect(),
            HashMap::new(),
            Instant::now(),
        ))
        .await
        .unwrap();
    assert_eq!(created.attributes["prefix"], "teams/spark/jars");
}

#[test]
fn ci_runs_the_commands_of_the_readme() {
    let ci = read(".ci/run");
    let readme = read("README.md");
    let commands: Vec<_> = readme
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| line.starts_with("cargo run") || line.starts_with("cargo test"))
        .collect();
    assert_eq!(commands.len(), 2, "{commands:?}");
    for command in commands {
        assert!(ci.contains(command), ".ci/run does not run {command:?}");
        if let Some((_, example)) = command.split_once("--example ") {
            assert!(root().join(format!("examples/{example}.rs")).exists(), "{example} is gone");
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// README, changelog, the index of the examples, and everything below docs/ and deploy/.
fn documents() -> Vec<PathBuf> {
    let pages = ["README.md", "README.ru.md", "CHANGELOG.md", "examples/README.md"];
    let mut found: Vec<PathBuf> = pages.iter().map(|page| root().join(page)).collect();
    let mut directories = vec![root().join("docs"), root().join("deploy")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// What stands between single backticks.
fn inline_code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The items of all `-` lists, with their continuation lines.
fn list_items(text: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with("- ") {
            items.push(line.to_owned());
            inside = true;
        } else if let (true, Some(item)) = (line.starts_with("  ") && inside, items.last_mut()) {
            item.push_str(line);
        } else {
            inside = false;
        }
    }
    items
}

fn test_exists(name: &str) -> bool {
    let Some((module, function)) = name.rsplit_once("::") else { return false };
    let file = module.replace("::", "/");
    let mut places = vec![(format!("tests/{file}.rs"), ""), (format!("src/{file}.rs"), "")];
    if let Some(parent) = file.strip_suffix("/tests") {
        places.push((format!("src/{parent}.rs"), "mod tests {"));
    }
    places.iter().any(|(place, after)| {
        let text = fs::read_to_string(root().join(place)).unwrap_or_default();
        let tests = text.find(after).map_or("", |start| &text[start..]);
        tests.contains(&format!("fn {function}("))
    })
}

fn links(document: &Path) -> Vec<String> {
    let text = fs::read_to_string(document).unwrap();
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).map(str::to_owned).collect()
}

fn leads_somewhere(document: &Path, link: &str) -> bool {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match file {
        "" => document.to_owned(),
        _ => document.parent().unwrap().join(file),
    };
    target.exists() && (anchor.is_empty() || anchors(&target).contains(&anchor.to_owned()))
}

/// What a heading is called in a link.
fn anchors(document: &Path) -> Vec<String> {
    let text = fs::read_to_string(document).unwrap();
    let headings = text.lines().filter_map(|line| line.trim_start_matches('#').strip_prefix(' '));
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    headings
        .map(|heading| heading.to_lowercase().chars().filter(kept).collect::<String>())
        .map(|heading| heading.replace(' ', "-"))
        .collect()
}

/// The fenced block of a document that contains `mark`.
fn block(document: &str, mark: &str) -> String {
    let text = read(document);
    let blocks = text.split("\n```").skip(1).step_by(2);
    let found = blocks.filter_map(|block| block.split_once('\n')).find(|(_, it)| it.contains(mark));
    found.unwrap_or_else(|| panic!("{document} has no block with {mark:?}")).1.to_owned()
}
