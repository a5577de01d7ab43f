//! Reading one mapping of the configuration file, key by key.
//!
//! A [`Section`] owns the keys of a mapping until a reader takes them. Whoever takes a key makes
//! it known, so what is left at the end is unknown by definition: no second list of names can
//! drift from the code. Deriving `Deserialize` would stop at the first mistake.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::problems::Problems;

/// One mapping of the file, with the path that leads to it.
pub(super) struct Section<'a> {
    path: String,
    entries: Map<String, Value>,
    known: Vec<&'static str>,
    problems: &'a mut Problems,
}

impl Section<'_> {
    /// Reads a mapping with `read`, then reports every key that `read` did not take.
    ///
    /// Nothing (null) reads as an empty mapping, so that defaults have one place: the reader.
    pub(super) fn read<T>(
        path: String,
        value: Value,
        problems: &mut Problems,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> T {
        let entries = match value {
            Value::Null => Map::new(),
            Value::Object(entries) => entries,
            other => {
                let field = if path.is_empty() { "configuration" } else { &path };
                problems.add(field, format!("must be a mapping of keys, not {}", kind(&other)));
                Map::new()
            }
        };
        let mut section = Section { path, entries, known: Vec::new(), problems };
        let result = read(&mut section);
        for key in section.entries.keys() {
            section.problems.add_unknown(&join(&section.path, key), &section.known);
        }
        result
    }

    /// The value of `key` as `parse` understands it, or `None` if it is absent or wrong.
    ///
    /// Numbers and booleans are parsed from their text. Nothing and empty text are absent: a
    /// template that renders `""` for a setting left out means the default.
    pub(super) fn get<T, E: ToString>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.take(key)?;
        let parsed = scalar(&value).and_then(|text| parse(&text).map_err(|e| e.to_string()));
        self.accept(key, parsed)
    }

    /// Like [`get`](Self::get), for a key that has no default.
    pub(super) fn required<T, E: ToString>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        if !self.is_set(&[key]) {
            self.problem(key, "is required");
        }
        self.get(key, parse)
    }

    /// The mapping below `key`; an absent one reads as an empty one.
    pub(super) fn section<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> T {
        let value = self.take(key).unwrap_or_default();
        Section::read(join(&self.path, key), value, self.problems, read)
    }

    /// The mappings below the mapping `key`, each under a name that the user chose.
    pub(super) fn named<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&mut Section<'_>) -> T,
    ) -> BTreeMap<String, T> {
        self.section(key, |names| {
            let entries = std::mem::take(&mut names.entries);
            let read_entry = |(name, value): (String, Value)| {
                let path = join(&names.path, &name);
                (name, Section::read(path, value, names.problems, &read))
            };
            entries.into_iter().map(read_entry).collect()
        })
    }

    /// The mappings in the list `key`.
    pub(super) fn sections<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&mut Section<'_>) -> T,
    ) -> Vec<T> {
        let items = self.items(key).unwrap_or_default();
        let path = join(&self.path, key);
        let read_item =
            |(index, item)| Section::read(format!("{path}[{index}]"), item, self.problems, &read);
        items.into_iter().enumerate().map(read_item).collect()
    }

    /// The values in the list `key` as `parse` understands them, or `None` if it is absent.
    pub(super) fn list<T, E: ToString>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let items = self.items(key)?;
        let parse_item = |(index, item)| {
            let parsed = scalar(&item).and_then(|text| parse(&text).map_err(|e| e.to_string()));
            self.accept(&format!("{key}[{index}]"), parsed)
        };
        Some(items.into_iter().enumerate().filter_map(parse_item).collect())
    }

    /// All keys that nobody took, with their values as text.
    pub(super) fn texts(&mut self) -> BTreeMap<String, String> {
        let entries = std::mem::take(&mut self.entries);
        let present = entries.into_iter().filter(|(_, value)| !value.is_null());
        present
            .filter_map(|(key, value)| {
                let text = self.accept(&key, scalar(&value))?;
                Some((key, text))
            })
            .collect()
    }

    /// Whether the file gives a value at this path below the section. Ask before taking it.
    pub(super) fn is_set(&self, path: &[&str]) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        let value = rest
            .iter()
            .try_fold(self.entries.get(*first), |value, key| value.map(|value| value.get(*key)));
        value.flatten().is_some_and(|value| !is_absent(value))
    }

    /// Reports that the value of `key` is wrong.
    pub(super) fn problem(&mut self, key: &str, text: impl Into<String>) {
        self.problems.add(join(&self.path, key), text);
    }

    fn accept<T>(&mut self, key: &str, parsed: Result<T, String>) -> Option<T> {
        parsed.map_err(|text| self.problem(key, text)).ok()
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.entries.remove(key).filter(|value| !is_absent(value))
    }

    fn items(&mut self, key: &'static str) -> Option<Vec<Value>> {
        match self.take(key)? {
            Value::Array(items) => Some(items),
            other => {
                self.problem(key, format!("must be a list, not {}", kind(&other)));
                None
            }
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn is_absent(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("")
}

fn scalar(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            Err(format!("must be a single value, not {}", kind(value)))
        }
    }
}

const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}
