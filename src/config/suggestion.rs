//! Suggestions for misspelled words: "did you mean …?"

/// Returns the candidate that `word` is most likely a misspelling of.
pub(crate) fn closest<'c>(
    word: &str,
    candidates: impl Iterator<Item = &'c str>,
) -> Option<&'c str> {
    let word = word.to_lowercase();
    // A number is never a misspelling.
    if !word.contains(char::is_alphabetic) {
        return None;
    }
    let tolerated = (word.chars().count() / 3).clamp(1, 3);
    candidates
        .map(|candidate| (distance(&word, candidate), candidate))
        .filter(|(distance, _)| *distance <= tolerated)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Returns the number of letters to add, drop, change or swap with their neighbour to turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    strsim::osa_distance(beginning(a), beginning(b))
}

fn beginning(word: &str) -> &str {
    word.char_indices().nth(MAX_WORD_CHARS).map_or(word, |(end, _)| &word[..end])
}

/// The length up to which words are compared.
const MAX_WORD_CHARS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_key_is_suggested_for_a_misspelled_one() {
        let keys = ["upstream", "respond", "redirect", "auth"];

        assert_eq!(closest("upstrem", keys.into_iter()), Some("upstream"));
        assert_eq!(closest("Upstream", keys.into_iter()), Some("upstream"));
        assert_eq!(closest("auht", keys.into_iter()), Some("auth"));
        assert_eq!(closest("colour", keys.into_iter()), None);
    }

    #[test]
    fn the_distance_of_two_words_is_the_number_of_edits() {
        assert_eq!(distance("shpo", "shop"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
