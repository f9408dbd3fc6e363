//! Lifetimes of tokens as received from the token endpoint.

use core::time::Duration;

use super::jwt::claim_types::date;
use super::received_tokens::payload;
use crate::base::clock::Timestamp;
use crate::base::secret::Secret;
use crate::issuer::Tokens;

/// Whether a token expires in less than `before`; for a short lifetime, in less than half of it.
///
/// Otherwise a token with a lifetime below `before` would be refreshed by every request.
pub(crate) fn is_due(begin: Timestamp, end: Timestamp, before: Duration, now: Timestamp) -> bool {
    now >= end || end.since(now) < before.min(end.since(begin) / 2)
}

/// The expiry of the access token: by `expires_in`, or by its own `exp` if it is a JWT.
///
/// A token with `expires_in: 0` serves the requests of one second: otherwise each of twenty parallel requests would
/// redeem the refresh token of the one before.
pub(crate) fn ends_at(tokens: &Tokens) -> Timestamp {
    match tokens.expires_in {
        Some(life) => tokens.received.plus(life.max(MIN_LIFETIME)),
        None => own_end(&tokens.access_token, tokens.received),
    }
}

/// The expiry of the refresh token: as reported, or by its own `exp` if it is a JWT; never that of the access token.
pub(crate) fn refresh_ends_at(tokens: &Tokens) -> Timestamp {
    if let Some(life) = tokens.refresh_expires_in {
        return tokens.received.plus(life);
    }
    let token = tokens.refresh_token.as_ref();
    token.map_or(Timestamp::MAX, |token| own_end(token, tokens.received))
}

fn own_end(token: &Secret<String>, received: Timestamp) -> Timestamp {
    let end = payload(token).and_then(|claims| date(&claims, "exp").ok().flatten());
    // Some issuers write 0 for no expiry.
    end.filter(|end| *end > received).unwrap_or(Timestamp::MAX)
}

/// The time for which an access token is used that ends as soon as it is issued.
const MIN_LIFETIME: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::keys::jwk::to_base64url;

    #[test]
    fn the_expiry_of_a_token_may_have_a_fraction() {
        let end = |exp: &str| {
            let claims = to_base64url(format!(r#"{{"exp":{exp}}}"#).as_bytes());
            own_end(&format!("e30.{claims}.AAAA").into(), Timestamp::from_secs(1_700_000_000))
        };

        assert_eq!(end("1700000300.0"), Timestamp::from_secs(1_700_000_300));
        assert_eq!(end("0"), Timestamp::MAX);
        assert_eq!(end("\"soon\""), Timestamp::MAX);
    }
}
