//! Checks `issuer`: the identifier in `iss` (RFC 7519 §4.1.1), which must be a URL only where the gateway fetches
//! metadata from it.

use url::Url;

use super::Check;
use super::server::is_private;
use crate::config::de::field::Spanned;
use crate::config::de::units::InvalidValue;
use crate::config::fault::Code;
use crate::config::file::issuers as file;
use crate::issuer::tenant_template::placeholder;
use crate::issuer::{Discovery, Settings};

impl Check<'_> {
    /// Checks the name of an issuer, as an address if its metadata are looked for there. An issuer that has no
    /// address, with its endpoints or keys written out, needs no `discovery: off`.
    pub(super) fn issuer_name(
        &mut self,
        at: &Spanned<String>,
        keys: &Spanned<file::Issuer>,
        settings: &mut Settings,
    ) {
        if at.value.is_empty() || at.value.chars().any(|c| c.is_whitespace() || c.is_control()) {
            let help = "write the `iss` of its tokens, such as https://auth.example.com";
            self.wrong(at, InvalidValue::new("is not an issuer", help));
            return;
        }
        if settings.discovery != Discovery::Auto {
            return;
        }
        let url = Url::parse(&settings.identifier()).ok();
        let address = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let is_callable = address.as_ref().is_some_and(|url| {
            is_private(url) && url.query().is_none() && url.fragment().is_none()
        });
        if is_callable {
            return;
        }
        if keys.discovery.is_absent() && has_something_written_out(keys) {
            settings.discovery = Discovery::Off;
            return;
        }
        match address {
            Some(url) if url.query().is_some() || url.fragment().is_some() => {
                let help = "an issuer has neither `?` nor `#` (RFC 8414 §2)";
                self.wrong(at, InvalidValue::new("is not an issuer", help));
            }
            Some(_) => {
                let message = "keys and secrets would travel over http, where others on the network can read and change them";
                let help = "write https://; http is for loopback alone. If tokens say this, write `discovery: off` and `jwks_uri`: then it is only a name";
                self.fault(Code::C109, at.at, message, help);
            }
            None => {
                let what = format!(
                    "{} is a name, not a URL: metadata cannot be discovered from it",
                    at.shown()
                );
                let help = match at.value.split_once('/').map_or(&*at.value, |(host, _)| host) {
                    host if host.contains('.') && !host.contains(':') => format!(
                        "write https://{} if tokens say that, or `discovery: off` and `jwks_uri`",
                        at.value
                    ),
                    _ => "write `discovery: off`, and `jwks_uri` or `jwks_file`".to_owned(),
                };
                self.fault(Code::C103, at.at, what, help);
            }
        }
    }

    /// Returns the tenants whose tokens are accepted.
    pub(super) fn tenants(
        &mut self,
        issuer: &Spanned<String>,
        keys: &Spanned<file::Issuer>,
    ) -> Box<[Box<str>]> {
        let template = placeholder(&issuer.value);
        let Some(tenants) = keys.tenants.get() else {
            if let Some(template) = template.filter(|_| keys.tenants.is_absent()) {
                let message = format!(
                    "{} is a template: tokens say the name of a tenant in place of `{template}`",
                    issuer.shown()
                );
                let help = "list the tenants whose tokens you accept: tenants: [id, …]; tokens of all tenants are never accepted";
                self.fault(Code::C105, issuer.at, message, help);
            }
            return Box::default();
        };
        if template.is_none() {
            let message = format!("{} has no placeholder for a tenant", issuer.shown());
            let help = "write one in braces, such as https://login.microsoftonline.com/{tenantid}/v2.0, or remove `tenants`";
            self.fault(Code::C106, tenants.key_at, message, help);
            return Box::default();
        }
        let rest = template.map(|template| issuer.value.replacen(template, "", 1));
        if rest.is_some_and(|rest| rest.contains(['{', '}'])) {
            let help = "write one placeholder: the tenant";
            self.wrong(issuer, InvalidValue::new("has more than one placeholder", help));
        }
        for tenant in &tenants.items {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
            let is_dots = tenant.value.chars().all(|c| c == '.');
            if is_dots || !tenant.value.chars().all(is_name) {
                let help = "write the tenant id as it is in the tokens, such as 9188040d-6c67-4c5b-b112-36a304b66dad";
                self.wrong(tenant, InvalidValue::new("is not a valid tenant identifier", help));
            }
        }
        tenants.items.iter().map(|tenant| tenant.value.as_str().into()).collect()
    }
}

/// Whether something of the issuer is written out that is otherwise discovered.
fn has_something_written_out(keys: &file::Issuer) -> bool {
    !(keys.jwks_uri.is_absent()
        && keys.jwks_file.is_absent()
        && keys.hmac_secret.is_absent()
        && keys.endpoints.is_absent())
}
