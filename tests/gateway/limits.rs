//! What a service survives and what a client has bought (behaviour.md §5).

use core::time::Duration;

use northgate::dev::issuer::Mint;

use crate::support::{Gateway, Upstream, start_issuer};

#[test]
fn a_request_too_many_is_told_when_to_come_back() {
    let service = Upstream::polite();
    let rest = format!(
        "limits:\n  spike: {{ rate: 1/s, burst: 2, by: ip }}\nupstreams:\n  service: {{ targets: [\"{}\"] }}\n\
         routes:\n  - {{ id: a, path: /**, upstream: service, auth: none, limits: [spike] }}\n",
        service.url()
    );
    let gateway = Gateway::start("", &rest);

    let admitted = gateway.get("/", "");
    assert_eq!(admitted.status, 200);
    assert!(admitted.field("ratelimit").is_some_and(|value| value.starts_with("\"spike\";r=1")));
    assert!(admitted.field("ratelimit-policy").is_some());
    assert_eq!(gateway.get("/", "").status, 200);

    for _ in 0..3 {
        let refused = gateway.get("/", "");
        assert_eq!((refused.status, refused.field("retry-after")), (429, Some("1")));
        assert_eq!(refused.problem().as_deref(), Some("limited"));
        assert!(refused.field("ratelimit").is_some_and(|value| value.contains("r=0")));
    }
    // The refused ones have cost nothing.
    gateway.clock.advance(Duration::from_secs(1));
    assert_eq!((gateway.get("/", "").status, gateway.get("/", "").status), (200, 429));
    assert_eq!(service.seen().len(), 3);
}

#[test]
fn spike_arrest_by_address_precedes_token_verification() {
    let (gateway, service, _issuer) = limited("spike: { rate: 1/min, burst: 2, by: ip }", "spike");

    let statuses = [(); 3].map(|()| gateway.get("/", "Authorization: Bearer nonsense\r\n").status);

    assert_eq!(statuses, [401, 401, 429]);
    assert!(service.seen().is_empty());
}

#[test]
fn a_client_is_charged_for_what_it_was_let_in_for_and_for_nothing_else() {
    let (gateway, service, issuer) = limited("daily: { quota: 2/day, by: client }", "daily");
    let token = format!("Authorization: Bearer {}\r\n", issuer.jwt());
    let poor = issuer.mint(&Mint::client("api").scopes("other"));
    let poor = format!("Authorization: Bearer {poor}\r\n");
    let ask = |fields: &str| gateway.get("/", fields).status;

    assert_eq!(ask(&poor), 403);
    assert_eq!(ask("Authorization: Bearer nonsense\r\n"), 401);
    assert_eq!([ask(&token), ask(&token), ask(&token)], [200, 200, 429]);
    assert_eq!(service.seen().len(), 2);

    let other = issuer.mint(&Mint::client("gateway").scopes("orders:read"));
    assert_eq!(ask(&format!("Authorization: Bearer {other}\r\n")), 200, "another client's quota");
}

#[test]
fn a_count_survives_a_reload() {
    let service = Upstream::polite();
    let rest = format!(
        "limits:\n  daily: {{ quota: 1/day, by: ip }}\nupstreams:\n  service: {{ targets: [\"{}\"] }}\n\
         routes:\n  - {{ id: a, path: /**, upstream: service, auth: none, limits: [daily] }}\n",
        service.url()
    );
    let gateway = Gateway::start("", &rest);
    assert_eq!(gateway.get("/", "").status, 200);

    gateway.reload("max_headers: 50", &rest).expect("a good file");

    assert_eq!(gateway.get("/", "").status, 429);
}

/// A route behind a token and this limit.
fn limited(limit: &str, name: &str) -> (Gateway, Upstream, crate::support::Issuer) {
    let (service, issuer) = (Upstream::polite(), start_issuer());
    let rest = format!(
        "{}limits:\n  {limit}\nupstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
         \x20 - {{ id: a, path: /**, upstream: service, auth: {{ jwt: main, scopes: [orders:read] }}, limits: [{name}] }}\n",
        issuer.settings(""),
        service.url()
    );
    (Gateway::at(issuer.clock.clone(), "", &rest).ready(), service, issuer)
}
