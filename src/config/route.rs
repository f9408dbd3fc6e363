//! One route: what it matches, who may use it, what happens then.

use core::fmt;
use core::time::Duration;
use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use url::Url;

use super::auth::Auth;
use super::redact::{self, HIDDEN};
use crate::upstream::Retries;

/// One route, with everything that `defaults` and its policies add.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name in metrics and logs; no two routes share it.
    pub id: Arc<str>,
    /// Hosts it serves; empty is any.
    pub hosts: Vec<HostPattern>,
    /// Paths it serves, at least one.
    pub paths: Vec<PathPattern>,
    /// Methods it takes; empty is all but TRACE and CONNECT.
    pub methods: Vec<Method>,
    /// Fields a request must have besides.
    pub match_headers: Vec<HeaderMatch>,
    /// What happens to a request that may pass.
    pub action: Action,
    /// Who may use it.
    pub auth: Auth,
    /// The names of its limits, each once, in the order of `defaults`, policies, route.
    pub limits: Vec<Arc<str>>,
    /// What becomes of the path.
    pub rewrite: Rewrite,
    /// Fields changed on the way to the service.
    pub request_headers: HeaderEdits,
    /// Fields changed on the way back.
    pub response_headers: HeaderEdits,
    /// How long until the answer's head has come; `None` is the upstream's.
    pub timeout: Option<Duration>,
    /// What is tried again; `None` is the upstream's.
    pub retries: Option<Retries>,
    /// Bytes of a request's body; `None` is no limit. Default the server's, 10 MiB.
    pub max_body_size: Option<u64>,
    /// Which other origins' pages may call it; `None`, the default, is none.
    pub cors: Option<Cors>,
    /// Adds HSTS, nosniff, frame-deny and a referrer policy to answers. Default false.
    pub security_headers: bool,
    /// Lets connections be upgraded. Default true.
    pub websocket: bool,
    /// Ends `WebSockets` and streaming answers with the token that opened them. Default true.
    pub close_on_expiry: bool,
    /// Whether its requests are recorded. Default true.
    pub access_log: bool,
    /// A route that is not still matches, and answers 404. Default true.
    pub enabled: bool,
}

/// A host, in lower case and without a port.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum HostPattern {
    /// This one.
    Exact(Box<str>),
    /// `*.example.com`, kept without the `*.`: one label more than this.
    Wildcard(Box<str>),
}

impl HostPattern {
    /// The host of `url` in the form in which requests are matched: without the root's dot, an IPv6 address as RFC 5952
    /// writes it. `None` if the URL has no host.
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

/// A path in normal form, cut at its slashes: `/a/{x}/**`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PathPattern {
    /// What stands between the slashes; `/` is one empty literal, and `/a/` ends in one.
    pub segments: Vec<Segment>,
    /// Whether `**` ends it: this path, with and without a slash, and everything below.
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

/// One step of a path.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Segment {
    /// Exactly this; escapes, if any, in upper case.
    Literal(Box<str>),
    /// `{x}`: any one segment that is not empty.
    Parameter(Box<str>),
}

/// A field a request must have.
#[derive(Clone, Debug)]
pub struct HeaderMatch {
    /// Its name.
    pub name: HeaderName,
    /// What each of its values must be.
    pub value: ValueMatch,
}

impl HeaderMatch {
    /// Whether `other` asks for the same.
    pub(crate) fn is_the_same_as(&self, other: &Self) -> bool {
        self.name == other.name
            && match (&self.value, &other.value) {
                (ValueMatch::Exact(a), ValueMatch::Exact(b)) => a == b,
                (ValueMatch::Regex(a), ValueMatch::Regex(b)) => a.as_str() == b.as_str(),
                _ => false,
            }
    }

    /// What the value must be, as it may be printed; a regular expression as it was written.
    pub fn shown(&self) -> Cow<'_, str> {
        let text = match &self.value {
            ValueMatch::Exact(value) => String::from_utf8_lossy(value.as_bytes()),
            ValueMatch::Regex(regex) => Cow::Borrowed(regex.as_str()),
        };
        match redact::shown(self.name.as_str(), &text) {
            HIDDEN => Cow::Borrowed(HIDDEN),
            _ => text,
        }
    }
}

/// What a field's value must be.
#[derive(Clone, Debug)]
pub enum ValueMatch {
    /// Exactly this.
    Exact(HeaderValue),
    /// The whole value fits this expression.
    Regex(regex::bytes::Regex),
}

impl ValueMatch {
    /// Whether `value` is what it must be.
    pub fn fits(&self, value: &HeaderValue) -> bool {
        match self {
            Self::Exact(exact) => value == exact,
            Self::Regex(regex) => regex.is_match(value.as_bytes()),
        }
    }
}

/// What happens to a request that may pass.
#[derive(Clone, Debug)]
pub enum Action {
    /// It goes to the service of this name.
    Upstream(Arc<str>),
    /// The gateway answers.
    Respond {
        /// The status.
        status: StatusCode,
        /// The body, often empty.
        body: String,
        /// The answer's fields, `Content-Type` among them if there is a body.
        headers: Vec<(HeaderName, HeaderValue)>,
    },
    /// The client is sent elsewhere.
    Redirect {
        /// A path or an absolute URL.
        to: HeaderValue,
        /// 301, 302, 303, 307 or 308, the default.
        status: StatusCode,
    },
}

/// What becomes of the path on its way to the service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Rewrite {
    /// It stays.
    #[default]
    Keep,
    /// Its beginning changes.
    Prefix {
        /// Segments that every path of the route begins with, and that are taken away. `/a/b`, or empty.
        strip: Box<str>,
        /// What is put before the rest. `/c`, or empty.
        add: Box<str>,
    },
    /// It is written anew.
    Path(Vec<PathRewrite>),
}

/// A piece of a path written anew. Together they begin with a slash.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PathRewrite {
    /// Text, slashes included.
    Text(Box<str>),
    /// What `{x}` of the route's path matched.
    Parameter(Box<str>),
    /// What `**` matched, without a slash before it.
    Rest,
}

/// Fields changed on the way. First `remove`, then `field`, then `add`.
#[derive(Clone, Debug, Default)]
pub struct HeaderEdits {
    /// Fields taken away.
    pub remove: Vec<HeaderName>,
    /// Fields that replace any of the same name.
    pub set: Vec<(HeaderName, Template)>,
    /// Fields added to any of the same name.
    pub add: Vec<(HeaderName, Template)>,
}

/// A field's value with places to fill in.
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

/// Which other origins' pages may call a route (the Fetch standard's CORS protocol).
#[derive(Clone, Debug)]
pub struct Cors {
    /// Origins that may; `None` is every origin, never with `credentials`.
    pub origins: Option<Vec<HeaderValue>>,
    /// Methods they may use.
    pub methods: Vec<Method>,
    /// Request fields they may set.
    pub headers: Vec<HeaderName>,
    /// Answer fields they may read.
    pub expose: Vec<HeaderName>,
    /// Whether cookies and `Authorization` travel along. Default false.
    pub credentials: bool,
    /// How long a browser may remember a preflight's answer. Default 10 min.
    pub max_age: Duration,
}
