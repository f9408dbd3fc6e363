//! The development issuer over real sockets, as the gateway and people's programs meet it.

use core::time::Duration;

use http::StatusCode;
use northgate::base::clock::{Clock, Timestamp};
use northgate::dev::issuer::{DevIssuer, Endpoint, Fault, Mint, Options, Running, StartError};
use serde_json::Value;
use tokio::runtime::Handle;

#[tokio::test]
async fn refuses_to_listen_where_others_could_reach_it() {
    let everywhere = "0.0.0.0:0".parse().expect("an address");

    let started =
        DevIssuer::start(everywhere, Clock::system(), Options::default(), &Handle::current());

    assert!(matches!(started, Err(StartError::NotLoopback(_))));
}

#[tokio::test]
async fn both_discovery_documents_name_the_issuer_as_it_was_asked() {
    let issuer = start();

    for path in ["oauth-authorization-server", "openid-configuration"] {
        let document = issuer.json(&format!("/.well-known/{path}")).await;
        assert_eq!(document["issuer"], issuer.running.url());
        assert_eq!(document["authorization_response_iss_parameter_supported"], true);
    }
    assert_eq!(issuer.running.count(Endpoint::Discovery), 2);
}

#[tokio::test]
async fn a_machine_gets_a_token_for_itself() {
    let issuer = start();

    let (status, tokens) = issuer
        .token("api", &[("grant_type", "client_credentials"), ("scope", "orders:read")])
        .await;

    assert_eq!(status, StatusCode::OK);
    assert_eq!(tokens["token_type"], "Bearer");
    assert_eq!(tokens["scope"], "orders:read");
    assert_eq!(tokens.get("refresh_token"), None);
    let told = issuer.introspect(&tokens["access_token"]).await;
    assert_eq!(told["active"], true);
    assert_eq!(told["sub"], "api");
}

#[tokio::test]
async fn a_wrong_password_is_an_invalid_grant() {
    let issuer = start();

    let (status, body) = issuer.log_in("alice", "wonderlamp").await;

    assert_eq!((status, &body["error"]), (StatusCode::BAD_REQUEST, &"invalid_grant".into()));
}

#[tokio::test]
async fn a_wrong_client_secret_is_the_clients_fault_alone() {
    let issuer = start();

    let response = issuer
        .http
        .post(issuer.at("/token"))
        .basic_auth("api", Some("wrong"))
        .form(&[("grant_type", "client_credentials")])
        .send()
        .await
        .expect("an answer");

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(response.headers().contains_key("www-authenticate"));
    assert_eq!(response.headers()["cache-control"], "no-store");
    let body: Value = response.json().await.expect("JSON");
    assert_eq!(body["error"], "invalid_client");
}

#[tokio::test]
async fn a_refresh_token_used_twice_ends_its_whole_family() {
    let issuer = start();
    let (_, first) = issuer.log_in("alice", "wonderland").await;
    let (_, second) = issuer.refresh(&first["refresh_token"]).await;
    assert_eq!(issuer.introspect(&second["access_token"]).await["active"], true);

    let (status, refused) = issuer.refresh(&first["refresh_token"]).await;

    assert_eq!((status, &refused["error"]), (StatusCode::BAD_REQUEST, &"invalid_grant".into()));
    for token in [&first["access_token"], &second["access_token"], &second["refresh_token"]] {
        assert_eq!(issuer.introspect(token).await["active"], false);
    }
    assert_eq!(issuer.refresh(&second["refresh_token"]).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_minted_token_is_known_and_ends_in_time() {
    let issuer = start();
    let mint = Mint::client("partner").lifetime(Duration::from_secs(60));
    let token = Value::from(issuer.running.mint(&mint).expect("a token"));
    assert_eq!(issuer.introspect(&token).await["scope"], "partners:read");

    issuer.clock.advance(Duration::from_secs(60));

    assert_eq!(issuer.introspect(&token).await["active"], false);
}

#[tokio::test]
async fn a_revoked_token_is_no_longer_active() {
    let issuer = start();
    let token = issuer.running.mint(&Mint::client("partner")).expect("a token");
    let revoke = async |client: &str| {
        let secret = format!("{client}-secret");
        let request = issuer.http.post(issuer.at("/revoke")).basic_auth(client, Some(secret));
        request.form(&[("token", &token)]).send().await.expect("an answer").status()
    };

    assert_eq!(revoke("api").await, StatusCode::BAD_REQUEST);
    assert_eq!(issuer.introspect(&token.clone().into()).await["active"], true);
    assert_eq!(revoke("partner").await, StatusCode::OK);
    assert_eq!(issuer.introspect(&token.clone().into()).await["active"], false);
    assert_eq!(revoke("partner").await, StatusCode::OK);
}

#[tokio::test]
async fn a_rotation_adds_keys_and_keeps_the_old_ones() {
    let issuer = start();
    let kids = async || -> Vec<Value> {
        let keys = issuer.json("/jwks").await;
        keys["keys"].as_array().expect("keys").iter().map(|key| key["kid"].clone()).collect()
    };
    let before = kids().await;

    issuer.running.rotate_keys().expect("random numbers");

    let after = kids().await;
    assert_eq!(after.len(), 2 * before.len());
    assert!(before.iter().all(|kid| after.contains(kid)));
}

#[tokio::test]
async fn orders_for_faults_are_served_in_turn_and_then_forgotten() {
    let issuer = start();
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    issuer.running.order(Endpoint::Jwks, Fault::Status(status), 2);
    issuer.running.order(Endpoint::Jwks, Fault::Close, 1);
    let get = async || issuer.http.get(issuer.at("/jwks")).send().await;

    assert_eq!(get().await.expect("an answer").status(), status);
    assert_eq!(get().await.expect("an answer").status(), status);
    assert!(get().await.is_err());
    assert_eq!(get().await.expect("an answer").status(), StatusCode::OK);
    assert_eq!(issuer.running.count(Endpoint::Jwks), 4);
}

#[tokio::test]
async fn a_held_endpoint_answers_when_it_is_let_go() {
    let issuer = start();
    let held = issuer.running.hold(Endpoint::Jwks);
    let request = issuer.http.get(issuer.at("/jwks")).send();
    let let_go = async {
        issuer.running.reached(Endpoint::Jwks, 1).await;
        drop(held);
    };

    let (answer, ()) = tokio::join!(request, let_go);

    assert_eq!(answer.expect("an answer").status(), StatusCode::OK);
}

#[tokio::test]
async fn a_page_elsewhere_cannot_reach_it_by_a_name_of_its_own() {
    let issuer = start();
    let request = issuer.http.get(issuer.at("/jwks")).header("host", "rebound.example.com");

    assert_eq!(request.send().await.expect("an answer").status(), StatusCode::MISDIRECTED_REQUEST);
}

struct Issuer {
    running: Running,
    clock: Clock,
    http: reqwest::Client,
}

fn start() -> Issuer {
    let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
    let address = "127.0.0.1:0".parse().expect("an address");
    let options = Options::default();
    let running =
        DevIssuer::start(address, clock.clone(), options, &Handle::current()).expect("a free port");
    let http = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .expect("a client");
    Issuer { running, clock, http }
}

impl Issuer {
    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.running.url())
    }

    async fn json(&self, path: &str) -> Value {
        let response = self.http.get(self.at(path)).send().await.expect("an answer");
        response.json().await.expect("JSON")
    }

    async fn token(&self, client: &str, form: &[(&str, &str)]) -> (StatusCode, Value) {
        let request = self.http.post(self.at("/token"));
        let request = request.basic_auth(client, Some(format!("{client}-secret"))).form(form);
        let response = request.send().await.expect("an answer");
        (response.status(), response.json().await.expect("JSON"))
    }

    async fn log_in(&self, username: &str, password: &str) -> (StatusCode, Value) {
        let scope = "openid offline_access orders:read";
        let form = [
            ("grant_type", "password"),
            ("username", username),
            ("password", password),
            ("scope", scope),
        ];
        self.token("gateway-web", &form).await
    }

    async fn refresh(&self, token: &Value) -> (StatusCode, Value) {
        let token = token.as_str().expect("a refresh token");
        let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
        self.token("gateway-web", &form).await
    }

    async fn introspect(&self, token: &Value) -> Value {
        let token = token.as_str().expect("a token");
        let request = self.http.post(self.at("/introspect"));
        let request = request.basic_auth("gateway", Some("gateway-secret"));
        let response = request.form(&[("token", token)]).send().await.expect("an answer");
        response.json().await.expect("JSON")
    }
}
