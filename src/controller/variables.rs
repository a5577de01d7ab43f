//! Names of the claim in parameters: `${pvc.namespace}`, `${pvc.name}`, `${pv.name}`.
//!
//! One StorageClass then gives each namespace or claim a prefix of its own. Whoever makes a claim
//! chooses its name, so a name may fill in a part of a path and nothing else: it cannot bring a `/`,
//! be `..`, or turn into another kind of YAML value (a claim called `null`). Therefore variables stand
//! in few places, and in `sources` a name is put in after the YAML was understood.

use std::collections::BTreeMap;

use serde_json::Value;

use super::attributes_of;
use crate::{
    problems::{Problems, nearest},
    volume::source_entries,
};

/// Where the provisioner says what is created, with `--extra-create-metadata`.
const CLAIM_NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
const CLAIM_NAME: &str = "csi.storage.k8s.io/pvc/name";

/// The keys of an entry of `sources` in which variables may stand.
const PLACES: [&str; 3] = ["prefix", "key", "path"];

const ELSEWHERE: &str = "must not contain \"${\": variables may stand in prefix and, within sources, in \
                         prefix, key and path";

/// What can be filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variable {
    ClaimNamespace,
    ClaimName,
    VolumeName,
}

impl Variable {
    const ALL: [(&'static str, Self); 3] = [
        ("pvc.namespace", Self::ClaimNamespace),
        ("pvc.name", Self::ClaimName),
        ("pv.name", Self::VolumeName),
    ];

    /// A character that stands for the variable while YAML is read: to YAML a letter like others, and
    /// to everybody else unassigned.
    const fn mark(self) -> char {
        match self {
            Self::ClaimNamespace => '\u{e000}',
            Self::ClaimName => '\u{e001}',
            Self::VolumeName => '\u{e002}',
        }
    }

    fn parse(name: &str) -> Result<Self, String> {
        let known = Self::ALL.iter().find(|(known, _)| *known == name);
        known.map(|(_, variable)| *variable).ok_or_else(|| {
            let names = Self::ALL.map(|(name, _)| name);
            let hint = match nearest(name, &names) {
                Some(name) => format!("did you mean \"${{{name}}}\"?"),
                None => format!("known are {}", names.join(", ")),
            };
            format!("the variable \"${{{name}}}\" is not known; {hint}")
        })
    }
}

/// The names of what is created.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names<'a> {
    namespace: Option<&'a str>,
    claim: Option<&'a str>,
    volume: &'a str,
}

impl<'a> Names<'a> {
    /// The names that a request gives.
    pub(super) fn of(volume: &'a str, parameters: &'a BTreeMap<String, String>) -> Self {
        let get = |key| parameters.get(key).map(String::as_str).filter(|value| !value.is_empty());
        Self { namespace: get(CLAIM_NAMESPACE), claim: get(CLAIM_NAME), volume }
    }

    /// The claim's namespace.
    pub(super) fn namespace(&self) -> Option<&'a str> {
        self.namespace
    }

    /// The value of a variable, if it can be a part of a path.
    fn value(&self, variable: Variable) -> Result<&'a str, String> {
        let (value, field) = match variable {
            Variable::ClaimNamespace => (self.namespace, "pvc.namespace"),
            Variable::ClaimName => (self.claim, "pvc.name"),
            Variable::VolumeName => (Some(self.volume), "pv.name"),
        };
        let value = value.ok_or_else(|| {
            format!(
                "\"${{{field}}}\" is not told by the provisioner; start csi-provisioner with \
                 --extra-create-metadata"
            )
        })?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let is_name = value.chars().all(allowed) && !value.chars().all(|c| c == '.');
        if is_name && value.len() <= 253 {
            return Ok(value);
        }
        Err(format!(
            "\"${{{field}}}\" is {value:?}, and must be letters, digits, '-', '.' and '_', not only \
             dots: it is a part of one name in a path"
        ))
    }

    fn expand(&self, text: &str) -> Result<String, String> {
        substitute(text, |variable| self.value(variable).map(str::to_owned))
    }

    /// Puts names in the place of marks.
    fn fill(&self, text: &str) -> Result<String, String> {
        let mut filled = text.to_owned();
        for (_, variable) in Variable::ALL {
            if filled.contains(variable.mark()) {
                filled = filled.replace(variable.mark(), self.value(variable)?);
            }
        }
        Ok(filled)
    }
}

/// The attributes that parameters make, and what is wrong with their variables: such a parameter
/// stays as it was written, so that more can be found wrong with it.
pub(super) fn resolve(
    parameters: &BTreeMap<String, String>,
    names: &Names<'_>,
) -> (BTreeMap<String, String>, Problems) {
    let mut problems = Problems::default();
    let mut attributes = attributes_of(parameters.clone());
    for (name, value) in attributes.iter_mut().filter(|(_, value)| value.contains("${")) {
        let resolved = match name.as_str() {
            "prefix" => names.expand(value).map_err(|text| problem("prefix", text)),
            "sources" => sources(value, names),
            _ => Err(problem(name, ELSEWHERE)),
        };
        match resolved {
            Ok(resolved) => *value = resolved,
            Err(found) => problems.extend(found),
        }
    }
    (attributes, problems)
}

fn problem(field: &str, text: impl Into<String>) -> Problems {
    let mut problems = Problems::default();
    problems.add(field, text);
    problems
}

/// The list with its variables filled in, as JSON, which is YAML as well.
fn sources(text: &str, names: &Names<'_>) -> Result<String, Problems> {
    let marked = if has_marks(text) {
        Err("must not contain characters of Unicode's private use area".to_owned())
    } else {
        substitute(text, |variable| Ok(variable.mark().to_string()))
    };
    let entries = marked.and_then(|marked| source_entries(&marked));
    let mut entries = entries.map_err(|text| problem("sources", text))?;
    let mut problems = Problems::default();
    for (index, entry) in entries.iter_mut().enumerate() {
        fill_entry(entry, names, |name, text| {
            problems.add(format!("sources[{index}]{name}"), text);
        });
    }
    problems.into_result(Value::Array(entries).to_string())
}

fn fill_entry(entry: &mut Value, names: &Names<'_>, mut problem: impl FnMut(String, String)) {
    let Value::Object(values) = entry else {
        if has_marks(&entry.to_string()) {
            problem(String::new(), ELSEWHERE.to_owned());
        }
        return;
    };
    for (name, value) in values {
        match value {
            Value::String(text) if PLACES.contains(&name.as_str()) => match names.fill(text) {
                Ok(filled) => *text = filled,
                Err(text) => problem(format!(".{name}"), text),
            },
            _ if has_marks(name) => problem(String::new(), ELSEWHERE.to_owned()),
            _ if has_marks(&value.to_string()) => {
                problem(format!(".{name}"), ELSEWHERE.to_owned());
            }
            _ => {}
        }
    }
}

fn has_marks(text: &str) -> bool {
    Variable::ALL.iter().any(|(_, variable)| text.contains(variable.mark()))
}

/// Puts something in the place of each variable.
fn substitute(
    text: &str,
    mut value: impl FnMut(Variable) -> Result<String, String>,
) -> Result<String, String> {
    let (mut done, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}').ok_or_else(|| {
            let end: String = after.chars().take(20).collect();
            format!("\"${{{end}\" has no end; a variable is written \"${{pvc.name}}\"")
        })?;
        done.push_str(before);
        done.push_str(&value(Variable::parse(name)?)?);
        rest = after;
    }
    done.push_str(rest);
    Ok(done)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    fn resolved(claim: &str, name: &str, text: &str) -> Result<String, String> {
        let parameters = [(CLAIM_NAMESPACE, "spark"), (CLAIM_NAME, claim), (name, text)];
        let parameters = parameters.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let (mut attributes, problems) = resolve(&parameters, &Names::of("pvc-1", &parameters));
        let resolved = attributes.remove(name);
        assert!(attributes.is_empty(), "reserved keys are no attributes");
        let resolved = problems.into_result(resolved.unwrap());
        resolved.map_err(|problems| problems.to_string())
    }

    #[test_case("team/${pvc.namespace}/${pvc.name}", "team/spark/jars")]
    #[test_case("${pv.name}", "pvc-1")]
    #[test_case("a-${pvc.name}-b/$x", "a-jars-b/$x"; "within a name, beside a dollar")]
    #[test_case("plain", "plain")]
    fn names_are_filled_in(text: &str, expected: &str) {
        assert_eq!(resolved("jars", "prefix", text).as_deref(), Ok(expected));
    }

    #[test_case("prefix", "${pvc.nam}", "did you mean \"${pvc.name}\"?"; "a slip")]
    #[test_case("prefix", "${HOME}", "known are"; "another one")]
    #[test_case("prefix", "${pvc.name", "has no end"; "no end")]
    #[test_case("prefix", "${}", "is not known"; "no name")]
    #[test_case("bucket", "${pvc.name}", "bucket: must not contain"; "another attribute")]
    #[test_case("sources", "[{prefix: '${x}'}]", "sources: the variable"; "unknown in sources")]
    #[test_case("sources", "[{bucket: '${pvc.name}'}]", "sources[0].bucket: must not"; "a bucket")]
    #[test_case("sources", "[{prefix: a, include: ['${pvc.name}']}]", "sources[0].include: "; "a glob")]
    #[test_case("sources", "[{'${pvc.name}': a}]", "sources[0]: must not"; "a key of the mapping")]
    #[test_case("sources", "['${pvc.name}']", "sources[0]: must not"; "no mapping")]
    #[test_case("sources", "a: ${pvc.name}", "sources: must be a YAML list"; "no list")]
    #[test_case("sources", "[{prefix: \"\u{e001}${pvc.name}\"}]", "private use"; "a mark of the user's")]
    fn mistakes_are_told(name: &str, text: &str, expected: &str) {
        let error = resolved("jars", name, text).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }

    #[test_case("../other"; "a way up")]
    #[test_case(".."; "the directory above")]
    #[test_case("a/b"; "two names")]
    #[test_case("a\nb"; "a line break")]
    #[test_case("a,b"; "a comma")]
    #[test_case("\u{e9}"; "not ASCII")]
    fn a_name_that_would_change_the_path_is_refused(claim: &str) {
        for (name, text) in [("prefix", "p/${pvc.name}"), ("sources", "[{prefix: '${pvc.name}'}]")]
        {
            let error = resolved(claim, name, text).unwrap_err();
            assert!(error.contains("it is a part of one name"), "{error}");
        }
        let too_long = resolved(&"a".repeat(254), "prefix", "${pvc.name}");
        assert!(too_long.is_err());
    }

    #[test]
    fn without_metadata_the_remedy_is_told() {
        let parameters = [("prefix".to_owned(), "${pvc.name}".to_owned())].into();
        let (_, problems) = resolve(&parameters, &Names::of("pvc-1", &parameters));
        assert!(problems.to_string().contains("--extra-create-metadata"), "{problems}");
    }

    #[test_case("[{prefix: data/${pvc.name}}]"; "in a flow mapping, unquoted")]
    #[test_case("[{prefix: 'data/${pvc.name}'}]"; "in quotes")]
    #[test_case("- prefix: data/${pvc.name}"; "in a block")]
    fn sources_are_filled_in_however_they_are_written(text: &str) {
        let resolved = resolved("jars", "sources", text).unwrap();
        assert_eq!(resolved, r#"[{"prefix":"data/jars"}]"#);
    }

    /// As text put into YAML, these would be nothing, a truth and numbers: `prefix: null` is the whole
    /// bucket.
    #[test_case("null")]
    #[test_case("true")]
    #[test_case("123")]
    #[test_case("1e3")]
    #[test_case("2024-01-01")]
    fn a_name_stays_text(claim: &str) {
        let resolved = resolved(claim, "sources", "[{prefix: ${pvc.name}, path: ${pv.name}}]");
        let entries = source_entries(&resolved.unwrap()).unwrap();
        assert_eq!(entries[0]["prefix"], Value::String(claim.to_owned()));
        assert_eq!(entries[0]["path"], "pvc-1");
    }

    #[test]
    fn sources_without_variables_stay_as_they_were() {
        let text = "- prefix: a # why\n";
        assert_eq!(resolved("jars", "sources", text).as_deref(), Ok(text));
    }

    proptest! {
        /// Whoever chooses names chooses no directory.
        #[test]
        fn no_name_changes_the_structure_of_a_path(
            claim in "[a./\\-\\\\~\u{2024}]{0,4}",
            (before, after) in ("[ab/]{0,3}", "[ab/]{0,3}"),
        ) {
            let text = format!("{before}${{pvc.name}}{after}");
            let sources = format!("[{{prefix: '{text}'}}]");
            let prefix = resolved(&claim, "prefix", &text);
            let listed = resolved(&claim, "sources", &sources);
            prop_assert_eq!(prefix.is_ok(), listed.is_ok());
            if let (Ok(prefix), Ok(listed)) = (prefix, listed) {
                let slashes = |text: &str| text.matches('/').count();
                prop_assert_eq!(slashes(&prefix), slashes(&text));
                prop_assert!(prefix.split('/').all(|name| name != "." && name != ".."));
                let entries = source_entries(&listed).unwrap();
                prop_assert_eq!(entries[0]["prefix"].as_str(), Some(&*prefix));
            }
        }
    }
}
