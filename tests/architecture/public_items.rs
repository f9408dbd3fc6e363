//! A public function or constant serves the crate's code, not its tests alone.
//!
//! In private rooms the compiler itself finds items without a use. In the rooms that embedders see it cannot: here
//! the names are counted.

use std::collections::{BTreeMap, BTreeSet};

use super::circles::{planted_sources, without_tests};
use super::{Source, code, is_word, sources};

#[test]
fn no_public_item_is_there_for_tests_alone() {
    let unused = unused_items(&sources("src"));
    let listed: Vec<_> =
        EMBEDDERS.iter().map(|(path, name, _)| format!("{path}: {name}")).collect();
    let missing = |a: &[String], b: &[String]| -> Vec<String> {
        a.iter().filter(|item| !b.contains(item)).cloned().collect()
    };
    let (new, stale) = (missing(&unused, &listed), missing(&listed, &unused));
    assert!(
        new.is_empty() && stale.is_empty(),
        "private, or for tests alone:\n{}\nin use or gone, so off the list:\n{}\n",
        new.join("\n"),
        stale.join("\n")
    );
}

#[test]
fn a_planted_item_for_tests_alone_is_found() {
    let planted = [
        ("src/a.rs", "pub fn used() {} pub fn planted() {} pub const fn own() {} fn f() { own() }"),
        (
            "src/b.rs",
            "fn g(planted: u8) { crate::a::used(planted); } #[cfg(test)] mod tests { fn h() { planted() } }",
        ),
        ("src/c/mod.rs", "#[cfg(test)] mod tests;"),
        ("src/c/tests.rs", "pub fn helper() { planted() }"),
        ("src/d.rs", "pub use crate::a::planted; // planted()"),
    ];
    let found = unused_items(&planted_sources(&planted));
    assert_eq!(found, ["src/a.rs: own", "src/a.rs: planted"]);
}

#[test]
fn a_planted_type_for_tests_alone_is_found() {
    let planted = planted_sources(&[
        ("src/a.rs", "pub struct Used; pub struct Returned; pub fn f() -> Returned { Returned }"),
        (
            "src/b.rs",
            "pub enum Planted { A } impl Planted { fn g() { crate::a::f(); crate::a::Used; } }",
        ),
        ("src/c.rs", "#[cfg(test)] mod tests { use crate::b::Planted; }"),
    ]);
    assert_eq!(unused_items(&planted), ["src/b.rs: Planted"]);
}

/// Items that only other crates use, each with its user.
const EMBEDDERS: &[(&str, &str, &str)] = &[
    ("src/base/clock.rs", "manual", "tests that hold the time"),
    ("src/config/mod.rs", "load_text", "a program that embeds the gateway with a text of its own"),
    ("src/dev/issuer/config.rs", "API", "tests that start the issuer"),
    ("src/dev/issuer/mod.rs", "rotate_keys", "tests that start the issuer"),
    ("src/dev/issuer/trial_tokens.rs", "user", "tests that start the issuer"),
    ("src/limit/route_limits.rs", "after_authorization", "the bench of local limits"),
    ("src/limit/route_limits.rs", "before_authentication", "the bench of local limits"),
    ("src/observe/log.rs", "to", "a program that embeds the gateway with a log of its own"),
    ("src/observe/metrics/family.rs", "FAMILIES", "the test of the dashboards"),
];

/// Public functions, constants and types that no code of another file uses, as `path: name`.
fn unused_items(sources: &[Source]) -> Vec<String> {
    let mut tests = BTreeSet::new();
    let mut texts = BTreeMap::new();
    for source in sources {
        let (text, modules) = without_tests(&code(&source.text));
        let directory = source.path.trim_end_matches(".rs").trim_end_matches("/mod").to_owned();
        tests.extend(modules.into_iter().map(|name| format!("{directory}/{name}")));
        texts.insert(source.path.clone(), text);
    }
    texts.retain(|path, _| {
        let module = path.trim_end_matches(".rs").trim_end_matches("/mod");
        !tests.iter().any(|test| module == test || module.starts_with(&format!("{test}/")))
    });
    let used: BTreeMap<_, BTreeSet<String>> =
        texts.iter().map(|(path, text)| (path, names_used(text))).collect();
    let mut unused = Vec::new();
    for (path, text) in &texts {
        for name in public_items(text) {
            if !used.iter().any(|(other, used)| *other != path && used.contains(&name)) {
                unused.push(format!("{path}: {name}"));
            }
        }
        for name in public_types(text) {
            let elsewhere = used.iter().any(|(other, used)| *other != path && used.contains(&name));
            // A type that only signatures of its own file name is public with them.
            if !elsewhere && !is_in_a_signature(text, &name) {
                unused.push(format!("{path}: {name}"));
            }
        }
    }
    unused.sort();
    unused
}

/// The names that `text` calls, imports or reads from a path, without its re-exports; words of variables, fields and
/// definitions are no uses.
fn names_used(text: &str) -> BTreeSet<String> {
    let mut text = text.to_owned();
    while let Some(at) = text.find("pub use ") {
        let end = text[at..].find(';').map_or(text.len(), |end| at + end);
        text.replace_range(at..end, "");
    }
    let mut used = BTreeSet::new();
    let mut imports_until = 0;
    for (at, name) in words(&text) {
        let (before, after) = (&text[..at], text[at + name.len()..].trim_start());
        if name == "use" {
            imports_until = text[at..].find(';').map_or(text.len(), |end| at + end);
        }
        let is_defined = before.trim_end().ends_with("fn") && before.ends_with(' ');
        let is_called = after.starts_with('(') || after.starts_with("::");
        let is_qualified = before.ends_with("::") || before.ends_with('.') && is_called;
        let is_constant_or_type = name.starts_with(|c: char| c.is_uppercase());
        if !is_defined && (at < imports_until || is_called || is_qualified || is_constant_or_type) {
            used.insert(name.to_owned());
        }
    }
    used
}

/// Each word of `text`, and where it begins.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split(|c| !is_word(c)).filter_map(move |word| {
        let begin = at;
        at += word.len() + text[at + word.len()..].chars().next().map_or(0, char::len_utf8);
        (!word.is_empty()).then_some((begin, word))
    })
}

/// The names of structs, enums and traits that `text` makes public.
fn public_types(text: &str) -> BTreeSet<String> {
    let kinds = ["pub struct ", "pub enum ", "pub trait "];
    let found = kinds.iter().flat_map(|kind| text.match_indices(kind));
    let name = |(at, kind): (usize, &str)| {
        words(&text[at + kind.len()..]).next().map(|(_, name)| name.to_owned())
    };
    found.filter_map(name).collect()
}

/// Whether `text` names its type `name` beyond its definition and the headers of its implementations.
fn is_in_a_signature(text: &str, name: &str) -> bool {
    words(text).filter(|(_, word)| *word == name).any(|(at, _)| {
        let before = text[..at].trim_end();
        !["struct", "enum", "trait", "impl", "for", ">"].iter().any(|word| before.ends_with(word))
    })
}

/// The names of functions and constants that `text` makes public.
fn public_items(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in text.match_indices("pub ") {
        let mut words = text[at + 4..].split_whitespace().take(4).peekable();
        while let Some(word) = words.next() {
            let is_item = match word {
                "fn" | "static" => true,
                "const" => words.peek().is_some_and(|next| *next != "fn"),
                "async" => continue,
                _ => break,
            };
            if !is_item {
                continue;
            }
            let name = words.next().unwrap_or_default();
            let end = name.find(|c| !is_word(c)).unwrap_or(name.len());
            names.insert(name[..end].to_owned());
            break;
        }
    }
    names
}
