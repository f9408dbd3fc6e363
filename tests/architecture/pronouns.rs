//! Pronouns that hide who acts: the gateway, a client, an upstream, an issuer, an operator.

use std::fs;
use std::path::Path;

use super::{Source, read, relative, texts};

#[test]
fn every_sentence_names_its_actor() {
    let texts = DIRECTORIES.into_iter().flat_map(texts).chain(root_texts());
    // This file has the pronouns themselves.
    let texts = texts.filter(|source| source.path != "tests/architecture/pronouns.rs");

    let hidden: Vec<_> = texts.flat_map(|source| hidden_actors(&source)).collect();

    assert!(hidden.is_empty(), "name the gateway, client, upstream, …:\n{}\n", hidden.join("\n"));
}

#[test]
fn a_pronoun_that_hides_its_actor_is_found() {
    for word in ["Whoever asks", "said_by_nobody()", "SOMEBODY", "anybody's", "(everybody)"] {
        let source = Source { path: "src/lib.rs".to_owned(), text: format!("\n// {word}") };
        assert_eq!(hidden_actors(&source).len(), 1, "{word}");
    }
    for word in ["antibody", "bodyguard", "somebodyless"] {
        let source = Source { path: "src/lib.rs".to_owned(), text: word.to_owned() };
        assert_eq!(hidden_actors(&source), Vec::<String>::new(), "{word}");
    }
}

/// The texts at the root of the repository: pages, settings, recipes.
fn root_texts() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let entries = fs::read_dir(root).expect("a readable directory");
    let paths = entries.map(|entry| entry.expect("a readable entry").path());
    let is_text = |path: &Path| match path.extension() {
        Some(extension) => ["md", "toml", "yaml", "rs"].iter().any(|known| extension == *known),
        None => path.file_name().is_some_and(|name| name == "justfile" || name == "Dockerfile"),
    };
    let texts = paths.filter(|path| path.is_file() && is_text(path));
    texts.map(|path| Source { path: relative(&path, root), text: read(&path) }).collect()
}

/// The places of pronouns that hide who acts, in code, comments, names and texts alike.
fn hidden_actors(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (line, text) in source.text.lines().enumerate() {
        for word in text.split(|c: char| !c.is_alphabetic()) {
            if PRONOUNS.iter().any(|pronoun| word.eq_ignore_ascii_case(pronoun)) {
                found.push(format!("{}:{}: {word}", source.path, line + 1));
            }
        }
    }
    found
}

const PRONOUNS: [&str; 5] = ["whoever", "nobody", "somebody", "anybody", "everybody"];
const DIRECTORIES: [&str; 9] = [
    "src",
    "tests",
    "benches",
    "fuzz/fuzz_targets",
    "docs",
    "dashboards",
    "templates",
    ".ci",
    ".github",
];
