use core::time::Duration;

use http::Method as Verb;

use super::*;

#[test]
fn a_request_is_counted_once_in_each_family() {
    let metrics = Metrics::new(&[0.01, 0.1]);
    let route = metrics.route("orders");

    route.began();
    route.authenticated(AuthLabel::Jwt, AuthResult::Ok);
    route.answered(&Verb::GET, 200, MS * 20, MS / 10, 7, 1024);

    let text = metrics.render();
    has(&text, r#"northgate_http_requests_total{route="orders",method="GET",code="200"} 1"#);
    has(&text, r#"northgate_http_requests_in_flight{route="orders"} 0"#);
    has(&text, r#"northgate_http_request_bytes_total{route="orders"} 7"#);
    has(&text, r#"northgate_http_response_bytes_total{route="orders"} 1024"#);
    has(&text, r#"northgate_auth_requests_total{route="orders",auth="jwt",result="ok"} 1"#);
    let bucket = r#"northgate_http_request_duration_seconds_bucket{route="orders",class="2xx",le="#;
    has(&text, &format!(r#"{bucket}"0.01"}} 0"#));
    has(&text, &format!(r#"{bucket}"0.1"}} 1"#));
    has(&text, r#"northgate_http_overhead_seconds_bucket{route="orders",le="0.0001"} 1"#);
}

#[test]
fn series_with_a_fixed_list_begin_at_zero() {
    let metrics = Metrics::default();
    let route = metrics.route("orders");
    route.expects(AuthLabel::Session);
    let _session = metrics.session("web");
    let _limit = metrics.limit("spike", "orders");

    let text = metrics.render();
    has(&text, r#"northgate_http_rejections_total{route="orders",reason="limit"} 0"#);
    has(&text, r#"northgate_auth_requests_total{route="orders",auth="session",result="csrf"} 0"#);
    has(&text, r#"northgate_session_refreshes_total{session="web",result="reuse"} 0"#);
    has(
        &text,
        r#"northgate_limit_decisions_total{limit="spike",route="orders",result="limited"} 0"#,
    );
    has(&text, r#"northgate_token_cache_requests_total{cache="jwt",result="hit"} 0"#);
    has(&text, "northgate_log_lines_dropped_total 0");
}

#[test]
fn a_removed_routes_series_vanish_with_its_last_holder() {
    let metrics = Metrics::default();
    let (old, new) = (metrics.route("orders"), metrics.route("orders"));
    old.rejected(Rejected::Auth);

    drop(old);
    has(&metrics.render(), r#"{route="orders",reason="auth"} 1"#);

    drop(new);
    assert!(!metrics.render().contains("orders"));
}

#[test]
fn a_removed_target_is_not_exported() {
    let metrics = Metrics::default();
    let upstream = metrics.upstream("shop");
    let (stays, leaves) = (upstream.target("10.0.0.1:80"), upstream.target("10.0.0.2:80"));
    stays.set(1);
    drop(leaves);

    let text = metrics.render();
    has(&text, r#"northgate_upstream_target_healthy{upstream="shop",target="10.0.0.1:80"} 1"#);
    assert!(!text.contains("10.0.0.2"));
}

#[test]
fn entries_of_caches_of_one_kind_add_up_until_a_cache_is_dropped() {
    let metrics = Metrics::default();
    let cache = metrics.token_cache(TokenCache::Introspection);
    let (one, other) = (cache.entries(), cache.entries());
    one.set(30);
    other.set(12);

    has(&metrics.render(), r#"northgate_token_cache_entries{cache="introspection"} 42"#);

    drop(one);
    has(&metrics.render(), r#"northgate_token_cache_entries{cache="introspection"} 12"#);
}

#[test]
fn an_issuer_without_keys_exports_no_key_count() {
    let metrics = Metrics::default();
    let issuer = metrics.issuer("main");
    issuer.called(Endpoint::Jwks, None, MS);
    assert!(!metrics.render().contains("northgate_jwks"));

    issuer.keys.set(2);
    issuer.keys_refreshed(crate::base::clock::Timestamp::from_secs(1_700_000_000));

    let text = metrics.render();
    has(&text, r#"northgate_jwks_keys{issuer="main"} 2"#);
    has(&text, r#"northgate_jwks_last_success_timestamp_seconds{issuer="main"} 1700000000"#);
    has(
        &text,
        r#"northgate_auth_server_requests_total{issuer="main",endpoint="jwks",code="error"} 1"#,
    );
}

#[test]
fn a_refused_file_leaves_the_hash_of_the_one_in_use() {
    let metrics = Metrics::default();
    metrics.process().reloaded("abc", crate::base::clock::Timestamp::from_secs(1_700_000_000));
    metrics.process().reload_failed();

    let text = metrics.render();
    has(&text, r#"northgate_config_info{hash="abc"} 1"#);
    has(&text, "northgate_config_last_reload_successful 0");
    has(&text, "northgate_config_last_reload_success_timestamp_seconds 1700000000");
    has(&text, r#"northgate_config_reloads_total{result="failed"} 1"#);
}

#[test]
fn methods_can_be_left_out() {
    let metrics = Metrics::with(Settings { methods: false, ..Settings::default() });
    let route = metrics.route("orders");
    route.began();
    route.answered(&Verb::GET, 200, MS, MS, 0, 0);
    route.began();
    route.answered(&Verb::PUT, 200, MS, MS, 0, 0);

    has(&metrics.render(), r#"northgate_http_requests_total{route="orders",code="200"} 2"#);
}

#[test]
fn every_family_is_exported_once_something_happened() {
    let metrics = Metrics::default();
    let everything = everything(&metrics);

    let text = metrics.render();
    for Family { name, .. } in FAMILIES {
        has(&text, &format!("# TYPE {name} "));
    }
    drop(everything);
}

#[test]
fn no_series_is_exported_twice() {
    let metrics = Metrics::default();
    let _everything = everything(&metrics);
    let (_other, _route) = (everything(&metrics), metrics.route("another"));

    let text = metrics.render();
    let mut series: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit_once(' ').expect("a number after the labels").0)
        .collect();
    let all = series.len();
    series.sort_unstable();
    series.dedup();
    assert_eq!(series.len(), all);
}

/// One of everything, held and used.
fn everything(metrics: &Metrics) -> Vec<Box<dyn core::any::Any>> {
    let route = metrics.route("orders");
    route.began();
    route.authenticated(AuthLabel::Basic, AuthResult::Credentials);
    route.answered(&Verb::GET, 503, MS, MS, 1, 1);
    let issuer = metrics.issuer("main");
    issuer.called(Endpoint::Token, Some(200), MS);
    issuer.keys_refreshed(crate::base::clock::Timestamp::from_secs(1));
    metrics.token_cache(TokenCache::Jwt).verified(AuthLabel::Jwt, true, MS);
    let upstream = metrics.upstream("shop");
    upstream.answered(200, MS);
    let target = (upstream.target("10.0.0.1:80"), upstream.target_version("10.0.0.1:80"));
    let listener = metrics.listener("0.0.0.0:8443");
    let certificate =
        listener.certificate("example.com", crate::base::clock::Timestamp::from_secs(2));
    metrics.process().state_written(true);
    metrics.process().reloaded("hash", crate::base::clock::Timestamp::from_secs(1));
    vec![
        Box::new((route, issuer, upstream, target, listener, certificate)),
        Box::new((metrics.session("web"), metrics.limit("spike", "orders"))),
        Box::new(metrics.limit_keys("spike")),
        Box::new((metrics.limit_store(), metrics.leases("spike"))),
    ]
}

#[track_caller]
fn has(text: &str, line: &str) {
    assert!(text.contains(line), "no `{line}` in\n{text}");
}

const MS: Duration = Duration::from_millis(1);
