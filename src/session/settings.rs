//! What an operator decides about a session; checked, so that none of it can be wrong here.

use core::hash::{Hash, Hasher};
use core::time::Duration;
use std::sync::Arc;

use url::Url;

use crate::base::scopes::Scopes;
use crate::base::secret::Secret;
use crate::issuer::{Client, ResourceIndicator};

/// One session: who logs in, where, and how long it lasts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// The session's name in the file, in metrics, and in its cookies' names.
    pub name: Arc<str>,
    /// The name of the issuer that people log in at.
    pub issuer: Arc<str>,
    /// The gateway's client there. Default: the issuer's own.
    pub client: Client,
    /// How people log in.
    pub flow: Flow,
    /// Scheme, host and port that browsers see, without a path.
    pub public_url: Url,
    /// Scopes asked for. Default `openid`.
    pub scopes: Scopes,
    /// The service that access tokens are asked for (RFC 8707). Default none.
    pub resource: Option<ResourceIndicator>,
    /// What the authorization endpoint is to ask the person ("OpenID Connect Core" §3.1.2.1).
    /// Default `consent` when the scopes have `offline_access`, else none.
    pub prompt: Option<Arc<str>>,
    /// The paths that the gateway serves itself.
    pub paths: Paths,
    /// Where tokens are kept. Default [`TokenStorage::SealedCookies`].
    pub tokens: TokenStorage,
    /// Keys that cookies are sealed with: the first seals, all open. Empty: a
    /// random one made at start, so that sessions end with the process.
    pub keys: Vec<Secret<[u8; 32]>>,
    /// How cookies are named and where browsers send them.
    pub cookie: Cookie,
    /// How long a session may go unused. Default 30 minutes.
    pub idle_timeout: Duration,
    /// How long a session lasts at the most. Default 12 hours; not less than `idle_timeout`.
    pub absolute_timeout: Duration,
    /// Failed logins per address before they are refused unheard; a user name has 20 times as many. Default 5 a minute.
    pub login_failures: Failures,
    /// The names of the limits of its own paths: those of `defaults` that need no caller, then its own.
    pub limits: Vec<Arc<str>>,
    /// Tokens with less life than this are refreshed. Default 60 seconds.
    pub refresh_before: Duration,
    /// How requests made by other sites are told apart. Default [`Csrf::Strict`].
    pub csrf: Csrf,
    /// What a request without a session gets. Default [`OnUnauthenticated::Auto`].
    pub on_unauthenticated: OnUnauthenticated,
    /// Where a login leads that asked for nothing else. A path; default `/`.
    pub after_login: Arc<str>,
    /// Where a logout leads. A path; default `/`.
    pub after_logout: Arc<str>,
    /// Where a login may lead if asked to. Default [`ReturnTo::SameOrigin`] alone.
    pub return_to: Vec<ReturnTo>,
    /// Revokes both tokens at logout (RFC 7009). Default true.
    pub revoke_on_logout: bool,
    /// Leads on to the issuer's own logout when it offers one. Default true.
    pub end_session: bool,
    /// Which token the service receives. Default [`Forward::AccessToken`].
    pub forward: Forward,
    /// A style sheet in place of the pages' own. Default none.
    pub style: Option<Arc<str>>,
}

impl Settings {
    /// The session `name` at `issuer`, with every default of the reference.
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
            paths: Paths::default(),
            tokens: TokenStorage::default(),
            keys: Vec::new(),
            cookie: Cookie::default(),
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
            forward: Forward::default(),
            style: None,
            limits: Vec::new(),
        }
    }

    /// The paths that the gateway serves itself.
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
    /// The keys are left out: equal settings still hash alike.
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.name, &self.issuer, &self.client, self.flow, &self.public_url).hash(state);
        (&self.scopes, &self.paths, self.tokens, &self.cookie).hash(state);
    }
}

/// How people log in.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Flow {
    /// At the issuer: authorization code with PKCE (RFC 7636), state, nonce and `iss` (RFC 9207).
    Code,
    /// At the gateway: user name and password, exchanged by the password grant (RFC 6749 §4.3).
    Password,
}

/// The paths that the gateway serves itself. All distinct, all beginning with `/`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Paths {
    /// GET shows or starts a login, POST takes credentials. Default `/auth/login`.
    pub login: Arc<str>,
    /// Where the issuer sends browsers back to. Default `/auth/callback`.
    pub callback: Arc<str>,
    /// POST ends the session. Default `/auth/logout`.
    pub logout: Arc<str>,
    /// GET tells who is logged in. Default `/auth/session`.
    pub status: Arc<str>,
    /// POST refreshes now. Default `/auth/refresh`.
    pub refresh: Arc<str>,
    /// Where the issuer POSTs that somebody has logged out (OpenID Connect
    /// Back-Channel Logout). Default `/auth/back-channel-logout`.
    pub back_channel_logout: Arc<str>,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            login: "/auth/login".into(),
            callback: "/auth/callback".into(),
            logout: "/auth/logout".into(),
            status: "/auth/session".into(),
            refresh: "/auth/refresh".into(),
            back_channel_logout: "/auth/back-channel-logout".into(),
        }
    }
}

/// Where a session's tokens are kept.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum TokenStorage {
    /// In one sealed value at the browser: nothing to share between gateways but the keys.
    #[default]
    SealedCookies,
    /// At the browser as they are, for services that read them there.
    PlainCookies,
    /// At the gateway; the browser holds an opaque id.
    Server(Store),
}

/// Where sessions are kept that the gateway keeps.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Store {
    /// In this process, which takes them along when it ends.
    #[default]
    Memory,
    /// Redis, where every gateway finds them.
    Redis,
}

/// How cookies are named and where browsers send them. They are always `HttpOnly`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Cookie {
    /// Comes before every cookie's name. Default `__Host-`, which browsers take
    /// only with `secure`, without `domain` and with the path `/`.
    pub prefix: Arc<str>,
    /// Which requests of other sites carry them. Default [`SameSite::Lax`].
    pub same_site: SameSite,
    /// Only over TLS. Default true.
    pub secure: bool,
    /// Also for the hosts below this one. Default none: for this host alone.
    pub domain: Option<Arc<str>>,
    /// Only for paths below this one. Default `/`.
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

/// Which requests of other sites carry a cookie.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum SameSite {
    /// Links that a person follows.
    #[default]
    Lax,
    /// None.
    Strict,
    /// All. Only with `secure`.
    None,
}

/// How many failures, in how long a time.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Failures {
    /// At least 1.
    pub count: u32,
    /// Counted from the first failure. At least 1 second.
    pub window: Duration,
}

/// How requests made by other sites are told apart.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Csrf {
    /// By what browsers say themselves: `Sec-Fetch-Site` and `RefreshOrigin`.
    #[default]
    Strict,
    /// By a header that repeats a cookie which only pages of this origin can read.
    Token,
    /// Not at all.
    Off,
}

/// What a request without a session gets.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum OnUnauthenticated {
    /// Navigations are led to the login, all others get a 401.
    #[default]
    Auto,
    /// All are led to the login.
    Redirect,
    /// All get a 401.
    Refuse,
}

/// One place that a login may lead to.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum ReturnTo {
    /// Any path of the origin that the login happened at.
    SameOrigin,
    /// This path of it and, with `below`, everything beneath.
    Path {
        /// Without a trailing slash, unless it is `/`.
        path: Arc<str>,
        /// Written `/**` in the file.
        below: bool,
    },
    /// Any path of another origin, written as browsers do: `https://app.example.com`.
    Origin(Arc<str>),
}

/// Which token the service receives as `Authorization: Bearer`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Forward {
    /// The access token.
    #[default]
    AccessToken,
    /// The ID token, for services that want only to know who it is.
    IdToken,
    /// None.
    None,
}
