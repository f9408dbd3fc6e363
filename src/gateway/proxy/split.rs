//! Splits the requests of a route between upstreams: a canary receives a share of them.

use http::HeaderValue;
use http::request::Parts;

use super::affinity;
use super::route_upstream::RouteUpstream;
use crate::base::random::random;
use crate::gateway::exchange::Exchange;
use crate::token::Principal;
use crate::upstream::HashBy;

/// The upstreams that receive a share of a route's requests; the route's own receives the rest.
#[derive(Debug)]
pub(crate) struct Split {
    /// Each with its share in hundredths of a percent; at most 10,000 together.
    pub shares: Box<[(RouteUpstream, u32)]>,
    /// The value that binds a client to an upstream; `None` draws for each request.
    pub by: Option<HashBy>,
}

impl Split {
    /// Returns the upstream for a request; `own` is the route's. A client without the cookie that binds it receives one.
    pub(crate) fn choose<'a>(
        &'a self,
        own: &'a RouteUpstream,
        head: &Parts,
        principal: Option<&Principal>,
        exchange: &mut Exchange,
    ) -> &'a RouteUpstream {
        let bound = self.by.as_ref().and_then(|by| affinity::key(by, head, principal, exchange));
        let draw = match (bound, &self.by) {
            (Some(key), _) => key,
            (None, Some(HashBy::Cookie(name))) => {
                let value = format!("{:016x}", u64::from_be_bytes(random()));
                let secure = if exchange.is_secure() { "; Secure" } else { "" };
                let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax{secure}");
                exchange.cookies.extend(HeaderValue::try_from(cookie));
                affinity::key_of_cookie(value.as_bytes())
            }
            (None, _) => u64::from_be_bytes(random()),
        };
        at(&self.shares, draw).unwrap_or(own)
    }
}

/// Returns the entry in whose share `draw` falls; `None` is the rest.
fn at<T>(shares: &[(T, u32)], draw: u64) -> Option<&T> {
    let mut rest = draw % u64::from(WHOLE);
    shares.iter().find_map(|(entry, share)| {
        let share = u64::from(*share);
        if rest < share {
            return Some(entry);
        }
        rest -= share;
        None
    })
}

/// All requests, in hundredths of a percent.
const WHOLE: u32 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_upstream_receives_its_share() {
        let shares = [("canary", 500), ("other", 1_500)];
        let count = |name| (0..10_000).filter(|&draw| at(&shares, draw) == name).count();

        assert_eq!(count(Some(&"canary")), 500);
        assert_eq!(count(Some(&"other")), 1_500);
        assert_eq!(count(None), 8_000);
    }
}
