//! Every problem of an input at once.
//!
//! A user who mistyped three attributes should read three remedies, not one after another. Parsers
//! collect into [`Problems`]; the edge turns a non-empty collection into one answer.

use std::fmt;

/// One thing wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field as the user wrote it: `fileMode`, `sources[1].prefix`, `endpoints.minio.url`.
    pub field: String,
    /// What is wrong and what to write instead. Never contains a secret.
    pub text: String,
}

/// A collection of problems; empty means that the input is good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

/// From how many problems on unknown names get no hint.
const MANY: usize = 20;

impl Problems {
    /// Records that `field` is wrong. `text` says why and what is allowed.
    pub fn add(&mut self, field: impl Into<String>, text: impl Into<String>) {
        self.0.push(Problem { field: field.into(), text: text.into() });
    }

    /// Records an unknown field, with "did you mean" when a known one is near.
    pub fn add_unknown(&mut self, field: &str, known: &[&str]) {
        // Looking for the nearest name costs; a thousand typos are none.
        if self.0.len() >= MANY {
            return self.add(field, "is not known");
        }
        self.add(field, unknown_text(field.rsplit('.').next().unwrap_or(field), known));
    }

    /// Takes over the problems of a nested parser.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Takes over the problems of a later check with fields in which nothing is wrong so far: where
    /// something is, that check saw a default.
    pub fn extend_with_others(&mut self, other: Self) {
        let is_told = |field: &str| self.0.iter().any(|problem| problem.field == field);
        let others: Vec<_> = other.0.into_iter().filter(|it| !is_told(&it.field)).collect();
        self.0.extend(others);
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The problems in the order of their discovery.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// `Ok(value)` if nothing was recorded, else the problems.
    ///
    /// # Errors
    /// The collection itself, when it is not empty.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{}: {}", problem.field, problem.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

fn unknown_text(name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(candidate) => format!("is not known; did you mean {candidate:?}?"),
        None => format!("is not known; known are {}", known.join(", ")),
    }
}

/// The known word nearest to `name`, if it is near enough to be what was meant.
///
/// Case is ignored; the distance allowed grows with the length (one slip in four letters).
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let wanted = name.to_lowercase();
    known
        .iter()
        .map(|candidate| {
            (strsim::damerau_levenshtein(&wanted, &candidate.to_lowercase()), *candidate)
        })
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_stand_in_one_line() {
        let mut problems = Problems::default();
        problems.add("fileMode", "\"999\" must be octal");
        problems.add_unknown("buckt", &["bucket", "prefix"]);
        assert_eq!(
            problems.to_string(),
            "fileMode: \"999\" must be octal; buckt: is not known; did you mean \"bucket\"?"
        );
    }

    #[test]
    fn a_later_check_says_nothing_about_what_is_wrong_already() {
        let (mut problems, mut later) = (Problems::default(), Problems::default());
        problems.add("kubeletDir", "must begin with \"/\"");
        later.add("kubeletDir", "/var/lib/kubelet must exist");
        later.add("defaults.viw", "is not known");
        later.add("defaults.viw", "is not known, twice");
        problems.extend_with_others(later);
        let fields: Vec<_> = problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(fields, ["kubeletDir", "defaults.viw", "defaults.viw"]);
    }

    #[test]
    fn a_far_name_lists_what_is_known() {
        assert_eq!(nearest("zzz", &["bucket"]), None);
        assert_eq!(nearest("BUCKET", &["bucket"]), Some("bucket"));
    }
}
