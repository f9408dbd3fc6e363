//! Prometheus itself reads our metrics, judges our rules, and answers the dashboards' queries.

mod healthy;
mod live;

use std::process::Command;
use std::time::Duration;

use northgate::base::clock::Timestamp;
use northgate::observe::metrics::{AuthLabel, Endpoint, Metrics, NO_ROUTE, TokenCache};

use super::support::{programs, repository, run};

#[test]
fn promtool_has_no_complaint_about_our_metrics() {
    let Some([promtool]) = programs("prometheus: metrics", ["promtool"]) else { return };
    let metrics = Metrics::default();
    let _everything = everything(&metrics);

    let said = run(Command::new(promtool).args(["check", "metrics"]), &metrics.render());

    // It fails on what it cannot read, and only prints what it would do better.
    let ours: Vec<_> = said.lines().filter(|line| line.starts_with("northgate_")).collect();
    assert!(ours.is_empty(), "{}", ours.join("\n"));
}

#[test]
fn promtool_accepts_the_rules_and_their_tests_pass() {
    let Some([promtool]) = programs("prometheus: rules", ["promtool"]) else { return };
    let promtool = |arguments: &[&str]| {
        run(Command::new(&promtool).current_dir(repository("dashboards")).args(arguments), "")
    };

    promtool(&["check", "config", "prometheus.yml"]);
    let said = promtool(&["test", "rules", "rules.test.yml"]);

    assert!(said.contains("SUCCESS"), "{said}");
}

/// One of everything, used: each family has a series.
fn everything(metrics: &Metrics) -> impl Sized {
    let route = metrics.route(NO_ROUTE);
    route.began();
    route.expects(AuthLabel::Jwt);
    route.answered(&http::Method::GET, 200, MS, MS, 1, 1);
    let issuer = metrics.issuer("main");
    issuer.called(Endpoint::Jwks, Some(200), MS);
    issuer.keys_refreshed(Timestamp::from_secs(1_700_000_000));
    metrics.token_cache(TokenCache::Jwt).verified(AuthLabel::Jwt, false, MS);
    let upstream = metrics.upstream("orders");
    upstream.answered(200, MS);
    let listener = metrics.listener("0.0.0.0:8443");
    let certificate = listener.certificate("example.com", Timestamp::from_secs(1_900_000_000));
    metrics.process().reloaded("hash", Timestamp::from_secs(1_700_000_000));
    let kept = (route, issuer, upstream.target("10.0.0.1:80"), upstream, listener, certificate);
    (kept, metrics.session("web"), metrics.limit("spike", "orders"), metrics.limit_keys("spike"))
}

const MS: Duration = Duration::from_millis(1);
