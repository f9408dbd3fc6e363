//! Loop detection by `Via`, and `Max-Forwards` (RFC 9110 §7.6.2, §7.6.3).

use http::header::{MAX_FORWARDS, VIA};
use http::{HeaderMap, HeaderValue, Method};

use crate::gateway::Rejection;

/// The decision about a request by its hop count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum HopDecision {
    /// Forward the request.
    Forward,
    /// Respond to the request here: `Max-Forwards` is zero.
    Respond,
}

/// Checks the hops of a request, and decrements `Max-Forwards` of `OPTIONS`.
///
/// # Errors
///
/// [`Rejection::LoopDetected`] if the request has passed [`MAX_OWN_HOPS`] gateways of this kind: an upstream that is
/// the gateway itself would otherwise loop without end.
pub(crate) fn check(method: &Method, headers: &mut HeaderMap) -> Result<HopDecision, Rejection> {
    if headers.get_all(VIA).iter().flat_map(entries).filter(|entry| is_ours(entry)).count()
        >= MAX_OWN_HOPS
    {
        return Err(Rejection::LoopDetected);
    }
    if *method != Method::OPTIONS {
        return Ok(HopDecision::Forward);
    }
    let mut fields = headers.get_all(MAX_FORWARDS).iter();
    // A value that is not one number is ignored.
    let only = fields.next().filter(|_| fields.next().is_none()).and_then(number);
    match only {
        Some(0) => Ok(HopDecision::Respond),
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

/// Whether an entry of `Via` was added by a Northgate: the protocol, then the pseudonym.
fn is_ours(entry: &[u8]) -> bool {
    let mut words = entry.split(|&b| b == b' ' || b == b'\t').filter(|word| !word.is_empty());
    words.nth(1).is_some_and(|by| by.eq_ignore_ascii_case(b"northgate"))
}

fn number(value: &HeaderValue) -> Option<u32> {
    let text = value.to_str().ok()?;
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // A number that overflows is as good as the maximum.
    digits.then(|| text.parse().unwrap_or(u32::MAX))
}

/// Northgates that one request may pass; more are a loop.
const MAX_OWN_HOPS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_is_forwarded_as_far_as_max_forwards_allows() {
        for (field, next, left) in [
            ("0", HopDecision::Respond, "0"),
            ("00", HopDecision::Respond, "00"),
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
    fn a_looping_request_is_stopped() {
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
