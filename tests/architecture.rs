//! The house rules, held by reading the sources.
//!
//! A module uses only floors below its own, and rooms on one floor do not know
//! each other; no file does so much that it needs more than 600 lines; nothing
//! is left for later in the code; one file reads the machine's clock.

#[path = "architecture/circles.rs"]
mod circles;
#[path = "architecture/pronouns.rs"]
mod pronouns;
#[path = "architecture/public_items.rs"]
mod public_items;

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn no_room_uses_its_neighbour_or_a_floor_above() {
    let faults: Vec<_> = sources("src").iter().flat_map(forbidden_uses).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn every_room_has_a_floor() {
    let rooms = sources("src").iter().filter_map(Source::room).collect::<Vec<_>>();
    for room in &rooms {
        assert!(floor(room).is_some(), "src/{room} stands on no floor: say which in this file");
    }
    for (room, _) in FLOORS {
        assert!(rooms.iter().any(|have| have == room), "there is no src/{room} any more");
    }
}

#[test]
fn no_file_has_more_than_600_lines() {
    for source in all() {
        let lines = source.text.lines().count();
        assert!(lines <= LINES, "{} has {lines} lines: two ideas in one file?", source.path);
    }
}

#[test]
fn every_file_is_compiled() {
    let sources = all();
    let lost = sources.iter().filter(|source| !is_a_module(&source.path, &sources));
    let lost: Vec<_> = lost.map(|source| &*source.path).collect();
    assert!(lost.is_empty(), "no module above declares {lost:?}");
}

#[test]
fn nothing_is_left_for_later() {
    let left: Vec<_> = all().iter().flat_map(left_for_later).collect();
    assert!(left.is_empty(), "\n{}\n", left.join("\n"));
}

#[test]
fn every_test_is_named_by_its_subject() {
    let vague: Vec<_> = all().iter().flat_map(questions_for_names).collect();
    assert!(vague.is_empty(), "name the subject:\n{}\n", vague.join("\n"));
}

#[test]
fn documentation_begins_with_a_noun_or_a_verb() {
    let vague: Vec<_> = texts("src").iter().flat_map(vague_beginnings).collect();
    assert!(vague.is_empty(), "\n{}\n", vague.join("\n"));
}

#[test]
fn one_file_reads_the_machines_clock() {
    // Timers are tokio's, whose time tests can hold: only the calendar is at stake here.
    let readers = sources("src");
    let readers = readers.into_iter().filter(|file| code(&file.text).contains("SystemTime::now"));
    let readers: Vec<_> = readers.map(|source| source.path).collect();
    assert_eq!(readers, ["src/base/clock.rs"]);
}

#[test]
fn every_cache_says_who_makes_room() {
    // The library's own policy refuses newcomers in favour of what comes often: a cache that must
    // remember what has happened just now (a used token, a login, a failure) would forget exactly that.
    let unsaid: Vec<_> = sources("src")
        .iter()
        .filter(|source| {
            let code = code(&source.text);
            let builders = code.matches("Cache::builder()").count();
            builders > code.matches(".eviction_policy(").count()
                || code.contains("moka::sync::Cache::new")
        })
        .map(|source| source.path.clone())
        .collect();
    assert!(unsaid.is_empty(), "name an eviction policy in {unsaid:?}");
}

// The checks themselves are worth nothing if they cannot fail.

#[test]
fn a_planted_violation_is_found() {
    let planted = [
        ("src/limit/mod.rs", "use crate::issuer::Issuer;", "limit uses issuer"),
        ("src/limit/deep/er.rs", "fn f() -> crate::token::Principal {", "limit uses token"),
        (
            "src/base/body.rs",
            "use crate::{\n  base::clock::Clock,\n  observe::log,\n};",
            "base uses observe",
        ),
        ("src/tls/mod.rs", "use crate::{base::{clock, body}, observe};", "tls uses observe"),
        ("src/observe/mod.rs", "use super::tls::client;", "observe uses tls"),
        ("src/upstream/pool.rs", "use super::super::limit;", "upstream uses limit"),
        ("src/token/mod.rs", "use northgate::session::Session;", "token uses session"),
        ("src/config/mod.rs", "use crate::*;", "config uses *"),
        ("src/dev.rs", "use crate::cli;", "dev uses cli"),
    ];
    for (path, text, fault) in planted {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        let found = forbidden_uses(&source);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].ends_with(fault), "{found:?}");
    }
}

#[test]
fn a_file_without_a_declaration_is_found() {
    let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
    let sources =
        [source("src/a/mod.rs", "pub mod one;"), source("tests/t.rs", "#[path = \"s/x.rs\"]")];
    for (path, expected) in [
        ("src/a/one.rs", true),
        ("src/a/two.rs", false),
        ("tests/t.rs", true),
        ("tests/s/x.rs", true),
    ] {
        assert_eq!(is_a_module(path, &sources), expected, "{path}");
    }
}

#[test]
fn a_fault_is_told_with_its_line() {
    let text = "//! Header.\n\n/* a\nb */ use crate::cli;";
    let source = Source { path: "src/base/clock.rs".to_owned(), text: text.to_owned() };

    assert_eq!(forbidden_uses(&source), ["src/base/clock.rs:4: base uses cli"]);
}

#[test]
fn allowed_uses_and_text_that_is_no_code_are_left_alone() {
    let allowed = [
        ("src/limit/mod.rs", "use crate::observe::metrics::Metrics;"),
        ("src/limit/mod.rs", "use crate::limit::window::{Quota, self};"),
        ("src/limit/mod.rs", "// use crate::cli;\n/* crate::dev /* nested */ crate::dev */"),
        ("src/limit/mod.rs", r##"let a = "crate::cli"; let b = r#"" crate::dev "#; let c = '"';"##),
        ("src/limit/mod.rs", "pub(in crate::limit) fn f<'a>(s: &'a str) {}"),
        ("src/config/check.rs", "use super::session::Session;"),
        ("src/lib.rs", "pub use crate::gateway::Gateway;"),
    ];
    for (path, text) in allowed {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        assert_eq!(forbidden_uses(&source), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn work_that_is_left_for_later_is_found() {
    let (todo, ignore) = (concat!("to", "do!()"), concat!("#[ig", "nore = \"slow\"]"));
    for text in [todo, ignore, concat!("unimple", "mented!()")] {
        let source = Source { path: "src/lib.rs".to_owned(), text: format!("{text} fn f() {{}}") };
        assert_eq!(left_for_later(&source).len(), 1, "{text}");
    }
}

#[test]
fn a_test_that_is_named_by_a_question_is_found() {
    for (name, found) in [("what_is_sent", 1), ("who_asks", 1), ("whole_heads", 0), ("a_what", 0)] {
        let text = format!("#[test]\n    async fn {name}() {{}}");
        let source = Source { path: "src/lib.rs".to_owned(), text };
        assert_eq!(questions_for_names(&source).len(), found, "{name}");
    }
}

#[test]
fn documentation_that_begins_with_a_question_is_found() {
    for (text, found) in [
        ("    /// What it does.", 1),
        ("//! Whom it serves.\n//! Where it is.", 1),
        ("/// The place.\n/// Where it is.", 0),
        ("/// Whether it is there.", 0),
    ] {
        let source = Source { path: "src/lib.rs".to_owned(), text: text.to_owned() };
        assert_eq!(vague_beginnings(&source).len(), found, "{text}");
    }
}

/// Each room and the floor it stands on (see `src/lib.rs`).
const FLOORS: &[(&str, u8)] = &[
    ("base", 0),
    ("disk", 1),
    ("http1", 1),
    ("http2", 1),
    ("observe", 1),
    ("password", 1),
    ("redis", 1),
    ("tls", 1),
    ("issuer", 2),
    ("limit", 2),
    ("upstream", 2),
    ("metering", 3),
    ("token", 3),
    ("basic", 4),
    ("session", 4),
    ("config", 5),
    ("revocation_sync", 5),
    ("gateway", 6),
    ("server", 7),
    ("dev", 8),
    ("cli", 9),
];

/// The longest a file may be.
const LINES: usize = 600;

struct Source {
    /// From the repository's root, with slashes.
    path: String,
    text: String,
}

impl Source {
    /// The room a file of `src/` belongs to; none for `lib.rs` and `main.rs`, which know all.
    fn room(&self) -> Option<String> {
        let room = self.path.strip_prefix("src/")?.split('/').next()?;
        let room = room.strip_suffix(".rs").unwrap_or(room);
        (room != "lib" && room != "main").then(|| room.to_owned())
    }

    /// How many `super::` lead from the file's own module to the crate's root.
    fn depth(&self) -> usize {
        let parts = self.path.split('/').skip(1);
        parts.filter(|part| *part != "mod.rs").count()
    }
}

/// The floor of `room`.
fn floor(room: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
}

/// Whether the file is the root of a crate, or declared by the module above or by its path.
fn is_a_module(path: &str, sources: &[Source]) -> bool {
    let Some((directory, file)) = path.rsplit_once('/') else { return false };
    let name = file.trim_end_matches(".rs");
    let parents = ["/mod.rs", "/main.rs", "/lib.rs", ".rs"].map(|end| format!("{directory}{end}"));
    let declaration = format!("mod {name};");
    let declares = |text: &str| text.lines().any(|line| line.ends_with(&declaration));
    let is_root = ["main", "lib", "mod", "build"].contains(&name);
    is_root
        || ["tests", "benches", "examples"].contains(&directory)
        || sources.iter().any(|other| {
            parents.contains(&other.path) && declares(&other.text)
                || other.text.contains("#[path = ") && other.text.contains(&format!("/{file}\"]"))
        })
}

/// Every use in `source` of a room it may not know.
fn forbidden_uses(source: &Source) -> Vec<String> {
    let Some(room) = source.room() else { return Vec::new() };
    let code = code(&source.text);
    let mut faults = Vec::new();
    for (at, used) in rooms_used(&code, source.depth()) {
        let known = match (floor(&used), floor(&room)) {
            _ if used == room => true,
            (Some(used), Some(own)) => used < own,
            // `crate::*` knows everything. Other words are no rooms: the crate's own few names.
            _ => used != "*",
        };
        if !known {
            let line = code[..at].lines().count().max(1);
            faults.push(format!("{}:{line}: {room} uses {used}", source.path));
        }
    }
    faults
}

/// The first part of every path from the crate's root in `code`, and where it stands.
fn rooms_used(code: &str, depth: usize) -> Vec<(usize, String)> {
    let mut used = Vec::new();
    for root in ["crate::", "northgate::"] {
        for (at, _) in code.match_indices(root).filter(|(at, _)| begins_word(code, *at)) {
            let rest = &code[at + root.len()..];
            used.extend(first_names(rest).into_iter().map(|name| (at, name)));
        }
    }
    for (at, _) in code.match_indices("super::").filter(|(at, _)| begins_word(code, *at)) {
        let mut rest = &code[at..];
        let mut climbed = 0;
        while let Some(above) = rest.strip_prefix("super::") {
            (rest, climbed) = (above, climbed + 1);
        }
        let continued = code[..at].ends_with("super::");
        if climbed >= depth && !continued {
            // Inside an inline module it may be a neighbour of the same name: only rooms count.
            let names = first_names(rest).into_iter().filter(|name| floor(name).is_some());
            used.extend(names.map(|name| (at, name)));
        }
    }
    used
}

/// The names that follow `crate::`: one, or the first of each branch of `{…}`.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| {
        let text = text.trim_start();
        let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
        if text.starts_with('*') { "*".to_owned() } else { text[..end].to_owned() }
    };
    let Some(group) = rest.trim_start().strip_prefix('{') else { return vec![name(rest)] };
    let (mut names, mut depth, mut begins) = (Vec::new(), 0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            c if begins && !c.is_whitespace() => {
                names.push(name(&group[at..]));
                begins = false;
            }
            _ => {}
        }
    }
    names
}

/// Whether a word begins at `at`: `in crate::` does, `my_crate::` and `$crate::` do not.
fn begins_word(code: &str, at: usize) -> bool {
    !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$')
}

/// Work that was put off, and tests that do not run.
fn left_for_later(source: &Source) -> Vec<String> {
    let code = code(&source.text);
    let marks = [concat!("to", "do!"), concat!("unimple", "mented!"), concat!("#[ig", "nore")];
    let found = marks.iter().flat_map(|mark| code.match_indices(mark));
    found
        .map(|(at, mark)| format!("{}:{}: {mark}", source.path, code[..at].lines().count()))
        .collect()
}

/// The functions whose names begin with a question in place of their subject.
fn questions_for_names(source: &Source) -> Vec<String> {
    let names = source.text.lines().enumerate().filter_map(|(line, text)| {
        let text = text.trim_start();
        let name = text.strip_prefix("async ").unwrap_or(text).strip_prefix("fn ")?;
        let is_vague =
            ["what_", "who_", "whom_", "those_"].iter().any(|word| name.starts_with(word));
        is_vague.then(|| format!("{}:{}: {name}", source.path, line + 1))
    });
    names.collect()
}

/// The places where documentation begins with a question in place of a noun or a verb.
fn vague_beginnings(source: &Source) -> Vec<String> {
    const QUESTIONS: [&str; 5] = ["What", "Where", "Who", "Whom", "Of"];
    let documentation = |line: &str| -> Option<String> {
        let line = line.trim_start();
        let text = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"))?;
        Some(text.trim_start().to_owned())
    };
    let mut found = Vec::new();
    let mut before = None;
    for (line, text) in source.text.lines().enumerate() {
        let text = documentation(text);
        let first = text.as_deref().and_then(|text| text.split(' ').next());
        if before.is_none() && first.is_some_and(|word| QUESTIONS.contains(&word)) {
            found.push(format!("{}:{}: {}", source.path, line + 1, text.as_deref().unwrap_or("")));
        }
        before = text;
    }
    found
}

/// The code of `text`: comments and literals become blanks, lines stay where they are.
fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = match chars[at..] {
            ['/', '/', ..] => end_of_line(&chars, at),
            ['/', '*', ..] => end_of_comment(&chars, at),
            ['"', ..] => end_of_string(&chars, at + 1),
            ['r', '"' | '#', ..] if at == 0 || !is_word(chars[at - 1]) || chars[at - 1] == 'b' => {
                end_of_raw_string(&chars, at)
            }
            ['\'', '\\', ..] => {
                2 + at + chars[at + 2..].iter().position(|c| *c == '\'').unwrap_or(0) + 1
            }
            ['\'', _, '\'', ..] => at + 3,
            _ => at,
        };
        if end == at {
            code.push(chars[at]);
            at += 1;
        } else {
            let end = end.min(chars.len());
            code.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    code
}

fn end_of_line(chars: &[char], from: usize) -> usize {
    chars[from..].iter().position(|c| *c == '\n').map_or(chars.len(), |length| from + length)
}

fn end_of_comment(chars: &[char], from: usize) -> usize {
    let (mut at, mut depth) = (from, 0);
    while at < chars.len() {
        match chars[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] if depth == 1 => return at + 2,
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    at
}

fn end_of_string(chars: &[char], from: usize) -> usize {
    let mut at = from;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// `from` itself if `r#word` begins there and no string.
fn end_of_raw_string(chars: &[char], from: usize) -> usize {
    let hashes = chars[from + 1..].iter().take_while(|c| **c == '#').count();
    let mut at = from + 1 + hashes;
    if chars.get(at) != Some(&'"') {
        return from;
    }
    at += 1;
    while at < chars.len() {
        let closes = chars[at] == '"' && chars[at + 1..].iter().take(hashes).all(|c| *c == '#');
        if closes {
            return at + 1 + hashes;
        }
        at += 1;
    }
    at
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The project's own sources, tests and benches included.
fn all() -> Vec<Source> {
    ["src", "tests", "benches"].into_iter().flat_map(sources).collect()
}

/// Every `.rs` file below `directory`.
fn sources(directory: &str) -> Vec<Source> {
    let mut sources = texts(directory);
    let is_rust =
        |path: &str| Path::new(path).extension().is_some_and(|extension| extension == "rs");
    sources.retain(|source| is_rust(&source.path));
    sources
}

/// Every file below `directory`, also pages, scripts and style sheets.
fn texts(directory: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut open, mut found) = (vec![root.join(directory)], Vec::new());
    while let Some(directory) = open.pop() {
        // There may be no benches.
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for path in entries.map(|entry| entry.expect("a readable directory").path()) {
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(Source { path: relative(&path, root), text: read(&path) });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn relative(path: &Path, root: &Path) -> String {
    let path: PathBuf = path.strip_prefix(root).expect("it is below the root").into();
    path.to_string_lossy().replace('\\', "/")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
