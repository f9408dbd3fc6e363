//! Authorization server metadata (RFC 8414, OpenID Connect Discovery).

use serde_json::{Map, Value};
use url::Url;

use crate::base::strict_json;
use crate::issuer::settings::{Endpoints, Settings};

/// An issuer's endpoints and capabilities.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Metadata {
    /// Its endpoints: those of the document, each replaced by a configured one.
    pub endpoints: Endpoints,
    /// Whether it sends `iss` in the authorization response (RFC 9207 §3): a callback without `iss` is then refused.
    pub sends_iss: bool,
    /// Whether it accepts only pushed authorization requests (RFC 9126 §5).
    pub requires_par: bool,
    /// Whether it supports OpenID Connect Back-Channel Logout (§2.1 there).
    pub supports_backchannel_logout: bool,
    /// Whether it accepts only signed authorization requests (RFC 9101 §10.5).
    pub requires_signed_request: bool,
    /// `token_endpoint_auth_signing_alg_values_supported`: what may sign client assertions. Empty: not announced.
    pub assertion_algorithms: Box<[Box<str>]>,
    /// `request_object_signing_alg_values_supported`: what may sign authorization requests. Empty: not announced.
    pub request_algorithms: Box<[Box<str>]>,
}

impl Metadata {
    /// Returns the configured part.
    pub(in crate::issuer) fn configured(settings: &Settings) -> Self {
        Self { endpoints: settings.endpoints.clone(), ..Self::default() }
    }

    /// Reads a metadata document that was fetched from `source`.
    ///
    /// With `mutual_tls` the endpoints are those for clients with a
    /// certificate, if the document has such (RFC 8705 §5).
    ///
    /// # Errors
    ///
    /// See [`BadMetadata`].
    pub(in crate::issuer) fn parse(
        text: &[u8],
        source: &Url,
        settings: &Settings,
        mutual_tls: bool,
    ) -> Result<Self, BadMetadata> {
        let document = strict_json::parse_object(text).map_err(|_| BadMetadata::Malformed)?;
        let named = document.get("issuer").and_then(Value::as_str);
        // The document of all tenants names the template itself.
        if !named.is_some_and(|named| *named == *settings.issuer || settings.is_named(named)) {
            let named = named.unwrap_or_default().chars().take(MAX_REPORTED_CHARS).collect();
            return Err(BadMetadata::Issuer { named });
        }
        // Metadata from a loopback address, over http, may name endpoints there; the issuer is only a name.
        let plain_http = source.scheme() == "http";
        let read = |members: &Map<String, Value>, name: &'static str| match members.get(name) {
            None | Some(Value::Null) => Ok(None),
            // Some servers write `null` for absent endpoints.
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(value) => match endpoint(value, plain_http) {
                Some(url) => Ok(Some(url)),
                None if name == JWKS_URI => Err(BadMetadata::Endpoint { name }),
                None => {
                    // The rest of the document is good; what needs this endpoint says that it is not known.
                    let issuer = &*settings.name;
                    tracing::warn!(
                        issuer,
                        member = name,
                        "Ignored a member of the issuer's metadata: it is not an https URL."
                    );
                    Ok(None)
                }
            },
        };
        let aliases = match document.get("mtls_endpoint_aliases") {
            Some(Value::Object(aliases)) if mutual_tls => Some(aliases),
            _ => None,
        };
        let find = |configured: &Option<Url>, name: &'static str| match (configured, aliases) {
            (Some(url), _) => Ok(Some(url.clone())),
            (None, Some(aliases)) if aliases.contains_key(name) => read(aliases, name),
            (None, _) => read(&document, name),
        };
        let configured = &settings.endpoints;
        let is_true = |name| document.get(name) == Some(&Value::Bool(true));
        let texts = |name| {
            let listed = document.get(name).and_then(Value::as_array).into_iter().flatten();
            listed.filter_map(Value::as_str).map(Box::from).collect::<Box<[Box<str>]>>()
        };
        Ok(Self {
            endpoints: Endpoints {
                authorization: find(&configured.authorization, "authorization_endpoint")?,
                token: find(&configured.token, "token_endpoint")?,
                introspection: find(&configured.introspection, "introspection_endpoint")?,
                revocation: find(&configured.revocation, "revocation_endpoint")?,
                end_session: find(&configured.end_session, "end_session_endpoint")?,
                pushed_authorization: find(
                    &configured.pushed_authorization,
                    "pushed_authorization_request_endpoint",
                )?,
                userinfo: find(&configured.userinfo, "userinfo_endpoint")?,
                jwks: find(&configured.jwks, JWKS_URI)?,
            },
            sends_iss: is_true("authorization_response_iss_parameter_supported"),
            requires_par: is_true("require_pushed_authorization_requests"),
            supports_backchannel_logout: is_true("backchannel_logout_supported"),
            requires_signed_request: is_true("require_signed_request_object"),
            assertion_algorithms: texts("token_endpoint_auth_signing_alg_values_supported"),
            request_algorithms: texts("request_object_signing_alg_values_supported"),
        })
    }

    /// Adds members that only `other` has: another metadata document of the same issuer.
    pub(in crate::issuer) fn completed_by(self, other: Self) -> Self {
        let (ours, theirs) = (self.endpoints, other.endpoints);
        Self {
            endpoints: Endpoints {
                authorization: ours.authorization.or(theirs.authorization),
                token: ours.token.or(theirs.token),
                introspection: ours.introspection.or(theirs.introspection),
                revocation: ours.revocation.or(theirs.revocation),
                end_session: ours.end_session.or(theirs.end_session),
                pushed_authorization: ours.pushed_authorization.or(theirs.pushed_authorization),
                userinfo: ours.userinfo.or(theirs.userinfo),
                jwks: ours.jwks.or(theirs.jwks),
            },
            sends_iss: self.sends_iss || other.sends_iss,
            requires_par: self.requires_par || other.requires_par,
            supports_backchannel_logout: self.supports_backchannel_logout
                || other.supports_backchannel_logout,
            requires_signed_request: self.requires_signed_request || other.requires_signed_request,
            assertion_algorithms: if self.assertion_algorithms.is_empty() {
                other.assertion_algorithms
            } else {
                self.assertion_algorithms
            },
            request_algorithms: if self.request_algorithms.is_empty() {
                other.request_algorithms
            } else {
                self.request_algorithms
            },
        }
    }
}

/// Returns the well-known URLs of `issuer`'s metadata, in the order they are tried.
///
/// RFC 8414 §3.1 inserts its path between host and path; OpenID Connect Discovery
/// §4 appends one.
pub(in crate::issuer) fn well_known(issuer: &Url) -> [Url; 2] {
    let path = issuer.path().trim_end_matches('/');
    let at = |path: String| {
        let mut url = issuer.clone();
        url.set_path(&path);
        url.set_query(None);
        url.set_fragment(None);
        url
    };
    [
        at(format!("/.well-known/oauth-authorization-server{path}")),
        at(format!("{path}/.well-known/openid-configuration")),
    ]
}

/// The reason why a metadata document was refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(in crate::issuer) enum BadMetadata {
    /// Not one JSON object.
    #[error("the document is not a JSON object")]
    Malformed,
    /// `issuer` is not, byte for byte, the configured one: keys of another server verify nothing here (RFC 8414 §3.3).
    #[error(
        "the document names the issuer {named:?}, which is not, byte for byte, the configured one"
    )]
    Issuer {
        /// The issuer that it names; empty without one.
        named: String,
    },
    /// The address of the keys is not a URL, or not https although the issuer is.
    #[error("the document's `{name}` is not an https URL")]
    Endpoint {
        /// The member's name.
        name: &'static str,
    },
}

fn endpoint(value: &Value, plain_http: bool) -> Option<Url> {
    let url = Url::parse(value.as_str()?).ok()?;
    let encrypted = url.scheme() == "https" || (plain_http && url.scheme() == "http");
    (encrypted && url.host().is_some() && url.fragment().is_none()).then_some(url)
}

/// The one member without which a document is of no use to most of the gateway.
const JWKS_URI: &str = "jwks_uri";
/// Characters of a foreign issuer's identifier that are reported.
const MAX_REPORTED_CHARS: usize = 200;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ISSUER: &str = "https://auth.example.com";

    #[test]
    fn well_known_urls_are_tried_in_order() {
        let urls = |issuer| well_known(&Url::parse(issuer).unwrap()).map(String::from);

        assert_eq!(
            urls("https://auth.example.com"),
            [
                "https://auth.example.com/.well-known/oauth-authorization-server",
                "https://auth.example.com/.well-known/openid-configuration",
            ]
        );
        assert_eq!(
            urls("https://auth.example.com:8443/realms/main/"),
            [
                "https://auth.example.com:8443/.well-known/oauth-authorization-server/realms/main",
                "https://auth.example.com:8443/realms/main/.well-known/openid-configuration",
            ]
        );
    }

    #[test]
    fn only_a_document_that_names_the_configured_issuer_is_accepted() {
        for issuer in [
            json!("https://auth.example.com/"),
            json!("https://AUTH.example.com"),
            json!("https://evil.example.com"),
            json!(["https://auth.example.com"]),
            json!(null),
        ] {
            let document = json!({ "issuer": &issuer, "jwks_uri": "https://auth.example.com/k" });
            let named = issuer.as_str().unwrap_or_default().to_owned();
            assert_eq!(parse(&document), Err(BadMetadata::Issuer { named }), "{document}");
        }
    }

    #[test]
    fn a_document_of_many_tenants_names_the_template_or_one_of_them() {
        let mut settings = Settings::new("entra", "https://login.example.com/{tenantid}/v2.0");
        settings.tenants = ["a".into(), "b".into()].into();

        for issuer in ["{tenantid}", "a", "b"] {
            let issuer = format!("https://login.example.com/{issuer}/v2.0");
            assert!(parse_for(&settings, &json!({ "issuer": issuer })).is_ok(), "{issuer}");
        }
        let other = json!({ "issuer": "https://login.example.com/c/v2.0" });
        assert!(parse_for(&settings, &other).is_err());
    }

    #[test]
    fn an_issuer_that_is_only_called_http_makes_no_call_over_http() {
        let settings = Settings::new("main", "http://keycloak:8080/realms/main");
        let document = |jwks: &str| json!({ "issuer": &*settings.issuer, "jwks_uri": jwks });

        assert!(parse_for(&settings, &document("https://auth.example.com/k")).is_ok());
        assert!(parse_for(&settings, &document("http://keycloak:8080/k")).is_err());
    }

    #[test]
    fn a_configured_endpoint_overrides_the_document() {
        let mut settings = Settings::new("main", ISSUER);
        settings.endpoints.token = Some(url("https://other.example.com/token"));
        let document = document(json!({
            "token_endpoint": "https://auth.example.com/token",
            "jwks_uri": "https://keys.example.com/jwks",
        }));

        let metadata = parse_for(&settings, &document).unwrap();

        assert_eq!(metadata.endpoints.token, Some(url("https://other.example.com/token")));
        assert_eq!(metadata.endpoints.jwks, Some(url("https://keys.example.com/jwks")));
        assert_eq!(metadata.endpoints.introspection, None);
    }

    #[test]
    fn plain_http_endpoints_of_an_https_issuer_are_refused() {
        for bad in [json!("http://auth.example.com/k"), json!("/k"), json!(7), json!("file:///k")] {
            let document = document(json!({ "jwks_uri": bad }));
            let name = "jwks_uri";
            assert_eq!(parse(&document), Err(BadMetadata::Endpoint { name }), "{bad}");
        }
        for unusable in [json!("http://auth.example.com/k"), json!(7), json!("/revoke")] {
            let document = document(json!({
                "jwks_uri": "https://auth.example.com/k", "revocation_endpoint": unusable,
            }));
            let endpoints = parse(&document).unwrap().endpoints;
            assert_eq!((endpoints.revocation, endpoints.jwks.is_some()), (None, true));
        }
        for none in [json!(null), json!("")] {
            let document = document(json!({ "revocation_endpoint": none }));
            assert_eq!(parse(&document).unwrap().endpoints.revocation, None);
        }
        let local = Settings::new("dev", "http://127.0.0.1:9400");
        let text =
            json!({ "issuer": "http://127.0.0.1:9400", "jwks_uri": "http://127.0.0.1:9400/k" });
        assert!(
            Metadata::parse(
                text.to_string().as_bytes(),
                &url("http://127.0.0.1:9400/m"),
                &local,
                false
            )
            .is_ok()
        );
    }

    #[test]
    fn a_client_with_a_certificate_uses_the_mtls_endpoints() {
        let settings = Settings::new("main", ISSUER);
        let text = document(json!({
            "token_endpoint": "https://auth.example.com/token",
            "revocation_endpoint": "https://auth.example.com/revoke",
            "mtls_endpoint_aliases": { "token_endpoint": "https://mtls.example.com/token" },
        }))
        .to_string();

        let with =
            Metadata::parse(text.as_bytes(), &url(ISSUER), &settings, true).unwrap().endpoints;
        let without =
            Metadata::parse(text.as_bytes(), &url(ISSUER), &settings, false).unwrap().endpoints;

        assert_eq!(with.token, Some(url("https://mtls.example.com/token")));
        assert_eq!(with.revocation, Some(url("https://auth.example.com/revoke")));
        assert_eq!(without.token, Some(url("https://auth.example.com/token")));
    }

    fn parse(document: &Value) -> Result<Metadata, BadMetadata> {
        parse_for(&Settings::new("main", ISSUER), document)
    }

    fn parse_for(settings: &Settings, document: &Value) -> Result<Metadata, BadMetadata> {
        Metadata::parse(document.to_string().as_bytes(), &url(ISSUER), settings, false)
    }

    fn document(mut members: Value) -> Value {
        members["issuer"] = ISSUER.into();
        members
    }

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }
}
