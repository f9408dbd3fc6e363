//! The issuers of the snapshot being served, as the operator names them.

use std::sync::Arc;

use crate::base::secret::Secret;
use crate::gateway::Snapshot;
use crate::issuer::Issuer;
use crate::token::IssuerVerifier;

impl Snapshot {
    /// Returns the issuers that routes use, and whether each has responded since the start.
    pub fn issuers(&self) -> impl Iterator<Item = (&str, bool)> {
        self.all_issuers().map(|issuer| (&**issuer.name(), issuer.has_responded()))
    }

    /// Returns the names of the issuers with this name in the configuration, or this `iss`. One tenant of an issuer is
    /// named by its `iss`.
    pub fn issuers_named(&self, name: &str) -> impl Iterator<Item = Arc<str>> {
        self.all_issuers().filter_map(move |issuer| {
            let settings = issuer.settings();
            let is_name = **issuer.name() == *name;
            let is_tenant = !is_name && !settings.tenants.is_empty();
            (is_name || settings.is_named(name))
                .then(|| if is_tenant { Arc::from(name) } else { Arc::clone(issuer.name()) })
        })
    }

    /// Returns the namespaces of principals (`Principal::namespace`) of the issuers or of the tenant called `name`, of
    /// all issuers without one.
    pub fn namespaces(&self, name: Option<&str>) -> Vec<Box<str>> {
        let of = |verifier: &Arc<IssuerVerifier>| -> Vec<Box<str>> {
            let settings = verifier.issuer().settings();
            let Some(issuer) = &verifier.rules().namespace else {
                let is_named =
                    name.is_none_or(|name| *settings.name == *name || settings.is_named(name));
                return is_named.then(|| (&*settings.name).into()).into_iter().collect();
            };
            let all = || settings.identifiers().map(Box::from).chain([Box::from(&**issuer)]);
            match name {
                Some(name) if *settings.name != *name => {
                    all().filter(|iss| **iss == *name).collect()
                }
                _ => all().collect(),
            }
        };
        let mut namespaces: Vec<_> = self.issuer_verifiers.iter().flat_map(of).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        namespaces
    }

    /// Returns the signed tokens inside `token`, if it is encrypted for keys of issuers. Unverified.
    pub(crate) fn open_token(&self, token: &str) -> Vec<Secret<String>> {
        self.issuer_verifiers.iter().filter_map(|verifier| verifier.open(token)).collect()
    }

    fn all_issuers(&self) -> impl Iterator<Item = &Arc<Issuer>> {
        self.issuer_verifiers.iter().map(|verifier| verifier.issuer())
    }
}
