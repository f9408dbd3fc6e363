//! `routes[]`, `policies.<name>`, `defaults`

use core::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde_json::Value as Json;

use super::upstreams::Retries;
use super::value::{KeywordOr, Value};
use crate::config::auth::ForwardToken;
use crate::config::de::field::{Field, List, ListOrNone, Map, OneOrMany};
use crate::config::de::percent::PercentHundredths;
use crate::config::de::units::{FromScalar, InvalidValue, Keyword, Scalar, Scope, Size};
use crate::config::route::{ANCHORS, Coding, HostPattern, PathPattern, Template};
use crate::upstream::HashBy;

/// A route. `policies` and `defaults` take every key except those that match
/// requests and choose the action.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Route {
    /// Name in metrics and logs. Required.
    pub(crate) id: Field<String>,
    /// One or many hosts, exact or `*.example.com`. Default any.
    pub(crate) host: Field<OneOrMany<Scalar<HostPattern>>>,
    /// One or many paths; `{x}` is one segment, `/**` at the end everything below. Required.
    pub(crate) path: Field<OneOrMany<Scalar<PathPattern>>>,
    /// Matched methods. Default all but TRACE and CONNECT.
    pub(crate) methods: Field<List<Scalar<Method>>>,
    /// Header fields that a request must have: a value, or `{ regex }`.
    pub(crate) match_headers: Field<Map<KeywordOr<HeaderValue, Pattern>>>,
    /// The upstream. Exactly one of upstream, respond and redirect.
    pub(crate) upstream: Field<String>,
    /// A fixed response.
    pub(crate) respond: Field<Respond>,
    /// A redirect.
    pub(crate) redirect: Field<Redirect>,
    /// Authentication: `none`, or a mapping. Required.
    pub(crate) auth: Field<KeywordOr<AuthNone, Auth>>,
    /// Names of limits, added up over the layers.
    pub(crate) limits: Field<ListOrNone<String>>,
    /// Whether limits of the lower layers apply too. Default true.
    pub(crate) inherit_limits: Field<bool>,
    /// Names of policies, applied in order.
    pub(crate) policies: Field<ListOrNone<String>>,
    /// Rewriting of the path.
    pub(crate) rewrite: Field<Rewrite>,
    /// Header edits, added up over the layers.
    pub(crate) headers: Field<Headers>,
    /// Timeout until the response head. Default: the upstream's.
    pub(crate) timeout: Value<Duration>,
    /// Retries. Default: the upstream's.
    pub(crate) retries: Field<Retries>,
    /// Reads small request content before it is sent, so that it can be sent again. Default false.
    pub(crate) buffer_request: Field<bool>,
    /// Responses in place of those that the upstream does not give. Default none.
    pub(crate) fallback: Field<Fallback>,
    /// Other upstreams, each with the share of requests that it receives. Default none.
    pub(crate) split: Field<Map<Scalar<PercentHundredths>>>,
    /// The value that binds a client to an upstream of `split`. Default none.
    pub(crate) split_by: Value<HashBy>,
    /// Copies of requests for another upstream. Default none.
    pub(crate) mirror: Field<Mirror>,
    /// Maximum size of a request body; 0 is no limit. Default: the server's.
    pub(crate) max_body_size: Value<Size>,
    /// Minimum rate of a request body per second, on average after 5 s; 0 is off. Default: the server's.
    pub(crate) min_body_rate: Value<Size>,
    /// Cross-origin access for pages of other origins. Default none.
    pub(crate) cors: Field<Cors>,
    /// Adds HSTS, nosniff, frame-deny and a referrer policy. Default false.
    pub(crate) security_headers: Field<bool>,
    /// Content codings of compressed responses, the preferred one first, or false. Default false.
    pub(crate) compress: Field<OneOrMany<Scalar<CompressWord>>>,
    /// Allows connection upgrades. Default true.
    pub(crate) websocket: Field<bool>,
    /// Ends upgraded connections and streaming responses when their token expires. Default true.
    pub(crate) close_on_expiry: Field<bool>,
    /// Writes its requests to the access log. Default true.
    pub(crate) access_log: Field<bool>,
    /// If false, the route still matches and responds with 404. Default true.
    pub(crate) enabled: Field<bool>,
}

/// A word of `compress`: a content coding, or false.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CompressWord(pub(crate) Option<Coding>);

/// `fallback`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Fallback {
    /// Another upstream.
    pub(crate) upstream: Field<String>,
    /// Maximum age of the last good response. Default none is used.
    pub(crate) stale: Value<Duration>,
    /// Bytes of all stored responses of the route. Default 16MiB.
    pub(crate) max_stale_size: Value<Size>,
    /// A fixed response.
    pub(crate) respond: Field<Respond>,
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

/// `mirror`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Mirror {
    /// The upstream that receives copies. Required.
    pub(crate) upstream: Field<String>,
    /// Share of requests that are copied. Default 100%.
    pub(crate) percent: Value<PercentHundredths>,
    /// Methods of requests that are copied. Default GET, HEAD.
    pub(crate) methods: Field<List<Scalar<Method>>>,
    /// Maximum number of copies in flight. Default 100.
    pub(crate) max_in_flight: Field<u64>,
}

impl FromScalar for CompressWord {
    const WANTED: &'static str = "a list of gzip, br and zstd, or false";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        if text == "false" {
            return Ok(Self(None));
        }
        let coding = Coding::ALL.into_iter().find(|coding| coding.name() == text);
        coding.map(|coding| Self(Some(coding))).ok_or_else(|| {
            InvalidValue::new(
                "is not a supported content coding",
                "write compress: [br, zstd, gzip]",
            )
        })
    }
}

/// `match_headers.<name>`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pattern {
    /// An expression that matches the whole value. Required.
    pub(crate) regex: Value<regex::bytes::Regex>,
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
    /// Issuers of opaque tokens.
    pub(crate) introspection: Field<OneOrMany<String>>,
    /// Issuers of either kind of token, distinguished by its form.
    pub(crate) bearer: Field<OneOrMany<String>>,
    /// The issuer where Basic credentials are exchanged.
    pub(crate) basic: Field<String>,
    /// A session.
    pub(crate) session: Field<String>,
    /// Several methods; the first whose credential is present decides.
    pub(crate) any: Field<List<Auth>>,
    /// The place of the token: `{ header: name }` or `{ cookie: name }`. Default: `Authorization`.
    pub(crate) token_from: Field<TokenFrom>,
    /// Scopes the token must all have.
    pub(crate) scopes: Field<ListOrNone<Scalar<Scope>>>,
    /// Scopes of which the token must have one.
    pub(crate) any_scope: Field<List<Scalar<Scope>>>,
    /// Audiences of which the token must name one. Default: the issuer's.
    pub(crate) audience: Field<OneOrMany<String>>,
    /// Rules for claims: a value, a list of accepted values, or `{ contains }`.
    pub(crate) claims: Field<Map<ClaimValue>>,
    /// Clients that may call. Default any.
    pub(crate) clients: Field<List<String>>,
    /// Values of `acr` of which the user's login must have one (RFC 9470).
    pub(crate) acr: Field<OneOrMany<String>>,
    /// Maximum time since the user's login, by `auth_time` (RFC 9470).
    pub(crate) max_age: Value<Duration>,
    /// Lets requests without any credential pass. Default false.
    pub(crate) optional: Field<bool>,
    /// Takes only tokens bound to a key that the client proves with `DPoP` (RFC 9449). Default false.
    pub(crate) dpop: Field<bool>,
    /// Takes only tokens bound to the client certificate of the connection (RFC 8705). Default false.
    pub(crate) mtls: Field<bool>,
    /// Maximum age of a cached introspection result; 0s introspects every time. Default: the issuer's.
    pub(crate) max_staleness: Value<Duration>,
    /// Identity header fields. Default X-Auth-Subject: sub, X-Auth-Client: `client_id`, X-Auth-Scopes: scope.
    pub(crate) identity_headers: Field<Map<String>>,
    /// Sends the upstream a short-lived JWT about the caller, signed by the gateway, in `X-Auth-Identity`. Default false.
    pub(crate) identity_token: Field<bool>,
    /// Access token that is forwarded: `true`, `false`, or `jwt`, the issuer's signed introspection response in place of
    /// an opaque token. Default true.
    pub(crate) forward_token: Value<ForwardToken>,
}

/// `auth.token_from`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TokenFrom {
    /// Name of a header field.
    pub(crate) header: Field<String>,
    /// Name of a cookie.
    pub(crate) cookie: Field<String>,
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
    /// Prefix that every path of the route has, and that is removed.
    pub(crate) strip_prefix: Field<String>,
    /// Prefix that is added to the remainder.
    pub(crate) add_prefix: Field<String>,
    /// New path, with `{x}` and `{**}` of the route's path.
    pub(crate) path: Field<String>,
}

/// `headers`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Headers {
    /// Edits of the request to the upstream.
    pub(crate) request: Field<Edits>,
    /// Edits of the response to the client.
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
    /// Fields removed.
    pub(crate) remove: Field<ListOrNone<Scalar<HeaderName>>>,
}

/// `cors`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Cors {
    /// Allowed origins such as `https://app.example.com`, or `*`. Required.
    pub(crate) origins: Field<OneOrMany<String>>,
    /// Allowed methods. Default GET, HEAD, POST.
    pub(crate) methods: Field<List<Scalar<Method>>>,
    /// Allowed request header fields. Default none.
    pub(crate) headers: Field<ListOrNone<Scalar<HeaderName>>>,
    /// Exposed response header fields. Default none.
    pub(crate) expose: Field<ListOrNone<Scalar<HeaderName>>>,
    /// Allows cookies and Authorization. Default false.
    pub(crate) credentials: Field<bool>,
    /// How long a browser may cache the preflight response. Default 10m.
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
        regex::bytes::RegexBuilder::new(&ANCHORS.join(text)).size_limit(1 << 20).build().map_err(
            |error| {
                // The lines before quote the expression.
                let error = error.to_string();
                let cause = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                let help = format!("{cause}: write it as the Rust crate `regex` does");
                InvalidValue::new("is not a regular expression", help)
            },
        )
    }
}
