//! The hash by which a request is assigned to a target (`hash_by`) or to an upstream (`split_by`): equal values, equal
//! choice.

use core::hash::Hasher;

use http::header::COOKIE;
use http::request::Parts;
use siphasher::sip::SipHasher13;

use crate::gateway::exchange::Exchange;
use crate::token::Principal;
use crate::upstream::HashBy;

/// Returns the hash of the value by which a request is assigned, equal on all gateways; `None` if the request does not have
/// the value.
pub(crate) fn key(
    by: &HashBy,
    head: &Parts,
    principal: Option<&Principal>,
    exchange: &Exchange,
) -> Option<u64> {
    let mut hasher = SipHasher13::new();
    match by {
        HashBy::Ip => hasher.write(exchange.client.to_string().as_bytes()),
        HashBy::Header(name) => {
            let mut values = head.headers.get_all(name).iter().peekable();
            values.peek()?;
            for value in values {
                hasher.write(value.as_bytes());
                hasher.write_u8(0);
            }
        }
        HashBy::Cookie(name) => return cookie(head, name).map(key_of_cookie),
        HashBy::Claim(path) => match principal?.claim(path)? {
            serde_json::Value::String(text) => hasher.write(text.as_bytes()),
            other => hasher.write(other.to_string().as_bytes()),
        },
    }
    Some(hasher.finish())
}

/// Returns the hash of a cookie's value.
pub(crate) fn key_of_cookie(value: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(value);
    hasher.finish()
}

/// Returns the value of the first cookie called `name`.
pub(crate) fn cookie<'a>(head: &'a Parts, name: &str) -> Option<&'a [u8]> {
    head.headers.get_all(COOKIE).iter().find_map(|field| {
        field.as_bytes().split(|byte| *byte == b';').find_map(|pair| {
            let at = pair.iter().position(|byte| *byte == b'=')?;
            (pair[..at].trim_ascii() == name.as_bytes()).then(|| pair[at + 1..].trim_ascii())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_among_others() {
        let request = http::Request::get("/")
            .header(COOKIE, "a=1; sid=x=y ;b=2")
            .header(COOKIE, "c=3")
            .body(())
            .expect("valid");
        let head = request.into_parts().0;

        assert_eq!(cookie(&head, "sid"), Some(&b"x=y"[..]));
        assert_eq!(cookie(&head, "c"), Some(&b"3"[..]));
        assert_eq!(cookie(&head, "id"), None);
    }
}
