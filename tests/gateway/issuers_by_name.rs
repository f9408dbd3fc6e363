//! What operators write for issuers that are called otherwise than by their name, and for tokens in other places.

use core::time::Duration;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use northgate::dev::issuer::{API, Algorithm};
use serde_json::{Value, json};

use crate::fault_injection::{Endpoint, Fault};
use crate::support::{Gateway, Issuer, Reading, Upstream, noon, start_issuer};

/// RFC 7519 §4.1.1: a text or a URI, which is compared and not called.
#[test]
fn an_issuer_is_a_name_of_any_form() {
    let issuer = start_issuer();
    let service = Upstream::polite();
    for name in [
        "urn:example:issuer",
        "spiffe://prod.example.com",
        "http://keycloak:8080/realms/main",
        "accounts.example.com",
        "kubernetes/serviceaccount",
    ] {
        let issuers = format!(
            "issuers:\n  main: {{ issuer: \"{name}\", audience: \"{API}\", discovery: off, jwks_uri: \"{}/jwks\" }}\n",
            issuer.running.url()
        );
        let gateway = Gateway::at(issuer.clock.clone(), "", &(issuers + &jwt_route(&service, "")));

        for (iss, status) in
            [(name.to_owned(), 200), (format!("{name}/"), 401), (name.to_uppercase(), 401)]
        {
            let token = token_of(&issuer, &iss);
            let answer = gateway.get("/", &format!("Authorization: Bearer {token}\r\n"));
            assert_eq!(answer.status, status, "{iss}");
        }
    }
}

#[test]
fn an_issuer_behind_a_proxy_is_called_through_it() {
    let issuer = start_issuer();
    let service = Upstream::polite();
    let address = issuer.running.url().trim_start_matches("http://").to_owned();
    let proxy = Upstream::by_hand(move |mut stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        while let Some(request) = reading.request(connection) {
            let target = request.target().to_owned();
            seen(request);
            let path = target.find("/jwks").map_or("/", |at| &target[at..]);
            let mut there = TcpStream::connect(&address).expect("the issuer");
            let head =
                format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
            let mut answer = Vec::new();
            there
                .write_all(head.as_bytes())
                .and_then(|()| there.read_to_end(&mut answer))
                .expect("an answer");
            if stream.write_all(&answer).is_err() {
                break;
            }
        }
    });
    // Nothing listens at the address itself.
    let issuers = format!(
        "issuers:\n  main: {{ issuer: https://auth.example.com, audience: \"{API}\", discovery: off, \
         jwks_uri: \"http://127.0.0.1:1/jwks\", proxy: \"{}\" }}\n",
        proxy.url()
    );
    let gateway = Gateway::at(issuer.clock.clone(), "", &(issuers + &jwt_route(&service, "")));

    let token = token_of(&issuer, "https://auth.example.com");
    let answer = gateway.get("/", &format!("Authorization: Bearer {token}\r\n"));

    assert_eq!(answer.status, 200);
    assert_eq!(proxy.seen()[0].target(), "http://127.0.0.1:1/jwks");
}

/// Cloudflare Access and Google's proxies put a signed token into fields of their own. It needs no trusted peer.
#[test]
fn a_token_is_found_in_the_named_place_alone_and_reaches_no_service() {
    let issuer = start_issuer();
    let service = Upstream::polite();
    let (name, url) = ("https://team.cloudflareaccess.com", issuer.running.url());
    let issuers = format!(
        "issuers:\n  main: {{ issuer: \"{name}\", audience: \"{API}\", discovery: off, jwks_uri: \"{url}/jwks\" }}\n"
    );
    let routes = jwt_route(&service, ", token_from: { header: Cf-Access-Jwt-Assertion }")
        + "  - { id: cookie, path: /cookie, upstream: service, auth: { jwt: main, token_from: { cookie: CF_Authorization } } }\n\
           \x20 - { id: any, path: /any, upstream: service, auth: { any: [{ jwt: main }], optional: true, token_from: { cookie: CF_Authorization } } }\n\
           \x20 - { id: open, path: /open, upstream: service, auth: none }\n";
    let gateway = Gateway::at(issuer.clock.clone(), "", &(issuers + &routes));
    let token = token_of(&issuer, name);

    for (path, fields, status) in [
        ("/", format!("Cf-Access-Jwt-Assertion: {token}\r\n"), 200),
        ("/", format!("Cf_Access_Jwt_Assertion: {token}\r\n"), 401),
        ("/", format!("Authorization: Bearer {token}\r\n"), 401),
        ("/", format!("Cookie: CF_Authorization={token}\r\n"), 401),
        (
            "/",
            format!("Cf-Access-Jwt-Assertion: {token}\r\nCf-Access-Jwt-Assertion: {token}\r\n"),
            400,
        ),
        ("/cookie", format!("Cookie: a=1; CF_Authorization={token}; b=2\r\n"), 200),
        ("/", "Cf-Access-Jwt-Assertion: \r\n".into(), 401),
        ("/cookie", format!("Cf-Access-Jwt-Assertion: {token}\r\n"), 401),
        (
            "/cookie",
            format!("Cookie: CF_Authorization={token}\r\nAuthorization: Basic !!\r\n"),
            200,
        ),
        ("/any", format!("Cookie: CF_Authorization={token}\r\n"), 200),
        ("/any", format!("Cookie: CF_Authorization={token}x\r\n"), 401),
        ("/any", String::new(), 200),
        // These methods do not read the field; two of them are malformed all the same.
        ("/any", "Authorization: Basic YTpi\r\n".into(), 200),
        ("/any", "Authorization: Basic YTpi\r\nAuthorization: Basic YTpi\r\n".into(), 400),
        (
            "/open",
            format!("Cf-Access-Jwt-Assertion: {token}\r\nCookie: CF_Authorization={token}\r\n"),
            200,
        ),
    ] {
        let before = service.seen().len();
        assert_eq!(gateway.get(path, &fields).status, status, "{path} {fields}");
        for seen in &service.seen()[before..] {
            assert!(!seen.head.contains(&token), "{}", seen.head);
            assert_eq!(seen.field("authorization"), None, "{}", seen.head);
        }
    }
}

#[test]
fn users_of_one_sub_are_told_apart_by_tenant() {
    let (issuer, service) = (start_issuer(), Upstream::polite());
    let name = "https://login.example.com/{tenantid}/v2";
    let file = format!(
        "issuers:\n  main: {{ issuer: \"{name}\", tenants: [t1, t2], audience: \"{API}\", discovery: off, jwks_uri: \"{}/jwks\" }}\n\
         limits: {{ daily: {{ quota: 1/day, by: subject }} }}\n{}\
         \x20 - {{ id: counted, path: /counted, upstream: service, limits: [daily], auth: {{ jwt: main, identity_token: true }} }}\n",
        issuer.running.url(),
        jwt_route(&service, "")
    );
    let gateway = Gateway::at(issuer.clock.clone(), "", &file);
    let [first, second] = ["t1", "t2"].map(|tenant| name.replace("{tenantid}", tenant));
    let get = |path: &str, iss: &str| {
        let token = token_of(&issuer, iss);
        gateway.get(path, &format!("Authorization: Bearer {token}\r\n")).status
    };

    assert_eq!([&first, &second, &first].map(|iss| get("/counted", iss)), [200, 200, 429]);
    for (seen, iss) in service.seen().iter().zip([&first, &second]) {
        let token = seen.field("x-auth-identity").expect("an identity token");
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("claims"));
        let claims: Value = serde_json::from_slice(&claims.expect("base64url")).expect("JSON");
        assert_eq!((&claims["sub"], &claims["idp"]), (&json!("alice"), &json!(iss)));
    }
    // A token of the same second would be younger.
    issuer.clock.advance(Duration::from_secs(1));
    let form = format!("sub=alice&iss={first}");
    let revoked = gateway.operator(&format!(
        "POST /-/revoke HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    ));
    assert_eq!(revoked.status, 200, "{}", revoked.text());
    assert_eq!([&first, &second].map(|iss| get("/", iss)), [401, 200]);
}

/// Two issuers may share their `iss`, such as while their keys change: their users are the same.
#[test]
fn a_user_of_two_issuers_with_one_iss_is_one_user() {
    let (issuer, service) = (start_issuer(), Upstream::polite());
    let file = format!(
        "{}  twin: {{ issuer: \"{}\", audience: \"{API}\" }}\n\
         limits: {{ daily: {{ quota: 1/day, by: subject }} }}\n\
         upstreams: {{ service: {{ targets: [\"{}\"] }} }}\nroutes:\n\
         \x20 - {{ id: main, path: /main, upstream: service, limits: [daily], auth: {{ jwt: main }} }}\n\
         \x20 - {{ id: twin, path: /twin, upstream: service, limits: [daily], auth: {{ jwt: twin }} }}\n",
        issuer.settings(""),
        issuer.running.url(),
        service.url()
    );
    let gateway = Gateway::at(issuer.clock.clone(), "", &file);
    let token = format!("Authorization: Bearer {}\r\n", issuer.jwt());

    let statuses = ["/main", "/twin"].map(|path| gateway.get(path, &token).status);

    assert_eq!(statuses, [200, 429]);
}

#[test]
fn a_reload_that_changes_another_setting_of_an_issuer_keeps_its_keys() {
    let (issuer, service) = (start_issuer(), Upstream::polite());
    let file = |more: &str| issuer.settings(more) + &jwt_route(&service, "");
    let gateway = Gateway::at(issuer.clock.clone(), "", &file(""));
    let status = || gateway.get("/", &format!("Authorization: Bearer {}\r\n", issuer.jwt())).status;
    assert_eq!(status(), 200);
    for endpoint in [Endpoint::Discovery, Endpoint::Jwks] {
        issuer.running.inject(endpoint, Fault::Close, u32::MAX);
    }

    gateway.reload("", &file(", timeout: 9s")).expect("a reload");

    assert_eq!(status(), 200);
}

/// RFC 9111 §3.5 protects responses to requests with `Authorization` alone.
#[test]
fn a_response_to_a_token_outside_of_authorization_is_kept_from_shared_caches() {
    let issuer = start_issuer();
    let service = Upstream::start(|_| {
        b"HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nX-Accel-Expires: 600\r\nContent-Length: 0\r\n\r\n".to_vec()
    });
    let routes = jwt_route(&service, ", token_from: { header: X-Token }")
        + "  - { id: cookie, path: /cookie, upstream: service, auth: { jwt: main, token_from: { cookie: at } } }\n";
    let gateway = Gateway::at(issuer.clock.clone(), "", &(issuer.settings("") + &routes));
    let token = issuer.jwt();

    for (path, fields) in
        [("/", format!("X-Token: {token}\r\n")), ("/cookie", format!("Cookie: at={token}\r\n"))]
    {
        let response = gateway.get(path, &fields);

        assert_eq!(response.status, 200, "{path}");
        assert_eq!(response.field("cache-control"), Some("max-age=600, private"), "{path}");
        assert_eq!(response.field("x-accel-expires"), None, "{path}");
    }
}

fn jwt_route(service: &Upstream, more: &str) -> String {
    format!(
        "upstreams:\n  service: {{ targets: [\"{}\"] }}\n\
         routes:\n  - {{ id: jwt, path: /, upstream: service, auth: {{ jwt: main{more} }} }}\n",
        service.url()
    )
}

fn token_of(issuer: &Issuer, name: &str) -> String {
    let now = noon().now().as_secs();
    let claims = json!({ "iss": name, "sub": "alice", "aud": API, "exp": now + 600, "iat": now });
    issuer.running.sign(Algorithm::Es256, json!({ "typ": "JWT" }), claims)
}
