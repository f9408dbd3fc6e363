//! Who the user is: by the access token, the ID token, or both.

use http::{Response, StatusCode};
use northgate::base::body::Body;
use northgate::dev::issuer::{API, Algorithm, DevIssuerConfig};
use northgate::issuer::ResourceIndicator;
use northgate::session::{
    ForwardedSessionToken, Identity, LoginRedirect, SessionErrorReason, Settings,
};
use northgate::token::{Revocation, RevocationTarget};
use serde_json::{Value, json};
use url::Url;

use crate::code::{code, location, parameter};
use crate::fault_injection::{Endpoint, Fault};
use crate::issuer_pages::walk;
use crate::support::{Browser, Gate, without_introspection};

/// A token response for the login that `away` begins, with other members.
pub(crate) fn answer(gate: &Gate, away: &Url, more: Value) -> Fault {
    answer_claiming(gate, away, json!({}), more)
}

/// A token response with other claims in its ID token, and other members.
pub(crate) fn answer_claiming(gate: &Gate, away: &Url, about: Value, more: Value) -> Fault {
    let mut claims = json!({
        "iss": gate.issuer.url(), "sub": "alice", "aud": "gateway-web", "exp": 1_800_000_300,
        "iat": 1_800_000_000, "nonce": parameter(away, "nonce"), "email": "alice@example.com",
    });
    for (name, value) in about.as_object().unwrap() {
        claims[name] = value.clone();
    }
    let mut tokens = json!({
        "access_token": "opaque", "token_type": "Bearer", "expires_in": 600,
        "id_token": gate.issuer.sign(Algorithm::Es256, json!({ "typ": "JWT" }), claims),
    });
    for (name, value) in more.as_object().unwrap() {
        tokens[name] = value.clone();
    }
    Fault::json(&tokens)
}

impl Gate {
    /// Logs in with a token response that has these members.
    pub(crate) async fn log_in_with(&self, browser: &mut Browser, more: Value) -> Response<Body> {
        self.log_in_claiming(browser, json!({}), more).await
    }

    /// The same, with other claims in the ID token.
    pub(crate) async fn log_in_claiming(
        &self,
        browser: &mut Browser,
        about: Value,
        more: Value,
    ) -> Response<Body> {
        // Not pushed, so that the nonce can be seen.
        let away = self.depart_unpushed(browser, "/auth/login").await;
        let back = walk(&away, "allow").await;
        self.issuer.inject(Endpoint::Token, answer_claiming(self, &away, about, more), 1);
        self.come_back(browser, &back).await
    }
}

#[tokio::test]
async fn a_login_needs_only_the_id_token() {
    for identity in [Identity::Auto, Identity::IdToken, Identity::AccessToken] {
        let gate = Gate::with(|settings| {
            code(settings);
            settings.identity = identity;
        });
        let mut browser = Browser::default();

        let response = gate.log_in_with(&mut browser, json!({ "scope": "openid orders" })).await;

        if identity == Identity::AccessToken {
            assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
            continue;
        }
        assert_eq!(response.status(), StatusCode::SEE_OTHER, "{identity:?}");
        let user = gate.ask(&mut browser).await.unwrap();
        assert_eq!(user.principal.subject.as_deref(), Some("alice"));
        assert_eq!(user.principal.claims["email"], "alice@example.com");
        assert_eq!(user.principal.scopes.to_string(), "openid orders");
        assert_eq!(user.forward.unwrap(), "Bearer opaque");
    }
}

#[tokio::test]
async fn an_access_token_that_the_gateway_cannot_read_refuses_the_login_only_if_it_is_for_the_gateway()
 {
    for (audience, expected) in [
        (json!([]), StatusCode::SEE_OTHER),
        (json!("elsewhere"), StatusCode::SEE_OTHER),
        (json!([API, "elsewhere"]), StatusCode::BAD_GATEWAY),
    ] {
        let gate = Gate::with(code);
        let mut browser = Browser::default();
        let claims = json!({
            "iss": gate.issuer.url(), "sub": "alice", "aud": audience, "exp": 1_800_000_600, "iat": 1_800_000_000,
        });
        let token = gate.issuer.sign(Algorithm::Es256, json!({ "typ": "at+jwt" }), claims);
        // As by a key that only another service has.
        let (signed, _) = token.rsplit_once('.').unwrap();
        let token = format!("{signed}.{}", "A".repeat(86));

        let response = gate.log_in_with(&mut browser, json!({ "access_token": token })).await;

        assert_eq!(response.status(), expected, "{audience}");
        if expected == StatusCode::SEE_OTHER {
            let user = gate.ask(&mut browser).await.unwrap();
            assert_eq!(user.principal.claims["email"], "alice@example.com");
        }
    }
}

#[tokio::test]
async fn scopes_that_only_the_browser_has_asked_for_are_not_granted() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();

    // The server grants what it was asked for: with the scopes in the address, that is up to the user.
    gate.log_in_with(&mut browser, json!({})).await;

    let user = gate.ask(&mut browser).await.unwrap();
    assert_eq!(user.principal.scopes.to_string(), "openid");
}

#[tokio::test]
async fn scopes_of_a_pushed_request_are_granted_by_a_response_without_scope() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.identity = Identity::IdToken;
    });
    let mut browser = Browser::default();
    let away = gate.depart(&mut browser, "/auth/login").await;
    let back = walk(&away, "allow").await;
    gate.issuer.inject(Endpoint::Token, Fault::Without("scope"), 1);

    gate.come_back(&mut browser, &back).await;

    let user = gate.ask(&mut browser).await.unwrap();
    assert!(user.principal.scopes.contains("orders:read"), "{}", user.principal.scopes);
}

#[tokio::test]
async fn a_login_for_an_audience_is_told_by_its_access_token_alone() {
    let changes: [fn(&mut Settings); 2] = [
        |settings| settings.resource = Some(ResourceIndicator::parse(API).unwrap()),
        |settings| settings.authorize_parameters = vec![("audience".into(), "api".into())],
    ];
    for change in changes {
        let gate = Gate::with(|settings| {
            code(settings);
            change(settings);
        });
        let mut browser = Browser::default();

        // As the server answers if the user has taken the audience out of the address.
        let response = gate.log_in_with(&mut browser, json!({ "scope": "openid" })).await;

        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        assert_eq!(gate.ask(&mut browser).await.unwrap_err().reason, SessionErrorReason::Missing);
    }
}

#[tokio::test]
async fn a_revoked_access_token_that_only_its_api_can_read_is_not_forwarded() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    gate.log_in_with(&mut browser, json!({})).await;
    assert!(gate.ask(&mut browser).await.is_ok());

    for what in RevocationTarget::token("opaque") {
        gate.revocations.revoke(Revocation { issuer: None, what }, None);
    }

    assert_eq!(gate.ask(&mut browser).await.unwrap_err().reason, SessionErrorReason::Expired);
}

#[tokio::test]
async fn claims_of_the_id_token_alone_join_those_of_the_access_token() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    let claims = json!({
        "iss": gate.issuer.url(), "sub": "alice", "aud": API, "exp": 1_800_000_600, "jti": "a",
    });
    let access = gate.issuer.sign(Algorithm::Es256, json!({ "typ": "at+jwt" }), claims);

    gate.log_in_with(&mut browser, json!({ "access_token": access })).await;

    let user = gate.ask(&mut browser).await.unwrap();
    assert_eq!(user.principal.claims["email"], "alice@example.com");
    assert_eq!(user.principal.claims["aud"], API, "the claims of the token itself stay");
    assert_eq!(user.principal.claims.get("nonce"), None);
}

#[tokio::test]
async fn claims_that_the_id_token_lacks_come_from_the_userinfo_endpoint() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.userinfo = true;
    });
    let mut browser = Browser::default();
    let claims = json!({ "sub": "alice", "groups": ["staff"] });
    gate.issuer.inject(Endpoint::UserInfo, Fault::json(&claims), 1);

    let response = gate.log_in_with(&mut browser, json!({})).await;

    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    let user = gate.ask(&mut browser).await.unwrap();
    assert_eq!(user.principal.subject.as_deref(), Some("alice"));
    assert_eq!(user.principal.claims["groups"], json!(["staff"]));
    assert_eq!(user.principal.claims["email"], "alice@example.com");
    assert_eq!(gate.issuer.count(Endpoint::UserInfo), 1, "read once, at the login");
}

#[tokio::test]
async fn userinfo_that_is_not_about_the_user_of_the_login_begins_no_session() {
    for (fault, status) in [
        (Fault::json(&json!({ "sub": "bob" })), StatusCode::BAD_GATEWAY),
        (Fault::json(&json!({ "groups": ["staff"] })), StatusCode::BAD_GATEWAY),
        (Fault::json(&json!({ "sub": ["alice"] })), StatusCode::BAD_GATEWAY),
        (Fault::json(&json!({ "id": "alice" })), StatusCode::BAD_GATEWAY),
        (Fault::garbage(), StatusCode::SERVICE_UNAVAILABLE),
        (Fault::Status(StatusCode::UNAUTHORIZED), StatusCode::SERVICE_UNAVAILABLE),
        (Fault::Close, StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let gate = Gate::with(|settings| {
            code(settings);
            settings.userinfo = true;
        });
        let mut browser = Browser::default();
        gate.issuer.inject(Endpoint::UserInfo, fault.clone(), u32::MAX);

        let response = gate.log_in_with(&mut browser, json!({})).await;

        assert_eq!(response.status(), status, "{fault:?}");
        assert_eq!(
            gate.ask(&mut browser).await.unwrap_err().reason,
            SessionErrorReason::Missing,
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn a_signed_userinfo_response_counts_if_the_issuer_made_it_for_this_client() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.userinfo = true;
    });
    let sign = |change: Value| {
        let mut claims = json!({
            "iss": gate.issuer.url(), "aud": ["gateway-web"], "sub": "alice", "groups": ["staff"],
        });
        claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        gate.issuer.sign(Algorithm::Es256, json!({}), claims)
    };
    let good = sign(json!({}));
    let unsigned = good.rsplit_once('.').unwrap().0;
    for (response, is_good) in [
        (format!("{unsigned}.AAAA"), false),
        (sign(json!({ "aud": "other" })), false),
        (sign(json!({ "aud": null })), false),
        (sign(json!({ "iss": "https://evil.example" })), false),
        (sign(json!({ "sub": "bob" })), false),
        (sign(json!({ "exp": 1 })), false),
        (String::new(), false),
        (good.clone(), true),
    ] {
        let body = response.clone().into();
        let content_type = "application/jwt; charset=utf-8";
        let answer = Fault::Answer { status: StatusCode::OK, content_type, body };
        gate.issuer.inject(Endpoint::UserInfo, answer, 1);
        let mut browser = Browser::default();

        let login = gate.log_in_with(&mut browser, json!({})).await;

        let expected = if is_good { StatusCode::SEE_OTHER } else { StatusCode::BAD_GATEWAY };
        assert_eq!(login.status(), expected, "{response}");
        if is_good {
            let user = gate.ask(&mut browser).await.unwrap();
            assert_eq!(user.principal.claims["groups"], json!(["staff"]));
        }
    }
}

#[tokio::test]
async fn an_access_token_that_nothing_can_verify_is_no_outage() {
    let gate = Gate::asking(DevIssuerConfig::default(), without_introspection, |settings| {
        code(settings);
        settings.resource = Some(ResourceIndicator::parse(API).unwrap());
    });

    let response = gate.log_in_with(&mut Browser::default(), json!({ "refresh_token": "r" })).await;

    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    gate.issuer.wait_for_calls(Endpoint::Revocation, 2).await;
}

#[tokio::test]
async fn a_second_load_of_a_callback_that_fails_leaves_the_session_of_the_first() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.userinfo = true;
    });
    let mut browser = Browser::default();
    let away = gate.depart(&mut browser, "/auth/login").await;
    let back = walk(&away, "allow").await;
    let mut second = browser.clone();
    gate.come_back(&mut browser, &back).await;
    let fault = Fault::Status(StatusCode::SERVICE_UNAVAILABLE);
    gate.issuer.inject(Endpoint::UserInfo, fault, 1);

    let response = gate.come_back(&mut second, &back).await;

    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    gate.advance(700);
    gate.ask(&mut browser).await.expect("its tokens are not revoked");
}

#[tokio::test]
async fn a_second_load_of_a_callback_that_has_failed_logs_in_anew() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.userinfo = true;
    });
    let mut browser = Browser::default();
    let away = gate.depart(&mut browser, "/auth/login").await;
    let back = walk(&away, "allow").await;
    let mut second = browser.clone();
    let fault = Fault::Status(StatusCode::SERVICE_UNAVAILABLE);
    gate.issuer.inject(Endpoint::UserInfo, fault, 1);
    gate.come_back(&mut browser, &back).await;

    let response = gate.come_back(&mut second, &back).await;

    assert_eq!(location(&response).path(), "/authorize");
    gate.issuer.wait_for_calls(Endpoint::Revocation, 2).await;
}

#[tokio::test]
async fn an_id_token_that_has_ended_is_not_forwarded() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.forward = ForwardedSessionToken::IdToken;
    });
    let mut browser = Browser::default();
    gate.log_in_with(&mut browser, json!({})).await;
    assert!(gate.ask(&mut browser).await.unwrap().forward.is_some());

    gate.advance(301);

    assert_eq!(gate.ask(&mut browser).await.unwrap_err().reason, SessionErrorReason::Expired);
}

#[tokio::test]
async fn a_refresh_without_an_id_token_ends_a_session_whose_id_token_has_ended() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.forward = ForwardedSessionToken::IdToken;
    });
    let mut browser = Browser::default();
    gate.log_in_with(&mut browser, json!({ "refresh_token": "r" })).await;
    gate.advance(301);
    let url = Url::parse("https://localhost/?nonce=x").unwrap();
    let more = json!({ "refresh_token": "s", "id_token": null });
    gate.issuer.inject(Endpoint::Token, answer(&gate, &url, more), 1);

    // Not a request without `Authorization`, which an upstream could take for one without a user.
    assert_eq!(gate.ask(&mut browser).await.unwrap_err().reason, SessionErrorReason::Expired);
}

#[tokio::test]
async fn a_second_login_at_the_same_session_of_the_issuer_revokes_no_tokens() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    for sid in ["one", "one", "two"] {
        let away = gate.depart_unpushed(&mut browser, "/auth/login").await;
        let back = walk(&away, "allow").await;
        let code = parameter(&back, "code").unwrap();
        let more = json!({ "access_token": format!("a{code}"), "refresh_token": code });
        let tokens = answer_claiming(&gate, &away, json!({ "sid": sid }), more);
        gate.issuer.inject(Endpoint::Token, tokens, 1);
        gate.come_back(&mut browser, &back).await;
    }

    // Those of the second login, which the third one has replaced.
    gate.issuer.wait_for_calls(Endpoint::Revocation, 2).await;

    assert_eq!(gate.issuer.count(Endpoint::Revocation), 2);
}

#[tokio::test]
async fn userinfo_tells_nothing_about_the_login() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.userinfo = true;
    });
    let mut browser = Browser::default();
    let claims =
        json!({ "sub": "alice", "acr": "gold", "auth_time": 1_800_000_000, "groups": ["x"] });
    gate.issuer.inject(Endpoint::UserInfo, Fault::json(&claims), 1);

    gate.log_in_with(&mut browser, json!({})).await;

    let claims = &gate.ask(&mut browser).await.unwrap().principal.claims;
    assert_eq!((claims.get("acr"), claims.get("auth_time")), (None, None));
    assert_eq!(claims["groups"], json!(["x"]));
}

#[tokio::test]
async fn a_token_that_ends_at_once_is_renewed_and_no_failure() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    let more = json!({ "expires_in": 0, "refresh_token": "r" });
    let response = gate.log_in_with(&mut browser, more).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    gate.advance(2);
    let url = Url::parse("https://localhost/?nonce=x").unwrap();
    let more = json!({ "expires_in": 0, "refresh_token": "s", "id_token": null });
    gate.issuer.inject(Endpoint::Token, answer(&gate, &url, more), 1);
    let calls = gate.issuer.count(Endpoint::Token);

    let user = gate.ask(&mut browser).await.unwrap();

    assert_eq!(user.principal.subject.as_deref(), Some("alice"));
    assert_eq!(gate.issuer.count(Endpoint::Token), calls + 1);
}

#[tokio::test]
async fn htmx_is_told_where_to_log_in() {
    let gate = Gate::with(code);
    let request = http::Request::post("/app/fragment")
        .header("host", "localhost:8443")
        .header("hx-request", "true")
        .header("hx-current-url", "https://localhost:8443/orders?page=2");
    let (head, ()) = request.body(()).unwrap().into_parts();

    let redirect = gate.session.login_redirect(&head);

    let url = "/auth/login?return_to=%2Forders%3Fpage%3D2".parse().unwrap();
    assert_eq!(redirect, Some(LoginRedirect::Htmx(url)));
}

/// Servers that introspect only for resource servers, as Zitadel does, and whose client here is none.
#[tokio::test]
async fn a_login_needs_no_introspection_that_the_gateway_may_not_use() {
    let gate = Gate::asking(DevIssuerConfig::default(), |asked| asked.client = None, code);
    let mut browser = Browser::default();
    let response = gate.log_in_with(&mut browser, json!({})).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER, "the issuer has no client");
    assert!(gate.ask(&mut browser).await.is_ok());
    assert_eq!(gate.issuer.count(Endpoint::Introspection), 0);

    for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND] {
        let gate = Gate::with(code);
        gate.issuer.inject(Endpoint::Introspection, Fault::Status(status), 9);
        let mut browser = Browser::default();

        let response = gate.log_in_with(&mut browser, json!({})).await;

        assert_eq!(response.status(), StatusCode::SEE_OTHER, "{status}");
        let user = gate.ask(&mut browser).await.unwrap();
        assert_eq!(user.principal.subject.as_deref(), Some("alice"), "{status}");
    }

    let gate = Gate::with(code);
    gate.issuer.inject(Endpoint::Introspection, Fault::Status(StatusCode::BAD_GATEWAY), 9);
    let response = gate.log_in_with(&mut Browser::default(), json!({})).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "an outage ends");
}
