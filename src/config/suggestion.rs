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

/// Returns the number of letters to add, drop, change or swap with their neighbour to turn `a` into `b`
/// (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(MAX_WORD_CHARS).collect();
    let b: Vec<char> = b.chars().take(MAX_WORD_CHARS).collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let changed = usize::from(a[i - 1] != b[j - 1]);
                let mut least =
                    (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + changed);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[a.len()][b.len()]
}

/// The length up to which words are compared.
const MAX_WORD_CHARS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let keys = ["upstream", "respond", "redirect", "auth"];

        assert_eq!(closest("upstrem", keys.into_iter()), Some("upstream"));
        assert_eq!(closest("Upstream", keys.into_iter()), Some("upstream"));
        assert_eq!(closest("auht", keys.into_iter()), Some("auth"));
        assert_eq!(closest("colour", keys.into_iter()), None);
    }

    #[test]
    fn counts_letters() {
        assert_eq!(distance("shpo", "shop"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
