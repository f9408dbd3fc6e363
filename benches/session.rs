//! What a request pays for its session: cookie to principal, and our cookies out of the way.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up ends there")]

use core::time::Duration;
use std::sync::Arc;

use divan::Bencher;
use http::header::SET_COOKIE;
use http::request::Parts;
use http::{HeaderValue, Request};
use northgate::base::body::Body;
use northgate::base::clock::Clock;
use northgate::base::scopes::Scopes;
use northgate::dev::issuer::{API, DevIssuer, DevIssuerConfig, DevIssuerHandle};
use northgate::issuer::{self, Client, ClientAuth, Issuer};
use northgate::observe::metrics::Metrics;
use northgate::session::{Flow, SessionRegistry, Sessions, Settings};
use northgate::token::{
    Audience, IssuerVerifier, RevocationList, TokenUse, ValidationRules, Verifier,
};
use tokio::runtime::{Builder, Runtime};
use url::Url;

fn main() {
    divan::main();
}

#[divan::bench]
fn authenticate(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let (session, head, _issuer) = logged_in(&runtime);
    bencher.bench_local(|| {
        runtime.block_on(async {
            session.authenticate(&head, None).await.expect("alice is logged in")
        })
    });
}

#[divan::bench]
fn strip_cookies(bencher: Bencher<'_, '_>) {
    let (session, head, _issuer) = logged_in(&runtime());
    bencher
        .with_inputs(|| head.headers.clone())
        .bench_local_refs(|headers| session.strip_cookies(headers));
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn logged_in(runtime: &Runtime) -> (Arc<Sessions>, Parts, DevIssuerHandle) {
    let (clock, metrics, control) = (Clock::system(), Metrics::default(), runtime.handle().clone());
    let loopback = ([127, 0, 0, 1], 0).into();
    let options = DevIssuerConfig {
        access_lifetime: Duration::from_secs(36_000),
        ..DevIssuerConfig::default()
    };
    let running = DevIssuer::start(loopback, clock.clone(), options, &control).unwrap();
    let settings = issuer::Settings::new("main", running.url());
    let issuer = Arc::new(Issuer::new(settings, clock.clone(), &metrics, control.clone()).unwrap());
    let revocations = RevocationList::new(clock.clone());
    let rules = ValidationRules::new(Audience::OneOf([API.into()].into()));
    let judge = IssuerVerifier::new(
        Arc::clone(&issuer),
        rules,
        revocations.clone(),
        clock.clone(),
        &metrics,
        control.clone(),
    );
    let verifier = Arc::new(Verifier::new(TokenUse::Bearer, [Arc::new(judge)]));
    let client =
        Client { id: "gateway-web".into(), auth: ClientAuth::Basic("gateway-web-secret".into()) };
    let public_url = Url::parse("https://localhost").unwrap();
    let mut settings = Settings::new("web", "main", client, Flow::Password, public_url);
    settings.scopes = Scopes::parse("openid profile offline_access orders:read");
    let kept = SessionRegistry::new(revocations, Arc::default());
    let session = Sessions::new(settings, issuer, Some(verifier), clock, &metrics, control, &kept);
    let session = Arc::new(session);
    let request = Request::post("/auth/login")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from("username=alice&password=wonderland"))
        .unwrap();
    let response = runtime.block_on(session.serve(request, [127, 0, 0, 1].into(), true));
    let cookies: Vec<_> = response
        .headers()
        .get_all(SET_COOKIE)
        .iter()
        .map(|field| field.to_str().unwrap().split(';').next().unwrap())
        .collect();
    let mut request = Request::get("/app").header("cookie", cookies.join("; "));
    // About as much as a browser sends besides.
    for name in ["accept", "accept-language", "user-agent", "sec-fetch-mode", "referer"] {
        request = request.header(name, HeaderValue::from_static("something of some length"));
    }
    (session, request.body(()).unwrap().into_parts().0, running)
}
