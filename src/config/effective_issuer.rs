//! The effective configuration of an issuer, and of the gateway's clients there.

use core::time::Duration;

use serde_json::{Value, json};

use super::Issuer;
use super::de::units::{Keyword, format_duration};
use super::redact::shown;
use super::yaml_writer::unless_empty;
use crate::base::secret::HIDDEN;
use crate::issuer::{Client, ClientAuth, Discovery, Endpoints, OnUnavailable, ResourceIndicator};
use crate::limit::Unit;
use crate::token::Audience;

/// Returns an issuer under the keys of the file.
pub(super) fn issuer_of(issuer: &Issuer) -> Value {
    let Issuer { settings, rules, hmac_secret_encoding } = issuer;
    let Endpoints {
        authorization,
        token,
        introspection,
        revocation,
        end_session,
        userinfo,
        jwks,
        ..
    } = &settings.endpoints;
    json!({
        "issuer": settings.issuer,
        "tenants": unless_empty(json!(settings.tenants)),
        "discovery": match &settings.discovery {
            Discovery::Auto => "auto".to_owned(),
            Discovery::Off => "off".to_owned(),
            Discovery::At(url) => shown("discovery", url.as_str()).to_owned(),
        },
        "audience": match &rules.audience { Audience::OneOf(all) => json!(all), Audience::Any => Value::Null },
        "audience_claim": unless_empty(json!(rules.audience_claim)),
        "algorithms": rules.algorithms.iter().map(|algorithm| algorithm.name()).collect::<Vec<_>>(),
        "hmac_secret": settings.hmac_secret.as_ref().map(|_| HIDDEN),
        "hmac_secret_encoding": settings.hmac_secret.as_ref().and(hmac_secret_encoding.word()),
        "token_types": rules.token_types,
        "leeway": format_duration(rules.leeway),
        "required_claims": rules.required_claims,
        "max_token_age": format_duration(rules.max_token_age.unwrap_or_default()),
        "jwks_refresh": format_duration(settings.jwks_refresh),
        "jwks_min_interval": format_duration(settings.jwks_min_interval),
        "scope_claim": rules.scope_claim,
        "max_token_size": format!("{}B", rules.max_token_size),
        "client_claim": rules.client_claim,
        "client": settings.client.as_ref().map(client_of),
        "assertion_audience": settings.assertion_audience.word(),
        "endpoints": {
            "authorization": url(authorization.as_ref()), "token": url(token.as_ref()), "introspection": url(introspection.as_ref()),
            "revocation": url(revocation.as_ref()), "end_session": url(end_session.as_ref()), "userinfo": url(userinfo.as_ref()), "jwks": url(jwks.as_ref()),
        },
        "introspection": {
            // The file may not have it without a client.
            "authorization": settings.client.as_ref().and_then(|_| settings.introspection.authorization.word()),
            "cache": format_duration(settings.introspection.cache),
            "negative_cache": format_duration(settings.introspection.negative_cache),
            "max_entries": settings.introspection.max_entries,
            "accept_without_audience": settings.introspection.accept_without_audience,
            "signed_answer": settings.introspection.signed_answer.word(),
        },
        "password_grant": {
            "scopes": settings.password_grant.scopes.iter().collect::<Vec<_>>(),
            "resource": settings.password_grant.resource.as_ref().map(ResourceIndicator::as_str),
            "cache": format_duration(settings.password_grant.cache),
            "failures": failures(settings.password_grant.failures),
        },
        "decryption": rules.decryption.as_ref().map(|ring| json!({
            "algorithms": ring.algorithms.iter().map(|algorithm| algorithm.name()).collect::<Vec<_>>(),
            "content_algorithms": ring.encryptions.iter().map(|encryption| encryption.name()).collect::<Vec<_>>(),
        })),
        "jwt_cache": { "max_entries": rules.jwt_cache_max_entries },
        "timeout": format_duration(settings.timeout),
        "max_concurrent": settings.max_concurrent,
        "proxy": settings.proxy.as_ref().map(|url| url.origin().ascii_serialization()),
        "on_unavailable": match settings.on_unavailable { OnUnavailable::Deny => "deny", OnUnavailable::Stale(_) => "stale" },
        "stale_for": match settings.on_unavailable { OnUnavailable::Deny => "0s".to_owned(), OnUnavailable::Stale(time) => format_duration(time) },
        "revocation_check": if rules.revocation_check { "introspection" } else { "off" },
    })
}

/// Returns the gateway's client at an issuer.
pub(super) fn client_of(client: &Client) -> Value {
    let secret = match client.auth {
        ClientAuth::Basic(_) | ClientAuth::Post(_) | ClientAuth::SecretJwt(_) => Some(HIDDEN),
        ClientAuth::PrivateKeyJwt(_) | ClientAuth::TlsClientAuth { .. } | ClientAuth::None => None,
    };
    let kid = match &client.auth {
        ClientAuth::PrivateKeyJwt(key) => key.kid(),
        _ => None,
    };
    json!({ "id": client.id, "auth": client.auth.name(), "secret": secret, "kid": kid })
}

fn url(url: Option<&url::Url>) -> Option<&str> {
    url.map(|url| shown("url", url.as_str()))
}

/// Returns a number of failures in a time, as the file writes it.
pub(super) fn failures((count, window): (u32, Duration)) -> String {
    let units = [Unit::Second, Unit::Minute, Unit::Hour, Unit::Day, Unit::Week, Unit::Month];
    let unit = units.into_iter().find(|unit| unit.secs() == window.as_secs());
    format!("{count}/{}", unit.unwrap_or(Unit::Second))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::base::clock::Timestamp;
    use crate::config::{self, Config, Environment};

    #[test]
    fn an_effective_configuration_without_secrets_loads_again() {
        let load = |text: &str| -> Config {
            let now = Timestamp::from_secs(1_800_000_000);
            let loaded = config::load_text("f", text, Path::new(""), &Environment::default(), now);
            loaded.unwrap_or_else(|faults| panic!("{faults}\n{text}")).0
        };
        let config = load(
            "\
version: 1
listen: 127.0.0.1:8080
issuers:
  plain: { issuer: https://a.example, audience: a }
  public: { issuer: https://b.example, audience: a, client: { id: gateway, auth: none } }
upstreams: { shop: { targets: https://127.0.0.1:1, tls: { server_name: shop.example } } }
routes:
  - { id: a, path: /a, upstream: shop, auth: { jwt: [plain, public] } }
",
        );

        let written = config.effective_yaml();

        assert!(written.contains("shop.example"), "{written}");
        assert_eq!(load(&written).effective(), config.effective());
    }
}
