//! Spellings of one name: what a lenient authorization server reads as the same person.

use std::borrow::Cow;
use std::sync::LazyLock;

use icu_normalizer::DecomposingNormalizerBorrowed;
use regex::Regex;

/// The name as a lenient authorization server reads it: `ALICE`, ` alice`, `alicé` and full-width `ａｌｉｃｅ` are one
/// person to many, and so get the guesses of one. Where they are several, these share a count.
pub(crate) fn folded(name: &str) -> String {
    if name.is_ascii() {
        return name
            .chars()
            .filter(|c| !c.is_whitespace())
            .map(|c| c.to_ascii_lowercase())
            .collect();
    }
    // By way of upper case, where `ß` is `SS` and `ſ` is `S`; decomposed once more, because `İ` is `i` with a mark in
    // lower case.
    let plain = plain(name);
    let folded: String =
        plain.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect();
    self::plain(&folded)
}

/// The name without what compatibility adds to a letter (NFKD), and without what is not seen: marks, spaces, joiners,
/// marks of direction and variation.
fn plain(name: &str) -> String {
    static INVISIBLE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"[\p{M}\p{Cf}\p{White_Space}\p{Default_Ignorable_Code_Point}]+")
            .expect("a valid expression")
    });
    let decomposed: Cow<'_, str> = DecomposingNormalizerBorrowed::new_nfkd().normalize(name);
    INVISIBLE.replace_all(&decomposed, "").into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_spelling_of_a_name_gets_no_guesses_of_its_own() {
        for spelling in [
            "ALICE",
            "aLiCe",
            " alice ",
            "alice\u{a0}",
            "al\u{200b}ice",
            "alice\u{fe0f}",
            "\u{feff}alice",
            "ａｌｉｃｅ",
            "Ａlice",
            "alicé",
            "alice\u{301}",
            "ⓐⓛⓘⓒⓔ",
            "𝐚𝐥𝐢𝐜𝐞",
            "alİce",
            "aliçe",
            "al\u{ad}ice",
        ] {
            assert_eq!(folded(spelling), "alice", "{spelling:?}");
        }
        assert_eq!(folded("STRASSE"), folded("straße"));
        assert_eq!(folded("ﬁﬂip"), "fiflip");
        assert_eq!(folded("ΣΊΣΥΦΟΣ"), folded("σίσυφος"));
        assert_ne!(folded("alicia"), folded("alice"));
        assert_ne!(folded("алиса"), folded("алина"));
    }
}
