//! Finds the secrets of a whole file, and removes them from its text and its faults.

use std::collections::HashSet;

use super::{Secrecy, gives_a_secret_away, is_secret, key_holds_a_secret, names_a_secret};
use crate::base::secret::HIDDEN;
use crate::config::fault::{self, Fault, Line, Position};
use crate::config::variable_syntax::is_names_only;
use crate::config::yaml::{Kind, Node};

/// The length in bytes below which a text is too short to be a secret.
const SHORTEST_SECRET: usize = 3;

/// The same for a part of a secret.
const SHORTEST_WORD: usize = 4;

/// Marks every scalar and key whose text is used by the key of a secret, directly or through an alias.
pub(crate) fn mark(root: &mut Node) {
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

/// Returns the texts that a secret key and another key share through an alias, variables expanded.
pub(crate) fn shared(root: &Node) -> Vec<String> {
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

fn texts_at(node: &Node, positions: &HashSet<Position>, texts: &mut Vec<String>) {
    let mut take = |at: &Position, text: &str| {
        if positions.contains(at) && text.len() >= SHORTEST_SECRET {
            texts.push(text.to_owned());
        }
    };
    match &node.kind {
        Kind::Scalar(scalar) => {
            take(&node.at, &scalar.text);
            let raw = scalar.raw.as_deref().filter(|raw| !is_names_only(raw));
            take(&node.at, raw.unwrap_or_default());
        }
        Kind::Sequence(items) => items.iter().for_each(|item| texts_at(item, positions, texts)),
        Kind::Mapping(entries) => {
            for entry in entries {
                take(&entry.key_at, &entry.key);
            }
            for entry in entries {
                texts_at(&entry.value, positions, texts);
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
pub(crate) fn take_out(secrets: &[String], fault: &mut Fault) {
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
            // Drop the space that followed the secret.
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
        faults.iter().any(|fault| fault.position.line as usize == index + 1)
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
                let secrecy = secrecy.of_mapping();
                // `{ name: X-Api-Key, value: … }`
                let names_a_secret = entries.iter().any(|entry| {
                    matches!(&entry.value.kind, Kind::Scalar(scalar)
                        if matches!(&*entry.key, "name" | "header") && is_secret(&scalar.text))
                });
                for entry in entries {
                    let below = secrecy.below(&entry.key);
                    // A secret between braces was parsed as a key.
                    let is_below = secrecy == Secrecy::Secret && below == Secrecy::Secret;
                    if is_below || key_holds_a_secret(&entry.key) {
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
