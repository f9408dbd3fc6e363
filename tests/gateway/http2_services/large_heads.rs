//! Heads that are larger than a service announces to accept (RFC 9113 §6.5.2).

use super::always;
use crate::support::{Gateway, Http2Client, Http2Service};

#[test]
fn a_head_that_is_larger_than_its_service_accepts_is_refused_before_it_is_sent() {
    let service = Http2Service::accepting_heads(4_096, async |mut call| {
        call.read().await;
        call.answer("x");
    });
    let gateway = Gateway::start("", &always(&service.url()));
    assert_eq!(gateway.get("/a", "").status, 200);

    for method in ["GET", "POST"] {
        let large = "~".repeat(4_000);
        let answer = gateway.ask(&format!(
            "{method} /a HTTP/1.1\r\nHost: api.test\r\nX-Large: {large}\r\nContent-Length: 0\r\n\r\n"
        ));

        assert_eq!(answer.status, 431, "{method}");
        assert!(answer.text().contains("head-too-large"), "{}", answer.text());
    }
    let call = Http2Client::run(&gateway, async |client| {
        client.unary("/a", &[("x-large", &"~".repeat(4_000))], "x").await
    });
    assert_eq!((call.http, call.code), (200, Some(8)));

    // Neither that connection nor the target is the worse for it.
    let fits = format!("X-Large: {}\r\n", "~".repeat(3_000));
    assert_eq!(gateway.get("/a", &fits).status, 200);
    assert_eq!((service.calls(), service.connections()), (2, 1));
}
