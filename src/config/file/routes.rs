//! `routes[]`, `policies.<name>`, `defaults`

use core::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde_json::Value as Json;

use super::upstreams::Retries;
use super::{KeywordOr, Value};
use crate::config::auth::ForwardToken;
use crate::config::de::field::{Field, List, ListOrNone, Map, OneOrMany};
use crate::config::de::units::{FromScalar, InvalidValue, Keyword, Scalar, Scope, Size};
use crate::config::route::{HostPattern, PathPattern, Template};

/// A route. `policies` and `defaults` take every key but those that say what
/// a request must look like and where it goes.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Route {
    /// Its name in metrics and logs. Required.
    pub(crate) id: Field<String>,
    /// One or many hosts, exact or `*.example.com`. Default any.
    pub(crate) host: Field<OneOrMany<Scalar<HostPattern>>>,
    /// One or many paths; `{x}` is one segment, `/**` at the end everything below. Required.
    pub(crate) path: Field<OneOrMany<Scalar<PathPattern>>>,
    /// Methods it takes. Default all but TRACE and CONNECT.
    pub(crate) methods: Field<List<Scalar<Method>>>,
    /// Fields a request must have: a value, or `{ regex }`.
    pub(crate) match_headers: Field<Map<KeywordOr<HeaderValue, Pattern>>>,
    /// The service it goes to. Exactly one of upstream, respond and redirect.
    pub(crate) upstream: Field<String>,
    /// A fixed answer.
    pub(crate) respond: Field<Respond>,
    /// Another place to go.
    pub(crate) redirect: Field<Redirect>,
    /// Who may use it: `none`, or a mapping. Required.
    pub(crate) auth: Field<KeywordOr<AuthNone, Auth>>,
    /// Names of limits; they add up over the layers.
    pub(crate) limits: Field<ListOrNone<String>>,
    /// Whether limits of the layers below count too. Default true.
    pub(crate) inherit_limits: Field<bool>,
    /// Names of policies, applied in order.
    pub(crate) policies: Field<ListOrNone<String>>,
    /// What becomes of the path.
    pub(crate) rewrite: Field<Rewrite>,
    /// Fields changed on the way; they add up over the layers.
    pub(crate) headers: Field<Headers>,
    /// The longest time to the answer's head. Default: the upstream's.
    pub(crate) timeout: Value<Duration>,
    /// What is tried again. Default: the upstream's.
    pub(crate) retries: Field<Retries>,
    /// The largest body of a request; 0 is no limit. Default: the server's.
    pub(crate) max_body_size: Value<Size>,
    /// Which other origins' pages may call it. Default none.
    pub(crate) cors: Field<Cors>,
    /// Adds HSTS, nosniff, frame-deny and a referrer policy. Default false.
    pub(crate) security_headers: Field<bool>,
    /// Lets connections be upgraded. Default true.
    pub(crate) websocket: Field<bool>,
    /// Ends upgraded connections and streaming answers with the token that opened them. Default true.
    pub(crate) close_on_expiry: Field<bool>,
    /// Records its requests. Default true.
    pub(crate) access_log: Field<bool>,
    /// Without it, the route still matches and answers 404. Default true.
    pub(crate) enabled: Field<bool>,
}

/// `match_headers.<name>`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pattern {
    /// An expression that fits the whole value. Required.
    pub(crate) regex: Value<regex::bytes::Regex>,
}

/// `respond`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Respond {
    /// 200 to 599. Default 200.
    pub(crate) status: Field<u16>,
    /// Default empty.
    pub(crate) body: Field<String>,
    /// Default: `Content-Type: text/plain; charset=utf-8` if there is a body.
    pub(crate) headers: Field<Map<Scalar<HeaderValue>>>,
}

/// `redirect`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Redirect {
    /// A path or a URL. Required.
    pub(crate) to: Field<String>,
    /// 301, 302, 303, 307 or 308. Default 308.
    pub(crate) status: Field<u16>,
}

/// `auth`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Auth {
    /// One or many issuers of signed tokens. Exactly one method, or `any`.
    pub(crate) jwt: Field<OneOrMany<String>>,
    /// An issuer of reference tokens.
    pub(crate) introspection: Field<OneOrMany<String>>,
    /// Issuers of either kind of token, told apart by its shape.
    pub(crate) bearer: Field<OneOrMany<String>>,
    /// An issuer where Basic credentials are exchanged.
    pub(crate) basic: Field<String>,
    /// A session.
    pub(crate) session: Field<String>,
    /// Several methods; the first whose credential is present decides.
    pub(crate) any: Field<List<Auth>>,
    /// Scopes the token must all have.
    pub(crate) scopes: Field<ListOrNone<Scalar<Scope>>>,
    /// Scopes of which it must have one.
    pub(crate) any_scope: Field<List<Scalar<Scope>>>,
    /// Audiences of which it must name one. Default: the issuer's.
    pub(crate) audience: Field<OneOrMany<String>>,
    /// What its claims must say: a value, a list of which one, or `{ contains }`.
    pub(crate) claims: Field<Map<ClaimValue>>,
    /// Clients that may call. Default any.
    pub(crate) clients: Field<List<String>>,
    /// Lets requests without any credential pass. Default false.
    pub(crate) optional: Field<bool>,
    /// Takes only tokens bound to a key that the client proves with `DPoP` (RFC 9449). Default false.
    pub(crate) dpop: Field<bool>,
    /// Takes only tokens bound to the certificate that the client shows (RFC 8705). Default false.
    pub(crate) mtls: Field<bool>,
    /// How old a kept verdict may be; 0s asks every time. Default: the issuer's bound.
    pub(crate) max_staleness: Value<Duration>,
    /// What the service learns. Default X-Auth-Subject: sub, X-Auth-Client: `client_id`, X-Auth-Scopes: scope.
    pub(crate) identity_headers: Field<Map<String>>,
    /// Tells the service who calls in a short-lived JWT of the gateway's own, in `X-Auth-Identity`. Default false.
    pub(crate) identity_token: Field<bool>,
    /// Passes the access token on: `true`, `false`, or `jwt`, the issuer's signed answer in place of a reference
    /// token. Default true.
    pub(crate) forward_token: Value<ForwardToken>,
}

impl Keyword for ForwardToken {
    const WANTED: &'static str = "true, false or jwt";
    const WORDS: &'static [(&'static str, Self)] =
        &[("true", Self::Presented), ("false", Self::No), ("jwt", Self::Signed)];
}

/// `auth.claims.<path>`
#[derive(Debug, Deserialize)]
#[serde(rename = "$shape", rename_all = "lowercase")]
pub(crate) enum ClaimValue {
    Scalar(Json),
    Sequence(Vec<Json>),
    Mapping(Contains),
}

/// `{ contains: value }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Contains {
    /// A value that the claim's list must have. Required.
    pub(crate) contains: Field<Json>,
}

/// `rewrite`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Rewrite {
    /// A beginning that every path of the route has, and that is taken away.
    pub(crate) strip_prefix: Field<String>,
    /// What is put before the rest.
    pub(crate) add_prefix: Field<String>,
    /// The path written anew, with `{x}` and `{**}` of the route's path.
    pub(crate) path: Field<String>,
}

/// `headers`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Headers {
    /// On the way to the service.
    pub(crate) request: Field<Edits>,
    /// On the way back.
    pub(crate) response: Field<Edits>,
}

/// `headers.request`, `headers.response`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Edits {
    /// Fields that replace any of the same name; may use `{claim:sub}`, `{client_ip}`, `{request_id}`.
    pub(crate) set: Field<Map<Scalar<Template>>>,
    /// Fields added to any of the same name.
    pub(crate) add: Field<Map<Scalar<Template>>>,
    /// Fields taken away.
    pub(crate) remove: Field<ListOrNone<Scalar<HeaderName>>>,
}

/// `cors`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Cors {
    /// Origins such as `https://app.example.com`, or `*`. Required.
    pub(crate) origins: Field<OneOrMany<String>>,
    /// Methods they may use. Default GET, HEAD, POST.
    pub(crate) methods: Field<List<Scalar<Method>>>,
    /// Request fields they may set. Default none.
    pub(crate) headers: Field<ListOrNone<Scalar<HeaderName>>>,
    /// Answer fields they may read. Default none.
    pub(crate) expose: Field<ListOrNone<Scalar<HeaderName>>>,
    /// Lets cookies and Authorization travel along. Default false.
    pub(crate) credentials: Field<bool>,
    /// How long a browser may remember the answer. Default 10m.
    pub(crate) max_age: Value<Duration>,
}

/// `none`
#[derive(Clone, Copy, Debug)]
pub(crate) struct AuthNone;

impl FromScalar for AuthNone {
    const WANTED: &'static str = "`none`, or a mapping such as { jwt: main }";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        match text {
            "none" => Ok(Self),
            _ => Err(InvalidValue::new(
                "is not a way to authenticate",
                "write none, or a mapping such as { jwt: main }",
            )),
        }
    }
}

impl FromScalar for regex::bytes::Regex {
    const WANTED: &'static str = "a regular expression";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        // The whole value must fit: `v1` does not match `v10`.
        regex::bytes::RegexBuilder::new(&format!("^(?:{text})$"))
            .size_limit(1 << 20)
            .build()
            .map_err(|_| {
                InvalidValue::new(
                    "is not a regular expression",
                    "write it as the Rust crate `regex` does",
                )
            })
    }
}
