//! The layers, held by a test: one package has no compiler wall between its modules.
//!
//! Every file below `src/` is parsed, and each path in it that leads to another module, or to a
//! crate that only some modules may know, is compared with the two tables below. Checked are `use`
//! trees and paths in code, types, attributes and macro calls; doc links are not code.

#![allow(clippy::unwrap_used, clippy::panic, reason = "all of this file is a test")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, Item, ItemMod, ItemUse, Macro, MetaList, UseTree,
    visit::{self, Visit},
};

/// A module, and the modules of its own layer that it may use.
type Module = (&'static str, &'static [&'static str]);

/// The layers, lowest first: a module uses lower layers, and of its own only what is listed.
const LAYERS: &[&[Module]] = &[
    // The program's memory.
    &[("allocator", &[])],
    // Plain data and pure decisions.
    &[
        ("failure", &[]),
        ("packed", &[]),
        ("problems", &["failure"]),
        ("units", &["failure", "problems"]),
        ("object", &["failure", "problems"]),
        ("certificate", &["failure", "problems"]),
        ("relpath", &["failure", "problems"]),
        ("glob", &["failure", "problems"]),
        ("listing", &["failure", "packed", "problems", "units", "object", "relpath", "glob"]),
        ("config", &["failure", "problems", "units", "object"]),
        (
            "volume",
            &[
                "failure",
                "problems",
                "units",
                "object",
                "certificate",
                "relpath",
                "glob",
                "listing",
                "config",
            ],
        ),
    ],
    // Who asks S3; what operators see; who owns a task; who may connect.
    &[("source", &[]), ("telemetry", &[]), ("task", &[]), ("socket", &[])],
    // The network, the cache, the kernel, what outlives the plugin, Kubernetes.
    &[("source::s3", &[]), ("store", &[]), ("mount", &[]), ("keeper", &[]), ("cluster", &[])],
    // How a listing is shown; from sources to blobs.
    &[("view", &[]), ("fetch", &[])],
    // The volumes of this node; what a claim becomes.
    &[("node", &[]), ("controller", &[])],
    // The gRPC edge.
    &[("csi", &[])],
    // Composition.
    &[("app", &[])],
    &[("bin", &[])],
];

/// What only some modules may name; `*` ends a prefix. Test modules are exempt.
const RESTRICTED: &[(&str, &[&str])] = &[
    ("anyhow", &["bin"]),
    ("aws_*", &["source::s3"]),
    ("axum", &["telemetry"]),
    ("clap", &["app", "bin"]),
    ("fuser", &["view::fuse"]),
    ("hyper*", &["source::s3", "cluster"]),
    ("libc", &["mount"]),
    // Outside of `mount`: mappings, files by descriptor, the lock on the state directory, the 0600 socket,
    // who is at its other end, and signals without a runtime.
    (
        "nix",
        &["allocator", "mount", "store", "view", "node::start", "socket", "keeper", "app::keeper"],
    ),
    ("prost*", &["csi"]),
    // Extended attributes, which nix does not have; descriptors over a socket without `unsafe`.
    ("rustix", &["store", "keeper", "mount::selinux"]),
    ("rustls*", &["certificate", "source::s3", "cluster"]),
    ("std::process::exit", &["bin"]),
    ("tonic*", &["csi"]),
];

#[test]
fn every_import_keeps_to_the_layers() {
    let sources = sources();
    let problems = check(&sources);
    assert!(problems.is_empty(), "\n{}", Vec::from_iter(problems).join("\n"));
}

#[test]
fn every_module_of_the_table_exists() {
    let sources = sources();
    for (module, _) in LAYERS.iter().copied().flatten() {
        let found = sources.iter().any(|source| owner(&source.module) == Some(module));
        assert!(found, "LAYERS names {module}, which has no file");
    }
}

/// One file of the crate.
struct Source {
    /// As shown in messages, such as `src/store/index.rs`.
    name: String,
    /// Its module path, such as `store::index`; empty for the crate root.
    module: Vec<String>,
    text: String,
}

impl Source {
    fn new(name: &str, text: String) -> Self {
        let path = name.trim_start_matches("src/").trim_end_matches(".rs");
        let module = match path {
            "lib" => Vec::new(),
            _ if path.starts_with("bin/") => vec!["bin".to_owned()],
            _ => path.split('/').map(str::to_owned).collect(),
        };
        Self { name: name.to_owned(), module, text }
    }

    /// The first line of code that holds `path`, or else its last segment, as whole words. (syn
    /// knows lines only with a feature that slows every proc macro down.)
    fn line_of(&self, path: &[String]) -> usize {
        let holds = |needle: &str| {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            self.text.lines().position(|line| {
                !line.trim_start().starts_with("//")
                    && line.match_indices(needle).any(|(at, _)| {
                        !line[..at].ends_with(is_word)
                            && !line[at + needle.len()..].starts_with(is_word)
                    })
            })
        };
        let last = path.last().map_or("", String::as_str);
        holds(&path.join("::")).or_else(|| holds(last)).map_or(0, |index| index + 1)
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pending = vec![root.join("src")];
    let mut sources = Vec::new();
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                sources.push(Source::new(name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    sources
}

/// Every breach of the tables, as `file:line: what; rule`.
fn check(sources: &[Source]) -> BTreeSet<String> {
    let parsed = sources.iter().map(|source| {
        let file = syn::parse_file(&source.text);
        (source, file.unwrap_or_else(|error| panic!("{}: {error}", source.name)))
    });
    let parsed: Vec<_> = parsed.collect();
    let tests: Vec<_> =
        parsed.iter().flat_map(|(source, file)| test_files(source, &file.items)).collect();

    let mut problems = BTreeSet::new();
    for (source, file) in &parsed {
        if !source.module.is_empty() && owner(&source.module).is_none() {
            problems.insert(format!(
                "{}: module {} is in no layer; add it to LAYERS in tests/layering.rs",
                source.name,
                source.module.join("::"),
            ));
            continue;
        }
        let in_test = tests.iter().any(|test| source.module.starts_with(test));
        let here = source.module.clone();
        let mut checker = Checker { source, here, in_test, problems: &mut problems };
        checker.visit_file(file);
    }
    problems
}

/// The modules below this file that are compiled for tests only and live in files of their own.
fn test_files(source: &Source, items: &[Item]) -> Vec<Vec<String>> {
    let test = |item: &Item| match item {
        Item::Mod(module) if module.content.is_none() && is_test(&module.attrs) => {
            Some(join(&source.module, [module.ident.to_string()]))
        }
        _ => None,
    };
    items.iter().filter_map(test).collect()
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let condition = attribute.meta.require_list();
        attribute.path().is_ident("cfg")
            && condition.is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

fn join(base: &[String], rest: impl IntoIterator<Item = String>) -> Vec<String> {
    base.iter().cloned().chain(rest).collect()
}

/// The module of the table that a path within the crate belongs to: the longest that fits.
fn owner(path: &[String]) -> Option<&'static str> {
    let modules = LAYERS.iter().copied().flatten().map(|(module, _)| *module);
    modules.filter(|module| is_within(path, module)).max_by_key(|module| module.len())
}

fn is_within(path: &[String], module: &str) -> bool {
    let mut path = path.iter();
    module.split("::").all(|segment| path.next().is_some_and(|found| found == segment))
}

fn may_use(from: &str, to: &str) -> bool {
    let find = |module: &str| {
        LAYERS.iter().enumerate().find_map(|(layer, modules)| {
            let (_, siblings) = modules.iter().find(|(name, _)| *name == module)?;
            Some((layer, *siblings))
        })
    };
    let ((from_layer, siblings), (to_layer, _)) = find(from).zip(find(to)).unwrap();
    from == to || from_layer > to_layer || siblings.contains(&to)
}

fn is_restricted(path: &[String], pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path[0].starts_with(prefix),
        None => is_within(path, pattern),
    }
}

/// Walks one file and judges each path in it.
struct Checker<'a> {
    source: &'a Source,
    here: Vec<String>,
    in_test: bool,
    problems: &'a mut BTreeSet<String>,
}

impl Checker<'_> {
    fn judge(&mut self, written: &[String]) {
        match self.resolve(written) {
            Some(path) => self.judge_edge(written, &path),
            None if self.in_test => {}
            None => self.judge_crate(written),
        }
    }

    /// Where a path leads within the crate; `None` for other crates and for what stays inside.
    fn resolve(&self, written: &[String]) -> Option<Vec<String>> {
        let (first, rest) = written.split_first()?;
        match first.as_str() {
            "crate" | "s3view" => Some(rest.to_vec()),
            "self" => Some(join(&self.here, rest.iter().cloned())),
            "super" => {
                let supers = written.iter().take_while(|segment| *segment == "super").count();
                let base = &self.here[..self.here.len().saturating_sub(supers)];
                Some(join(base, written[supers..].iter().cloned()))
            }
            // A child of this module that the table lists by itself, such as `s3` in `source`.
            _ => Some(join(&self.here, written.iter().cloned()))
                .filter(|path| owner(path) != owner(&self.here)),
        }
    }

    fn judge_edge(&mut self, written: &[String], path: &[String]) {
        // The crate root may name everything; a bare `crate` or `super` leads to nothing.
        let Some(from) = owner(&self.here) else { return };
        let [first, ..] = path else { return };
        match owner(path) {
            Some(to) if may_use(from, to) => {}
            Some(to) => self.report(
                written,
                &format!("{from} uses {to}; a module may use lower layers and its listed siblings"),
            ),
            None => self.report(written, &format!("{from} uses {first}, which is in no layer")),
        }
    }

    fn judge_crate(&mut self, written: &[String]) {
        for (pattern, modules) in RESTRICTED {
            let allowed = modules.iter().any(|module| is_within(&self.here, module));
            if is_restricted(written, pattern) && !allowed {
                let here = self.here.join("::");
                let modules = modules.join(", ");
                self.report(written, &format!("{here} uses {pattern}; only {modules} may"));
            }
        }
    }

    fn report(&mut self, written: &[String], problem: &str) {
        let (name, line) = (&self.source.name, self.source.line_of(written));
        self.problems.insert(format!("{name}:{line}: {problem} (`{}`)", written.join("::")));
    }

    fn judge_tree(&mut self, tree: &UseTree, prefix: &[String]) {
        match tree {
            UseTree::Path(path) => {
                self.judge_tree(&path.tree, &join(prefix, [path.ident.to_string()]));
            }
            UseTree::Name(name) if name.ident == "self" => self.judge(prefix),
            UseTree::Name(name) => self.judge(&join(prefix, [name.ident.to_string()])),
            UseTree::Rename(rename) => self.judge(&join(prefix, [rename.ident.to_string()])),
            UseTree::Glob(_) => self.judge(prefix),
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.judge_tree(tree, prefix));
            }
        }
    }

    /// Judges what looks like a path in tokens that syn does not parse.
    fn judge_tokens(&mut self, tokens: &str) {
        let tokens = tokens.replace(" :: ", "::");
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        for word in tokens.split(|c| !is_path(c)).filter(|word| word.contains("::")) {
            let path: Vec<_> = word.split("::").map(str::to_owned).collect();
            self.judge(&path);
        }
    }
}

impl<'ast> Visit<'ast> for Checker<'_> {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        let outside = self.in_test;
        self.in_test |= is_test(&module.attrs);
        self.here.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.here.pop();
        self.in_test = outside;
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.judge_tree(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let written: Vec<_> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        // A single name is a local one, or was judged where it was imported.
        if written.len() > 1 {
            self.judge(&written);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        visit::visit_macro(self, call);
        self.judge_tokens(&call.tokens.to_string());
    }

    fn visit_meta_list(&mut self, list: &'ast MetaList) {
        visit::visit_meta_list(self, list);
        self.judge_tokens(&list.tokens.to_string());
    }
}

mod the_check {
    use super::*;

    fn problems(name: &str, text: &str) -> Vec<String> {
        check(&[Source::new(name, text.to_owned())]).into_iter().collect()
    }

    #[track_caller]
    fn refuses(name: &str, text: &str, problem: &str) {
        let problems = problems(name, text);
        assert!(problems.len() == 1 && problems[0].contains(problem), "{text}: {problems:?}");
    }

    #[track_caller]
    fn accepts(name: &str, text: &str) {
        assert_eq!(problems(name, text), [""; 0], "{text}");
    }

    #[test]
    fn finds_an_upward_edge_however_it_is_written() {
        for text in [
            "use crate::csi::Socket;",
            "use crate::{object::Key, csi::{self, Socket as S}};",
            "use super::super::csi::*;",
            "pub use crate::csi;",
            "fn f() { crate::csi::serve() }",
            "fn f(_: Option<crate::csi::Socket>) {}",
            "impl crate::csi::Serve for u8 {}",
            "fn f() { matches!(1, x if x == crate::csi::ONE) }",
            "#[derive(crate::csi::Wire)] struct S;",
            "mod inner { fn f() { super::super::super::csi::serve() } }",
            "#[cfg(test)] mod tests { use crate::csi::Socket; }",
        ] {
            let found = problems("src/store/index.rs", text);
            assert!(!found.is_empty(), "{text}");
            assert!(found.iter().all(|problem| problem.contains("store uses csi;")), "{found:?}");
        }
    }

    #[test]
    fn names_the_line_the_edge_and_the_rule() {
        assert_eq!(
            problems("src/store.rs", "// Socket\nuse crate::{\n    csi::{Socket},\n};"),
            ["src/store.rs:3: store uses csi; a module may use lower layers and its listed \
                 siblings (`crate::csi::Socket`)"]
        );
    }

    #[test]
    fn finds_siblings_unless_they_are_listed() {
        refuses("src/store.rs", "use crate::mount::Tmpfs;", "store uses mount;");
        refuses("src/config.rs", "use crate::volume::VolumeSpec;", "config uses volume;");
        accepts("src/volume/policy.rs", "use crate::config::Config;");
    }

    #[test]
    fn tells_a_nested_module_of_the_table_from_its_parent() {
        accepts("src/source/s3/page.rs", "use crate::source::SourceError; use super::S3;");
        refuses("src/source.rs", "pub use self::s3::S3Source;", "source uses source::s3;");
        refuses("src/source.rs", "pub mod s3; pub use s3::S3Source;", "source uses source::s3;");
        refuses("src/source/principal.rs", "use super::s3::S3;", "source uses source::s3;");
    }

    #[test]
    fn finds_a_restricted_crate_outside_its_modules() {
        refuses("src/store.rs", "use tonic::Status;", "store uses tonic*; only csi may");
        refuses(
            "src/view.rs",
            "use {std::fs, fuser as f};",
            "view uses fuser; only view::fuse may",
        );
        refuses("src/node.rs", "fn f() { std::process::exit(1) }", "only bin may");
        refuses("src/app.rs", "#[tonic::async_trait] trait T {}", "app uses tonic*;");
        refuses("src/csi/node.rs", "use nix::sys;", "csi::node uses nix;");
        accepts("src/csi/server.rs", "use tonic::Status;");
        accepts("src/socket.rs", "use nix::sys;");
        accepts("src/source/s3/clients.rs", "use aws_sdk_s3::Client;");
        accepts("src/bin/s3view-node.rs", "use anyhow::Result; use s3view::app::NodeApp;");
    }

    #[test]
    fn lets_tests_use_every_crate() {
        accepts("src/task.rs", "#[cfg(test)] mod tests { use nix::unistd; use super::*; }");
        let sources = [
            Source::new("src/task.rs", "#[cfg(test)] mod tests;".to_owned()),
            Source::new("src/task/tests.rs", "use nix::unistd;".to_owned()),
        ];
        assert!(check(&sources).is_empty());
    }

    #[test]
    fn ignores_what_is_no_code() {
        accepts(
            "src/store.rs",
            "//! See [`crate::csi::Socket`].\n/// And `tonic::Status`.\nfn f() {}",
        );
        accepts("src/store.rs", "pub(crate) fn f(nix: u8) -> u8 { nix }");
    }

    #[test]
    fn finds_a_module_without_a_layer() {
        refuses("src/drawer.rs", "", "module drawer is in no layer");
        refuses("src/store.rs", "use crate::drawer::Thing;", "store uses drawer, which is in no");
    }
}
