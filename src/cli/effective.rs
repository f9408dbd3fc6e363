//! `northgate config`: prints the effective configuration, with every default and without secrets.
//!
//! Each setting is listed explicitly, so that none is printed by accident.

use core::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use super::display::{align, auth_method, duration, list};
use super::{display, read, routes};
use crate::config::{Auth, Config, Issuer, Route, server};
use crate::gateway::view::explain::Destination;
use crate::token::Audience;
use crate::{limit, session, upstream};

/// Prints the configuration in `file` as the gateway understands it.
#[expect(clippy::print_stdout, reason = "output of the command")]
pub(super) fn config(file: &Path) -> ExitCode {
    let config = match read(file) {
        Ok(config) => config,
        Err(code) => return code,
    };
    print!("{}", text(&config));
    ExitCode::SUCCESS
}

type Row = [String; 2];

fn text(config: &Config) -> String {
    let mut text = format!("hash: {}\n", config.hash);
    let mut section = |name: &str, rows: Vec<Row>| {
        let rows: Vec<_> =
            rows.into_iter().map(|[key, value]| [format!("  {key}:"), value]).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name}:");
        text.push_str(&align(&rows));
    };
    for listener in &config.listeners {
        section(&format!("listen {}", listener.name), of_listener(listener));
    }
    section("server", of_server(&config.server));
    section("admin", of_admin(&config.admin));
    for (name, issuer) in &config.issuers {
        section(&format!("issuer {name}"), of_issuer(issuer));
    }
    for (name, session) in &config.sessions {
        section(&format!("session {name}"), of_session(session));
    }
    for (name, upstream) in &config.upstreams {
        section(&format!("upstream {name}"), of_upstream(upstream));
    }
    for (name, limit) in &config.limits {
        section(&format!("limit {name}"), of_limit(limit));
    }
    for route in &config.routes {
        section(&format!("route {}", route.id), of_route(route));
    }
    text
}

fn row(key: &str, value: impl ToString) -> Row {
    [key.to_owned(), value.to_string()]
}

fn or(value: Option<impl ToString>, absent: &str) -> String {
    value.map_or_else(|| absent.to_owned(), |value| value.to_string())
}

fn of_listener(listener: &server::Listener) -> Vec<Row> {
    let tls = match &listener.tls {
        None => "off".to_owned(),
        Some(tls) => {
            let certificates = match &tls.certificates {
                server::Certificates::SelfSigned => "self_signed".to_owned(),
                server::Certificates::Files(files) => format!("{} certificates", files.len()),
            };
            format!("{certificates}, from {}", if tls.only_tls13 { "1.3" } else { "1.2" })
        }
    };
    vec![
        row("address", &listener.address),
        row("tls", tls),
        row("http2", listener.http2),
        row("redirect_https", or(listener.redirect_https, "off")),
    ]
}

fn of_server(server: &server::Server) -> Vec<Row> {
    vec![
        row("workers", or(server.workers, "one per CPU")),
        row("header_timeout", duration(server.header_timeout)),
        row("body_timeout", duration(server.body_timeout)),
        row("min_body_rate", or(server.min_body_rate, "off")),
        row("idle_timeout", duration(server.idle_timeout)),
        row("max_header_size", server.max_header_size),
        row("max_headers", server.max_headers),
        row("max_connections", server.max_connections),
        row("max_connections_per_ip", or(server.max_connections_per_ip, "off")),
        row("max_requests_in_flight", or(server.max_requests_in_flight, "off")),
        row("http2_max_concurrent_streams", server.http2_max_concurrent_streams),
        row("trusted_proxies", format!("[{}]", list(&server.trusted_proxies))),
        row("public_url", or(server.public_url.as_ref(), "none")),
        row("state_dir", or(server.state_dir.as_ref().map(|dir| dir.display()), "none")),
        row("drain_delay", duration(server.drain_delay)),
        row("drain_timeout", duration(server.drain_timeout)),
        row("request_id_header", &server.request_id_header),
    ]
}

fn of_admin(admin: &server::Admin) -> Vec<Row> {
    vec![
        row("listen", admin.listen),
        row("token", or(admin.token.as_ref().map(|_| MASK), "none")),
        row("public_metrics_only", admin.public_metrics_only),
    ]
}

fn of_issuer(Issuer { settings, rules }: &Issuer) -> Vec<Row> {
    let audience = match &rules.audience {
        Audience::OneOf(audiences) => list(&**audiences),
        Audience::Any => "any".to_owned(),
    };
    let mut rows = vec![
        row("issuer", &settings.issuer),
        row("audience", audience),
        row("algorithms", list(&rules.algorithms)),
        row("token_types", list(&rules.token_types)),
        row("required_claims", list(&rules.required_claims)),
        row("leeway", duration(rules.leeway)),
        row("max_token_age", or(rules.max_token_age.map(duration), "any")),
        row("scope_claim", &rules.scope_claim),
        row("client_claim", list(&rules.client_claim)),
        row("jwks_refresh", duration(settings.jwks_refresh)),
        row("jwks_min_interval", duration(settings.jwks_min_interval)),
        row("introspection.cache", duration(settings.introspection.cache)),
        row("introspection.negative_cache", duration(settings.introspection.negative_cache)),
        row("password_grant.cache", duration(settings.password_grant.cache)),
        row("jwt_cache.max_entries", rules.jwt_cache_max_entries),
        row("timeout", duration(settings.timeout)),
        row("max_concurrent", settings.max_concurrent),
        row("revocation_check", if rules.revocation_check { "introspection" } else { "off" }),
    ];
    if let Some(client) = &settings.client {
        rows.push(row("client.id", &client.id));
        rows.push(row("client.auth", client.auth.name()));
        rows.push(row("client.secret", MASK));
    }
    rows
}

fn of_session(session: &session::Settings) -> Vec<Row> {
    vec![
        row("issuer", &session.issuer),
        row("client.id", &session.client.id),
        row("client.secret", MASK),
        row("public_url", &session.public_url),
        row("scopes", list(session.scopes.iter())),
        row("paths", list(session.own_paths())),
        row("keys", if session.keys.is_empty() { "one made at start" } else { MASK }),
        row("idle_timeout", duration(session.idle_timeout)),
        row("absolute_timeout", duration(session.absolute_timeout)),
        row("refresh_before", duration(session.refresh_before)),
        row("revoke_on_logout", session.revoke_on_logout),
        row("end_session", session.end_session),
    ]
}

fn of_upstream(upstream: &upstream::Settings) -> Vec<Row> {
    vec![
        row("targets", list(upstream.targets.iter().map(|target| &target.address))),
        row("connect_timeout", duration(upstream.connect_timeout)),
        row("timeout", duration(upstream.timeout)),
        row("stream_timeout", or(upstream.stream_timeout.map(duration), "off")),
        row("idle_timeout", duration(upstream.idle_timeout)),
        row("keep_alive", duration(upstream.keep_alive)),
        row("max_connections", upstream.max_connections),
        row("max_pending", upstream.max_pending),
        row("retries.attempts", upstream.retries.attempts),
        row("outlier.errors", upstream.outlier.errors),
        row("outlier.eject_for", duration(upstream.outlier.eject_for)),
    ]
}

fn of_limit(limit: &limit::Settings) -> Vec<Row> {
    vec![
        row("counts", display::limit(limit)),
        row("max_keys", limit.max_keys),
        row("headers", limit.headers),
    ]
}

fn of_route(route: &Route) -> Vec<Row> {
    let all = |text: String| if text.is_empty() { "any".to_owned() } else { text };
    let mut rows = vec![
        row("host", all(list(&route.hosts))),
        row("path", list(&route.paths)),
        row("methods", all(list(&route.methods))),
    ];
    rows.extend(route.match_headers.iter().map(|wanted| row("field", display::field(wanted))));
    match &route.auth {
        Auth::None => rows.push(row("auth", "none")),
        Auth::Ways { ways, optional } => {
            rows.extend(ways.iter().map(|one| row("auth", auth_method(one))));
            if *optional {
                rows.push(row("auth", "or nothing"));
            }
        }
    }
    rows.extend([
        row("limits", format!("[{}]", list(&route.limits))),
        row("leads to", routes::destination_text(&Destination::Route(route))),
        row("timeout", or(route.timeout.map(duration), "the upstream's")),
        row("max_body_size", or(route.max_body_size, "none")),
        row("security_headers", route.security_headers),
        row("websocket", route.websocket),
        row("close_on_expiry", route.close_on_expiry),
        row("access_log", route.access_log),
    ]);
    rows
}

/// The replacement of every secret.
const MASK: &str = "***";
