//! A person leaves: at the issuer's own page, sent there by a client, or ended by the issuer.

use http::StatusCode;
use northgate::dev::issuer::{Client, GrantType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use url::Url;

use crate::browser::{Browser, authorize, between, claims, redeem};
use crate::support::{start, start_knowing};

#[tokio::test]
async fn a_logout_with_the_logins_id_token_is_done_at_once() {
    let issuer = start();
    let mut browser = Browser::new(&issuer);
    let page = browser.open(&authorize(&[])).await;
    let page = browser.log_in(&page, "alice", "wonderland").await;
    let back = browser.decide(&page, "allow", &["orders:read"]).await.back();
    let (_, tokens) = redeem(&issuer, &back["code"], &[]).await;
    let hint = tokens["id_token"].as_str().expect("an ID token");
    let home = "https://localhost:8443/";
    let logout = |hint: &str, to: &str| {
        let query = [("id_token_hint", hint), ("post_logout_redirect_uri", to), ("state", "s")];
        let query = Url::parse_with_params("http://x/", query).expect("a URL");
        format!("/authorize/logout?{}", query.query().expect("a query"))
    };

    let elsewhere = browser.open(&logout(hint, "https://evil.example.com/")).await;
    assert_eq!((elsewhere.status, elsewhere.location), (StatusCode::BAD_REQUEST, None));
    let left = browser.open(&logout(hint, home)).await;

    assert_eq!(left.location.as_deref(), Some("https://localhost:8443/?state=s"));
    assert_eq!(issuer.introspect(&tokens["access_token"]).await["active"], false);
    let back = browser.open(&authorize(&[("prompt", "none")])).await.back();
    assert_eq!(back["error"], "login_required");
}

#[tokio::test]
async fn a_logout_without_an_id_token_asks_first() {
    let issuer = start();
    let mut browser = Browser::new(&issuer);
    let page = browser.open(&authorize(&[])).await;
    browser.log_in(&page, "alice", "wonderland").await;

    let asked = browser.open("/authorize/logout").await;
    assert!(asked.html().contains("Log out?"));
    let sid = between(asked.html(), "name=\"confirmed\" value=\"", "\"");
    let done = browser.post("/authorize/logout", &[("confirmed", &sid)]).await;

    assert!(done.html().contains("Logged out"));
    assert!(browser.open("/authorize/logout").await.html().contains("Logged out"));
}

#[tokio::test]
async fn a_client_is_told_that_a_login_has_ended() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut client =
        Client::confidential("told", "told-secret").grants(&[GrantType::Password]).scopes("openid");
    client.backchannel_logout_uri = Some(format!("http://{address}/logout"));
    let issuer = start_knowing(client);
    let form = [("grant_type", "password"), ("username", "alice"), ("password", "wonderland")];
    let (_, tokens) = issuer.token("told", &[&form[..], &[("scope", "openid")]].concat()).await;
    let sid = claims(&tokens["id_token"])["sid"].as_str().expect("a sid").to_owned();

    issuer.running.end_login(&sid).expect("random numbers");

    let (mut stream, _) = listener.accept().await.expect("a connection");
    let (mut request, mut part) = (String::new(), [0; 4096]);
    while !is_whole(&request) {
        let read = stream.read(&mut part).await.expect("more of the request");
        request.push_str(core::str::from_utf8(&part[..read]).expect("text"));
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("sent");
    let token = between(&format!("{request}\n"), "logout_token=", "\n");
    let claims = claims(&token.into());
    assert_eq!((&claims["sid"], &claims["aud"]), (&sid.into(), &"told".into()));
    assert!(claims["events"]["http://schemas.openid.net/event/backchannel-logout"].is_object());
    assert_eq!(claims.get("nonce"), None);
    assert_eq!(issuer.introspect(&tokens["access_token"]).await["active"], false);
}

/// Whether the whole body has come.
fn is_whole(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let length = between(&format!("{}\r\n", head.to_ascii_lowercase()), "content-length: ", "\r\n");
    body.len() == length.parse::<usize>().expect("a number")
}
