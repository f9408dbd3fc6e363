//! Redaction of secrets in everything that shows parts of the file.
//!
//! A value is a secret by the name of its key (every key whose name holds `secret`, `password`, `token`,
//! `authorization`, `key` and their like, in any spelling), by its context (a list or a mapping under such a
//! key), or by its own form (`Bearer …`, a password in a URL, `api_key=…`). The excerpts of faults, the quotes
//! in their messages, and the printed configuration all use these rules.

use std::collections::HashSet;

use super::env;
use super::fault::{self, Fault, Line, Position};
use super::suggestion;
use super::yaml::{Kind, Node};

/// The length in bytes below which a text is too short to be a secret.
const SHORTEST_SECRET: usize = 3;

/// The same for a part of a secret.
const SHORTEST_WORD: usize = 4;

/// The replacement of a secret.
pub(crate) const HIDDEN: &str = "***";

/// The parts of a key's value that may be shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Secrecy {
    /// The value, unless it has the form of a secret.
    Open,
    /// The path of a file; any other text is likely the secret itself.
    Path,
    /// The values below, but no text in place of a section.
    Section,
    /// Nothing.
    Secret,
}

impl Secrecy {
    /// Returns the secrecy of the value under `key`, in a mapping of this secrecy.
    pub(crate) fn below(self, key: &str) -> Self {
        match self {
            // `{ file: … }` and `{ env: … }` name the source of a secret.
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

    /// Whether `text`, as written under such a key, must be hidden.
    pub(crate) fn hides(self, text: &str) -> bool {
        match self {
            Self::Open => gives_a_secret_away(text),
            _ if matches!(text, "" | "true" | "false") || env::is_names_only(text) => false,
            Self::Path => !looks_like_a_path(text),
            Self::Section | Self::Secret => true,
        }
    }
}

/// Returns the fix for `text`, unless it repeats hidden text.
pub(crate) fn help(help: String, text: &str, hidden: bool) -> String {
    let hidden = hidden || gives_a_secret_away(text);
    let repeats = !text.is_empty() && help.contains(text) || gives_a_secret_away(&help);
    if hidden && repeats { String::new() } else { help }
}

/// Returns the value under a name that the operator chose, as it may be printed.
pub(crate) fn shown<'t>(name: &str, text: &'t str) -> &'t str {
    if Secrecy::Open.below(name).hides(text) { HIDDEN } else { text }
}

/// Marks every scalar and key whose text is used by the key of a secret, directly or through an alias.
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

/// Returns the texts that both the key of a secret and another key use, through an alias; with variables expanded.
pub(super) fn shared(root: &Node) -> Vec<String> {
    let mut found = Found::default();
    found.look(root, Secrecy::Open);
    let shared = found.named.intersection(&found.open).copied().collect();
    let mut texts = Vec::new();
    if found.named.is_disjoint(&found.open) {
        return texts;
    }
    texts_at(root, &shared, &mut texts);
    // A message may quote a part: the name in `{name}`, the host of a URL.
    let words: Vec<String> = texts.iter().flat_map(|text| words(text)).map(str::to_owned).collect();
    texts.extend(words);
    // A text may contain another.
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

/// Returns the parts of a secret by which it could be recognised.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_alphanumeric());
    words.filter(|word| word.len() >= SHORTEST_WORD && !matches!(*word, "http" | "https"))
}

/// Removes `secrets` from the texts of a fault.
pub(super) fn take_out(secrets: &[String], fault: &mut Fault) {
    for secret in secrets {
        for text in [&mut fault.message, &mut fault.help] {
            if text.contains(secret) {
                *text = text.replace(secret, HIDDEN);
            }
        }
    }
}

/// Returns the lines of `text` with every secret replaced, as far as `root` knows their positions.
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
            // Without the space behind the secret.
            let last = line.get(start..end).and_then(|span| span.iter().rposition(|c| *c != ' '));
            hidden[number].extend(last.map(|last| (start, start + last + 1)));
        }
    }
    lines.iter().zip(hidden).map(|(line, hidden)| Line::without(line, hidden)).collect()
}

/// Returns the lines of `text` without those that might hold a secret, for a text that cannot be parsed.
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

/// Returns the line itself, the lines it is indented below, and earlier lines whose value may continue in it.
fn around<'l>(lines: &'l [&'l str], index: usize) -> impl Iterator<Item = &'l str> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut least = indent(lines[index]);
    lines[..=index].iter().enumerate().rev().filter_map(move |(at, line)| {
        if line.trim().is_empty() {
            return None;
        }
        let above = at == index || indent(line) < least;
        least = least.min(indent(line));
        // An open quote or bracket may hold everything that follows.
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

/// Whether an alias elsewhere could use the content of this line under any key.
fn bears_an_anchor(line: &str) -> bool {
    line.match_indices('&').any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| c.is_whitespace() || "[{,:".contains(c))
    })
}

/// The positions of a tree's scalars, and which of them are secrets.
#[derive(Default)]
struct Found {
    scalars: Vec<(Position, Position)>,
    secrets: Vec<(Position, Position)>,
    /// Positions that the name of a key makes secret.
    named: HashSet<Position>,
    /// Positions that no key makes secret.
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
                // A scalar that could not be expanded has no text.
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

/// Returns the part of the `number`th line, `length` characters long, that lies between two positions.
fn on_line(from: Position, to: Position, number: usize, length: usize) -> (usize, usize) {
    let start = if number == from.line as usize { from.column as usize - 1 } else { 0 };
    let end = if number == to.line as usize { to.column as usize - 1 } else { length };
    (start, end.min(length))
}

/// Returns the column where the comment of a line begins, if it has one.
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

/// Whether a text is or contains a secret, whatever the name of its key.
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

/// Normalizes a name: lower case, without separators.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '-' | '_' | '.')).flat_map(char::to_lowercase).collect()
}

/// Whether one of [`WORDS`] is in `name`, however it is spelled.
fn names_a_secret(name: &str) -> bool {
    let name = plain(name);
    WORDS.iter().any(|word| name.contains(word))
}

/// Words that make a key a secret.
const WORDS: [&str; 8] =
    ["secret", "passw", "passphrase", "token", "authorization", "key", "credential", "cookie"];

/// Keys whose misspellings count as secrets.
const MISSPELLED: [&str; 5] = ["secret", "hmac_secret", "client_secret", "password", "token"];

/// Keys that resemble those and are no secrets.
const RESEMBLING: [&str; 1] = ["secure"];

/// Keys of the file that only head a section.
const SECTIONS: [&str; 2] = ["password_grant", "cookie"];

/// Keys of the file that name files.
const PATHS: [&str; 2] = ["key", "identity_keys"];

/// The schemes of a credential in a field value.
const SCHEMES: [&str; 5] = ["bearer ", "basic ", "digest ", "dpop ", "negotiate "];

#[cfg(test)]
mod tests;
