//! The content codings that a client accepts (RFC 9110 §12.5.3).

use http::HeaderMap;
use http::header::ACCEPT_ENCODING;

use crate::config::route::Coding;

/// Returns the coding of `offered` that the client prefers, the first of equals; `None` if it prefers none, or has no
/// preference.
pub(crate) fn negotiate(headers: &HeaderMap, offered: &[Coding]) -> Option<Coding> {
    let mut weights = Weights::default();
    for value in headers.get_all(ACCEPT_ENCODING) {
        for element in value.to_str().unwrap_or_default().split(',') {
            weights.read(element);
        }
    }
    let (mut best, mut max) = (None, 0);
    for coding in offered {
        let weight = weights.of(*coding);
        if weight > max {
            (best, max) = (Some(*coding), weight);
        }
    }
    // Without a weight of its own, content without a coding is always acceptable, and never preferred.
    best.filter(|_| weights.identity.is_none_or(|identity| identity <= max))
}

/// The weights of a field, in thousandths. The least weight of a coding that is named twice counts.
#[derive(Debug, Default)]
struct Weights {
    codings: [Option<u16>; Coding::ALL.len()],
    identity: Option<u16>,
    others: Option<u16>,
}

impl Weights {
    /// Reads one element; a malformed one is ignored.
    fn read(&mut self, element: &str) {
        let mut parts = element.split(';').map(str::trim_ascii);
        let name = parts.next().unwrap_or_default();
        let weight = match (parts.next(), parts.next()) {
            (None, _) => Some(1000),
            (Some(parameter), None) => weight(parameter),
            (Some(_), Some(_)) => None,
        };
        let Some(weight) = weight else { return };
        let named = |coding: &Coding| {
            name.eq_ignore_ascii_case(coding.name())
                || *coding == Coding::Gzip && name.eq_ignore_ascii_case("x-gzip")
        };
        let entry = if let Some(index) = Coding::ALL.iter().position(named) {
            &mut self.codings[index]
        } else if name.eq_ignore_ascii_case("identity") {
            &mut self.identity
        } else if name == "*" {
            &mut self.others
        } else {
            return;
        };
        *entry = Some(entry.map_or(weight, |before| before.min(weight)));
    }

    fn of(&self, coding: Coding) -> u16 {
        let own = Coding::ALL.iter().position(|other| *other == coding);
        own.and_then(|index| self.codings[index]).or(self.others).unwrap_or(0)
    }
}

/// Parses a weight: `q=`, and 0 to 1 with up to three decimals.
fn weight(parameter: &str) -> Option<u16> {
    let value = parameter.strip_prefix(['q', 'Q'])?.strip_prefix('=')?;
    let (whole, decimals) = value.split_once('.').unwrap_or((value, ""));
    let digits = decimals.bytes().all(|byte| byte.is_ascii_digit());
    if !matches!(whole, "0" | "1") || decimals.len() > 3 || !digits {
        return None;
    }
    let thousandths: u16 = format!("{whole}{decimals:0<3}").parse().ok()?;
    (thousandths <= 1000).then_some(thousandths)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const ALL: [Coding; 3] = [Coding::Gzip, Coding::Brotli, Coding::Zstd];

    #[test]
    fn the_clients_preference_decides_and_then_the_order_of_the_list() {
        for (fields, wanted) in [
            (&["gzip, br, zstd"][..], Some(Coding::Gzip)),
            (&["zstd, br"], Some(Coding::Brotli)),
            (&["gzip;q=0.5, zstd;q=0.8"], Some(Coding::Zstd)),
            (&["gzip;q=0.5", "zstd;q=0.8"], Some(Coding::Zstd)),
            (&["gzip; q=0.001 , *;q=0"], Some(Coding::Gzip)),
            (&["*"], Some(Coding::Gzip)),
            (&["*;q=0.5, gzip;q=0"], Some(Coding::Brotli)),
            (&["x-gzip"], Some(Coding::Gzip)),
            (&["GZIP;Q=1.000"], Some(Coding::Gzip)),
            (&["deflate, br;q=1"], Some(Coding::Brotli)),
            (&["identity;q=0, gzip"], Some(Coding::Gzip)),
            (&["identity;q=0.5, gzip;q=0.5"], Some(Coding::Gzip)),
            (&["identity, gzip;q=0.5"], None),
            (&["gzip;q=0"], None),
            (&["gzip;q=0.000"], None),
            (&["gzip, gzip;q=0"], None),
            (&["gzip;q=1.5"], None),
            (&["gzip;q=0.1234"], None),
            (&["gzip;q=-1"], None),
            (&["gzip;q="], None),
            (&["gzip;level=9"], None),
            (&["gzipped"], None),
            (&["identity"], None),
            (&[""], None),
            (&[], None),
        ] {
            assert_eq!(negotiate(&headers(fields), &ALL), wanted, "{fields:?}");
        }
        assert_eq!(negotiate(&headers(&["gzip"]), &[Coding::Zstd]), None);
    }

    proptest! {
        #[test]
        fn any_field_is_read_and_nothing_is_chosen_that_is_not_offered(
            field in "[gzipbrstd*;q=0-9., ]{0,40}",
        ) {
            let chosen = negotiate(&headers(&[&field]), &[Coding::Brotli]);
            prop_assert!(matches!(chosen, None | Some(Coding::Brotli)));
            prop_assert!(chosen.is_none() || field.contains("br") || field.contains('*'));
        }
    }

    fn headers(fields: &[&str]) -> HeaderMap {
        let value = |field: &&str| (ACCEPT_ENCODING, HeaderValue::from_str(field).expect("valid"));
        fields.iter().map(value).collect()
    }
}
