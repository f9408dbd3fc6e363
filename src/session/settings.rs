//! The settings of one session, already validated.

use core::hash::{Hash, Hasher};
use core::time::Duration;
use std::sync::Arc;

use url::Url;

use crate::base::scopes::Scopes;
use crate::base::secret::Secret;
use crate::issuer::{Client, ResourceIndicator};
use crate::password::Failures;

/// The settings of one session: login, cookies, storage and lifetimes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// The session's name in the configuration, in metrics, and in the names of its cookies.
    pub name: Arc<str>,
    /// The name of the issuer that users log in at.
    pub issuer: Arc<str>,
    /// The gateway's client there. Default: the issuer's own.
    pub client: Client,
    /// The kind of login.
    pub flow: Flow,
    /// Scheme, host and port that browsers see, without a path.
    pub public_url: Url,
    /// The requested scopes. Default `openid`.
    pub scopes: Scopes,
    /// The resource for which access tokens are requested (RFC 8707). Default none.
    pub resource: Option<ResourceIndicator>,
    /// The `prompt` of the authorization request ("OpenID Connect Core" §3.1.2.1).
    /// Default `consent` when the scopes have `offline_access`, else none.
    pub prompt: Option<Arc<str>>,
    /// Further parameters of the authorization request, such as `access_type`. Default none.
    pub authorize_parameters: Vec<(Arc<str>, Arc<str>)>,
    /// The token that identifies the user. Default [`Identity::Auto`].
    pub identity: Identity,
    /// Whether claims are read from the userinfo endpoint at the login ("OpenID Connect Core" §5.3). Default false.
    pub userinfo: bool,
    /// The paths that the gateway serves itself.
    pub paths: Paths,
    /// The storage of tokens. Default [`TokenStorage::SealedCookies`].
    pub tokens: TokenStorage,
    /// Keys that cookies are sealed with: the first seals, all open. Empty: a
    /// random one made at start, so that sessions end with the process.
    pub keys: Vec<Secret<[u8; 32]>>,
    /// The names and attributes of the cookies.
    pub cookie: Cookie,
    /// The bytes that all cookies of a request may take: more would not leave enough of `server.max_header_size` for
    /// the rest of the head. Default 28 KiB.
    pub max_cookie_bytes: usize,
    /// The time that a session may be unused. Default 30 minutes.
    pub idle_timeout: Duration,
    /// The maximum lifetime of a session. Default 12 hours; not less than `idle_timeout`.
    pub absolute_timeout: Duration,
    /// Failed logins per address before further attempts are refused; a user name has 20 times as many. Default 5 a minute.
    pub login_failures: Failures,
    /// The names of the limits of its own paths: those of `defaults` that need no caller, then its own.
    pub limits: Vec<Arc<str>>,
    /// Tokens that expire in less than this are refreshed. Default 60 seconds.
    pub refresh_before: Duration,
    /// The protection against cross-site requests. Default [`Csrf::Strict`].
    pub csrf: Csrf,
    /// The response to a request without a session. Default [`OnUnauthenticated::Auto`].
    pub on_unauthenticated: OnUnauthenticated,
    /// The target of a login without a requested target. A path; default `/`.
    pub after_login: Arc<str>,
    /// The target of a logout. A path; default `/`.
    pub after_logout: Arc<str>,
    /// The targets that a login may request. Default [`ReturnTo::SameOrigin`] alone.
    pub return_to: Vec<ReturnTo>,
    /// Revokes both tokens at logout (RFC 7009). Default true.
    pub revoke_on_logout: bool,
    /// Redirects to the issuer's own logout if it offers one. Default true.
    pub end_session: bool,
    /// The token that the upstream receives. Default [`ForwardedSessionToken::AccessToken`].
    pub forward: ForwardedSessionToken,
    /// A style sheet in place of the built-in one. Default none.
    pub style: Option<Arc<str>>,
}

impl Settings {
    /// Returns the settings of the session `name` at `issuer`, with every default.
    pub fn new(name: &str, issuer: &str, client: Client, flow: Flow, public_url: Url) -> Self {
        Self {
            name: name.into(),
            issuer: issuer.into(),
            client,
            flow,
            public_url,
            scopes: Scopes::parse("openid"),
            resource: None,
            prompt: None,
            authorize_parameters: Vec::new(),
            identity: Identity::default(),
            userinfo: false,
            paths: Paths::default(),
            tokens: TokenStorage::default(),
            keys: Vec::new(),
            cookie: Cookie::default(),
            max_cookie_bytes: 28 << 10,
            idle_timeout: Duration::from_secs(30 * 60),
            absolute_timeout: Duration::from_secs(12 * 60 * 60),
            login_failures: Failures { count: 5, window: Duration::from_secs(60) },
            refresh_before: Duration::from_secs(60),
            csrf: Csrf::default(),
            on_unauthenticated: OnUnauthenticated::default(),
            after_login: "/".into(),
            after_logout: "/".into(),
            return_to: vec![ReturnTo::SameOrigin],
            revoke_on_logout: true,
            end_session: true,
            forward: ForwardedSessionToken::default(),
            style: None,
            limits: Vec::new(),
        }
    }

    /// Returns the token that identifies the user.
    ///
    /// A user can take `resource` and `audience` out of an authorization request that the browser carries, and so get an
    /// access token that the gateway cannot verify: where one of them is set, [`Identity::Auto`] means the access token.
    pub fn identity_source(&self) -> Identity {
        let names_audience =
            self.resource.is_some() || self.authorize_parameter("audience").is_some();
        match self.identity {
            Identity::Auto if names_audience => Identity::AccessToken,
            identity => identity,
        }
    }

    /// Returns the configured `max_age` of the authorization request, which every login has to meet.
    pub fn max_age(&self) -> Option<Duration> {
        self.authorize_parameter("max_age")?.parse().ok().map(Duration::from_secs)
    }

    fn authorize_parameter(&self, name: &str) -> Option<&str> {
        let mut parameters = self.authorize_parameters.iter();
        parameters.find_map(|(known, value)| (**known == *name).then_some(&**value))
    }

    /// Returns the paths that the gateway serves itself.
    pub fn own_paths(&self) -> impl Iterator<Item = &str> {
        let paths = &self.paths;
        let callback = (self.flow == Flow::Code).then_some(&*paths.callback);
        let always = [
            &paths.login,
            &paths.logout,
            &paths.status,
            &paths.refresh,
            &paths.back_channel_logout,
        ];
        always.into_iter().map(|path| &**path).chain(callback)
    }
}

impl Hash for Settings {
    /// Leaves out the keys: equal settings still hash alike.
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.name, &self.issuer, &self.client, self.flow, &self.public_url).hash(state);
        (&self.scopes, &self.paths, self.tokens, &self.cookie).hash(state);
    }
}

/// The kind of login.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Flow {
    /// At the issuer: authorization code with PKCE (RFC 7636), state, nonce and `iss` (RFC 9207).
    Code,
    /// At the gateway: user name and password, exchanged by the password grant (RFC 6749 §4.3).
    Password,
}

/// The token that identifies the user of a session.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Identity {
    /// The access token if the gateway can verify it, else the ID token of the login; with a `resource` or an
    /// `audience` the access token: see [`Settings::identity_source`].
    #[default]
    Auto,
    /// The ID token ("OpenID Connect Core" §3.1.3.7); the access token is opaque. Only with [`Flow::Code`].
    IdToken,
    /// The access token; a login whose access token cannot be verified fails.
    AccessToken,
}

/// The paths that the gateway serves itself. All distinct, all beginning with `/`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Paths {
    /// GET shows or starts a login, POST takes credentials. Default `/auth/login`.
    pub login: Arc<str>,
    /// The redirect URI, to which the issuer sends browsers back. Default `/auth/callback`.
    pub callback: Arc<str>,
    /// POST ends the session. Default `/auth/logout`.
    pub logout: Arc<str>,
    /// GET returns who is logged in. Default `/auth/session`.
    pub status: Arc<str>,
    /// POST refreshes now. Default `/auth/refresh`.
    pub refresh: Arc<str>,
    /// POST by the issuer reports a logout (OpenID Connect
    /// Back-Channel Logout). Default `/auth/back-channel-logout`.
    pub back_channel_logout: Arc<str>,
}

impl Paths {
    /// Returns the paths under `base`, which has no slash at its end.
    pub fn under(base: &str) -> Self {
        let path = |name: &str| format!("{base}/{name}").into();
        Self {
            login: path("login"),
            callback: path("callback"),
            logout: path("logout"),
            status: path("session"),
            refresh: path("refresh"),
            back_channel_logout: path("back-channel-logout"),
        }
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self::under("/auth")
    }
}

/// The storage of a session's tokens.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum TokenStorage {
    /// In one sealed value at the browser: instances share only the keys.
    #[default]
    SealedCookies,
    /// At the browser in plain text, for upstreams that read them there.
    PlainCookies,
    /// At the gateway; the browser holds an opaque id.
    Server(Store),
}

/// The storage of sessions on the server.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Store {
    /// Process memory, lost when the process ends.
    #[default]
    Memory,
    /// Redis, for every instance.
    Redis,
}

/// The names and attributes of the cookies. They are always `HttpOnly`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Cookie {
    /// Precedes every cookie's name. Default `__Host-`, which browsers accept
    /// only with `secure`, without `domain` and with the path `/`.
    pub prefix: Arc<str>,
    /// The cross-site requests that carry them. Default [`SameSite::Lax`].
    pub same_site: SameSite,
    /// Sent over TLS only. Default true.
    pub secure: bool,
    /// Sent to the hosts below this one as well. Default none: this host alone.
    pub domain: Option<Arc<str>>,
    /// Sent for paths below this one only. Default `/`.
    pub path: Arc<str>,
}

impl Default for Cookie {
    fn default() -> Self {
        Self {
            prefix: "__Host-".into(),
            same_site: SameSite::Lax,
            secure: true,
            domain: None,
            path: "/".into(),
        }
    }
}

/// The cross-site requests that carry a cookie.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum SameSite {
    /// Navigations by links.
    #[default]
    Lax,
    /// None.
    Strict,
    /// All. Only with `secure`.
    None,
}

/// The protection against cross-site requests.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Csrf {
    /// By the browser's own `Sec-Fetch-Site` and `Origin`.
    #[default]
    Strict,
    /// By a header field that repeats a cookie which only pages of this origin can read.
    Token,
    /// None.
    Off,
}

/// The response to a request without a session.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum OnUnauthenticated {
    /// Navigations are redirected to the login, all others get a 401.
    #[default]
    Auto,
    /// All are redirected to the login.
    Redirect,
    /// All get a 401.
    Refuse,
}

/// A target that a login may request.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum ReturnTo {
    /// Any path of the origin of the login.
    SameOrigin,
    /// This path of it and, with `below`, all paths beneath.
    Path {
        /// Without a trailing slash, unless it is `/`.
        path: Arc<str>,
        /// Written `/**` in the configuration.
        below: bool,
    },
    /// Any path of another origin, as browsers serialize it: `https://app.example.com`.
    Origin(Arc<str>),
}

/// The token that the upstream receives as `Authorization: Bearer`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum ForwardedSessionToken {
    /// The access token.
    #[default]
    AccessToken,
    /// The ID token, for upstreams that only need the identity.
    IdToken,
    /// None.
    None,
}
