//! The effective configuration: variables expanded, defaults written out, layers merged, secrets as `***`.

use serde_json::{Map, Value, json};

use super::Config;
use super::auth::{Auth, AuthMethod, Expected, ForwardToken, TokenBinding, TokenSource};
use super::de::units::{Keyword, format_duration};
use super::effective_issuer::{client_of, failures, issuer_of};
use super::effective_limits;
use super::forwarding;
use super::redact;
use super::redact::shown;
use super::route::{
    Action, Coding, HeaderEdits, PathRewrite, Rewrite, Route, Template, TemplatePart, ValueMatch,
};
use super::server::{Certificates, Tls};
use super::yaml_writer::{is_unset, unless_empty, write_entry};
use crate::base::secret::HIDDEN;
use crate::issuer::ResourceIndicator;
use crate::session::{Flow, TokenStorage};
use crate::{redis, session, upstream};

impl Config {
    /// Returns the effective configuration under the keys of the file, which loads to the same configuration where the
    /// secrets in it are written out.
    pub fn effective(&self) -> Value {
        let mut all = self.settings();
        for (key_path, file) in &self.named_files {
            insert(&mut all, key_path, file.clone());
        }
        all
    }

    fn settings(&self) -> Value {
        let named = |entries: Vec<(String, Value)>| {
            unless_empty(Value::Object(entries.into_iter().collect()))
        };
        json!({
            "version": 1,
            "listen": self.listeners.iter().map(|listener| json!({
                "address": listener.address.to_string(),
                "tls": listener.tls.as_ref().map(tls_side),
                "http2": listener.http2,
                "redirect_https": listener.redirect_https,
                "proxy_protocol": listener.proxy_protocol,
            })).collect::<Vec<_>>(),
            "server": self.server(),
            "admin": {
                "listen": self.admin.listen.to_string(),
                "token": self.admin.token.as_ref().map(|_| HIDDEN),
                "public_metrics_only": self.admin.public_metrics_only,
            },
            "issuers": named(self.issuers.iter().map(|(name, issuer)| (name.to_string(), issuer_of(issuer))).collect()),
            "redis": self.redis.as_ref().map(redis_of),
            "sessions": named(self.sessions.iter().map(|(name, session)| (name.to_string(), session_of(session))).collect()),
            "upstreams": named(self.upstreams.iter().map(|(name, upstream)| (name.to_string(), upstream_of(upstream))).collect()),
            "metering": self.metering.as_ref().map(effective_limits::metering_of),
            "limits": named(self.limits.iter().map(|(name, limit)| (name.to_string(), effective_limits::limit_of(limit))).collect()),
            "routes": self.routes.iter().map(route_of).collect::<Vec<_>>(),
            "logging": {
                "level": self.logging.level.as_str(),
                "format": self.logging.format.and_then(Keyword::word),
                "access": self.logging.access.word(),
                "sample": percent(self.logging.sample),
                "redact_query": self.logging.redact_query,
            },
            "metrics": {
                "path": self.metrics.path,
                "buckets": self.metrics.settings.buckets,
                "methods": self.metrics.settings.methods,
            },
        })
    }

    /// Returns the effective configuration as YAML.
    pub fn effective_yaml(&self) -> String {
        let mut text = String::new();
        if let Value::Object(mut all) = self.effective() {
            for section in SECTIONS {
                if let Some(value) = all.remove(section).filter(|value| !is_unset(value)) {
                    write_entry(&mut text, 0, section, &value);
                }
            }
        }
        text
    }

    fn server(&self) -> Value {
        let server = &self.server;
        json!({
            "workers": server.workers,
            "header_timeout": format_duration(server.header_timeout),
            "body_timeout": format_duration(server.body_timeout),
            "min_body_rate": format!("{}B", server.min_body_rate.unwrap_or(0)),
            "idle_timeout": format_duration(server.idle_timeout),
            "max_header_size": format!("{}B", server.max_header_size),
            "max_headers": server.max_headers,
            "max_body_size": format!("{}B", server.max_body_size.unwrap_or(0)),
            "max_connections": server.max_connections,
            "max_connections_per_ip": server.max_connections_per_ip.unwrap_or(0),
            "max_requests_in_flight": server.max_requests_in_flight.unwrap_or(0),
            "http2_max_concurrent_streams": server.http2_max_concurrent_streams,
            "trusted_proxies": unless_empty(server.trusted_proxies.iter().map(ToString::to_string).collect()),
            "forwarded_headers": server.forwarded_headers.word(),
            "public_url": server.public_url.as_ref().map(|url| url.origin().ascii_serialization()),
            "dpop_nonce_keys": unless_empty(json!(vec![HIDDEN; self.dpop_nonce_keys.len()])),
            "state_dir": server.state_dir.as_ref().map(|dir| dir.display().to_string()),
            "drain_delay": format_duration(server.drain_delay),
            "drain_timeout": format_duration(server.drain_timeout),
            "server_header": server.server_header.as_ref().and_then(|value| value.to_str().ok()),
            "request_id_header": server.request_id_header.as_str(),
        })
    }
}

/// Sets the value at `key_path`, a path of keys and of indexes into lists.
fn insert(all: &mut Value, key_path: &[String], value: Value) {
    let [key, rest @ ..] = key_path else {
        *all = value;
        return;
    };
    match all {
        Value::Array(items) => {
            if let Some(item) = key.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
                insert(item, rest, value);
            }
        }
        Value::Object(entries) => {
            insert(entries.entry(key).or_insert_with(|| json!({})), rest, value);
        }
        _ => {}
    }
}

fn tls_side(side: &Tls) -> Value {
    if matches!(side.certificates, Certificates::SelfSigned) {
        return json!("self_signed");
    }
    json!({
        "min_version": if side.only_tls13 { "1.3" } else { "1.2" },
        "session_tickets": side.session_tickets,
        "client_auth": match &side.clients {
            None => "none",
            Some(clients) if clients.required => "required",
            Some(_) => "optional",
        },
    })
}

fn redis_of(redis: &redis::Settings) -> Value {
    json!({
        "url": match redis.topology() {
            redis::Topology::Cluster => redis.shown().split(',').collect::<Value>(),
            _ => redis.shown().into(),
        },
        "username": redis.username,
        "password": redis.password.as_ref().map(|_| HIDDEN),
        "timeout": format_duration(redis.timeout),
        "connect_timeout": format_duration(redis.connect_timeout),
        "prefix": redis.prefix,
    })
}

fn session_of(session: &session::Settings) -> Value {
    let (tokens, store) = match session.tokens {
        TokenStorage::Server(store) => (Some("server"), store.word()),
        tokens => (tokens.word(), None),
    };
    json!({
        "issuer": session.issuer,
        "client": client_of(&session.client),
        "flow": session.flow.word(),
        "public_url": session.public_url.origin().ascii_serialization(),
        "scopes": session.scopes.iter().collect::<Vec<_>>(),
        "resource": session.resource.as_ref().map(ResourceIndicator::as_str),
        "prompt": session.prompt,
        "authorize_parameters": unless_empty(Value::Object(
            session.authorize_parameters.iter().map(|(name, value)| (name.to_string(), json!(value))).collect(),
        )),
        "identity": session.identity_source().word(),
        "userinfo": session.userinfo,
        "paths": {
            "login": session.paths.login, "callback": (session.flow == Flow::Code).then_some(&session.paths.callback), "logout": session.paths.logout,
            "status": session.paths.status, "refresh": session.paths.refresh,
            "back_channel_logout": session.paths.back_channel_logout,
        },
        "tokens": tokens,
        "store": store,
        "keys": unless_empty(json!(vec![HIDDEN; session.keys.len()])),
        "cookie": {
            "prefix": session.cookie.prefix, "same_site": session.cookie.same_site.word(),
            "secure": session.cookie.secure, "domain": session.cookie.domain, "path": session.cookie.path,
        },
        "idle_timeout": format_duration(session.idle_timeout),
        "absolute_timeout": format_duration(session.absolute_timeout),
        "login_failures": failures((session.login_failures.count, session.login_failures.window)),
        "limits": unless_empty(json!(session.limits)),
        "refresh_before": format_duration(session.refresh_before),
        "csrf": session.csrf.word(),
        "on_unauthenticated": session.on_unauthenticated.word(),
        "after_login": session.after_login,
        "after_logout": session.after_logout,
        "return_to": return_to(&session.return_to),
        "revoke_on_logout": session.revoke_on_logout,
        "end_session": session.end_session,
        "forward": session.forward.word(),
    })
}

/// Returns `return_to`, which is unset where it is the session's own origin.
fn return_to(destinations: &[session::ReturnTo]) -> Value {
    if destinations.iter().any(|destination| matches!(destination, session::ReturnTo::SameOrigin)) {
        return Value::Null;
    }
    destinations.iter().filter_map(destination).collect()
}

/// Returns an entry of `return_to` as the file writes it; `None` for the session's own origin.
fn destination(destination: &session::ReturnTo) -> Option<String> {
    match destination {
        session::ReturnTo::SameOrigin => None,
        session::ReturnTo::Path { path, below: true } => {
            Some(format!("{}/**", path.trim_end_matches('/')))
        }
        session::ReturnTo::Path { path, below: false } => Some(path.to_string()),
        session::ReturnTo::Origin(origin) => Some(origin.to_string()),
    }
}

fn upstream_of(upstream: &upstream::Settings) -> Value {
    let targets = upstream.targets.iter().map(|target| {
        json!({ "url": target.address.to_string(), "weight": target.weight, "backup": target.backup })
    });
    json!({
        "targets": targets.collect::<Vec<_>>(),
        "balance": upstream.balance.word(),
        "hash_by": upstream.hash_by.as_ref().map(ToString::to_string),
        "health_check": upstream.health_check.as_ref().map(|check| json!({
            "path": (!check.path.is_empty()).then_some(&check.path),
            "grpc": check.grpc,
            "interval": format_duration(check.interval),
            "timeout": format_duration(check.timeout),
            "healthy_after": check.healthy_after,
            "unhealthy_after": check.unhealthy_after,
            // The file may not have it beside `grpc`.
            "status": check.grpc.is_none().then(|| check.status.iter().map(|(low, high)| format!("{low}-{high}")).collect::<Vec<_>>()),
        })),
        "slow_start": format_duration(upstream.slow_start),
        "panic_threshold": format!("{}%", upstream.panic_threshold),
        "dns_refresh": format_duration(upstream.dns_refresh),
        "dns_servers": unless_empty(upstream.dns_servers.iter().map(ToString::to_string).collect()),
        "connect_timeout": format_duration(upstream.connect_timeout),
        "timeout": format_duration(upstream.timeout),
        "stream_timeout": format_duration(upstream.stream_timeout.unwrap_or_default()),
        "idle_timeout": format_duration(upstream.idle_timeout),
        "keep_alive": format_duration(upstream.keep_alive),
        "max_connections": upstream.max_connections,
        "max_pending": upstream.max_pending,
        "http2": upstream.http2.word(),
        "tls": { "server_name": upstream.tls.server_name },
        "host_header": match &upstream.host_header {
            upstream::HostHeader::Target => "target",
            upstream::HostHeader::Preserve => "preserve",
            upstream::HostHeader::Fixed(name) => name.to_str().unwrap_or_default(),
        },
        "retries": retries_of(&upstream.retries),
        "circuit_breaker": upstream.circuit_breaker.map(|breaker| json!({
            "errors": breaker.errors,
            "error_rate": format!("{}%", breaker.error_rate),
            "min_requests": breaker.min_requests,
            "open_for": format_duration(breaker.open_for),
            "close_after": breaker.close_after,
        })),
        "outlier": {
            "errors": upstream.outlier.errors,
            "error_rate": format!("{}%", upstream.outlier.error_rate),
            "min_requests": upstream.outlier.min_requests,
            "eject_for": format_duration(upstream.outlier.eject_for),
            "max_ejected": format!("{}%", upstream.outlier.max_ejected),
        },
    })
}

fn retries_of(retries: &upstream::Retries) -> Value {
    json!({
        "attempts": retries.attempts,
        "on": retries.on.iter().map(|on| on.word()).collect::<Vec<_>>(),
        "budget": format!("{}%", retries.budget),
    })
}

fn route_of(route: &Route) -> Value {
    let action = match &route.action {
        Action::Upstream(name) => ("upstream", json!(name)),
        Action::Respond(response) => ("respond", response.effective()),
        Action::Redirect { to, status } => {
            ("redirect", json!({ "to": text_of("to", to), "status": status.as_u16() }))
        }
    };
    let fields = route.match_headers.iter().map(|wanted| {
        let value = match &wanted.value {
            ValueMatch::Exact(_) => json!(wanted.shown()),
            ValueMatch::Regex(_) => json!({ "regex": wanted.shown() }),
        };
        (wanted.name.to_string(), value)
    });
    let mut all = Map::from_iter([
        ("id".to_owned(), json!(route.id)),
        ("host".to_owned(), unless_empty(route.hosts.iter().map(ToString::to_string).collect())),
        ("path".to_owned(), route.paths.iter().map(ToString::to_string).collect()),
        (
            "methods".to_owned(),
            unless_empty(route.methods.iter().map(http::Method::as_str).collect()),
        ),
        ("match_headers".to_owned(), unless_empty(Value::Object(fields.collect()))),
        (action.0.to_owned(), action.1),
        ("auth".to_owned(), auth_of(&route.auth)),
        ("limits".to_owned(), unless_empty(json!(route.limits))),
        ("rewrite".to_owned(), rewrite_of(&route.rewrite)),
        (
            "headers".to_owned(),
            json!({ "request": edits_of(&route.request_headers), "response": edits_of(&route.response_headers) }),
        ),
        ("timeout".to_owned(), route.timeout.map(format_duration).into()),
        ("retries".to_owned(), route.retries.as_ref().map(retries_of).into()),
        ("buffer_request".to_owned(), route.buffer_request.into()),
        ("max_body_size".to_owned(), format!("{}B", route.max_body_size.unwrap_or(0)).into()),
        ("min_body_rate".to_owned(), format!("{}B", route.min_body_rate.unwrap_or(0)).into()),
        ("security_headers".to_owned(), route.security_headers.into()),
        ("compress".to_owned(), compress(&route.compress)),
        ("websocket".to_owned(), route.websocket.into()),
        ("close_on_expiry".to_owned(), route.close_on_expiry.into()),
        ("access_log".to_owned(), route.access_log.into()),
        ("enabled".to_owned(), route.enabled.into()),
    ]);
    let (fallback, split, mirror) = (&route.fallback, &route.split, &route.mirror);
    for (key, value) in forwarding::effective(fallback.as_ref(), split.as_ref(), mirror.as_ref()) {
        all.insert(key.to_owned(), value);
    }
    if let Some(cors) = &route.cors {
        let names =
            |names: &[http::HeaderName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let cors = json!({
            "origins": cors.origins.as_ref().map_or_else(|| json!("*"), |origins| origins.iter().map(|origin| text_of("origins", origin)).collect()),
            "methods": cors.methods.iter().map(http::Method::as_str).collect::<Vec<_>>(),
            "headers": unless_empty(json!(names(&cors.headers))),
            "expose": unless_empty(json!(names(&cors.expose))),
            "credentials": cors.credentials,
            "max_age": format_duration(cors.max_age),
        });
        all.insert("cors".into(), cors);
    }
    Value::Object(all)
}

fn compress(codings: &[Coding]) -> Value {
    if codings.is_empty() {
        return false.into();
    }
    codings.iter().map(|coding| coding.name()).collect()
}

fn auth_of(auth: &Auth) -> Value {
    match auth {
        Auth::None => json!("none"),
        Auth::AnyOf { methods, optional } => {
            json!({ "any": methods.iter().map(auth_method).collect::<Vec<_>>(), "optional": optional })
        }
    }
}

fn auth_method(auth_method: &AuthMethod) -> Value {
    let names = match auth_method.credential.names() {
        [name] => json!(name),
        names => json!(names),
    };
    let claims = auth_method.claims.iter().map(|claim| {
        let expected = match &claim.expected {
            _ if redact::is_secret(&claim.path) => json!(HIDDEN),
            Expected::OneOf(values) => json!(values),
            Expected::Contains(value) => json!({ "contains": value }),
        };
        (claim.path.to_string(), expected)
    });
    let identity = auth_method
        .identity_headers
        .iter()
        .map(|header| (header.name.to_string(), json!(header.claim)));
    json!({
        auth_method.credential.key(): names,
        "scopes": unless_empty(auth_method.scopes.iter().collect()),
        "any_scope": unless_empty(auth_method.any_scope.iter().collect()),
        "audience": unless_empty(json!(auth_method.audience)),
        "claims": unless_empty(Value::Object(claims.collect())),
        "clients": unless_empty(json!(auth_method.clients)),
        "acr": auth_method.level.as_ref().map(|level| unless_empty(level.acr.iter().map(|acr| &**acr).collect())),
        "max_age": auth_method.level.as_ref().and_then(|level| level.max_age).map(format_duration),
        "dpop": auth_method.bound_to == Some(TokenBinding::Key),
        "mtls": auth_method.bound_to == Some(TokenBinding::Certificate),
        "max_staleness": auth_method.max_staleness.map(format_duration),
        "identity_headers": Value::Object(identity.collect()),
        "token_from": match &auth_method.token_from {
            TokenSource::Authorization => Value::Null,
            TokenSource::Header(name) => json!({ "header": name.as_str() }),
            TokenSource::Cookie(name) => json!({ "cookie": name }),
        },
        "identity_token": auth_method.identity_token,
        "forward_token": match auth_method.forward_token {
            ForwardToken::No => json!(false),
            ForwardToken::Presented => json!(true),
            ForwardToken::Signed => json!("jwt"),
        },
    })
}

fn rewrite_of(rewrite: &Rewrite) -> Value {
    match rewrite {
        Rewrite::Keep => Value::Null,
        Rewrite::Prefix { strip, add } => {
            let [strip, add] = [strip, add].map(|prefix| (!prefix.is_empty()).then_some(prefix));
            json!({ "strip_prefix": strip, "add_prefix": add })
        }
        Rewrite::Path(parts) => {
            let parts = parts.iter().map(|part| match part {
                PathRewrite::Text(text) => text.to_string(),
                PathRewrite::Parameter(name) => format!("{{{name}}}"),
                PathRewrite::Rest => "{**}".to_owned(),
            });
            json!({ "path": parts.collect::<String>() })
        }
    }
}

fn edits_of(edits: &HeaderEdits) -> Value {
    let template = |Template(pieces): &Template| {
        let pieces = pieces.iter().map(|piece| match piece {
            TemplatePart::Text(text) => text.to_string(),
            TemplatePart::Claim(path) => format!("{{claim:{path}}}"),
            TemplatePart::ClientIp => "{client_ip}".to_owned(),
            TemplatePart::RequestId => "{request_id}".to_owned(),
        });
        pieces.collect::<String>()
    };
    let named = |all: &[(http::HeaderName, Template)]| {
        all.iter()
            .map(|(name, value)| (name.to_string(), json!(shown(name.as_str(), &template(value)))))
            .collect::<Map<_, _>>()
    };
    json!({
        "set": unless_empty(Value::Object(named(&edits.set))),
        "add": unless_empty(Value::Object(named(&edits.add))),
        "remove": unless_empty(edits.remove.iter().map(ToString::to_string).collect()),
    })
}

fn text_of(name: &str, value: &http::HeaderValue) -> Value {
    json!(shown(name, value.to_str().unwrap_or_default()))
}

/// Returns a share as a percentage: in the shortest form that reads as the same share.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let mut rounded = (0..=15).map(|places| format!("{percent:.places$}"));
    let is_same = |text: &String| {
        text.parse::<f64>().is_ok_and(|number| (number / 100.0).to_bits() == share.to_bits())
    };
    format!("{}%", rounded.find(is_same).unwrap_or_else(|| percent.to_string()))
}

/// The sections, in the order of the file.
const SECTIONS: [&str; 13] = [
    "version",
    "listen",
    "server",
    "admin",
    "issuers",
    "sessions",
    "upstreams",
    "limits",
    "metering",
    "redis",
    "routes",
    "logging",
    "metrics",
];
