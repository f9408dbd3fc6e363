//! The closed sets of label values, and counters per value.

use core::marker::PhantomData;

use super::primitives::Counter;

/// A closed set of label values.
pub(super) trait LabelValue: Copy + 'static {
    /// Every value, at the position of its [`LabelValue::index`].
    const ALL: &'static [Self];
    /// Returns the value as Prometheus sees it.
    fn word(self) -> &'static str;
    /// Returns the position in [`LabelValue::ALL`].
    fn index(self) -> usize;
}

/// Defines a set: the enumeration, its values, and the list of them all.
macro_rules! words {
    ($($(#[$doc:meta])* $list:ident { $($(#[$of:meta])* $variant:ident = $word:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum $list { $($(#[$of])* $variant,)* }

        impl $list {
            /// Returns the value as in metrics and in the log.
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
    /// The authentication method of a request.
    AuthLabel {
        /// A JWT, verified by the gateway.
        Jwt = "jwt",
        /// An opaque token, introspected at its issuer (RFC 7662).
        Introspection = "introspection",
        /// HTTP Basic credentials, exchanged for a token.
        Basic = "basic",
        /// A session's cookies.
        Session = "session",
        /// None: the route is public.
        None = "none",
    }

    /// The result of authentication and authorization.
    AuthResult {
        /// Authorized.
        Ok = "ok",
        /// No credential was presented.
        Missing = "missing",
        /// The credential is malformed.
        Malformed = "malformed",
        /// The signature algorithm is not allowed.
        Algorithm = "algorithm",
        /// A critical header parameter (`crit`) is not supported (RFC 7515 §4.1.11).
        Critical = "critical",
        /// Past its `exp`.
        Expired = "expired",
        /// Before its `nbf`, or issued in the future.
        NotYetValid = "not_yet_valid",
        /// The signature is invalid.
        Signature = "signature",
        /// The signing key is not published by the issuer.
        UnknownKey = "unknown_key",
        /// The issuer is not accepted by the route.
        Issuer = "issuer",
        /// The token is meant for another audience.
        Audience = "audience",
        /// Not an access token (`typ`).
        Type = "type",
        /// A scope that the route requires is missing.
        Scope = "scope",
        /// A claim is missing, or does not match what the route requires.
        Claim = "claim",
        /// The client is not accepted by the route.
        Client = "client",
        /// Wrong user name or password, or no proof of possession for a bound token.
        Credentials = "credentials",
        /// The issuer reports that the token is not active.
        Inactive = "inactive",
        /// The token was revoked.
        Revoked = "revoked",
        /// The session has ended.
        SessionExpired = "session_expired",
        /// A cross-site request with a session's cookies.
        Csrf = "csrf",
        /// The authorization server did not respond, so the result is unknown.
        Unavailable = "unavailable",
    }

    /// The reason why the gateway rejected a request.
    Rejected {
        /// No route has this host and path.
        NoRoute = "no_route",
        /// The route does not accept this method.
        Method = "method",
        /// The request is ambiguous or malformed.
        BadRequest = "bad_request",
        /// Upstreams could read the path as that of another route.
        AmbiguousPath = "ambiguous_path",
        /// The request target is too long.
        TargetSize = "target_size",
        /// The head is too large.
        HeaderSize = "header_size",
        /// The body is too large.
        BodySize = "body_size",
        /// Not authenticated.
        Auth = "auth",
        /// Authenticated, but not allowed.
        Forbidden = "forbidden",
        /// A rate limit or quota was exceeded.
        Limit = "limit",
        /// Too many requests in flight.
        Overload = "overload",
        /// The gateway is shutting down.
        Draining = "draining",
        /// An authorization server or Redis did not respond.
        Unavailable = "unavailable",
        /// The upstream did not respond.
        Upstream = "upstream",
        /// A defect of the gateway.
        Internal = "internal",
        /// A cross-origin request that CORS does not allow.
        Cors = "cors",
        /// A cross-site request with a session's cookies.
        Csrf = "csrf",
    }

    /// A kind of cache of verified credentials.
    TokenCache {
        /// JWTs.
        Jwt = "jwt",
        /// Introspection results.
        Introspection = "introspection",
        /// Tokens obtained for Basic credentials.
        Basic = "basic",
    }

    /// The result of a cache look-up.
    CacheResult {
        /// The entry was cached.
        Hit = "hit",
        /// The entry was not cached, and was computed.
        Miss = "miss",
        /// Another request was computing the entry, and this one waited for its result.
        Shared = "shared",
        /// An expired entry was used because the issuer is unavailable.
        Stale = "stale",
    }

    /// An endpoint of an authorization server.
    Endpoint {
        /// Metadata (RFC 8414).
        Discovery = "discovery",
        /// JWK set.
        Jwks = "jwks",
        /// Introspection (RFC 7662).
        Introspection = "introspection",
        /// Token endpoint (RFC 6749 §3.2).
        Token = "token",
        /// Revocation (RFC 7009).
        Revocation = "revocation",
        /// Pushed authorization requests (RFC 9126).
        PushedAuthorization = "pushed_authorization",
        /// Claims about a user (OpenID Connect Core §5.3).
        Userinfo = "userinfo",
    }

    /// The result of a login attempt.
    LoginResult {
        /// A session was created.
        Ok = "ok",
        /// The authorization server refused the credentials or the code.
        Rejected = "rejected",
        /// The user denied consent at the authorization server.
        Denied = "denied",
        /// Refused after too many failures.
        Limited = "limited",
        /// The authorization response does not belong to a login of this browser.
        Mismatch = "mismatch",
        /// The authorization server did not respond.
        Error = "error",
    }

    /// The result of redeeming a refresh token.
    RefreshResult {
        /// New tokens were issued.
        Ok = "ok",
        /// The authorization server refused it.
        Rejected = "rejected",
        /// The refresh token was used before: it was copied.
        Reuse = "reuse",
        /// The authorization server did not respond.
        Error = "error",
        /// The new tokens do not fit into cookies.
        TooLarge = "too_large",
    }

    /// The cause of a session's end.
    LogoutKind {
        /// The user logged out.
        User = "user",
        /// A timeout expired.
        Expired = "expired",
        /// The authorization server ended it.
        Revoked = "revoked",
    }

    /// The reason why an attempt got no good response from the upstream.
    UpstreamFailure {
        /// No connection could be made.
        Connect = "connect",
        /// TLS failed, or the upstream's certificate was not accepted.
        Tls = "tls",
        /// The response did not arrive in time.
        Timeout = "timeout",
        /// The connection was closed before the response.
        Reset = "reset",
        /// The response is not HTTP.
        Protocol = "protocol",
        /// The upstream refused the request before processing it.
        Refused = "refused",
        /// The response is to a gRPC call, with a status of a failing service.
        GrpcStatus = "grpc_status",
        /// No target is healthy.
        NoTarget = "no_target",
        /// The circuit of the upstream is open.
        CircuitOpen = "circuit_open",
        /// Too many connections and too many pending requests.
        Overflow = "overflow",
    }

    /// The decision of a limit.
    LimitResult {
        /// Within the limit.
        Allowed = "allowed",
        /// Above the limit.
        Limited = "limited",
        /// Counted by the counter that all keys beyond `max_keys` share.
        Overflow = "overflow",
        /// The shared store did not respond.
        StoreError = "store_error",
        /// Above a limit that refuses nothing yet.
        DryRun = "dry_run",
    }

    /// The protocol of a client connection.
    Protocol {
        /// HTTP/1.0 or HTTP/1.1.
        Http1 = "http1",
        /// HTTP/2.
        Http2 = "http2",
    }

    /// The reason of a failed TLS handshake.
    HandshakeFailure {
        /// Timeout.
        Timeout = "timeout",
        /// The client closed the connection.
        Closed = "closed",
        /// The bytes received are not TLS.
        NotTls = "not_tls",
        /// No version or cipher suite in common.
        Version = "version",
        /// The client's certificate is missing or not trusted.
        ClientCertificate = "client_certificate",
        /// The client did not accept the gateway's certificate.
        Refused = "refused",
        /// Anything else.
        Other = "other",
    }

    /// The reason why a connection was refused where the PROXY protocol is spoken.
    ProxyRefusal {
        /// The sender is not among `server.trusted_proxies`.
        Untrusted = "untrusted",
        /// The connection does not begin with a header.
        Malformed = "malformed",
        /// The header did not arrive, in time or at all.
        Missing = "missing",
    }

    /// The nine methods with a label of their own.
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

/// A counter for each value of a set, all exported from the start, because a series that
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

    /// Returns every value with its count.
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
    fn an_unknown_method_has_no_label_of_its_own() {
        let strange = http::Method::from_bytes(b"PROPFIND").expect("a method");

        assert_eq!(Method::from(&strange), Method::Other);
        assert_eq!(Method::from(&http::Method::PATCH), Method::Patch);
    }
}
