//! What the tests of the development issuer share.

use crate::fault_injection::TestIssuer;
use http::StatusCode;
use northgate::base::clock::{Clock, Timestamp};
use northgate::dev::issuer::{Client, DevIssuerConfig};
use serde_json::Value;
use tokio::runtime::Handle;

/// An issuer on a free port, at noon, and a client to call it.
pub(crate) struct Issuer {
    pub(crate) running: TestIssuer,
    pub(crate) clock: Clock,
    pub(crate) http: reqwest::Client,
}

/// An issuer as `northgate dev` starts it.
pub(crate) fn start() -> Issuer {
    start_with(DevIssuerConfig::default())
}

/// An issuer that knows one more client, in place of one with the same id.
pub(crate) fn start_knowing(client: Client) -> Issuer {
    let mut options = DevIssuerConfig::default();
    options.clients.retain(|known| known.id != client.id);
    options.clients.push(client);
    start_with(options)
}

/// An issuer that knows others.
pub(crate) fn start_with(options: DevIssuerConfig) -> Issuer {
    let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
    let address = "127.0.0.1:0".parse().expect("an address");
    let running = TestIssuer::start(address, clock.clone(), options, &Handle::current())
        .expect("a free port");
    let http = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .expect("a client");
    Issuer { running, clock, http }
}

impl Issuer {
    pub(crate) fn at(&self, path: &str) -> String {
        format!("{}{path}", self.running.url())
    }

    pub(crate) async fn json(&self, path: &str) -> Value {
        let response = self.http.get(self.at(path)).send().await.expect("an answer");
        response.json().await.expect("JSON")
    }

    pub(crate) async fn token(&self, client: &str, form: &[(&str, &str)]) -> (StatusCode, Value) {
        let request = self.http.post(self.at("/token"));
        let request = request.basic_auth(client, Some(format!("{client}-secret"))).form(form);
        let response = request.send().await.expect("an answer");
        (response.status(), response.json().await.expect("JSON"))
    }

    pub(crate) async fn log_in(&self, username: &str, password: &str) -> (StatusCode, Value) {
        let scope = "openid offline_access orders:read";
        let form = [
            ("grant_type", "password"),
            ("username", username),
            ("password", password),
            ("scope", scope),
        ];
        self.token("gateway-web", &form).await
    }

    pub(crate) async fn refresh(&self, token: &Value) -> (StatusCode, Value) {
        let token = token.as_str().expect("a refresh token");
        let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
        self.token("gateway-web", &form).await
    }

    pub(crate) async fn introspect(&self, token: &Value) -> Value {
        let token = token.as_str().expect("a token");
        let request = self.http.post(self.at("/introspect"));
        let request = request.basic_auth("gateway", Some("gateway-secret"));
        let response = request.form(&[("token", token)]).send().await.expect("an answer");
        response.json().await.expect("JSON")
    }
}
