//! What may be shown of the file: never a secret, wherever it stands.
//!
//! A value is a secret by the name of its key (every key whose name holds `secret`, `password`, `token`,
//! `authorization`, `key` and their like, in any spelling), by what stands around it (a list or a mapping under such a
//! key), or by what it says itself (`Bearer …`, a password in a URL, `api_key=…`). The excerpts of faults, the quotes
//! in their messages, and what prints a configuration all ask here.

use std::collections::HashSet;

use super::env;
use super::fault::{self, Fault, Line, Position};
use super::suggestion;
use super::yaml::{Kind, Node};

/// Bytes below which a text is no secret that anything could be guarded by.
const SHORTEST_SECRET: usize = 3;

/// The same for a part of one.
const SHORTEST_WORD: usize = 4;

/// What stands in place of a secret.
pub(crate) const HIDDEN: &str = "***";

/// How much of the value under a key may be shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Secrecy {
    /// It, unless it gives itself away.
    Open,
    /// The path of a file; anything else is likely the secret that should be in that file.
    Path,
    /// What stands below it, but no text in its place.
    Section,
    /// Nothing.
    Secret,
}

impl Secrecy {
    /// What holds for the value under `key`, where this holds for the mapping.
    pub(crate) fn below(self, key: &str) -> Self {
        match self {
            // `{ file: … }` and `{ env: … }` say where a secret is.
            Self::Secret if suggestion::closest(key, ["file", "env"].into_iter()).is_some() => {
                Self::Open
            }
            Self::Secret => Self::Secret,
            _ if SECTIONS.contains(&key) => Self::Section,
            _ if PATHS.contains(&key) => Self::Path,
            _ if is_secret(key) => Self::Secret,
            _ => Self::Open,
        }
    }

    /// Whether `text`, as it was written under such a key, is not to be shown.
    pub(crate) fn hides(self, text: &str) -> bool {
        match self {
            Self::Open => gives_a_secret_away(text),
            _ if matches!(text, "" | "true" | "false") || env::is_names_only(text) => false,
            Self::Path => !looks_like_a_path(text),
            Self::Section | Self::Secret => true,
        }
    }
}

/// The `help` against a wrong `text`, unless it repeats what is not to be shown.
pub(crate) fn help(help: String, text: &str, hidden: bool) -> String {
    let hidden = hidden || gives_a_secret_away(text);
    let repeats = !text.is_empty() && help.contains(text) || gives_a_secret_away(&help);
    if hidden && repeats { String::new() } else { help }
}

/// The value under a name of the operator's choice, as it may be printed.
pub(crate) fn shown<'t>(name: &str, text: &'t str) -> &'t str {
    if Secrecy::Open.below(name).hides(text) { HIDDEN } else { text }
}

/// Marks every scalar and every key whose text the key of a secret takes, in its place or through an alias.
pub(super) fn mark(root: &mut Node) {
    let mut found = Found::default();
    found.look(root, Secrecy::Open);
    if !found.named.is_empty() {
        mark_at(root, &found.named);
    }
}

fn mark_at(node: &mut Node, secrets: &HashSet<Position>) {
    match &mut node.kind {
        Kind::Scalar(scalar) => scalar.secret = secrets.contains(&node.at),
        Kind::Sequence(items) => items.iter_mut().for_each(|item| mark_at(item, secrets)),
        Kind::Mapping(entries) => {
            for entry in entries {
                entry.key_secret = secrets.contains(&entry.key_at);
                mark_at(&mut entry.value, secrets);
            }
        }
    }
}

/// The texts that the key of a secret takes and another key, too, through an alias; variables filled in.
pub(super) fn shared(root: &Node) -> Vec<String> {
    let mut found = Found::default();
    found.look(root, Secrecy::Open);
    let shared = found.named.intersection(&found.open).copied().collect();
    let mut texts = Vec::new();
    if found.named.is_disjoint(&found.open) {
        return texts;
    }
    texts_at(root, &shared, &mut texts);
    // A message may be about a part: the name in `{name}`, the host of a URL.
    let words: Vec<String> = texts.iter().flat_map(|text| words(text)).map(str::to_owned).collect();
    texts.extend(words);
    // A text may hold another.
    texts.sort_unstable_by_key(|text: &String| core::cmp::Reverse(text.len()));
    texts.dedup();
    texts
}

fn texts_at(node: &Node, places: &HashSet<Position>, texts: &mut Vec<String>) {
    let mut take = |at: &Position, text: &str| {
        if places.contains(at) && text.len() >= SHORTEST_SECRET {
            texts.push(text.to_owned());
        }
    };
    match &node.kind {
        Kind::Scalar(scalar) => {
            take(&node.at, &scalar.text);
            let raw = scalar.raw.as_deref().filter(|raw| !env::is_names_only(raw));
            take(&node.at, raw.unwrap_or_default());
        }
        Kind::Sequence(items) => items.iter().for_each(|item| texts_at(item, places, texts)),
        Kind::Mapping(entries) => {
            for entry in entries {
                take(&entry.key_at, &entry.key);
            }
            for entry in entries {
                texts_at(&entry.value, places, texts);
            }
        }
    }
}

/// The parts of a secret by which it could be recognised.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_alphanumeric());
    words.filter(|word| word.len() >= SHORTEST_WORD && !matches!(*word, "http" | "https"))
}

/// Takes `secrets` out of what is said of a fault.
pub(super) fn take_out(secrets: &[String], fault: &mut Fault) {
    for secret in secrets {
        for text in [&mut fault.message, &mut fault.help] {
            if text.contains(secret) {
                *text = text.replace(secret, HIDDEN);
            }
        }
    }
}

/// The lines of `text` with every secret that stands in it blotted out, as far as `root` tells where they are.
pub(crate) fn without_secrets(text: &str, root: &Node) -> Vec<Line> {
    let mut found = Found::default();
    found.look(root, Secrecy::Open);
    let mut lines: Vec<Vec<char>> = fault::lines(text).map(|line| line.chars().collect()).collect();
    for (number, line) in lines.iter_mut().enumerate() {
        if let Some(comment) = comment(line, number + 1, &found.scalars)
            && names_a_secret(&line[comment..].iter().collect::<String>())
        {
            line.truncate(comment);
        }
    }
    let mut hidden = vec![Vec::new(); lines.len()];
    for (from, to) in found.secrets {
        for (number, line) in lines.iter().enumerate().skip(from.line as usize - 1) {
            if number + 1 > to.line as usize {
                break;
            }
            let (start, end) = on_line(from, to, number + 1, line.len());
            // Not the space behind it.
            let last = line.get(start..end).and_then(|span| span.iter().rposition(|c| *c != ' '));
            hidden[number].extend(last.map(|last| (start, start + last + 1)));
        }
    }
    lines.iter().zip(hidden).map(|(line, hidden)| Line::without(line, hidden)).collect()
}

/// The lines of `text` without those that might hold a secret, where nothing tells what they are.
pub(crate) fn without_guess(text: &str, faults: &[Fault]) -> Vec<Line> {
    let lines: Vec<&str> = fault::lines(text).collect();
    let shown = |index: usize| {
        faults.iter().any(|fault| fault.place.line as usize == index + 1)
            && !lines[index].trim_start().starts_with('-')
            && !gives_a_secret_away(lines[index])
            && around(&lines, index).all(|line| !might_hold_a_secret(line))
    };
    (0..lines.len())
        .map(|index| if shown(index) { Line::whole(lines[index]) } else { Line::default() })
        .collect()
}

/// The line itself, those it is indented below, and those before it whose value may go on in it.
fn around<'l>(lines: &'l [&'l str], index: usize) -> impl Iterator<Item = &'l str> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut least = indent(lines[index]);
    lines[..=index].iter().enumerate().rev().filter_map(move |(at, line)| {
        if line.trim().is_empty() {
            return None;
        }
        let above = at == index || indent(line) < least;
        least = least.min(indent(line));
        // A quote or a bracket that is open may hold all that follows.
        let odd = |quote: char| line.matches(quote).count() % 2 == 1;
        let count = |brackets: [char; 2]| line.matches(brackets).count();
        let open = odd('"') || odd('\'') || count(['{', '[']) != count(['}', ']']);
        (above || open).then_some(*line)
    })
}

fn might_hold_a_secret(line: &str) -> bool {
    line.contains('@') || names_a_secret(line) || bears_an_anchor(line) || {
        let key = line.split(':').next().unwrap_or_default().trim();
        is_secret(key)
    }
}

/// Whether an alias elsewhere could put what stands in this line under any key.
fn bears_an_anchor(line: &str) -> bool {
    line.match_indices('&').any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| c.is_whitespace() || "[{,:".contains(c))
    })
}

/// Where a tree's scalars are, and which of them are secrets.
#[derive(Default)]
struct Found {
    scalars: Vec<(Position, Position)>,
    secrets: Vec<(Position, Position)>,
    /// Where those are that a key's name makes secrets.
    named: HashSet<Position>,
    /// Where those are that a key does not make secrets.
    open: HashSet<Position>,
}

impl Found {
    fn look(&mut self, node: &Node, secrecy: Secrecy) {
        match &node.kind {
            Kind::Scalar(scalar) => {
                self.scalars.push((node.at, node.end));
                if secrecy.hides(&scalar.text) {
                    self.secrets.push((node.at, node.end));
                }
                // What could not be filled in has no text.
                let is_hidden = |text: &str| secrecy != Secrecy::Open && secrecy.hides(text);
                let is_named =
                    is_hidden(&scalar.text) || scalar.raw.as_deref().is_some_and(is_hidden);
                if is_named { &mut self.named } else { &mut self.open }.insert(node.at);
            }
            Kind::Sequence(items) => items.iter().for_each(|item| self.look(item, secrecy)),
            Kind::Mapping(entries) => {
                // `{ name: X-Api-Key, value: … }`
                let names_a_secret = entries.iter().any(|entry| {
                    matches!(&entry.value.kind, Kind::Scalar(scalar)
                        if matches!(&*entry.key, "name" | "header") && is_secret(&scalar.text))
                });
                for entry in entries {
                    let below = secrecy.below(&entry.key);
                    // Braces around a secret make it a key.
                    if secrecy == Secrecy::Secret && below == Secrecy::Secret {
                        self.secrets.push((entry.key_at, entry.key_end));
                        self.named.insert(entry.key_at);
                    } else {
                        self.open.insert(entry.key_at);
                    }
                    let named = names_a_secret && entry.key.starts_with("value");
                    self.look(&entry.value, if named { Secrecy::Secret } else { below });
                }
            }
        }
    }
}

/// The part of a line of `length` characters, the `number`th, that lies between two places.
fn on_line(from: Position, to: Position, number: usize, length: usize) -> (usize, usize) {
    let start = if number == from.line as usize { from.column as usize - 1 } else { 0 };
    let end = if number == to.line as usize { to.column as usize - 1 } else { length };
    (start, end.min(length))
}

/// Where the comment of a line begins, if it has one.
fn comment(line: &[char], number: usize, scalars: &[(Position, Position)]) -> Option<usize> {
    let inside = |index: usize| {
        scalars.iter().any(|(from, to)| {
            let lines = from.line as usize..=to.line as usize;
            let (start, end) = on_line(*from, *to, number, line.len());
            lines.contains(&number) && (start..end).contains(&index)
        })
    };
    let begins = |index: usize| {
        line[index] == '#' && (index == 0 || line[index - 1].is_whitespace()) && !inside(index)
    };
    (0..line.len()).find(|index| begins(*index))
}

/// Whether a key takes a secret, or is a misspelling of one that does.
pub(crate) fn is_secret(key: &str) -> bool {
    names_a_secret(key)
        || !RESEMBLING.contains(&key) && suggestion::closest(key, MISSPELLED.into_iter()).is_some()
}

/// Whether a text is a secret, or holds one, whatever its key is called.
pub(crate) fn gives_a_secret_away(text: &str) -> bool {
    let lower = text.to_lowercase();
    let presented = SCHEMES.iter().any(|scheme| {
        lower.match_indices(scheme).any(|(at, _)| {
            let before = lower[..at].chars().next_back();
            before.is_none_or(|c| !c.is_alphanumeric())
                && lower[at + scheme.len()..].starts_with(|c: char| !c.is_whitespace())
        })
    });
    presented
        || has_a_user(text)
        || lower.contains("private key-----")
        || (text.starts_with("eyJ") && text.matches('.').count() >= 2)
        || assigns_a_secret(text)
}

/// `user:password@host`, with a scheme before it or not.
fn has_a_user(text: &str) -> bool {
    text.split(|c: char| c.is_whitespace() || c == ',').any(|word| {
        word.split_once('@').is_some_and(|(before, host)| before.contains(':') && !host.is_empty())
    })
}

/// `api_key=…`, `"password": "…"`
fn assigns_a_secret(text: &str) -> bool {
    let around = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\');
    text.match_indices(['=', ':']).any(|(at, _)| {
        let (before, value) = (text[..at].trim_end_matches(around), &text[at + 1..]);
        let name = before.rsplit(|c: char| !c.is_alphanumeric() && !"-_.".contains(c)).next();
        let name = name.unwrap_or_default();
        names_a_secret(name) && !value.trim_matches(around).is_empty()
    })
}

fn looks_like_a_path(text: &str) -> bool {
    let rooted = ["/", "./", "../"].iter().any(|root| text.starts_with(root));
    let ending = text.rsplit_once('.').is_some_and(|(_, ending)| {
        (1..=5).contains(&ending.len()) && ending.bytes().all(|b| b.is_ascii_lowercase())
    });
    (rooted || ending)
        && text.len() <= 200
        && !text.contains(char::is_whitespace)
        && !text.ends_with('=')
}

/// In small letters, without what joins words.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '-' | '_' | '.')).flat_map(char::to_lowercase).collect()
}

/// Whether one of [`WORDS`] is in `name`, however it is spelled.
fn names_a_secret(name: &str) -> bool {
    let name = plain(name);
    WORDS.iter().any(|word| name.contains(word))
}

/// A key whose name holds one of these takes a secret.
const WORDS: [&str; 8] =
    ["secret", "passw", "passphrase", "token", "authorization", "key", "credential", "cookie"];

/// The keys whose misspellings are looked for.
const MISSPELLED: [&str; 5] = ["secret", "hmac_secret", "client_secret", "password", "token"];

/// Keys that resemble those and hold no secret.
const RESEMBLING: [&str; 1] = ["secure"];

/// Keys of the file that only head others.
const SECTIONS: [&str; 2] = ["password_grant", "cookie"];

/// Keys of the file that name files.
const PATHS: [&str; 2] = ["key", "identity_keys"];

/// What a credential in a field's value begins with.
const SCHEMES: [&str; 5] = ["bearer ", "basic ", "digest ", "dpop ", "negotiate "];

#[cfg(test)]
mod tests;
