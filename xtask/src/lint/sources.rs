//! Rules about our own source files that no compiler knows.
//!
//! * **Purity**: the modules in [`PURE`] are the ones that decide. They name none of the crates in [`OUTSIDE`], so that
//!   they can be tested without a kernel, a cluster or a clock.
//! * **Length**: a file past [`LONGEST`] lines without its tests is two ideas.
//! * **Header**: each file opens by saying what it is for.
//! * **Paths**: nothing in the repository names a folder of the machine that it was written on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use proc_macro2::{Span, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::run::{self, note, root};

/// Files and folders of pure code: a `.rs` file, or all files below a folder.
const PURE: &[&str] = &[
    "common/src",
    "agent/src/identity",
    "agent/src/inventory",
    "agent/src/image",
    "agent/src/plan",
    "agent/src/policy",
    "agent/src/flows",
    "agent/src/dns",
    "agent/src/revocation",
    "agent/src/history",
    "agent/src/judge",
    "agent/src/effect",
    "agent/src/suggest",
    "agent/src/import",
    "agent/src/export",
    "agent/src/simulate",
    "agent/src/graph",
    "agent/src/report",
];

/// Crates of the outside world. A crate whose name goes on with `_` belongs to the same family (`aya_log`).
const OUTSIDE: &[&str] = &["aya", "kube", "k8s_openapi", "tokio", "spiffe", "spire_api", "prometheus"];

/// The most lines that a file may have, its tests not counted.
const LONGEST: usize = 500;

/// Checks every Rust file of the repository.
pub(super) fn check() -> Result<()> {
    let files: Vec<PathBuf> = files()?.into_iter().filter(|file| is_rust(file)).collect();
    let mut findings = Vec::new();
    for file in &files {
        let text = fs::read_to_string(root().join(file)).with_context(|| format!("can't read {}", file.display()))?;
        findings.extend(findings_in(file, &text)?);
    }
    report(&findings, &format!("{} files: pure where they should be, short, with a header", files.len()))
}

/// Looks for folders of one machine in everything that git holds.
pub(super) fn check_paths() -> Result<()> {
    let mut findings = Vec::new();
    for file in files()? {
        // What isn't text names no path that matters.
        let Ok(text) = fs::read_to_string(root().join(&file)) else { continue };
        for (number, line) in (1..).zip(text.lines()) {
            if names_a_machine(line) {
                findings.push(format!("{}:{number}: names a folder of one machine", file.display()));
            }
        }
    }
    report(&findings, "none")
}

fn report(findings: &[String], fine: &str) -> Result<()> {
    if findings.is_empty() {
        note(fine);
        return Ok(());
    }
    findings.iter().for_each(note);
    bail!("{} findings", findings.len())
}

/// What is wrong with the source file `text`.
fn findings_in(file: &Path, text: &str) -> Result<Vec<String>> {
    let shown = file.display();
    let mut findings = Vec::new();
    if !text.starts_with("//!") {
        findings.push(format!("{shown}:1: open the file with `//!` and what it is for"));
    }
    let parsed = syn::parse_file(text).with_context(|| format!("can't parse {shown}"))?;
    let mut reader = Reader::default();
    reader.visit_file(&parsed);
    let lines = text.lines().count() - reader.test_lines;
    if !is_test(file) && lines > LONGEST {
        findings.push(format!("{shown}:{LONGEST}: {lines} lines without tests, {LONGEST} at most: split it"));
    }
    if is_pure(file) && !is_test(file) {
        for (name, line) in reader.outside {
            findings.push(format!("{shown}:{line}: a pure module names `{name}`; move that to where the I/O is"));
        }
    }
    Ok(findings)
}

/// Walks a file, outside of its test modules.
#[derive(Default)]
struct Reader {
    /// Names of outside crates, with their lines.
    outside: Vec<(String, usize)>,
    /// Lines of `#[cfg(test)]` modules.
    test_lines: usize,
}

impl Reader {
    fn meet(&mut self, name: &syn::Ident) {
        let text = name.to_string();
        let ours =
            |krate: &&&str| text.strip_prefix(**krate).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
        if OUTSIDE.iter().any(|krate| ours(&krate)) {
            self.outside.push((text, line_of(name.span())));
        }
    }

    /// Tokens of a macro have no syntax yet: a crate is a name before `::`.
    fn meet_tokens(&mut self, tokens: TokenStream) {
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Group(group) => self.meet_tokens(group.stream()),
                TokenTree::Ident(name) => {
                    if matches!(tokens.peek(), Some(TokenTree::Punct(colon)) if colon.as_char() == ':') {
                        self.meet(&name);
                    }
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if module.attrs.iter().any(is_cfg_test) {
            let span = module.span();
            self.test_lines += span.end().line + 1 - line_of(span);
        } else {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        // Only the first name of a path can be a crate.
        let mut trees = vec![&item.tree];
        while let Some(tree) = trees.pop() {
            match tree {
                syn::UseTree::Path(path) => self.meet(&path.ident),
                syn::UseTree::Name(name) => self.meet(&name.ident),
                syn::UseTree::Rename(rename) => self.meet(&rename.ident),
                syn::UseTree::Group(group) => trees.extend(&group.items),
                syn::UseTree::Glob(_) => {}
            }
        }
    }

    fn visit_item_extern_crate(&mut self, item: &'ast syn::ItemExternCrate) {
        self.meet(&item.ident);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.meet(&path.segments[0].ident);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.meet_tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }
}

fn is_cfg_test(attribute: &syn::Attribute) -> bool {
    attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|name| name == "test")
}

fn line_of(span: Span) -> usize {
    span.start().line
}

fn is_rust(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "rs")
}

/// Whether `file` holds nothing but tests: `tests.rs`, or anything below a folder `tests` or `benches`.
fn is_test(file: &Path) -> bool {
    file.iter().any(|part| ["tests", "benches", "tests.rs"].iter().any(|name| part == *name))
}

fn is_pure(file: &Path) -> bool {
    PURE.iter().any(|pure| file.starts_with(pure) || file.with_extension("") == Path::new(pure))
}

/// Whether `line` holds an absolute path below a folder that only the authors' machines have. The names stand apart
/// here, so that this file passes its own check.
fn names_a_machine(line: &str) -> bool {
    ["work", "root", "farm"].iter().any(|folder| {
        let path = format!("/{folder}/");
        line.match_indices(&path).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            !before.is_some_and(|letter| letter.is_alphanumeric() || "._-~*}$".contains(letter))
        })
    })
}

/// Every file that git holds or would hold.
fn files() -> Result<Vec<PathBuf>> {
    // A checkout may belong to another user than the one who runs this, as in CI.
    let listed = run::output_of(Command::new("git").current_dir(root()).args([
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let files = listed.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from);
    Ok(files.filter(|file| root().join(file).is_file()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(file: &str, text: &str) -> Vec<String> {
        findings_in(Path::new(file), text).expect("the sample parses")
    }

    #[test]
    fn finds_an_outside_crate_wherever_it_is_named() {
        for text in [
            "//! x\nuse aya::maps::Map;",
            "//! x\nuse {std::fmt, tokio::fs};",
            "//! x\nfn f() { prometheus_client::encoding::f() }",
            "//! x\nfn f(x: &kube::Client) {}",
            "//! x\nfn f() { assert!(aya_log::ready()) }",
        ] {
            assert_eq!(findings("agent/src/policy/model.rs", text).len(), 1, "{text}");
            assert_eq!(findings("agent/src/plan.rs", text).len(), 1, "{text}");
            assert!(findings("agent/src/datapath.rs", text).is_empty(), "{text}");
        }
    }

    #[test]
    fn leaves_words_and_tests_alone() {
        let text = "//! Not tokio::fs.\n// aya::x\nfn f(spiffe: &str) -> &str { g(\"tokio::fs\"); spiffe }\n\
            #[cfg(test)]\nmod tests { use tokio::fs; }";
        assert!(findings("agent/src/policy.rs", text).is_empty());
    }

    #[test]
    fn counts_lines_without_the_tests() {
        let long = |code: usize, tests: usize| {
            format!("//! x\n{}#[cfg(test)]\nmod tests {{\n{}}}\n", "// code\n".repeat(code), "// test\n".repeat(tests))
        };
        assert!(findings("agent/src/x.rs", &long(499, 600)).is_empty());
        assert_eq!(findings("agent/src/x.rs", &long(500, 0)).len(), 1);
        assert!(findings("agent/src/x/tests.rs", &long(900, 0)).is_empty());
    }

    #[test]
    fn wants_a_header() {
        assert_eq!(findings("agent/src/x.rs", "fn f() {}").len(), 1);
    }

    #[test]
    fn finds_folders_of_one_machine() {
        let machine = |rest: &str| format!("{}{rest}", "/ro");
        assert!(names_a_machine(&machine("ot/.cargo/bin")));
        assert!(names_a_machine(&format!("see `{}`", machine("ot/x"))));
        assert!(!names_a_machine(&format!("target{}", machine("ot/x"))));
        assert!(!names_a_machine("chroot /rootfs"));
    }
}
