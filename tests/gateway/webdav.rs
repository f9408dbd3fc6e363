//! `COPY` and `MOVE` have two targets (RFC 4918 §9.8, §9.9): the second is held to the route of the first, and reaches the
//! service as it understands it.

use crate::support::{Gateway, Upstream, open};

#[test]
fn a_destination_on_the_gateways_host_names_no_host_to_a_service_that_sees_another() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for (method, destination, sent) in [
        ("MOVE", "http://a/b", "/b"),
        ("COPY", "https://A/b%20c//d;e?f", "/b%20c//d;e?f"),
        ("COPY", "/b", "/b"),
        ("MOVE", "http://a/x/../b", "/b"),
        ("MOVE", "http://a/caf\u{e9}\"<", "/caf\u{e9}\"<"),
        // The service refuses another host itself.
        ("MOVE", "http://other/b", "http://other/b"),
        // Another method has no destination.
        ("PUT", "http://a/x/../b", "http://a/x/../b"),
    ] {
        let answer = ask(&gateway, method, "/a", &[destination]);

        assert_eq!(answer, 200, "{method} {destination}");
        let seen = service.seen();
        assert_eq!(seen.last().and_then(|seen| seen.field("destination")), Some(sent));
    }
}

#[test]
fn a_service_that_sees_the_clients_host_is_sent_the_whole_destination() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &routes(&service, ", host_header: preserve"));

    for (path, destination, sent) in [
        ("/dav/a", "https://a/dav/b", "https://a/v1/b"),
        ("/dav/a", "/dav/b", "/v1/b"),
        ("/dav/a", "http://other/dav/b", "http://other/v1/b"),
    ] {
        assert_eq!(ask(&gateway, "MOVE", path, &[destination]), 200, "{destination}");
        let seen = service.seen();
        assert_eq!(seen.last().and_then(|seen| seen.field("destination")), Some(sent));
    }
}

/// The caller is authorized for the route of the request, and for no other.
#[test]
fn a_destination_reaches_no_other_route() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &routes(&service, ""));

    for (destinations, status) in [
        (&["http://a/admin/b"][..], 403),
        (&["http://other/admin/b"], 403),
        (&["/admin/b"], 403),
        (&["/dav/../admin/b"], 403),
        (&["/nowhere"], 403),
        (&["/dav/..%2fadmin/b"], 400),
        (&["/dav/../../b"], 400),
        (&["/dav/b#c"], 400),
        (&["b"], 400),
        (&["*"], 400),
        (&["http://a/dav/b", "http://a/admin/b"], 400),
        (&[""], 400),
    ] {
        for method in ["MOVE", "COPY"] {
            assert_eq!(ask(&gateway, method, "/dav/a", destinations), status, "{destinations:?}");
        }
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

/// A client holds locks of resources that it knows by the URLs of the gateway.
#[test]
fn conditions_name_resources_as_the_service_knows_them() {
    let service = Upstream::polite();
    for (host, more) in [("", ""), ("https://a", ", host_header: preserve")] {
        let gateway = Gateway::start("", &routes(&service, more));

        for (sent, seen) in [
            ("<https://a/dav/x> (<urn:1>)", &*format!("<{host}/v1/x> (<urn:1>)")),
            (
                "</dav/x> (Not <urn:1>) <https://a/dav/y%20z>([\"e\"])",
                &*format!("</v1/x> (Not <urn:1>) <{host}/v1/y%20z>([\"e\"])"),
            ),
            // The service judges a resource of another host itself.
            ("<https://other/dav/x> (<urn:1>)", "<https://other/v1/x> (<urn:1>)"),
            ("<https://a/x/../dav/x> (<urn:1>)", &*format!("<{host}/v1/x> (<urn:1>)")),
            ("(<urn:1>)", "(<urn:1>)"),
        ] {
            let answer =
                gateway.ask(&format!("PUT /dav/x HTTP/1.1\r\nHost: a\r\nIf: {sent}\r\n\r\n"));

            assert_eq!(answer.status, 200, "{sent}");
            let all = service.seen();
            assert_eq!(all.last().and_then(|request| request.field("if")), Some(seen));
        }
    }
}

/// Whether its condition holds tells something about a resource.
#[test]
fn a_condition_on_a_resource_of_another_route_is_refused() {
    let service = Upstream::polite();
    let gateway = Gateway::start("max_header_size: 256KiB", &routes(&service, ""));
    let long = format!("</dav/{}> (<urn:x>)", "a".repeat(65_600));
    let carried = format!("</dav/{}> (<urn:x>)", "<".repeat(17_000));

    for (field, status) in [
        ("</admin/y> ([\"etag\"])", 403),
        ("<http://a/admin/y> ([\"etag\"])", 403),
        ("<http://other/admin/y> ([\"etag\"])", 403),
        ("</dav/x> (<urn:1>) </dav/../admin/y> ([\"etag\"])", 403),
        ("</dav/..%2fadmin/y> ([\"etag\"])", 400),
        ("<<< (", 400),
        ("<y> (<urn:1>)", 400),
        ("</dav/x", 400),
        (&long, 414),
        (&carried, 414),
    ] {
        for method in ["PUT", "GET", "UNLOCK"] {
            let request = format!("{method} /dav/x HTTP/1.1\r\nHost: a\r\nIf: {field}\r\n\r\n");
            let status_is = gateway.ask(&request).status;
            assert_eq!(status_is, status, "{method} {}", &field[..field.len().min(60)]);
        }
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

#[test]
fn a_destination_that_is_too_long_is_one_that_no_target_can_be() {
    let service = Upstream::polite();
    let gateway = Gateway::start("max_header_size: 256KiB", &routes(&service, ""));

    let destination = format!("/dav/{}", "a".repeat(65_600));

    assert_eq!(ask(&gateway, "MOVE", "/dav/a", &[&destination]), 414);
}

fn ask(gateway: &Gateway, method: &str, path: &str, destinations: &[&str]) -> u16 {
    let fields: String =
        destinations.iter().map(|value| format!("Destination: {value}\r\n")).collect();
    gateway.ask(&format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).status
}

/// A route that rewrites its path, beside another one.
fn routes(service: &Upstream, more: &str) -> String {
    format!(
        "upstreams:
  service: {{ targets: [\"{}\"]{more} }}
routes:
  - {{ id: dav, path: /dav/**, upstream: service, auth: none, rewrite: {{ strip_prefix: /dav, add_prefix: /v1 }} }}
  - {{ id: admin, path: /admin/**, upstream: service, auth: none, enabled: false }}
",
        service.url()
    )
}
