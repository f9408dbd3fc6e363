//! Redaction of secrets in all output that quotes the file: faults, `northgate config`, the log.
//!
//! A value is a secret by the name of its key (every key whose name holds `secret`, `password`, `token`,
//! `authorization`, `key` and their like, in any spelling, or `pass`, `pin`, `signature` and their like as a word), by
//! its context (a list or a mapping under such a key), or by its own form (`Bearer …`, a password in a URL, `api_key=…`).
//! A key whose text goes on after such a name (`secret:hunter2`) is a secret itself. The excerpts of faults, the quotes
//! in their messages, and the printed configuration all use these rules. Keys of the file whose names hold such a word and
//! whose values have a type of their own (`typed_key`) show what is of that type.

use crate::base::secret::HIDDEN;

use self::typed_key::ValueType;
use super::suggestion;
use super::variable_syntax::is_names_only;

/// The parts of a key's value that may be shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Secrecy {
    /// The value, unless it has the form of a secret.
    Open,
    /// The path of a file; any other text is likely the secret itself.
    Path,
    /// The values below, but no text in place of a section.
    Section,
    /// A text of this type; any other is likely a secret in the wrong place.
    Typed(ValueType),
    /// The names of a header field and of a cookie below `header` and `cookie`, and nothing else.
    Names,
    /// Nothing.
    Secret,
}

impl Secrecy {
    /// Returns the secrecy of the value under `key`, in a mapping of this secrecy.
    pub(crate) fn below(self, key: &str) -> Self {
        match self {
            // `{ file: … }` and `{ env: … }` name the source of a secret.
            Self::Secret if matches!(key, "file" | "env") => Self::Open,
            Self::Names => typed_key::below_token_from(key).map_or(Self::Secret, Self::Typed),
            Self::Secret | Self::Typed(_) => Self::Secret,
            _ if key == TOKEN_PLACE => Self::Names,
            _ if let Some(kind) = typed_key::of(key) => Self::Typed(kind),
            _ if SECTIONS.contains(&key) => Self::Section,
            _ if PATHS.contains(&key) => Self::Path,
            _ if is_secret(key) => Self::Secret,
            _ => Self::Open,
        }
    }

    /// Returns the secrecy of the keys of a mapping in place of the value: a value of a type is no mapping.
    pub(crate) fn of_mapping(self) -> Self {
        match self {
            Self::Typed(_) => Self::Secret,
            secrecy => secrecy,
        }
    }

    /// Whether `text`, as written under such a key, must be hidden.
    pub(crate) fn hides(self, text: &str) -> bool {
        match self {
            Self::Open => gives_a_secret_away(text),
            _ if matches!(text, "" | "true" | "false") || is_names_only(text) => false,
            Self::Path => !looks_like_a_path(text),
            Self::Typed(kind) => gives_a_secret_away(text) || !kind.admits(text),
            Self::Section | Self::Names | Self::Secret => true,
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

/// Whether a key takes a secret, or is a misspelling of one that does.
pub(crate) fn is_secret(key: &str) -> bool {
    names_a_secret(key)
        || !RESEMBLING.contains(&key) && suggestion::closest(key, MISSPELLED.into_iter()).is_some()
}

/// Whether a key holds a secret: without a blank behind the colon, or without the colon, `secret:hunter2` and
/// `secret hunter2` are keys.
pub(crate) fn key_holds_a_secret(key: &str) -> bool {
    let trimmed = key.trim();
    let named = trimmed.split_once(char::is_whitespace);
    gives_a_secret_away(key) || named.is_some_and(|(name, _)| is_secret(name))
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
        || goes_on_with_a_secret(text)
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
        let is_parameter = before[..before.len() - name.len()].ends_with(['?', '&']);
        (names_a_secret(name) || is_parameter && PARAMETERS.contains(&name))
            && !value.trim_matches(around).is_empty()
    })
}

/// `token hunter2`: a colon is missing. Letters and digits tell the second word from prose.
fn goes_on_with_a_secret(text: &str) -> bool {
    let mut words = text.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let is_mixed = |next: &&str| {
            next.contains(|c: char| c.is_alphabetic()) && next.contains(|c: char| c.is_numeric())
        };
        if is_secret(word) && words.peek().is_some_and(is_mixed) {
            return true;
        }
    }
    false
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

/// Whether `name` is called like a secret, however it is spelled.
fn names_a_secret(name: &str) -> bool {
    let plain = plain(name);
    if PARTS.iter().any(|part| plain.contains(part)) {
        return true;
    }
    let words: Vec<String> = words(name).collect();
    // `jwt` and `bearer` alone are keys of the file, and name an issuer.
    let is_of_a_token = words.len() > 1
        && name != "jwt_cache"
        && !name.contains(char::is_whitespace)
        && words.iter().any(|word| matches!(&**word, "jwt" | "bearer"));
    is_of_a_token || words.iter().any(|word| WORDS.contains(&&**word))
}

/// Returns the words of a name in lower case: `X-Pass`, `auth_pass`, `authPass2`.
fn words(name: &str) -> impl Iterator<Item = String> {
    let mut words = vec![String::new()];
    let mut is_after_lower_case = false;
    for c in name.chars() {
        if !c.is_alphabetic() || c.is_uppercase() && is_after_lower_case {
            words.push(String::new());
        }
        if c.is_alphabetic()
            && let Some(word) = words.last_mut()
        {
            word.extend(c.to_lowercase());
        }
        is_after_lower_case = c.is_lowercase();
    }
    words.into_iter().filter(|word| !word.is_empty())
}

/// Parts of a name that make a key a secret.
const PARTS: [&str; 12] = [
    "secret",
    "passw",
    "passphrase",
    "passcode",
    "token",
    "authorization",
    "key",
    "credential",
    "cookie",
    "kennwort",
    "motdepasse",
    "originverify",
];

/// Words that do so as a whole word: `pass` is none of `compass`.
const WORDS: [&str; 18] = [
    "pass",
    "pwd",
    "psw",
    "psk",
    "pw",
    "pwhash",
    "pin",
    "otp",
    "totp",
    "hmac",
    "sig",
    "signature",
    "dsn",
    "cred",
    "creds",
    "sas",
    "seed",
    "salt",
];

/// Names of query parameters that carry secrets, beside those.
const PARAMETERS: [&str; 4] = ["code", "auth", "access", "credentials"];

/// Keys whose misspellings count as secrets.
const MISSPELLED: [&str; 5] = ["secret", "hmac_secret", "client_secret", "password", "token"];

/// Keys that resemble those and are no secrets.
const RESEMBLING: [&str; 1] = ["secure"];

/// Keys of the file that only head a section.
const SECTIONS: [&str; 3] = ["password_grant", "cookie", "client"];

/// The key of the file that says where requests carry their token.
const TOKEN_PLACE: &str = "token_from";

/// Keys of the file that name files.
const PATHS: [&str; 2] = ["key", "identity_keys"];

/// The schemes of a credential in a field value.
const SCHEMES: [&str; 5] = ["bearer ", "basic ", "digest ", "dpop ", "negotiate "];

#[cfg(test)]
mod tests;
pub(crate) mod tree;
mod typed_key;
