//! Settings of one route: matching, authentication, action.

use core::fmt;
use core::time::Duration;
use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use url::Url;

use super::auth::Auth;
use super::forwarding::{Fallback, Mirror, Split};
use super::redact;
use super::static_response::StaticResponse;
use crate::base::secret::HIDDEN;
use crate::upstream::Retries;

/// One route, with everything that `defaults` and its policies add.
#[derive(Clone, Debug)]
pub struct Route {
    /// Name in metrics and logs; unique.
    pub id: Arc<str>,
    /// Matched hosts; empty is any.
    pub hosts: Vec<HostPattern>,
    /// Matched paths, at least one.
    pub paths: Vec<PathPattern>,
    /// Matched methods; empty is all but TRACE and CONNECT.
    pub methods: Vec<Method>,
    /// Header fields that a request must have.
    pub match_headers: Vec<HeaderMatch>,
    /// The action for an authorized request.
    pub action: Action,
    /// The required authentication.
    pub auth: Auth,
    /// Names of its limits, each once, in the order of `defaults`, policies, route.
    pub limits: Vec<Arc<str>>,
    /// Rewriting of the path.
    pub rewrite: Rewrite,
    /// Edits of the request to the upstream.
    pub request_headers: HeaderEdits,
    /// Edits of the response to the client.
    pub response_headers: HeaderEdits,
    /// Timeout until the response head; `None` is the upstream's.
    pub timeout: Option<Duration>,
    /// Retries; `None` is the upstream's.
    pub retries: Option<Retries>,
    /// Reads small request content before it is sent. Default false.
    pub buffer_request: bool,
    /// Responses in place of those that the upstream does not give.
    pub fallback: Option<Fallback>,
    /// Other upstreams that receive a share of the requests.
    pub split: Option<Split>,
    /// Copies of requests for another upstream.
    pub mirror: Option<Mirror>,
    /// Maximum size of a request body in bytes; `None` is no limit. Default the server's, 10 MiB.
    pub max_body_size: Option<u64>,
    /// Minimum bytes of a request body per second, on average after 5 s; `None` is off. Default the server's, 240.
    pub min_body_rate: Option<u64>,
    /// Cross-origin access; `None`, the default, allows none.
    pub cors: Option<Cors>,
    /// Adds HSTS, nosniff, frame-deny and a referrer policy to responses. Default false.
    pub security_headers: bool,
    /// Content codings of compressed responses, the preferred one first; empty, the default, compresses none.
    pub compress: Vec<Coding>,
    /// Allows connection upgrades. Default true.
    pub websocket: bool,
    /// Ends `WebSockets` and streaming responses when their token expires. Default true.
    pub close_on_expiry: bool,
    /// Writes its requests to the access log. Default true.
    pub access_log: bool,
    /// A disabled route still matches, and responds with 404. Default true.
    pub enabled: bool,
}

/// A content coding of compressed responses (RFC 9110 §8.4.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Coding {
    /// `gzip` (RFC 1952).
    Gzip,
    /// `br`: Brotli (RFC 7932).
    Brotli,
    /// `zstd` (RFC 8878), with a window within the limit of RFC 9659.
    Zstd,
}

impl Coding {
    /// Every coding.
    pub const ALL: [Self; 3] = [Self::Gzip, Self::Brotli, Self::Zstd];

    /// Returns the name in `Content-Encoding`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }
}

/// A host, in lower case and without a port.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum HostPattern {
    /// Exactly this host.
    Exact(Box<str>),
    /// `*.example.com`, kept without the `*.`: one label more than this.
    Wildcard(Box<str>),
}

impl HostPattern {
    /// Returns the host of `url` in the form in which requests are matched: without the trailing dot, an IPv6 address as
    /// in RFC 5952. `None` if the URL has no host.
    pub fn of_url(url: &Url) -> Option<Self> {
        Some(Self::Exact(match url.host()? {
            url::Host::Domain(name) => {
                name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase().into()
            }
            url::Host::Ipv4(address) => address.to_string().into(),
            url::Host::Ipv6(address) => format!("[{address}]").into(),
        }))
    }

    /// Whether requests to `host`, in lower case and without a port, match.
    pub fn takes(&self, host: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *host,
            Self::Wildcard(domain) => host
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && *rest == **domain),
        }
    }

    /// Whether some host matches both.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(host), pattern) | (pattern, Self::Exact(host)) => pattern.takes(host),
            (Self::Wildcard(one), Self::Wildcard(other)) => one == other,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Wildcard(domain) => write!(f, "*.{domain}"),
        }
    }
}

/// A path in normal form, split at its slashes: `/a/{x}/**`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PathPattern {
    /// The segments; `/` is one empty literal, and `/a/` ends in one.
    pub segments: Vec<Segment>,
    /// Whether the pattern ends in `**`: this path, with and without a slash, and everything below.
    pub rest: bool,
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => write!(f, "/{text}")?,
                Segment::Parameter(name) => write!(f, "/{{{name}}}")?,
            }
        }
        f.write_str(if self.rest { "/**" } else { "" })
    }
}

/// One segment of a path.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Segment {
    /// Exactly this; escapes, if any, in upper case.
    Literal(Box<str>),
    /// `{x}`: any one segment that is not empty.
    Parameter(Box<str>),
}

/// A header field that a request must have.
#[derive(Clone, Debug)]
pub struct HeaderMatch {
    /// The field name.
    pub name: HeaderName,
    /// The value that each field line must have.
    pub value: ValueMatch,
}

impl HeaderMatch {
    /// Whether `other` has the same requirement.
    pub(crate) fn is_the_same_as(&self, other: &Self) -> bool {
        self.name == other.name
            && match (&self.value, &other.value) {
                (ValueMatch::Exact(a), ValueMatch::Exact(b)) => a == b,
                (ValueMatch::Regex(a), ValueMatch::Regex(b)) => a.as_str() == b.as_str(),
                _ => false,
            }
    }

    /// Returns the required value as it may be printed; a regular expression as it was written.
    pub fn shown(&self) -> Cow<'_, str> {
        let text = match &self.value {
            ValueMatch::Exact(value) => String::from_utf8_lossy(value.as_bytes()),
            ValueMatch::Regex(regex) => Cow::Borrowed(as_written(regex)),
        };
        match redact::shown(self.name.as_str(), &text) {
            HIDDEN => Cow::Borrowed(HIDDEN),
            _ => text,
        }
    }
}

/// The beginning and the end that every expression gets, so that it matches whole values: `v1` does not match `v10`.
pub(crate) const ANCHORS: [&str; 2] = ["^(?:", ")$"];

/// Returns an expression as the file writes it.
fn as_written(regex: &regex::bytes::Regex) -> &str {
    let anchored = regex.as_str();
    let rest = anchored.strip_prefix(ANCHORS[0]);
    rest.and_then(|rest| rest.strip_suffix(ANCHORS[1])).unwrap_or(anchored)
}

/// The required value of a header field.
#[derive(Clone, Debug)]
pub enum ValueMatch {
    /// Exactly this.
    Exact(HeaderValue),
    /// The whole value matches this expression.
    Regex(regex::bytes::Regex),
}

impl ValueMatch {
    /// Whether `value` meets the requirement.
    pub fn fits(&self, value: &HeaderValue) -> bool {
        match self {
            Self::Exact(exact) => value == exact,
            Self::Regex(regex) => regex.is_match(value.as_bytes()),
        }
    }
}

/// The action of a route for an authorized request.
#[derive(Clone, Debug)]
pub enum Action {
    /// The request is forwarded to the upstream of this name.
    Upstream(Arc<str>),
    /// The gateway responds.
    Respond(StaticResponse),
    /// The gateway redirects the client.
    Redirect {
        /// A path or an absolute URL.
        to: HeaderValue,
        /// 301, 302, 303, 307 or 308, the default.
        status: StatusCode,
    },
}

impl Action {
    /// Returns the destination of a request in a few words.
    pub fn destination(&self) -> String {
        match self {
            Self::Upstream(name) => name.to_string(),
            Self::Respond(response) => format!("a response, {}", response.status.as_u16()),
            Self::Redirect { to, status } => {
                let to = String::from_utf8_lossy(to.as_bytes());
                format!("{}, {}", redact::shown("to", &to), status.as_u16())
            }
        }
    }
}

/// The rewriting of the path before forwarding.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Rewrite {
    /// The path is unchanged.
    #[default]
    Keep,
    /// The prefix is replaced.
    Prefix {
        /// Prefix that every path of the route has, and that is removed: `/a/b`, or empty.
        strip: Box<str>,
        /// Prefix that is added to the remainder: `/c`, or empty.
        add: Box<str>,
    },
    /// The whole path is replaced.
    Path(Vec<PathRewrite>),
}

/// A part of a replaced path. The parts together begin with a slash.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PathRewrite {
    /// Literal text, including slashes.
    Text(Box<str>),
    /// The segment matched by `{x}` of the route's path.
    Parameter(Box<str>),
    /// The path matched by `**`, without a leading slash.
    Rest,
}

/// Edits of header fields: first `remove`, then `set`, then `add`.
#[derive(Clone, Debug, Default)]
pub struct HeaderEdits {
    /// Fields removed.
    pub remove: Vec<HeaderName>,
    /// Fields that replace any of the same name.
    pub set: Vec<(HeaderName, Template)>,
    /// Fields added to any of the same name.
    pub add: Vec<(HeaderName, Template)>,
}

impl HeaderEdits {
    /// Returns the fields whose values hold a claim of the caller.
    pub fn filled_from_claims(&self) -> impl Iterator<Item = &HeaderName> {
        let is_claim = |part: &TemplatePart| matches!(part, TemplatePart::Claim(_));
        let filled = self.set.iter().chain(&self.add);
        filled.filter(move |(_, Template(parts))| parts.iter().any(is_claim)).map(|(name, _)| name)
    }
}

/// A field value with placeholders.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Template(pub Vec<TemplatePart>);

/// A piece of a [`Template`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TemplatePart {
    /// Text that a field value may hold.
    Text(Box<str>),
    /// `{claim:a.b}`: a claim of the caller; nothing if it is absent.
    Claim(Box<str>),
    /// `{client_ip}`: the client's address.
    ClientIp,
    /// `{request_id}`: the request's id.
    RequestId,
}

/// Cross-origin access to a route (the Fetch standard's CORS protocol).
#[derive(Clone, Debug)]
pub struct Cors {
    /// Allowed origins; `None` is every origin, never with `credentials`.
    pub origins: Option<Vec<HeaderValue>>,
    /// Allowed methods.
    pub methods: Vec<Method>,
    /// Allowed request header fields.
    pub headers: Vec<HeaderName>,
    /// Exposed response header fields.
    pub expose: Vec<HeaderName>,
    /// Whether cookies and `Authorization` are allowed. Default false.
    pub credentials: bool,
    /// How long a browser may cache the preflight response. Default 10 min.
    pub max_age: Duration,
}
