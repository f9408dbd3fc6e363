//! What programs call: discovery, tokens, introspection, revocation; and the tests' own hooks.

use core::time::Duration;

use crate::fault_injection::{Endpoint, Fault};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use http::{Method, StatusCode};
use northgate::base::clock::Clock;
use northgate::dev::issuer::{
    API, Algorithm, Authentication, Client, DevIssuer, DevIssuerConfig, GrantType, Mint, StartError,
};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::support::{start, start_knowing};

#[tokio::test]
async fn refuses_to_listen_where_others_could_reach_it() {
    let everywhere = "0.0.0.0:0".parse().expect("an address");

    let started = DevIssuer::start(
        everywhere,
        Clock::system(),
        DevIssuerConfig::default(),
        &Handle::current(),
    );

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
async fn of_parallel_uses_of_one_refresh_token_one_wins_and_then_all_lose() {
    let issuer = start();
    let (_, tokens) = issuer.log_in("alice", "wonderland").await;

    let uses = join_all((0..20).map(|_| issuer.refresh(&tokens["refresh_token"]))).await;

    let won: Vec<_> = uses.iter().filter(|(status, _)| *status == StatusCode::OK).collect();
    assert_eq!(won.len(), 1);
    assert_eq!(issuer.introspect(&won[0].1["access_token"]).await["active"], false);
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
    issuer.running.inject(Endpoint::Jwks, Fault::Status(status), 2);
    issuer.running.inject(Endpoint::Jwks, Fault::Close, 1);
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
    let held = issuer.running.pause(Endpoint::Jwks);
    let request = issuer.http.get(issuer.at("/jwks")).send();
    let let_go = async {
        issuer.running.wait_for_calls(Endpoint::Jwks, 1).await;
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

#[tokio::test]
async fn a_client_can_prove_itself_with_a_signed_word_but_only_once() {
    let other = start();
    let keys = other.json("/jwks").await;
    let client = Client::authenticating("robot", Authentication::PrivateKeyJwt(keys))
        .grants(&[GrantType::ClientCredentials])
        .scopes("orders:read");
    let issuer = start_knowing(client);
    let word = |audience: &str, jti: &str| {
        let claims = json!({
            "iss": "robot", "sub": "robot", "aud": audience, "jti": jti,
            "exp": issuer.clock.now().plus_secs(60).as_secs(),
        });
        other.running.sign(Algorithm::Es256, json!({ "typ": "JWT" }), claims)
    };
    let ask = async |word: &str| {
        let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
        let form = [
            ("grant_type", "client_credentials"),
            ("client_assertion_type", kind),
            ("client_assertion", word),
        ];
        issuer.http.post(issuer.at("/token")).form(&form).send().await.expect("an answer").status()
    };
    let good = word(issuer.running.url(), "1");

    assert_eq!(ask(&good).await, StatusCode::OK);
    assert_eq!(ask(&good).await, StatusCode::UNAUTHORIZED);
    assert_eq!(ask(&word("https://elsewhere.example.com", "2")).await, StatusCode::UNAUTHORIZED);
    let expired = word(issuer.running.url(), "3");
    issuer.clock.advance(Duration::from_secs(60));
    assert_eq!(ask(&expired).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn credentials_in_the_basic_field_are_form_encoded() {
    let client = Client::confidential("a:b c", "50% + ü")
        .grants(&[GrantType::ClientCredentials])
        .scopes("orders:read");
    let issuer = start_knowing(client);

    let response = issuer
        .http
        .post(issuer.at("/token"))
        .basic_auth("a%3Ab+c", Some("50%25+%2B+%C3%BC"))
        .form(&[("grant_type", "client_credentials")])
        .send()
        .await
        .expect("an answer");

    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_client_authenticates_in_its_own_way_and_in_no_other() {
    let post = Authentication::Post("post-secret".into());
    let client = Client::authenticating("post", post)
        .grants(&[GrantType::ClientCredentials])
        .scopes("orders:read");
    let issuer = start_knowing(client);
    let (id, secret) = (("client_id", "post"), ("client_secret", "post-secret"));
    let request = || issuer.http.post(issuer.at("/token"));
    let grant = ("grant_type", "client_credentials");

    let posted = request().form(&[grant, id, secret]).send().await.expect("an answer");
    let (basic, body) = issuer.token("post", &[grant]).await;
    let twice = request().basic_auth("post", Some("post-secret")).form(&[grant, id, secret]);
    let twice = twice.send().await.expect("an answer");

    assert_eq!(posted.status(), StatusCode::OK);
    assert_eq!((basic, &body["error"]), (StatusCode::UNAUTHORIZED, &"invalid_client".into()));
    assert_eq!(twice.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn refusals_use_the_words_of_the_rfc() {
    let issuer = start();
    let cases: [Case<'_>; 7] = [
        ("api", &[], "invalid_request"),
        ("api", &[("grant_type", "magic")], "unsupported_grant_type"),
        ("api", &[("grant_type", "password")], "unauthorized_client"),
        ("api", &[("grant_type", "client_credentials"), ("scope", "admin")], "invalid_scope"),
        ("gateway", &[("grant_type", "client_credentials"), ("scope", "openid")], "invalid_scope"),
        ("api", &[("grant_type", "client_credentials"), ("resource", "urn:x")], "invalid_target"),
        ("api", &[("scope", "orders:read"), ("scope", "orders:write")], "invalid_request"),
    ];

    for (client, form, error) in cases {
        let (status, body) = issuer.token(client, form).await;
        assert_eq!((status, &body["error"]), (StatusCode::BAD_REQUEST, &error.into()), "{form:?}");
        assert!(body["error_description"].is_string());
    }
}

#[tokio::test]
async fn a_signed_token_says_what_rfc_9068_asks_for() {
    let issuer = start();
    let (_, tokens) = issuer.log_in("alice", "wonderland").await;

    let (header, claims) = read(&tokens["access_token"]);

    assert_eq!((&header["typ"], &header["alg"]), (&json!("at+jwt"), &json!("RS256")));
    assert_eq!(claims["iss"], issuer.running.url());
    assert_eq!(claims["aud"], API);
    assert_eq!(claims["sub"], "alice");
    assert_eq!(claims["client_id"], "gateway-web");
    assert_eq!(claims["scope"], "offline_access openid orders:read");
    assert_eq!(claims["exp"].as_u64(), Some(issuer.clock.now().plus_secs(300).as_secs()));
    assert!(claims["jti"].is_string() && claims["iat"].is_u64());
}

#[tokio::test]
async fn an_id_token_tells_the_client_who_logged_in() {
    let issuer = start();
    let (_, tokens) = issuer.log_in("alice", "wonderland").await;

    let (header, claims) = read(&tokens["id_token"]);

    assert_eq!(header["typ"], "JWT");
    assert_eq!((&claims["aud"], &claims["sub"]), (&json!("gateway-web"), &json!("alice")));
    assert_eq!(claims["auth_time"], issuer.clock.now().as_secs());
    assert_eq!(claims["sid"], read(&tokens["access_token"]).1["sid"]);
}

#[tokio::test]
async fn a_refresh_may_ask_for_less_and_later_for_all_again() {
    let issuer = start();
    let (_, first) = issuer.log_in("alice", "wonderland").await;
    let refresh = async |token: &Value, scope: &str| {
        let token = token.as_str().expect("a token");
        let form = [("grant_type", "refresh_token"), ("refresh_token", token), ("scope", scope)];
        issuer.token("gateway-web", &form).await
    };

    let (_, less) = refresh(&first["refresh_token"], "orders:read").await;
    let (status, refused) = refresh(&less["refresh_token"], "orders:write").await;
    let (_, all) = refresh(&less["refresh_token"], "").await;

    assert_eq!(less["scope"], "orders:read");
    assert_eq!((status, &refused["error"]), (StatusCode::BAD_REQUEST, &"invalid_scope".into()));
    assert_eq!(all["scope"], first["scope"]);
}

#[tokio::test]
async fn a_client_that_keeps_its_refresh_token_is_given_no_other() {
    let mut client = Client::confidential("keeper", "keeper-secret")
        .grants(&[GrantType::Password, GrantType::RefreshToken])
        .scopes("offline_access");
    client.rotates_refresh_tokens = false;
    let issuer = start_knowing(client);
    let form = [("grant_type", "password"), ("username", "bob"), ("password", "builder")];
    let (_, tokens) =
        issuer.token("keeper", &[&form[..], &[("scope", "offline_access")]].concat()).await;
    let token = tokens["refresh_token"].as_str().expect("a refresh token");
    let form = [("grant_type", "refresh_token"), ("refresh_token", token)];

    for _ in 0..2 {
        let (status, again) = issuer.token("keeper", &form).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(again.get("refresh_token"), None);
    }
}

#[tokio::test]
async fn introspection_answers_authorized_callers_only() {
    let issuer = start();
    let token = issuer.running.mint(&Mint::client("partner")).expect("a token");
    let ask = async |client: &str| {
        let request = issuer.http.post(issuer.at("/introspect"));
        let request = request.basic_auth(client, Some(format!("{client}-secret")));
        let answer = request.form(&[("token", &token)]).send().await.expect("an answer");
        answer.json::<Value>().await.expect("JSON")
    };

    assert_eq!(ask("gateway").await["active"], true);
    assert_eq!(ask("partner").await["active"], true);
    assert_eq!(ask("api").await, json!({ "active": false }));
}

#[tokio::test]
async fn the_gateway_can_ask_with_a_token_of_its_own() {
    let issuer = start();
    let own = issuer.running.mint(&Mint::client("gateway")).expect("a token");
    let token = issuer.running.mint(&Mint::client("partner")).expect("a token");
    let request = issuer.http.post(issuer.at("/introspect")).bearer_auth(own);

    let answer = request.form(&[("token", &token)]).send().await.expect("an answer");

    let told: Value = answer.json().await.expect("JSON");
    assert_eq!((&told["active"], &told["client_id"]), (&json!(true), &json!("partner")));
}

#[tokio::test]
async fn an_answer_can_be_signed() {
    let issuer = start();
    let token = issuer.running.mint(&Mint::client("partner")).expect("a token");
    let ask = async |accept: &str, token: &str| {
        let request = issuer.http.post(issuer.at("/introspect")).header("accept", accept);
        let request = request.basic_auth("gateway", Some("gateway-secret"));
        request.form(&[("token", token)]).send().await.expect("an answer")
    };

    let signed = ask("application/token-introspection+jwt", &token).await;
    assert_eq!(signed.headers()["content-type"], "application/token-introspection+jwt");
    let (header, claims) = read(&signed.text().await.expect("a JWT").into());
    assert_eq!(header["typ"], "token-introspection+jwt");
    assert_eq!(claims["token_introspection"]["active"], true);
    assert_eq!(claims["aud"], "gateway");

    let (header, claims) =
        read(&ask("application/jwt", &token).await.text().await.expect("a JWT").into());
    assert_eq!((&header["typ"], &claims["client_id"]), (&json!("at+jwt"), &json!("partner")));
    assert_eq!(ask("application/jwt", "unknown").await.status(), StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn user_info_is_for_tokens_with_openid() {
    let issuer = start();
    let (_, tokens) = issuer.log_in("alice", "wonderland").await;
    let machine = issuer.running.mint(&Mint::client("api")).expect("a token");
    let ask = async |token: &str| {
        let request = issuer.http.get(issuer.at("/userinfo")).bearer_auth(token);
        request.send().await.expect("an answer")
    };

    let told = ask(tokens["access_token"].as_str().expect("a token")).await;
    assert_eq!(told.json::<Value>().await.expect("JSON"), json!({ "sub": "alice" }));
    assert_eq!(ask(&machine).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(ask("unknown").await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn head_is_served_wherever_get_is_and_a_405_names_the_methods_allowed() {
    let issuer = start();
    let ask = async |method: Method, path: &str| {
        let request = issuer.http.request(method, issuer.at(path));
        let response = request.send().await.expect("an answer");
        let allow = response.headers().get("allow").map(|v| v.to_str().expect("text").to_owned());
        let length = response.headers().get("content-length").cloned();
        (response.status(), allow, length, response.bytes().await.expect("a body"))
    };
    let with_get = [
        ("/", "GET,HEAD"),
        ("/style.css", "GET,HEAD"),
        ("/jwks", "GET,HEAD"),
        ("/.well-known/oauth-authorization-server", "GET,HEAD"),
        ("/.well-known/openid-configuration", "GET,HEAD"),
        ("/register", "GET,HEAD,POST"),
        ("/userinfo", "GET,HEAD,POST"),
        ("/authorize", "GET,HEAD,POST"),
        ("/authorize/consent", "GET,HEAD,POST"),
        ("/authorize/logout", "GET,HEAD,POST"),
    ];
    let with_post = ["/token", "/par", "/introspect", "/revoke", "/rotate", "/authorize/login"];

    for (path, methods) in with_get {
        let (get, head) = (ask(Method::GET, path).await, ask(Method::HEAD, path).await);
        assert_eq!((head.0, &head.2), (get.0, &get.2), "{path}");
        assert!(head.3.is_empty(), "{path}");
        let (status, allow, ..) = ask(Method::DELETE, path).await;
        assert_eq!((status, allow.as_deref()), (StatusCode::METHOD_NOT_ALLOWED, Some(methods)));
    }
    for path in with_post {
        for method in [Method::GET, Method::HEAD, Method::PUT] {
            let (status, allow, ..) = ask(method, path).await;
            assert_eq!((status, allow.as_deref()), (StatusCode::METHOD_NOT_ALLOWED, Some("POST")));
        }
    }
    assert_eq!(ask(Method::GET, "/elsewhere").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn content_beyond_64_kib_is_refused() {
    let issuer = start();
    let send = async |body: reqwest::Body| {
        let request = issuer.http.post(issuer.at("/token")).body(body);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        request.send().await.expect("an answer").status()
    };

    assert_eq!(send(vec![b'a'; 64 * 1024 + 1].into()).await, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(send(vec![b'a'; 64 * 1024].into()).await, StatusCode::UNAUTHORIZED);
}

/// A client, what it sends, and the error it gets.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);

/// Header and claims of a JWT.
fn read(token: &Value) -> (Value, Value) {
    let part = |text: &str| {
        let json = URL_SAFE_NO_PAD.decode(text).expect("base64url");
        serde_json::from_slice(&json).expect("JSON")
    };
    let mut parts = token.as_str().expect("a token").split('.');
    (part(parts.next().expect("a header")), part(parts.next().expect("claims")))
}
