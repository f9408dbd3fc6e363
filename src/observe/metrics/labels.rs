//! The closed lists that labels choose from, and a count for each word of one.

use core::marker::PhantomData;

use super::primitives::Counter;

/// A closed list of label values.
pub(super) trait LabelValue: Copy + 'static {
    /// Every word of the list, each at the place that [`LabelValue::index`] says.
    const ALL: &'static [Self];
    /// The word as Prometheus sees it.
    fn word(self) -> &'static str;
    /// Where it stands in the list.
    fn index(self) -> usize;
}

/// Defines a list: the enumeration, its words, and the list of them all.
macro_rules! words {
    ($($(#[$doc:meta])* $list:ident { $($(#[$of:meta])* $variant:ident = $word:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum $list { $($(#[$of])* $variant,)* }

        impl $list {
            /// The word for it, in metrics and in the log.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl LabelValue for $list {
            const ALL: &'static [Self] = &[$(Self::$variant,)*];

            fn word(self) -> &'static str {
                $list::word(self)
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    )*};
}

words! {
    /// How a request was authenticated.
    AuthMethod {
        /// A signed token, checked here.
        Jwt = "jwt",
        /// A reference token, asked about at its issuer (RFC 7662).
        Introspection = "introspection",
        /// HTTP Basic credentials, exchanged for a token.
        Basic = "basic",
        /// A session's cookies.
        Session = "session",
        /// Not at all: the route is public.
        None = "none",
    }

    /// What came of authenticating and authorizing a request.
    AuthResult {
        /// Let through.
        Ok = "ok",
        /// Nothing was presented.
        Missing = "missing",
        /// It could not be read as what it claims to be.
        Malformed = "malformed",
        /// Signed with an algorithm that is not allowed.
        Algorithm = "algorithm",
        /// A critical header (`crit`) we do not understand (RFC 7515 §4.1.11).
        Critical = "critical",
        /// Past its `exp`.
        Expired = "expired",
        /// Before its `nbf`, or issued in the future.
        NotYetValid = "not_yet_valid",
        /// The signature is wrong.
        Signature = "signature",
        /// Signed with a key its issuer does not publish.
        UnknownKey = "unknown_key",
        /// From an issuer this route does not trust.
        Issuer = "issuer",
        /// Meant for somebody else.
        Audience = "audience",
        /// Not an access token (`typ`).
        Type = "type",
        /// Lacks a scope the route asks for.
        Scope = "scope",
        /// A claim is missing, or has another value than the route asks for.
        Claim = "claim",
        /// From a client the route does not take.
        Client = "client",
        /// Wrong user name or password, or no proof of what the token is bound to.
        Credentials = "credentials",
        /// Its issuer says that it is not active.
        Inactive = "inactive",
        /// It was revoked.
        Revoked = "revoked",
        /// The session has ended.
        SessionExpired = "session_expired",
        /// A browser sent it on behalf of another site.
        Csrf = "csrf",
        /// The authorization server did not answer, so nobody knows.
        Unavailable = "unavailable",
    }

    /// Why the gateway itself refused a request.
    Rejected {
        /// No route has this host and path.
        NoRoute = "no_route",
        /// The route does not take this method.
        Method = "method",
        /// The request is ambiguous or malformed.
        BadRequest = "bad_request",
        /// Services could read the path as that of another route.
        AmbiguousPath = "ambiguous_path",
        /// The target is too long.
        TargetSize = "target_size",
        /// The head is too large.
        HeaderSize = "header_size",
        /// The body is too large.
        BodySize = "body_size",
        /// Not authenticated.
        Auth = "auth",
        /// Authenticated, but not allowed.
        Forbidden = "forbidden",
        /// A limit was used up.
        Limit = "limit",
        /// Too many requests in flight.
        Overload = "overload",
        /// The gateway is shutting down.
        Draining = "draining",
        /// An authorization server or a store did not answer.
        Unavailable = "unavailable",
        /// The service did not answer.
        Upstream = "upstream",
        /// A defect of the gateway.
        Internal = "internal",
        /// Another site may not do this.
        Cors = "cors",
        /// A browser sent it on behalf of another site.
        Csrf = "csrf",
    }

    /// Which cache of verified credentials.
    TokenCache {
        /// Signed tokens.
        Jwt = "jwt",
        /// Reference tokens.
        Introspection = "introspection",
        /// Tokens got for Basic credentials.
        Basic = "basic",
    }

    /// What a cache had to say.
    CacheResult {
        /// The verdict was there.
        Hit = "hit",
        /// It was not, so it was worked out.
        Miss = "miss",
        /// Another request was working it out, and this one waited for that.
        Shared = "shared",
        /// It was there, past its time, and taken because the issuer is away.
        Stale = "stale",
    }

    /// What an authorization server was asked for.
    Endpoint {
        /// Its metadata (RFC 8414).
        Discovery = "discovery",
        /// Its signing keys.
        Jwks = "jwks",
        /// A token's meaning (RFC 7662).
        Introspection = "introspection",
        /// A token (RFC 6749 §3.2).
        Token = "token",
        /// That a token ends (RFC 7009).
        Revocation = "revocation",
        /// Where a login begins (RFC 9126).
        PushedAuthorization = "pushed_authorization",
    }

    /// How an attempt to log in ended.
    LoginResult {
        /// A session began.
        Ok = "ok",
        /// The authorization server refused the credentials or the code.
        Rejected = "rejected",
        /// The person said no at the authorization server.
        Denied = "denied",
        /// Too many failures before this one.
        Limited = "limited",
        /// The answer does not belong to a login begun in this browser.
        Mismatch = "mismatch",
        /// The authorization server did not answer.
        Error = "error",
    }

    /// How redeeming a refresh token ended.
    RefreshResult {
        /// New tokens came.
        Ok = "ok",
        /// The authorization server refused it.
        Rejected = "rejected",
        /// It had been redeemed before: somebody has a copy.
        Reuse = "reuse",
        /// The authorization server did not answer.
        Error = "error",
        /// The new tokens do not fit into cookies.
        TooLarge = "too_large",
    }

    /// What ended a session.
    LogoutKind {
        /// The person logged out.
        User = "user",
        /// Its time was up.
        Expired = "expired",
        /// The authorization server ended it.
        Revoked = "revoked",
    }

    /// Why no service answered an attempt.
    UpstreamFailure {
        /// No connection could be made.
        Connect = "connect",
        /// The service's certificate or TLS was not acceptable.
        Tls = "tls",
        /// The answer did not come in time.
        Timeout = "timeout",
        /// The connection ended before the answer.
        Reset = "reset",
        /// The answer is not HTTP.
        Protocol = "protocol",
        /// No target is healthy.
        NoTarget = "no_target",
        /// Too many connections, and too many waiting for one.
        Overflow = "overflow",
    }

    /// What a limit decided.
    LimitResult {
        /// Within the limit.
        Allowed = "allowed",
        /// Beyond it.
        Limited = "limited",
        /// Measured in the bucket shared by all callers beyond `max_keys`.
        Overflow = "overflow",
        /// The shared store did not answer.
        StoreError = "store_error",
    }

    /// What a client connection speaks.
    Protocol {
        /// HTTP/1.0 or HTTP/1.1.
        Http1 = "http1",
        /// HTTP/2.
        Http2 = "http2",
    }

    /// Why a TLS handshake came to nothing.
    HandshakeFailure {
        /// It took too long.
        Timeout = "timeout",
        /// The client went away.
        Closed = "closed",
        /// What came is not TLS.
        NotTls = "not_tls",
        /// No version or cipher suite in common.
        Version = "version",
        /// The client's certificate is missing or not trusted.
        ClientCertificate = "client_certificate",
        /// The client did not accept our certificate.
        Refused = "refused",
        /// Anything else.
        Other = "other",
    }

    /// The nine methods that have a label of their own.
    Method {
        /// `GET`
        Get = "GET",
        /// `HEAD`
        Head = "HEAD",
        /// `POST`
        Post = "POST",
        /// `PUT`
        Put = "PUT",
        /// `DELETE`
        Delete = "DELETE",
        /// `CONNECT`
        Connect = "CONNECT",
        /// `OPTIONS`
        Options = "OPTIONS",
        /// `TRACE`
        Trace = "TRACE",
        /// `PATCH`
        Patch = "PATCH",
        /// Any other.
        Other = "OTHER",
    }
}

impl From<&http::Method> for Method {
    fn from(method: &http::Method) -> Self {
        match *method {
            http::Method::GET => Self::Get,
            http::Method::HEAD => Self::Head,
            http::Method::POST => Self::Post,
            http::Method::PUT => Self::Put,
            http::Method::DELETE => Self::Delete,
            http::Method::CONNECT => Self::Connect,
            http::Method::OPTIONS => Self::Options,
            http::Method::TRACE => Self::Trace,
            http::Method::PATCH => Self::Patch,
            _ => Self::Other,
        }
    }
}

/// A count for each word of a list, all of them from the start: a series that
/// appears with its first event has no rate for it.
#[derive(Debug)]
pub(super) struct LabeledCounters<W> {
    counts: Box<[Counter]>,
    words: PhantomData<W>,
}

impl<W: LabelValue> LabeledCounters<W> {
    pub(super) fn new() -> Self {
        Self { counts: W::ALL.iter().map(|_| Counter::default()).collect(), words: PhantomData }
    }

    /// Counts one event.
    pub(super) fn inc(&self, word: W) {
        self.counts[word.index()].inc();
    }

    /// Every word with its count.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, &Counter)> {
        W::ALL.iter().map(|word| word.word()).zip(&self.counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_counts_for_itself() {
        let tally = LabeledCounters::<RefreshResult>::new();

        tally.inc(RefreshResult::Reuse);
        tally.inc(RefreshResult::Reuse);
        tally.inc(RefreshResult::Ok);

        let counts: Vec<_> = tally.iter().map(|(word, count)| (word, count.value())).collect();
        assert_eq!(
            counts,
            [("ok", 1), ("rejected", 0), ("reuse", 2), ("error", 0), ("too_large", 0)]
        );
    }

    #[test]
    fn a_method_nobody_knows_has_no_label_of_its_own() {
        let strange = http::Method::from_bytes(b"PROPFIND").expect("a method");

        assert_eq!(Method::from(&strange), Method::Other);
        assert_eq!(Method::from(&http::Method::PATCH), Method::Patch);
    }
}
