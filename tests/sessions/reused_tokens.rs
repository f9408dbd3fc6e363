//! Sessions at a server that gives a user the same access token at each login while it lives.

use http::StatusCode;
use northgate::base::body::Body;
use northgate::dev::issuer::{API, Algorithm};
use northgate::token::{Revocation, RevocationTarget};
use serde_json::json;

use crate::code::code;
use crate::support::{Browser, Gate};

#[tokio::test]
async fn a_logout_leaves_a_reused_access_token_to_other_sessions_and_to_later_logins() {
    let far = json!({ "exp": 1_800_000_600_u64, "iat": 1_799_999_990_u64, "jti": "reused" });
    for signed in [true, false] {
        let gate = Gate::with(|settings| {
            code(settings);
            settings.revoke_on_logout = false;
        });
        let mut claims = json!({ "iss": gate.issuer.url(), "sub": "alice", "aud": API });
        claims.as_object_mut().unwrap().extend(far.as_object().unwrap().clone());
        let token = gate.issuer.sign(Algorithm::Es256, json!({ "typ": "at+jwt" }), claims);
        let token = if signed { json!(token) } else { json!("opaque") };
        let same = || json!({ "access_token": token });
        let (mut here, mut there) = (Browser::default(), Browser::default());
        gate.log_in_with(&mut here, same()).await;
        gate.log_in_with(&mut there, same()).await;
        gate.ask(&mut here).await.unwrap();
        gate.ask(&mut there).await.unwrap();
        let old = here.clone();

        let request = here.post("/auth/logout").body(Body::empty()).unwrap();
        gate.serve(&mut here, request).await;

        assert!(gate.ask(&mut there).await.is_ok(), "{signed}: another session");
        gate.advance(1);
        let response = gate.log_in_with(&mut here, same()).await;
        assert_eq!(response.status(), StatusCode::SEE_OTHER, "{signed}: a later login");
        assert!(gate.ask(&mut here).await.is_ok(), "{signed}: and its session");
        assert!(gate.present(&old).await.is_err(), "{signed}: the old cookie");
        for what in RevocationTarget::token(token.as_str().unwrap()) {
            gate.revocations.revoke(Revocation { issuer: None, what }, None);
        }
        assert!(gate.ask(&mut here).await.is_err(), "{signed}: an operator's word counts");
        assert!(gate.ask(&mut there).await.is_err(), "{signed}: for every session");
    }
}

#[tokio::test]
async fn a_reused_access_token_that_the_issuer_has_revoked_ends_with_all_its_sessions() {
    let gate = Gate::with(code);
    let (mut here, mut there) = (Browser::default(), Browser::default());
    gate.log_in_with(&mut here, json!({})).await;
    gate.log_in_with(&mut there, json!({})).await;
    gate.ask(&mut there).await.unwrap();

    let request = here.post("/auth/logout").body(Body::empty()).unwrap();
    gate.serve(&mut here, request).await;

    assert!(gate.ask(&mut there).await.is_err());
}
