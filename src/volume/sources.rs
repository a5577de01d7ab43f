//! The places in S3 that a volume shows: `bucket` and `prefix`, or the YAML list `sources`.

use serde_json::{Map, Value};
use serde_saphyr::UserMessageFormatter;

use super::{Selection, SourceSpec, attributes::Reader};
use crate::{
    glob::Filter,
    listing::natural_path,
    object::{Bucket, Key, Prefix},
    relpath::{PathProblem, RelPath},
};

/// Every key of an entry of the attribute `sources`, in the order of the reference.
pub const SOURCE_KEYS: [&str; 7] =
    ["bucket", "prefix", "key", "path", "versionId", "include", "exclude"];

/// The longest version id, in bytes, as Amazon S3 has it.
const MAX_VERSION_ID: usize = 1024;

/// Reads every source of a volume. What is wrong with them goes to `reader`.
pub(super) fn read(reader: &mut Reader<'_>) -> Vec<SourceSpec> {
    if reader.is_set("sources") {
        return read_list(reader);
    }
    if !reader.is_set("bucket") {
        reader.problem("bucket", "is required, here or in every entry of sources");
    }
    let bucket = reader.get("bucket", Bucket::parse);
    let prefix = reader.get("prefix", prefix).unwrap_or_default();
    let include = reader.get("include", |text| pattern_text("include", text)).unwrap_or_default();
    let exclude = reader.get("exclude", |text| pattern_text("exclude", text)).unwrap_or_default();
    let selection = Selection::Prefix(prefix);
    let filter = Filter::parse(&include, &exclude).unwrap_or_default();
    bucket.map(|bucket| SourceSpec { bucket, selection, path: None, filter }).into_iter().collect()
}

fn read_list(reader: &mut Reader<'_>) -> Vec<SourceSpec> {
    reader.refuse(
        &["prefix", "include", "exclude"],
        "must stand in the entries of sources, because sources is given; move it there",
    );
    let bucket = reader.get("bucket", Bucket::parse);
    // A wrong default bucket is one problem, not one for each entry that relies on it.
    let has_bucket = reader.is_set("bucket");
    let entries = reader.get("sources", source_entries).unwrap_or_default();
    let mut sources = Vec::new();
    for (index, value) in entries.into_iter().enumerate() {
        let path = format!("sources[{index}]");
        let Value::Object(values) = value else {
            reader.problem(&path, "must be a mapping, such as {prefix: certs}");
            continue;
        };
        let mut entry = Entry { path, values, reader: &mut *reader };
        let source = entry.read(bucket.as_ref(), has_bucket);
        entry.report_unknown();
        sources.extend(source);
    }
    sources
}

/// The entries of the attribute `sources`, each of which has yet to be understood.
///
/// # Errors
/// That the text is no YAML list, or an empty one.
pub fn source_entries(text: &str) -> Result<Vec<Value>, String> {
    const RULE: &str = "must be a YAML list of mappings, such as \"[{prefix: certs}]\"";
    // 4 KiB of nested aliases could otherwise grow to millions of values.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_aliases: 0, max_documents: 1 },
        strict_booleans: true,
    };
    match serde_saphyr::from_str_with_options(text, options) {
        Ok(Value::Array(entries)) if entries.is_empty() => {
            Err(format!("must not be empty: it {RULE}"))
        }
        Ok(Value::Array(entries)) => Ok(entries),
        Ok(_) => Err(RULE.to_owned()),
        Err(error) => {
            let error = error.without_snippet().render_with_formatter(&UserMessageFormatter);
            Err(format!("{RULE}: {error}"))
        }
    }
}

/// One entry of the list.
struct Entry<'a, 'r> {
    path: String,
    values: Map<String, Value>,
    reader: &'a mut Reader<'r>,
}

impl Entry<'_, '_> {
    fn read(&mut self, default_bucket: Option<&Bucket>, has_default: bool) -> Option<SourceSpec> {
        let bucket = if self.has("bucket") {
            self.get("bucket", Bucket::parse)
        } else {
            if !has_default {
                self.problem("bucket", "is required, because the attribute bucket is not given");
            }
            default_bucket.cloned()
        };
        let (selection, path) = if self.has("key") { self.read_key() } else { self.read_prefix() };
        let (include, exclude) = (self.patterns("include"), self.patterns("exclude"));
        let filter = Filter::parse(&include, &exclude).unwrap_or_default();
        Some(SourceSpec { bucket: bucket?, selection: selection?, path, filter })
    }

    fn read_prefix(&mut self) -> (Option<Selection>, Option<RelPath>) {
        if self.has("versionId") {
            self.problem("versionId", "selects a version of one object; it needs key, not prefix");
        }
        let whole = (!self.has("prefix")).then(Prefix::default);
        let selection = whole.or_else(|| self.get("prefix", prefix));
        let path = self.get("path", |text| {
            RelPath::parse(text.strip_suffix('/').unwrap_or(text)).map_err(|problem| {
                format!("{text:?} must be a directory in the volume, such as \"jars\": {problem}")
            })
        });
        (selection.map(Selection::Prefix), path)
    }

    fn read_key(&mut self) -> (Option<Selection>, Option<RelPath>) {
        if self.has("prefix") {
            self.problem("prefix", "must not stand beside key; make it an entry of its own");
        }
        for name in ["include", "exclude"] {
            if self.has(name) {
                self.problem(name, "applies to a prefix, not to key");
            }
        }
        let key = self.get("key", Key::parse);
        let version_id = self.get("versionId", version_id);
        let path = if self.has("path") {
            self.get("path", |text| {
                RelPath::parse(text).map_err(|problem| {
                    format!("{text:?} must be a file in the volume, such as \"app.jar\": {problem}")
                })
            })
        } else {
            key.as_ref().and_then(|key| self.natural_path(key))
        };
        (key.map(|key| Selection::Key { key, version_id: version_id.map(Into::into) }), path)
    }

    fn natural_path(&mut self, key: &Key) -> Option<RelPath> {
        let text = |problem: PathProblem| {
            format!(
                "is required, because the last part of {:?} is no name: {problem}",
                key.as_str()
            )
        };
        natural_path(key).map_err(|problem| self.problem("path", text(problem))).ok()
    }

    /// The patterns of `name`: one text, or a list of texts that is made one.
    fn patterns(&mut self, name: &'static str) -> String {
        if let Some(Value::Array(items)) = self.values.get(name) {
            let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            if let Some(texts) = texts {
                let joined = texts.join("\n");
                self.values.insert(name.to_owned(), joined.into());
            }
        }
        self.get(name, |text| pattern_text(name, text)).unwrap_or_default()
    }

    /// Whether the entry has a value for `name`; nothing (`prefix:`) and empty text are none.
    fn has(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|value| !value.is_null() && value.as_str() != Some(""))
    }

    fn get<T, E: ToString>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.values.get(name).filter(|_| self.has(name))?;
        let parsed = match value {
            Value::String(text) => {
                check_text(name, text).and_then(|()| parse(text).map_err(|error| error.to_string()))
            }
            _ => Err("must be text; put it in quotes".to_owned()),
        };
        parsed.map_err(|text| self.problem(name, text)).ok()
    }

    fn problem(&mut self, name: &str, text: impl Into<String>) {
        self.reader.problem(&format!("{}.{name}", self.path), text);
    }

    fn report_unknown(&mut self) {
        for name in self.values.keys().filter(|name| !SOURCE_KEYS.contains(&name.as_str())) {
            self.reader.unknown(&format!("{}.{name}", self.path), &SOURCE_KEYS);
        }
    }
}

/// An escape such as `"\n"` in YAML makes control characters that the attribute did not have.
fn check_text(name: &str, text: &str) -> Result<(), String> {
    let lines = matches!(name, "include" | "exclude");
    if text.chars().any(|c| c.is_control() && !(lines && c == '\n')) {
        return Err(format!("{text:?} must not contain control characters"));
    }
    Ok(())
}

/// A prefix without the leading slash that people write from habit: no key below it would match.
fn prefix(text: &str) -> Result<Prefix, String> {
    if text.starts_with('/') {
        let remedy = match text.trim_start_matches('/') {
            "" => "leave it out for the whole bucket".to_owned(),
            rest => format!("write {rest:?}"),
        };
        return Err(format!("{text:?} must not begin with '/'; {remedy}"));
    }
    Prefix::parse(text).map_err(|error| error.to_string())
}

fn version_id(text: &str) -> Result<String, String> {
    if text.len() <= MAX_VERSION_ID {
        return Ok(text.to_owned());
    }
    Err(format!("must be a version id of at most {MAX_VERSION_ID} bytes, and is {}", text.len()))
}

/// The text of patterns that are known to be good.
fn pattern_text(name: &str, text: &str) -> Result<String, String> {
    let (include, exclude) = if name == "include" { (text, "") } else { ("", text) };
    let checked = Filter::parse(include, exclude).map_err(|error| error.to_string());
    checked.map(|_| text.to_owned())
}
