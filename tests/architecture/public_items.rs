//! A public function or constant serves the crate's code, not its tests alone.
//!
//! In private rooms the compiler itself finds items without a use. In the rooms that embedders see it cannot: here
//! the names are counted.

use std::collections::{BTreeMap, BTreeSet};

use super::circles::without_tests;
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
            "fn g() { crate::a::used(); } #[cfg(test)] mod tests { fn h() { planted() } }",
        ),
        ("src/c/mod.rs", "#[cfg(test)] mod tests;"),
        ("src/c/tests.rs", "pub fn helper() { planted() }"),
        ("src/d.rs", "pub use crate::a::planted; // planted()"),
    ];
    let source =
        |(path, text): (&str, &str)| Source { path: path.to_owned(), text: text.to_owned() };
    let found = unused_items(&planted.map(source));
    assert_eq!(found, ["src/a.rs: own", "src/a.rs: planted"]);
}

/// Items that only other crates use, each with its user.
const EMBEDDERS: &[(&str, &str, &str)] = &[
    ("src/base/clock.rs", "manual", "tests that hold the time"),
    ("src/config/mod.rs", "load_text", "a program that embeds the gateway with a text of its own"),
    ("src/dev/issuer/clients.rs", "keeps_refresh_tokens", "tests that start the issuer"),
    ("src/dev/issuer/clients.rs", "signed_with", "tests that start the issuer"),
    ("src/dev/issuer/clients.rs", "told_of_logouts_at", "tests that start the issuer"),
    ("src/dev/issuer/config.rs", "API", "tests that start the issuer"),
    ("src/dev/issuer/config.rs", "with_client", "tests that start the issuer"),
    ("src/dev/issuer/mod.rs", "rotate_keys", "tests that start the issuer"),
    ("src/limit/route_limits.rs", "after_authorization", "the bench of local limits"),
    ("src/limit/route_limits.rs", "before_authentication", "the bench of local limits"),
    ("src/observe/metrics/family.rs", "FAMILIES", "the test of the dashboards"),
];

/// Public functions and constants that no code of another file names, as `path: name`.
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
    let words: BTreeMap<_, BTreeSet<String>> =
        texts.iter().map(|(path, text)| (path, words_used(text))).collect();
    let mut unused = Vec::new();
    for (path, text) in &texts {
        for name in public_items(text) {
            if !words.iter().any(|(other, words)| *other != path && words.contains(&name)) {
                unused.push(format!("{path}: {name}"));
            }
        }
    }
    unused.sort();
    unused
}

/// The words of `text` without its re-exports.
fn words_used(text: &str) -> BTreeSet<String> {
    let mut text = text.to_owned();
    while let Some(at) = text.find("pub use ") {
        let end = text[at..].find(';').map_or(text.len(), |end| at + end);
        text.replace_range(at..end, "");
    }
    text.split(|c| !is_word(c)).map(str::to_owned).collect()
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
