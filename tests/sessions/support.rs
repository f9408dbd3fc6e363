//! A session of alice's at a development issuer, and a browser with a cookie jar.

use core::net::{IpAddr, Ipv4Addr};
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::fault_injection::TestIssuer;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{COOKIE, SET_COOKIE};
use http::request::Builder;
use http::{HeaderValue, Method, Request, Response};
use northgate::base::body::Body;
use northgate::base::clock::{Clock, Timestamp};
use northgate::base::scopes::Scopes;
use northgate::base::secret::Secret;
use northgate::dev::issuer::{API, DevIssuerConfig};
use northgate::issuer::{self, Client, ClientAuth, Discovery, Endpoints, Issuer};
use northgate::observe::metrics::Metrics;
use northgate::session::{Flow, SessionError, SessionRegistry, SessionUser, Sessions, Settings};
use northgate::token::{
    Audience, ContentEncryption, DecryptionKey, DecryptionKeys, IssuerVerifier, KeyManagement,
    RevocationList, TokenUse, ValidationRules, Verifier,
};
use serde_json::Value;
use tokio::runtime::Handle;
use url::Url;

/// All participants, on one manual clock.
pub(crate) struct Gate {
    pub(crate) session: Arc<Sessions>,
    pub(crate) issuer: TestIssuer,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) revocations: RevocationList,
    kept: SessionRegistry,
    asked: Arc<Issuer>,
    verifier: Arc<Verifier>,
}

impl Gate {
    /// With every default, and tokens that live ten minutes.
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    /// With other settings.
    pub(crate) fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::at(DevIssuerConfig::default(), change)
    }

    /// With another issuer as well.
    pub(crate) fn at(options: DevIssuerConfig, change: impl FnOnce(&mut Settings)) -> Self {
        Self::asking(options, |_| {}, change)
    }

    /// With another way of asking it, too.
    pub(crate) fn asking(
        options: DevIssuerConfig,
        ask: impl FnOnce(&mut issuer::Settings),
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let clock = Clock::manual(NOW);
        Self::apart(clock.clone(), clock, options, ask, change)
    }

    /// With an issuer whose clock shows `their` time.
    pub(crate) fn apart(
        clock: Clock,
        their: Clock,
        mut options: DevIssuerConfig,
        ask: impl FnOnce(&mut issuer::Settings),
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        for client in &mut options.clients {
            client.access_lifetime = None;
        }
        let control = Handle::current();
        let loopback = (Ipv4Addr::LOCALHOST, 0).into();
        let issuer = TestIssuer::start(loopback, their, options, &control).unwrap();
        let metrics = Metrics::default();
        let mut asked = issuer::Settings::new("main", issuer.url());
        asked.client =
            Some(Client { id: "gateway".into(), auth: ClientAuth::Basic("gateway-secret".into()) });
        ask(&mut asked);
        let asked = Issuer::new(asked, clock.clone(), &metrics, control).unwrap();
        let revocations = RevocationList::new(clock.clone());
        let (kept, asked) =
            (SessionRegistry::new(revocations.clone(), Arc::default()), Arc::new(asked));
        let verifier = Arc::new(verifier(&asked, &clock, &metrics, &revocations));
        let mut settings = settings();
        change(&mut settings);
        let session = session(settings, &asked, &verifier, &clock, &metrics, &kept);
        Self { session, issuer, clock, metrics, revocations, kept, asked, verifier }
    }

    /// Reads the configuration again, with `change`.
    pub(crate) fn reload(&mut self, change: impl FnOnce(&mut Settings)) {
        self.session = self.another(change);
    }

    /// Another session of the same configuration, with `change`.
    pub(crate) fn another(&self, change: impl FnOnce(&mut Settings)) -> Arc<Sessions> {
        let mut settings = self.session.settings().clone();
        change(&mut settings);
        let Self { asked, verifier, clock, metrics, kept, .. } = self;
        session(settings, asked, verifier, clock, metrics, kept)
    }

    /// Reads the configuration again: the issuer's tokens may be encrypted with this 32-byte secret now.
    pub(crate) fn decrypt_with(&mut self, secret: [u8; 32]) {
        let jwk = serde_json::json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode(secret) });
        self.verify_by(|rules| {
            rules.decryption = Some(Arc::new(DecryptionKeys {
                keys: vec![DecryptionKey::from_jwk(jwk.as_object().unwrap()).unwrap()],
                algorithms: vec![KeyManagement::Direct],
                encryptions: vec![ContentEncryption::A256Gcm],
            }));
        });
    }

    /// Reads the configuration again, with other rules for tokens.
    pub(crate) fn verify_by(&mut self, change: impl FnOnce(&mut ValidationRules)) {
        let mut rules = ValidationRules::new(Audience::OneOf([API.into()].into()));
        change(&mut rules);
        let Self { asked, clock, metrics, revocations, .. } = &*self;
        self.verifier = Arc::new(verifier_with(rules, asked, clock, metrics, revocations));
        self.reload(|_| {});
    }

    /// Reads the configuration again: by the same name there is another's issuer now.
    pub(crate) fn move_to_issuer_of(&mut self, other: &Self) {
        let settings = self.session.settings().clone();
        let Self { clock, metrics, kept, .. } = &*self;
        self.session = session(settings, &other.asked, &other.verifier, clock, metrics, kept);
    }

    /// Waits until no call is under way that a shutdown would wait for.
    pub(crate) async fn settle(&self) {
        assert_eq!(self.kept.drain(Duration::from_secs(60)).await, 0);
    }

    /// A browser in which alice has just logged in.
    pub(crate) async fn alice(&self) -> Browser {
        let mut browser = Browser::default();
        let response = self.log_in(&mut browser, "alice", "wonderland").await;
        assert_eq!(response.status(), 303);
        browser
    }

    /// Sends the login form.
    pub(crate) async fn log_in(
        &self,
        browser: &mut Browser,
        user: &str,
        password: &str,
    ) -> Response<Body> {
        let request = browser
            .post("/auth/login")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(format!("username={user}&password={password}")));
        self.serve(browser, request.unwrap()).await
    }

    /// Sends `request` to the session's own paths over TLS, and takes its cookies.
    pub(crate) async fn serve(
        &self,
        browser: &mut Browser,
        request: Request<Body>,
    ) -> Response<Body> {
        let response = self.session.serve(request, HOME, true).await;
        browser.take(response.headers().get_all(SET_COOKIE));
        response
    }

    /// Sends a request to an upstream, and stores the response's cookies.
    pub(crate) async fn ask(&self, browser: &mut Browser) -> Result<SessionUser, SessionError> {
        let answer = self.present(browser).await;
        browser.take(&match &answer {
            Ok(SessionUser { renewal: Some(renewal), .. }) => renewal.set_cookies().await,
            Ok(_) => Vec::new(),
            Err(error) => error.set_cookies.clone(),
        });
        answer
    }

    /// Sends a request to an upstream; the browser never receives the response.
    pub(crate) async fn present(&self, browser: &Browser) -> Result<SessionUser, SessionError> {
        let (head, _) = browser.get("/app").body(()).unwrap().into_parts();
        self.session.authenticate(&head, None).await
    }

    /// A line of the metrics, such as `northgate_session_logins_total{session="web",result="ok"}`.
    pub(crate) fn counted(&self, series: &str) -> u64 {
        let text = self.metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.map_or(0, |count| count.trim().parse().unwrap())
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }
}

/// The time at which every test begins.
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn settings() -> Settings {
    let client = Client {
        id: "gateway-web".into(),
        auth: ClientAuth::Basic(Secret::from("gateway-web-secret")),
    };
    let public_url = Url::parse("https://www.example.com").unwrap();
    let mut settings = Settings::new("web", "main", client, Flow::Password, public_url);
    settings.scopes = Scopes::parse("openid profile offline_access orders:read");
    settings.keys = vec![Secret::new([7; 32])];
    settings
}

fn session(
    settings: Settings,
    issuer: &Arc<Issuer>,
    verifier: &Arc<Verifier>,
    clock: &Clock,
    metrics: &Metrics,
    kept: &SessionRegistry,
) -> Arc<Sessions> {
    let (issuer, verifier) = (Arc::clone(issuer), Some(Arc::clone(verifier)));
    let (clock, control) = (clock.clone(), Handle::current());
    Arc::new(Sessions::new(settings, issuer, verifier, clock, metrics, control, kept))
}

/// Settings of an issuer that has no introspection.
pub(crate) fn without_introspection(asked: &mut issuer::Settings) {
    let url = |path: &str| Some(format!("{}{path}", asked.issuer).parse().unwrap());
    asked.discovery = Discovery::Off;
    asked.endpoints = Endpoints {
        authorization: url("/authorize"),
        token: url("/token"),
        jwks: url("/jwks"),
        revocation: url("/revoke"),
        ..Endpoints::default()
    };
}

/// Verifies an access token by the operator's rules.
pub(crate) fn verifier(
    issuer: &Arc<Issuer>,
    clock: &Clock,
    metrics: &Metrics,
    revocations: &RevocationList,
) -> Verifier {
    let rules = ValidationRules::new(Audience::OneOf([API.into()].into())).of_held_tokens();
    verifier_with(rules, issuer, clock, metrics, revocations)
}

fn verifier_with(
    rules: ValidationRules,
    issuer: &Arc<Issuer>,
    clock: &Clock,
    metrics: &Metrics,
    revocations: &RevocationList,
) -> Verifier {
    let (issuer, revocations) = (Arc::clone(issuer), revocations.clone());
    let judge =
        IssuerVerifier::new(issuer, rules, revocations, clock.clone(), metrics, Handle::current());
    Verifier::new(TokenUse::Bearer, [Arc::new(judge)])
}

/// A browser, which sends the cookies it holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Browser {
    pub(crate) jar: BTreeMap<String, String>,
}

impl Browser {
    pub(crate) fn get(&self, path: &str) -> Builder {
        self.request(Method::GET, path)
            .header("sec-fetch-mode", "navigate")
            .header("accept", "text/html")
    }

    /// What a form of one of our own pages sends.
    pub(crate) fn post(&self, path: &str) -> Builder {
        self.request(Method::POST, path)
            .header("origin", "https://www.example.com")
            .header("sec-fetch-site", "same-origin")
            .header("accept", "text/html")
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> Builder {
        let request = Request::builder().method(method).uri(path).header("host", "www.example.com");
        if self.jar.is_empty() { request } else { request.header(COOKIE, self.cookie()) }
    }

    pub(crate) fn cookie(&self) -> String {
        let pairs = self.jar.iter().map(|(name, value)| format!("{name}={value}"));
        pairs.collect::<Vec<_>>().join("; ")
    }

    pub(crate) fn take<'a>(&mut self, fields: impl IntoIterator<Item = &'a HeaderValue>) {
        for field in fields {
            let field = field.to_str().unwrap();
            let (name, value) = field.split(';').next().unwrap().split_once('=').unwrap();
            if field.contains("Max-Age=0") {
                self.jar.remove(name);
            } else {
                self.jar.insert(name.to_owned(), value.to_owned());
            }
        }
    }
}

/// The body, as text.
pub(crate) async fn text(response: Response<Body>) -> String {
    let body = response.into_body().collect(100_000).await.unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

/// The body, as JSON.
pub(crate) async fn json(response: Response<Body>) -> Value {
    serde_json::from_str(&text(response).await).unwrap()
}

/// Where the browser is.
pub(crate) const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
