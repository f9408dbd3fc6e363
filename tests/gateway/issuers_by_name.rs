//! What operators write for issuers that are called otherwise than by their name, and for tokens in other places.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use northgate::dev::issuer::{API, Algorithm};
use serde_json::json;

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
        ("/cookie", format!("Cf-Access-Jwt-Assertion: {token}\r\n"), 401),
        ("/any", format!("Cookie: CF_Authorization={token}\r\n"), 200),
        ("/any", format!("Cookie: CF_Authorization={token}x\r\n"), 401),
        ("/any", String::new(), 200),
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
        }
    }
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
