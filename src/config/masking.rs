//! What may be shown of the file: never a secret, wherever it stands.
//!
//! A value is a secret by the name of its key (every key whose name holds `secret`, `password`, `token`,
//! `authorization`, `key` and their like, in any spelling), by what stands around it (a list or a mapping under such a
//! key), or by what it says itself (`Bearer …`, a password in a URL, `api_key=…`). The excerpts of faults, the quotes
//! in their messages, and what prints a configuration all ask here.

use super::fault::{Fault, Place};
use super::similar;
use super::variables;
use super::yaml::{Kind, Node};

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
            Self::Secret if similar::to(key, ["file", "env"].into_iter()).is_some() => Self::Open,
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
            _ if matches!(text, "" | "true" | "false") || variables::is_names_only(text) => false,
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

/// `text` with every secret that stands in it blotted out, as far as `root` tells where they are.
pub(crate) fn without_secrets(text: &str, root: &Node) -> String {
    let mut found = Found::default();
    found.look(root, Secrecy::Open);
    let mut lines: Vec<Vec<char>> = text.lines().map(|line| line.chars().collect()).collect();
    for (number, line) in lines.iter_mut().enumerate() {
        if let Some(comment) = comment(line, number + 1, &found.scalars)
            && names_a_secret(&line[comment..].iter().collect::<String>())
        {
            line.truncate(comment);
        }
    }
    for (from, to) in found.secrets {
        for (number, line) in lines.iter_mut().enumerate().skip(from.line as usize - 1) {
            if number + 1 > to.line as usize {
                break;
            }
            let (start, end) = on_line(from, to, number + 1, line.len());
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
    let lines: Vec<&str> = text.lines().collect();
    let shown = |index: usize| {
        faults.iter().any(|fault| fault.place.line as usize == index + 1)
            && !lines[index].trim_start().starts_with('-')
            && !gives_a_secret_away(lines[index])
            && around(&lines, index).all(|line| !might_hold_a_secret(line))
    };
    (0..lines.len())
        .map(|index| if shown(index) { format!("{}\n", lines[index]) } else { "\n".to_owned() })
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
    line.contains('@') || names_a_secret(line) || {
        let key = line.split(':').next().unwrap_or_default().trim();
        is_secret(key)
    }
}

/// Where a tree's scalars are, and which of them are secrets.
#[derive(Default)]
struct Found {
    scalars: Vec<(Place, Place)>,
    secrets: Vec<(Place, Place)>,
}

impl Found {
    fn look(&mut self, node: &Node, secrecy: Secrecy) {
        match &node.kind {
            Kind::Scalar(scalar) => {
                self.scalars.push((node.at, node.end));
                if secrecy.hides(&scalar.text) {
                    self.secrets.push((node.at, node.end));
                }
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
                        self.secrets.push((entry.key_at, entry.value.at));
                    }
                    let named = names_a_secret && entry.key.starts_with("value");
                    self.look(&entry.value, if named { Secrecy::Secret } else { below });
                }
            }
        }
    }
}

/// The part of a line of `length` characters, the `number`th, that lies between two places.
fn on_line(from: Place, to: Place, number: usize, length: usize) -> (usize, usize) {
    let start = if number == from.line as usize { from.column as usize - 1 } else { 0 };
    let end = if number == to.line as usize { to.column as usize - 1 } else { length };
    (start, end.min(length))
}

/// Where the comment of a line begins, if it has one.
fn comment(line: &[char], number: usize, scalars: &[(Place, Place)]) -> Option<usize> {
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
        || !RESEMBLING.contains(&key) && similar::to(key, MISSPELLED.into_iter()).is_some()
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
mod tests {
    use super::*;
    use crate::config::yaml;

    #[test]
    fn secrets_are_blotted_out_where_they_stand() {
        assert_eq!(
            masked(
                "client: { id: a, secret: hunter2 }\nkeys:\n  - 'aaaa'\n  - { file: /x }\nscret: hunter2\nurl: redis://:pw@host\n"
            ),
            "client: { id: a, secret: ******* }\nkeys:\n  - ******\n  - { file: /x }\nscret: *******\nurl: ****************\n"
        );
    }

    #[test]
    fn a_secret_of_several_lines_is_blotted_out_whole() {
        assert_eq!(
            masked("token: \"one\n  two\"\nversion: 1\n"),
            "token: ****\n******\nversion: 1\n"
        );
        for block in ["|", ">", "|-", ">+"] {
            let text = format!("a:\n  token: {block}\n    hunter2\n\n    hunter2\n  b: c\n");
            let masked = masked(&text);
            assert!(!masked.contains("hunter2") && masked.contains("b: c"), "{masked}");
        }
    }

    #[test]
    fn every_key_that_is_called_like_a_secret_hides_what_is_below_it() {
        for key in [
            "Authorization",
            "X-Api-Key",
            "x_api_key",
            "APIKEY",
            "client-secret",
            "adminToken",
            "passwords",
            "PASSWD",
            "Set-Cookie",
            "proxy-authorization",
            "secretes",
            "x.access.token",
            "tokens",
            "max_keys",
        ] {
            for value in [
                "hunter2",
                "'hunter2'",
                "\"hunter2 ${X}\"",
                "${X:-hunter2}",
                "[hunter2, [hunter2]]",
                "{ a: hunter2 }",
                "{hunter2}",
                "{ a: [{ b: hunter2 }] }",
                "\n  - hunter2\n  - b: hunter2",
                "|\n  hunter2",
                "\n  hunter2\n  hunter2",
                "&anchor hunter2",
            ] {
                let text = format!("{key}: {value}\nnext: shown\n");
                let masked = masked(&text);
                assert!(
                    !masked.contains("hunter2") && masked.contains("next: shown"),
                    "{text}{masked}"
                );
            }
        }
    }

    #[test]
    fn what_gives_itself_away_is_hidden_under_any_key() {
        for secret in [
            "Bearer hunter2",
            "Basic aHVudGVyMg==",
            "x Bearer hunter2",
            "https://a:hunter2@b.example/",
            "a:hunter2@b:80",
            "https://b.example/?api_key=hunter2",
            "/x?a=b&access_token=hunter2#c",
            "{\"password\": \"hunter2\"}",
            "secret = hunter2",
            "eyJhunter2.hunter2.hunter2",
            "-----BEGIN EC PRIVATE KEY-----\nhunter2",
        ] {
            assert!(gives_a_secret_away(secret), "{secret}");
            let text = format!("a: {}\n", serde_json::json!(secret));
            assert!(!masked(&text).contains("hunter2"), "{text}");
        }
        for plain in [
            "https://a.example/b",
            "header:X-Api-Key",
            "claim:sub",
            "a@b.example",
            "Basic",
            "realm=\"a\"",
            "{claim:sub}",
            "northgate=debug,info",
            "/keys/{key}",
            "key=",
            "x-token",
            "redirect: /a",
        ] {
            assert!(!gives_a_secret_away(plain), "{plain}");
        }
    }

    #[test]
    fn what_says_where_a_secret_is_is_shown() {
        let text = "admin: { token: { file: /run/token } }\nkey: tls/key.pem\nidentity_keys: [a.pem]\nsecret: { env: NAME }\n\
                    password: \"${NAME}\"\npassword_grant: { scopes: [a] }\nforward_token: false\n";
        assert_eq!(masked(text), text);
        assert_eq!(
            masked("key: hunter2\npassword_grant: hunter2\n"),
            "key: *******\npassword_grant: *******\n"
        );
        assert_eq!(
            masked("set: [{ name: X-Key, value: hunter2 }]\n"),
            "set: [{ name: X-Key, value: ******* }]\n"
        );
    }

    #[test]
    fn a_secret_that_is_written_twice_or_in_a_comment_is_hidden() {
        assert!(!masked("token: hunter2\ntoken: hunter2\n").contains("hunter2"));
        assert_eq!(masked("a: b # the token is hunter2\n"), "a: b \n");
        assert_eq!(masked("a: 'b # c' # plain\n"), "a: 'b # c' # plain\n");
    }

    #[test]
    fn what_cannot_be_parsed_is_shown_only_where_it_holds_no_secret() {
        for (text, shown) in [
            ("a: b: c\nsecret: hunter2\n", "a: b: c\n\n"),
            ("secret: hunter2: x\n", "\n"),
            ("X-Api-Key: hunter2: x\n", "\n"),
            ("token: \"hunter2\n  hunter2\": b: c\n", "\n\n"),
            ("token:\n  a: hunter2: b\n", "\n\n"),
            ("admin: { token: x }\na: b: c\n", "\na: b: c\n"),
        ] {
            let mut faults = Vec::new();
            assert!(yaml::parse(text, &mut faults).is_none());

            assert_eq!(without_guess(text, &faults), shown);
        }
    }

    fn masked(text: &str) -> String {
        let root = yaml::parse(text, &mut Vec::new()).expect("a tree");
        without_secrets(text, &root)
    }
}
