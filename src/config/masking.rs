//! The file without its secrets, for the excerpts that faults show.

use super::fault::{Fault, Place};
use super::similar;
use super::yaml::{Kind, Node};

/// `text` with every secret that stands in it blotted out, as far as `root` tells where they are.
pub(crate) fn without_secrets(text: &str, root: &Node) -> String {
    let mut spans = Vec::new();
    find(root, &mut spans);
    let mut lines: Vec<Vec<char>> = text.lines().map(|line| line.chars().collect()).collect();
    for (from, to) in spans {
        for (number, line) in lines.iter_mut().enumerate().skip(from.line as usize - 1) {
            let number = number + 1;
            if number > to.line as usize {
                break;
            }
            let start = if number == from.line as usize { from.column as usize - 1 } else { 0 };
            let end = if number == to.line as usize { to.column as usize - 1 } else { line.len() };
            let end = end.min(line.len());
            if let Some(span) = line.get_mut(start..end) {
                let text = span.iter().rposition(|c| *c != ' ').map_or(0, |last| last + 1);
                span[..text].fill('*');
            }
        }
    }
    lines.into_iter().flat_map(|line| line.into_iter().chain(['\n'])).collect()
}

/// `text` without lines that might hold a secret, where nothing tells what they are.
pub(crate) fn without_guess(text: &str, faults: &[Fault]) -> String {
    let shown = |number: usize, line: &str| {
        let lower = line.to_lowercase();
        faults.iter().any(|fault| fault.place.line as usize == number)
            && !SECRETS.iter().chain(&["key", "@"]).any(|word| lower.contains(word))
            && !line.trim_start().starts_with('-')
    };
    text.lines()
        .enumerate()
        .map(
            |(index, line)| {
                if shown(index + 1, line) { format!("{line}\n") } else { "\n".to_owned() }
            },
        )
        .collect()
}

fn find(node: &Node, spans: &mut Vec<(Place, Place)>) {
    match &node.kind {
        Kind::Scalar(scalar) => {
            // A password in a URL.
            if scalar.text.split_once("://").is_some_and(|(_, rest)| rest.contains('@')) {
                spans.push((node.at, node.end));
            }
        }
        Kind::Sequence(items) => items.iter().for_each(|item| find(item, spans)),
        Kind::Mapping(entries) => {
            for entry in entries {
                if is_secret(&entry.key) {
                    blot(&entry.value, spans);
                } else {
                    find(&entry.value, spans);
                }
            }
        }
    }
}

/// Marks what stands there itself; `{ file: … }` and `{ env: … }` tell nothing.
fn blot(node: &Node, spans: &mut Vec<(Place, Place)>) {
    match &node.kind {
        Kind::Scalar(scalar) if !scalar.text.contains("${") => spans.push((node.at, node.end)),
        Kind::Sequence(items) => items.iter().for_each(|item| blot(item, spans)),
        Kind::Scalar(_) | Kind::Mapping(_) => {}
    }
}

/// Whether a key takes a secret, or is a misspelling of one that does.
fn is_secret(key: &str) -> bool {
    key.ends_with(KEYS)
        || key.contains("nonce")
        || !RESEMBLING.contains(&key) && similar::to(key, SECRETS.iter().copied()).is_some()
}

/// The keys whose values are secrets.
const SECRETS: [&str; 4] = ["secret", "hmac_secret", "password", "token"];

/// One more, whose misspellings are not looked for: `key` names a file.
const KEYS: &str = "keys";

/// Keys that resemble those and hold no secret.
const RESEMBLING: [&str; 2] = ["secure", "tokens"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml;

    #[test]
    fn secrets_are_blotted_out_where_they_stand() {
        let text = "client: { id: a, secret: hunter2 }\nkeys:\n  - 'aaaa'\n  - { file: /x }\nscret: hunter2\nurl: redis://:pw@host\n";
        let root = yaml::parse(text, &mut Vec::new()).expect("a tree");

        assert_eq!(
            without_secrets(text, &root),
            "client: { id: a, secret: ******* }\nkeys:\n  - ******\n  - { file: /x }\nscret: *******\nurl: ****************\n"
        );
    }

    #[test]
    fn a_secret_of_several_lines_is_blotted_out_whole() {
        let text = "token: \"one\n  two\"\nversion: 1\n";
        let root = yaml::parse(text, &mut Vec::new()).expect("a tree");

        assert_eq!(without_secrets(text, &root), "token: ****\n******\nversion: 1\n");
    }

    #[test]
    fn what_cannot_be_parsed_is_shown_only_where_it_holds_no_secret() {
        let mut faults = Vec::new();
        let text = "a: b: c\nsecret: hunter2\n";
        assert!(yaml::parse(text, &mut faults).is_none());

        assert_eq!(without_guess(text, &faults), "a: b: c\n\n");
        let secret = "secret: hunter2: x\n";
        faults.clear();
        assert!(yaml::parse(secret, &mut faults).is_none());
        assert_eq!(without_guess(secret, &faults), "\n");
    }
}
