//! The guides, held to the code: messages that the program gives, settings that it has, commands whose
//! files exist, and a Russian page in step with the English one.
//!
//! `tests/docs.rs` has what all documents have in common, and the promises.

#![allow(clippy::unwrap_used, clippy::panic, reason = "all of this file is a test")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use s3view::{
    config::Config,
    volume::{ATTRIBUTES, SECRET_KEYS, SOURCE_KEYS},
};
use serde_json::{Value, json};

#[test]
fn the_messages_are_the_programs_own() {
    let code = source_text();
    let mut quoted = 0;
    for cell in first_cells("docs/TROUBLESHOOTING.md", "| s3view says |") {
        for message in inline_code(&cell) {
            assert!(code.contains(&message), "no code says {message:?}");
            quoted += 1;
        }
    }
    assert!(quoted > 50, "the notation changed");
}

/// Every code that a publish can end with has its chapter.
#[test]
fn every_code_is_told() {
    let text = read("docs/TROUBLESHOOTING.md");
    let (_, codes) = read("docs/SEMANTICS.md").split_once("\n## Codes\n").map(owned).unwrap();
    let codes = codes.split("\n## ").next().unwrap().to_owned();
    let names: Vec<String> = codes.lines().filter_map(code_of_row).collect();
    assert!(names.len() > 8, "the notation changed");
    // Told among the problems of a publish, where its reason is.
    for name in names.iter().filter(|name| *name != "ALREADY_EXISTS") {
        let name = camel(name);
        let told = text.lines().filter(|line| line.starts_with("### "));
        assert!(told.into_iter().any(|line| line.contains(&name)), "{name} has no chapter");
    }
}

#[test]
fn every_documented_setting_exists() {
    let text = read("docs/CONFIGURATION.md");
    let (_, attributes) = text.split_once("\n## Volume attributes\n").unwrap();
    let (attributes, _) = attributes.split_once("\n## ").unwrap();
    let rows = attributes.lines().filter(|line| line.starts_with("| `"));
    let mut told = BTreeSet::new();
    for row in rows {
        let cell = row.split(" | ").next().unwrap();
        told.extend(inline_code(cell));
    }
    let known = ATTRIBUTES.iter().chain(&SOURCE_KEYS).map(|name| (*name).to_owned());
    assert_eq!(told, known.collect(), "docs/CONFIGURATION.md and the parser differ");
    let (_, keys) = text.split_once("\n## Secret keys\n").unwrap();
    let (keys, _) = keys.split_once("\n- ").unwrap();
    let rows = keys.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    let told: BTreeSet<String> = rows
        .flat_map(|row| inline_code(row.split(" | ").nth(1).unwrap()))
        .filter(|name| name != "data" && name != "caBundle")
        .collect();
    let known = SECRET_KEYS.iter().copied().flatten().map(|name| (*name).to_owned());
    assert_eq!(told, known.collect(), "docs/CONFIGURATION.md and the parser differ");
}

/// A key that the reader does not have would be refused in a file.
#[test]
fn every_documented_key_is_read() {
    let text = read("docs/CONFIGURATION.md");
    let (file, _) = text.split_once("\n## Volume attributes\n").unwrap();
    let mut checked = 0;
    for row in file.lines().filter(|line| line.starts_with("| `")) {
        let key = inline_code(row).remove(0);
        let path = key.replace("ATTRIBUTE", "bucket").replace("[]", ".[]");
        // Nothing is a good value of every key.
        let file = path.rsplit('.').fold(Value::Null, |inner, name| match name {
            "[]" => json!([inner]),
            name => json!({ name: inner }),
        });
        let told = Config::parse(&file.to_string()).err();
        let told = told.map(|problems| problems.to_string()).unwrap_or_default();
        assert!(!told.contains("is not known"), "{key}: {told}");
        checked += 1;
    }
    assert!(checked > 50, "the notation changed: {checked}");
    let unknown = Config::parse(r#"{"store": {"sharing": null}}"#).unwrap_err();
    assert!(unknown.to_string().contains("is not known"), "{unknown}");
}

/// What another driver's setting becomes is a setting.
#[test]
fn every_counterpart_exists() {
    let mut known: BTreeSet<String> =
        ATTRIBUTES.iter().chain(&SOURCE_KEYS).map(|it| (*it).into()).collect();
    known.extend(SECRET_KEYS.iter().copied().flatten().map(|name| (*name).to_owned()));
    let configuration = read("docs/CONFIGURATION.md");
    for row in configuration.lines().filter(|line| line.starts_with("| `")) {
        known.extend(inline_code(row.split(" | ").next().unwrap()));
    }
    // Of Kubernetes.
    known.insert("nodePublishSecretRef".to_owned());
    let mut checked = 0;
    for row in read("docs/MIGRATION.md").lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let Some(cell) = cells.get(1).filter(|cell| !cell.contains('(')) else { continue };
        for code in inline_code(cell).into_iter().filter(|code| !code.contains("://")) {
            let name = code.split([':', ' ']).next().unwrap();
            // `sts.url of the endpoint` is `endpoints.NAME.sts.url`.
            let end = format!(".{name}");
            let exists = known.iter().any(|known| known == name || known.ends_with(&end));
            assert!(exists, "{name} in {row:?} is no setting");
            checked += 1;
        }
    }
    assert!(checked > 50, "the notation changed: {checked}");
}

/// Settings of the chart that the guides name are settings of the chart.
#[test]
fn every_value_of_the_chart_exists() {
    let path = root().join("deploy/helm/s3view/values.yaml");
    let Ok(values) = fs::read_to_string(path) else { return };
    let values: Value = serde_saphyr::from_str(&values).unwrap();
    let tops = values.as_object().unwrap();
    let mut checked = 0;
    for document in ["docs/INSTALL.md", "docs/TROUBLESHOOTING.md"] {
        for code in inline_code(&read(document)) {
            let path = code.split([':', ' ']).next().unwrap();
            let (top, rest) = path.split_once('.').unwrap_or((path, ""));
            // What stands below config is of the configuration file, which other tests hold.
            if rest.is_empty() || top == "config" || !tops.contains_key(top) {
                continue;
            }
            let found = path.split('.').try_fold(&values, |value, key| value.get(key));
            assert!(found.is_some(), "{document}: the chart has no {path}");
            checked += 1;
        }
    }
    assert!(checked > 5, "the notation changed: {checked}");
}

/// What the commands of a guide name is there, and they are good shell.
#[test]
fn the_commands_of_the_guides_can_be_typed() {
    let mut paths = 0;
    for (document, directory) in
        [("docs/INSTALL.md", ""), ("examples/README.md", "examples"), ("README.md", "")]
    {
        for script in blocks(document, "sh") {
            let parsed = Command::new("bash").args(["-n", "-c", &script]).output().unwrap();
            assert!(parsed.status.success(), "{document}: {script}");
            for word in script.split(|c: char| c.is_whitespace() || c == '=') {
                let top = word.split('/').next().unwrap_or_default();
                if word.contains('/')
                    && ["examples", "seed", "data", "spark", "volumes"].contains(&top)
                {
                    let path = root().join(directory).join(word);
                    assert!(path.exists(), "{document} names {word}, which is not there");
                    paths += 1;
                }
            }
        }
    }
    assert!(paths > 15, "the notation changed: {paths}");
}

#[test]
fn the_readme_is_short() {
    assert!(read("README.md").lines().count() < 150);
}

/// A page in another language has the same parts in the same order.
#[test]
fn the_russian_page_is_in_step() {
    let (english, russian) = (read("README.md"), read("README.ru.md"));
    assert_eq!(outline(&english), outline(&russian), "headings, tables, lists or blocks differ");
    assert_eq!(all_blocks(&english), all_blocks(&russian), "code blocks differ");
    // Each leads to the other.
    let theirs = links(&russian).into_iter().map(|link| link.replace("README.md", "README.ru.md"));
    let ours = links(&english).into_iter().map(|link| link.replace("README.md", "README.ru.md"));
    assert!(ours.eq(theirs), "links differ");
    let letters = |text: &str| text.chars().filter(|c| ('\u{410}'..='\u{44f}').contains(c)).count();
    for line in russian.lines().filter(|line| line.starts_with('#') && *line != "# s3view") {
        assert!(letters(line) > 0, "{line} is not in Russian");
    }
    assert!(letters(&russian) > 2000, "the page is not in Russian");
}

/// A page as a sequence of its parts: levels of headings, columns of table rows, list items, blocks.
fn outline(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with("```") {
            inside = !inside;
            parts.push("block".to_owned());
        } else if inside {
        } else if line.starts_with('#') {
            parts.push(line.split(' ').next().unwrap().to_owned());
        } else if line.starts_with('|') {
            parts.push(format!("row of {}", line.matches('|').count()));
        } else if line.starts_with("- ") {
            parts.push("item".to_owned());
        }
    }
    parts
}

fn links(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(str::to_owned).collect()
}

fn all_blocks(text: &str) -> Vec<String> {
    text.split("\n```").skip(1).step_by(2).map(str::to_owned).collect()
}

/// The fenced blocks of a document in one language.
fn blocks(document: &str, language: &str) -> Vec<String> {
    let text = read(document);
    let mark = format!("{language}\n");
    all_blocks(&text)
        .into_iter()
        .filter_map(|it| it.strip_prefix(&mark).map(str::to_owned))
        .collect()
}

/// The first cells of all tables below such a heading row.
fn first_cells(document: &str, heading: &str) -> Vec<String> {
    let mut cells = Vec::new();
    let mut inside = false;
    for line in read(document).lines() {
        if line.starts_with(heading) {
            inside = true;
        } else if !line.starts_with('|') {
            inside = false;
        } else if inside && line.starts_with("| ") {
            cells.push(line.split(" | ").next().unwrap().to_owned());
        }
    }
    cells
}

/// What stands between single backticks.
fn inline_code(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn code_of_row(row: &str) -> Option<String> {
    let cell = row.strip_prefix("| ")?.split(" | ").next()?;
    let is_code = cell.len() > 3 && cell.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    is_code.then(|| cell.to_owned())
}

/// `NOT_FOUND` as kubectl shows it: `NotFound`.
fn camel(name: &str) -> String {
    let word = |word: &str| {
        let (first, rest) = word.split_at(1);
        format!("{first}{}", rest.to_lowercase())
    };
    name.split('_').map(word).collect()
}

fn owned((before, after): (&str, &str)) -> (String, String) {
    (before.to_owned(), after.to_owned())
}

/// All sources as one text, string literals in one piece.
fn source_text() -> String {
    let mut text = String::new();
    let mut directories = vec![root().join("src")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                text.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut joined = String::new();
    let mut goes_on = false;
    for line in text.lines() {
        let line = if goes_on { line.trim_start() } else { line };
        goes_on = line.ends_with('\\');
        joined.push_str(line.strip_suffix('\\').unwrap_or(line));
        if !goes_on {
            joined.push('\n');
        }
    }
    joined.replace("\\\"", "\"")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
