//! Include and exclude patterns on the path below a prefix.
//!
//! `*` and `?` stop at `/`, `**` does not; a pattern without `/` matches the last name at any
//! depth; exclude wins; there are no braces. The matching itself is globset's.

use std::fmt;

use globset::{Glob, GlobBuilder, GlobMatcher};
use thiserror::Error;

/// How many patterns a list may have: each is tried on each key of a bucket.
const MOST: usize = 32;

/// Which keys of a source are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

/// One pattern.
#[derive(Debug, Clone)]
struct Pattern {
    matcher: GlobMatcher,
    last_name_only: bool,
}

/// A pattern that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{pattern:?} must be a glob of '*', '**', '?' and [classes]: {reason}")]
pub struct GlobError {
    pattern: String,
    reason: String,
}

impl Filter {
    /// Parses the texts of the attributes `include` and `exclude`: patterns separated by newline
    /// or comma; blanks around a pattern do not count. An empty `include` means everything.
    ///
    /// # Errors
    /// The first pattern that is not a glob.
    pub fn parse(include: &str, exclude: &str) -> Result<Self, GlobError> {
        Ok(Self { include: parse_list(include)?, exclude: parse_list(exclude)? })
    }

    /// Whether the path below the prefix (no leading or trailing `/`) is wanted.
    pub fn accepts(&self, path: &str) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(path));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }

    /// The patterns in a form that is equal exactly when the filters are.
    pub fn canonical(&self) -> String {
        let list = |patterns: &[Pattern]| {
            patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        format!("{}\0{}", list(&self.include), list(&self.exclude))
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.canonical() == other.canonical()
    }
}

impl Eq for Filter {}

impl Pattern {
    fn parse(text: &str) -> Result<Self, GlobError> {
        let error = |reason: String| GlobError { pattern: text.into(), reason };
        if let Some(brace) = text.chars().find(|c| matches!(c, '{' | '}')) {
            return Err(error(format!("'{brace}' is not supported; write one pattern for each")));
        }
        let glob: Glob = GlobBuilder::new(text.trim_start_matches('/'))
            .literal_separator(true)
            .backslash_escape(true)
            .build()
            .map_err(|source| error(source.kind().to_string()))?;
        Ok(Self { matcher: glob.compile_matcher(), last_name_only: !text.contains('/') })
    }

    fn matches(&self, path: &str) -> bool {
        let subject = if self.last_name_only { last_name(path) } else { path };
        self.matcher.is_match(subject)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let anchor = if self.last_name_only { "" } else { "/" };
        write!(f, "{anchor}{}", self.matcher.glob().glob())
    }
}

fn last_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn parse_list(text: &str) -> Result<Vec<Pattern>, GlobError> {
    let patterns = text.split(['\n', ',']).map(str::trim).filter(|p| !p.is_empty());
    if let Some(pattern) = patterns.clone().nth(MOST) {
        let reason = format!("it is one more than the {MOST} that a list may have");
        return Err(GlobError { pattern: pattern.into(), reason });
    }
    patterns.map(Pattern::parse).collect()
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("*.jks", "a/b/x.jks", true; "no slash matches the last name")]
    #[test_case("a/*.jks", "a/x.jks", true)]
    #[test_case("a/*.jks", "a/b/x.jks", false; "a star stops at a slash")]
    #[test_case("a/**", "a/b/x.jks", true; "two stars do not")]
    #[test_case("**/x.jks", "x.jks", true; "two stars match no directory")]
    #[test_case("?.jks", "x.jks", true)]
    #[test_case("/x.jks", "a/x.jks", false; "a leading slash anchors")]
    #[test_case("a\nb, c", "c", true; "newline and comma separate")]
    #[test_case("[ab].txt", "b.txt", true)]
    fn include_patterns(include: &str, path: &str, wanted: bool) {
        assert_eq!(Filter::parse(include, "").unwrap().accepts(path), wanted);
    }

    #[test]
    fn exclude_wins() {
        let filter = Filter::parse("*.jks", "old/**").unwrap();
        assert!(filter.accepts("new/a.jks"));
        assert!(!filter.accepts("old/a.jks"));
    }

    #[test]
    fn a_list_has_an_end() {
        let list = |count: usize| vec!["**/a*b"; count].join(",");
        assert!(Filter::parse(&list(MOST), &list(MOST)).is_ok());
        assert!(Filter::parse("", &list(MOST + 1)).unwrap_err().to_string().contains("32"));
    }

    #[test]
    fn braces_and_broken_classes_are_refused() {
        assert!(Filter::parse("{a,b}", "").unwrap_err().to_string().contains("{a"));
        assert!(Filter::parse("", "[a").is_err());
    }
}
