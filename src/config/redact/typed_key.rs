//! Keys of the file that are called like a secret and take none: sizes, durations, counts, words of a closed list, and names.
//!
//! A value of such a type is shown, since it shows what is wrong. Any other text is hidden, like the value of a key of
//! this name that the operator has chosen.

use crate::config::suggestion;

/// The type of the values of a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ValueType {
    /// Numbers with units, or without: a size, a duration, a count.
    Quantity,
    /// One of these words, or a misspelling of one.
    Word(&'static [&'static str]),
    /// A `typ` of tokens: `JWT`, or one that ends like it.
    TokenType,
    /// The name of a header field or of a cookie (RFC 9110 §5.6.2).
    Name,
}

impl ValueType {
    /// Whether `text` is of this type.
    pub(super) fn admits(self, text: &str) -> bool {
        match self {
            Self::Quantity => is_quantity(text),
            Self::Word(words) => suggestion::closest(text, words.iter().copied()).is_some(),
            Self::TokenType => is_name(text, "/") && ends_with_jwt(text),
            Self::Name => is_name(text, ""),
        }
    }
}

/// Returns the type of the value under `key`, if it is one of these keys.
pub(super) fn of(key: &str) -> Option<ValueType> {
    KEYS.iter().find(|(name, _)| *name == key).map(|(_, kind)| *kind)
}

/// Returns the type of the value under `key` below `token_from`; `None` if there is no such key.
pub(super) fn below_token_from(key: &str) -> Option<ValueType> {
    let meant = suggestion::closest(key, ["header", "cookie"].into_iter());
    meant.map(|_| ValueType::Name)
}

/// Numbers, each with a unit of up to three letters or without one: `16KiB`, `1h30m`, `100_000`.
fn is_quantity(text: &str) -> bool {
    let mut letters = 3;
    text.len() <= MAX_QUANTITY_CHARS
        && text.bytes().all(|byte| match byte {
            b'0'..=b'9' | b'_' | b'.' => {
                letters = 0;
                true
            }
            byte => {
                letters += 1;
                byte.is_ascii_alphabetic() && letters <= 3
            }
        })
}

fn ends_with_jwt(text: &str) -> bool {
    let at = text.len().saturating_sub(3);
    text.get(at..).is_some_and(|ending| ending.eq_ignore_ascii_case("jwt"))
}

fn is_name(text: &str, more: &str) -> bool {
    text.len() <= MAX_NAME_CHARS
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c) || more.contains(c))
}

/// The keys, each with the type of its values.
const KEYS: [(&str, ValueType); 7] = [
    ("max_token_size", ValueType::Quantity),
    ("max_token_age", ValueType::Quantity),
    ("max_keys", ValueType::Quantity),
    ("token_types", ValueType::TokenType),
    ("tokens", ValueType::Word(&["sealed_cookies", "plain_cookies", "server"])),
    ("forward_token", ValueType::Word(&["true", "false", "jwt"])),
    ("hmac_secret_encoding", ValueType::Word(&["text", "base64"])),
];
/// Longer than every size, duration and count, and shorter than most secrets.
const MAX_QUANTITY_CHARS: usize = 16;
const MAX_NAME_CHARS: usize = 64;
