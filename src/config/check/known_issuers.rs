//! Recognizes well-known products by their `issuer`, and warns of settings that their tokens cannot satisfy.
//! `docs/authorization-servers.md` has a configuration for each.

use super::Check;
use super::issuer_requirements::Used;
use crate::config::de::field::{Field, Spanned};
use crate::config::fault::Code;
use crate::config::file::issuers::{self as file, RevocationCheck};

impl Check<'_> {
    /// Warns of the peculiarities of a known issuer, and refuses an `iss` that none of its tokens has.
    pub(super) fn peculiarities(&mut self, keys: &Spanned<file::Issuer>, used: &Used) {
        let Some(issuer) = keys.issuer.get() else { return };
        let Some(address) = Address::of(&issuer.value) else { return };
        if address.is_entra() {
            self.entra(issuer, &address);
            self.entra_tenants(keys);
        }
        if let Some((message, help)) = address.mismatch().filter(|_| keys.discovery.is_absent()) {
            self.fault(Code::C110, issuer.at, message, help);
        }
        // A session takes its access token for another service's without this, and the ID token has no scopes.
        if (used.jwt || used.scopes) && address.is_cognito() && keys.audience_claim.is_absent() {
            let message =
                "access tokens of Cognito have no `aud`: `client_id` says whom they were issued to";
            let help =
                "write audience_claim: client_id, and the ids of your app clients under audience";
            self.fault(Code::C110, issuer.at, message, help);
        }
        if used.jwt {
            if address.is_kubernetes() && keys.jwks_file.is_absent() && keys.ca_file.is_absent() {
                let message = "a cluster publishes these keys under its own authority, and to those with a token only";
                let help = "write jwks_file: the output of `kubectl get --raw /openid/v1/jwks`";
                self.fault(Code::C110, issuer.at, message, help);
            }
            if address.is_keycloak()
                && let Some(audience) = keys.audience.get()
                && let Some(at) = audience.items.iter().find(|at| at.value == "account")
            {
                let message = "tokens of every client of the realm say `account`";
                let help = "add an audience mapper to the client, and write its audience";
                self.fault(Code::C110, at.at, message, help);
            }
        }
        let takes_id_tokens = keys.audience.get().is_some_and(|audience| {
            audience.items.iter().any(|at| at.value.ends_with(".apps.googleusercontent.com"))
        });
        if address.host == "accounts.google.com"
            && (used.introspection || (used.jwt && !takes_id_tokens))
        {
            let message = "access tokens of Google are opaque, and it has no introspection: only ID tokens can be verified";
            let help = "let people log in by a session, or take ID tokens: `jwt`, and the client's id under audience";
            self.fault(Code::C110, issuer.at, message, help);
        }
        let asks = used.introspection
            || keys
                .revocation_check
                .get()
                .is_some_and(|at| at.value.0 == RevocationCheck::Introspection);
        let own = keys.endpoints.get().map(|endpoints| &endpoints.introspection);
        if let Some(product) = address.product_without_introspection().filter(|_| asks)
            && own.is_none_or(Field::is_absent)
        {
            let message =
                format!("{product} has no introspection: only signed tokens can be verified");
            let help = "write jwt in place of introspection and bearer, and no revocation_check";
            self.fault(Code::C110, issuer.at, message, help);
        }
        if let Some((product, claim)) = address.client_claim().filter(|_| used.clients)
            && keys.client_claim.is_absent()
        {
            let message = format!(
                "tokens of {product} have neither `client_id` nor `azp`, which `clients` of routes with this issuer compare"
            );
            self.fault(Code::C110, issuer.at, message, format!("write client_claim: {claim}"));
        }
        if let Some((product, claim)) = address.scope_claim().filter(|_| used.scopes)
            && keys.scope_claim.is_absent()
        {
            let message = format!(
                "tokens of {product} have no `scope`, which routes with this issuer require"
            );
            self.fault(Code::C110, issuer.at, message, format!("write scope_claim: {claim}"));
        }
    }

    /// Entra ID: every token names its tenant by its id.
    fn entra(&mut self, issuer: &Spanned<String>, address: &Address<'_>) {
        let tenant =
            address.path.split('/').find(|segment| !segment.is_empty()).unwrap_or_default();
        let shared = ["common", "organizations", "consumers"];
        if shared.contains(&tenant) {
            let message = format!("no token says `{tenant}`: Entra ID names the tenant in `iss`");
            let help = "write issuer: https://login.microsoftonline.com/{tenantid}/v2.0 and tenants: [id, …]";
            self.fault(Code::C106, issuer.at, message, help);
        } else if !address.path.trim_end_matches('/').ends_with("/v2.0") {
            let message = "no token of Entra ID says this: those of version 2 end with /v2.0";
            let help = "write https://login.microsoftonline.com/<tenant id>/v2.0; for version 1, issuer: https://sts.windows.net/<tenant id>/";
            self.fault(Code::C110, issuer.at, message, help);
        } else if address.path.ends_with('/') {
            let message = "tokens of Entra ID have no slash after /v2.0";
            self.fault(Code::C110, issuer.at, message, "remove the slash");
        } else if tenant.contains('.') {
            let message = "tokens of Entra ID name the tenant by its id, not by its domain";
            let help = "write the id in its place, from the tenant's overview";
            self.fault(Code::C110, issuer.at, message, help);
        }
    }

    /// Warns of tenants of Entra ID that are not spelled as its tokens spell them.
    fn entra_tenants(&mut self, keys: &Spanned<file::Issuer>) {
        for tenant in keys.tenants.get().into_iter().flat_map(|list| &list.items) {
            if tenant.value.contains('.') {
                let message = "tokens of Entra ID name the tenant by its id, not by its domain";
                self.fault(
                    Code::C110,
                    tenant.at,
                    message,
                    "write the id from the tenant's overview",
                );
            } else if tenant.value.contains(|c: char| c.is_ascii_uppercase()) {
                let message = "tokens of Entra ID name the tenant in lower case";
                let help = format!("write {}", tenant.value.to_ascii_lowercase());
                self.fault(Code::C110, tenant.at, message, help);
            }
        }
    }
}

/// An issuer's host and path.
pub(super) struct Address<'a> {
    pub(super) host: &'a str,
    path: &'a str,
}

impl<'a> Address<'a> {
    pub(super) fn of(issuer: &'a str) -> Option<Self> {
        let rest = issuer.strip_prefix("https://")?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Some(Self { host, path })
    }

    fn is_within(&self, domains: &[&str]) -> bool {
        domains.iter().any(|domain| {
            self.host
                .strip_suffix(domain)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    }

    pub(super) fn is_entra(&self) -> bool {
        [
            "login.microsoftonline.com",
            "login.microsoftonline.us",
            "login.partner.microsoftonline.cn",
        ]
        .contains(&self.host)
    }

    fn is_entra_v1(&self) -> bool {
        self.host == "sts.windows.net"
    }

    pub(super) fn is_cognito(&self) -> bool {
        self.host.starts_with("cognito-idp.")
            && self.is_within(&["amazonaws.com", "amazonaws.com.cn"])
    }

    fn is_kubernetes(&self) -> bool {
        self.host.starts_with("kubernetes.default.svc")
    }

    fn is_keycloak(&self) -> bool {
        self.path.contains("/realms/") && !self.path.contains("/oauth2/")
    }

    fn is_okta(&self) -> bool {
        self.is_within(&["okta.com", "oktapreview.com", "okta-emea.com"])
    }

    /// Whether only its own API can read its access tokens, unless an audience was requested.
    pub(super) fn has_opaque_access_tokens(&self) -> bool {
        let hosts = ["accounts.google.com", "appleid.apple.com", "github.com"];
        hosts.contains(&self.host) || self.is_within(&["auth0.com"])
    }

    /// Whether every one of its token responses has the granted `scope`.
    pub(super) fn names_granted_scopes(&self) -> bool {
        ["accounts.google.com", "github.com"].contains(&self.host)
    }

    /// Returns the product, if none of its tokens can be introspected.
    fn product_without_introspection(&self) -> Option<&'static str> {
        if self.is_cognito() {
            Some("Cognito")
        } else if self.is_entra() || self.is_entra_v1() {
            Some("Entra ID")
        } else if self.is_within(&["auth0.com"]) {
            Some("Auth0")
        } else {
            match self.host {
                "securetoken.google.com" => Some("Firebase"),
                "token.actions.githubusercontent.com" => Some("GitHub Actions"),
                _ => None,
            }
        }
    }

    /// Returns the product, if its tokens are for machines or come from its own library: it has no page for logins.
    pub(super) fn product_without_logins(&self) -> Option<&'static str> {
        match self.host {
            "securetoken.google.com" => Some("Firebase"),
            "token.actions.githubusercontent.com" => Some("GitHub Actions"),
            _ => self.is_kubernetes().then_some("Kubernetes"),
        }
    }

    /// Returns the product and the claim that names the client, if that is neither `client_id` nor `azp`.
    fn client_claim(&self) -> Option<(&'static str, &'static str)> {
        if self.is_okta() {
            Some(("Okta", "cid"))
        } else if self.is_entra_v1() {
            Some(("version 1 of Entra ID", "appid"))
        } else {
            None
        }
    }

    /// Returns why no token says this name, and what to write.
    fn mismatch(&self) -> Option<(String, String)> {
        if self.is_within(&["auth0.com"]) && self.path.is_empty() {
            let message = "tokens of Auth0 end their `iss` with a slash";
            return Some((message.into(), format!("write https://{}/", self.host)));
        }
        if self.is_okta() && self.path.trim_end_matches('/').is_empty() {
            let message = "access tokens of Okta's organization server are for Okta alone and cannot be verified";
            let help = format!(
                "write https://{}/oauth2/default, or another authorization server of yours",
                self.host
            );
            return Some((message.into(), help));
        }
        if self.is_within(&["supabase.co"]) && self.path != "/auth/v1" {
            let message = "tokens of Supabase say its address with /auth/v1";
            return Some((message.into(), format!("write https://{}/auth/v1", self.host)));
        }
        if self.host == "accounts.google.com" && !self.path.is_empty() {
            let message = "tokens of Google say https://accounts.google.com";
            return Some((message.into(), "remove the rest".into()));
        }
        None
    }

    /// Returns the product and the claim that has the scopes or roles, if that is not `scope`.
    fn scope_claim(&self) -> Option<(&'static str, &'static str)> {
        if self.is_entra() || self.is_entra_v1() {
            Some(("Entra ID", "[scp, roles]"))
        } else if self.is_okta() {
            Some(("Okta", "scp"))
        } else if self.is_within(&["oryapis.com"]) {
            Some(("Ory", "scp"))
        } else if self.is_within(&["zitadel.cloud"]) {
            Some(("Zitadel", "urn:zitadel:iam:org:project:roles"))
        } else {
            None
        }
    }
}
