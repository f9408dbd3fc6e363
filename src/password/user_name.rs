//! Folding of user names: spellings that a lenient authorization server takes for one user.

use std::borrow::Cow;
use std::sync::LazyLock;

use icu_normalizer::DecomposingNormalizerBorrowed;
use regex::Regex;

/// Returns the name as a lenient authorization server reads it: to many of them `ALICE`, ` alice`, `alicé` and
/// full-width `ａｌｉｃｅ` are one user. Names that fold alike share one count of failed logins.
pub(crate) fn folded(name: &str) -> String {
    if name.is_ascii() {
        return name
            .chars()
            .filter(|c| !c.is_whitespace())
            .map(|c| c.to_ascii_lowercase())
            .collect();
    }
    // By way of upper case, where `ß` is `SS` and `ſ` is `S`; decomposed again, because lower-case `İ` is `i` with a
    // combining mark.
    let plain = plain(name);
    let folded: String =
        plain.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect();
    self::plain(&folded)
}

/// The name in compatibility decomposition (NFKD), without invisible characters: marks, spaces, joiners, marks of
/// direction and variation.
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
    fn spellings_of_one_name_fold_alike() {
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
