//! How often a request may be passed on (RFC 9110 §7.6.2, §7.6.3).

use http::header::{MAX_FORWARDS, VIA};
use http::{HeaderMap, HeaderValue, Method};

use crate::gateway::Rejection;

/// What is to become of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum HopDecision {
    /// It goes to the service.
    Forward,
    /// It asked for whoever is here: `Max-Forwards` is used up.
    Answer,
}

/// Counts a hop: where `OPTIONS` bounds them, one less is left.
///
/// # Errors
///
/// [`Rejection::Loop`] if the request has come through gateways such as this one too often: a service that is the
/// gateway itself would be asked for ever.
pub(crate) fn check(method: &Method, headers: &mut HeaderMap) -> Result<HopDecision, Rejection> {
    if headers.get_all(VIA).iter().flat_map(entries).filter(|by| is_ours(by)).count() >= MAX_ROUNDS
    {
        return Err(Rejection::LoopDetected);
    }
    if *method != Method::OPTIONS {
        return Ok(HopDecision::Forward);
    }
    let mut fields = headers.get_all(MAX_FORWARDS).iter();
    // One that is no number says nothing.
    let only = fields.next().filter(|_| fields.next().is_none()).and_then(number);
    match only {
        Some(0) => Ok(HopDecision::Answer),
        Some(left) => {
            headers.insert(MAX_FORWARDS, HeaderValue::from(left - 1));
            Ok(HopDecision::Forward)
        }
        None => Ok(HopDecision::Forward),
    }
}

fn entries(via: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    via.as_bytes().split(|&b| b == b',')
}

/// Whether an entry of `Via` is of a gateway such as this one: the protocol, then the name.
fn is_ours(entry: &[u8]) -> bool {
    let mut words = entry.split(|&b| b == b' ' || b == b'\t').filter(|word| !word.is_empty());
    words.nth(1).is_some_and(|by| by.eq_ignore_ascii_case(b"northgate"))
}

fn number(value: &HeaderValue) -> Option<u32> {
    let text = value.to_str().ok()?;
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // More than anybody counts is as good as that.
    digits.then(|| text.parse().unwrap_or(u32::MAX))
}

/// More gateways than anybody puts behind one another.
const MAX_ROUNDS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_as_far_as_they_are_told() {
        for (field, next, left) in [
            ("0", HopDecision::Answer, "0"),
            ("00", HopDecision::Answer, "00"),
            ("1", HopDecision::Forward, "0"),
            ("99999999999999999999", HopDecision::Forward, "4294967294"),
            ("+1", HopDecision::Forward, "+1"),
            ("", HopDecision::Forward, ""),
        ] {
            let mut headers = map(&[("max-forwards", field)]);
            assert_eq!(check(&Method::OPTIONS, &mut headers), Ok(next), "{field}");
            assert_eq!(headers["max-forwards"], left, "{field}");
        }
        let mut twice = map(&[("max-forwards", "0"), ("max-forwards", "0")]);
        assert_eq!(check(&Method::OPTIONS, &mut twice), Ok(HopDecision::Forward));
        assert_eq!(
            check(&Method::GET, &mut map(&[("max-forwards", "0")])),
            Ok(HopDecision::Forward)
        );
    }

    #[test]
    fn a_request_that_comes_round_and_round_is_stopped() {
        let ours = "1.1 northgate";
        let seven = [ours; 7].join(", ");
        let others = "1.1 other, 2 northgate.example, 1.1 a (northgate)";

        let round = |fields: &[(&'static str, &str)]| check(&Method::GET, &mut map(fields));
        assert_eq!(round(&[("via", &seven), ("via", others)]), Ok(HopDecision::Forward));
        assert_eq!(round(&[("via", &seven), ("via", ours)]), Err(Rejection::LoopDetected));
    }

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        map
    }
}
