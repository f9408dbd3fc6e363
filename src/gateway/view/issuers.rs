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

    /// Returns the names by which revocations find the tokens of the issuers with this name in the configuration, or this
    /// `iss`: the name, and each `iss` that is meant.
    pub fn issuers_named(&self, name: &str) -> Vec<Arc<str>> {
        let of = |verifier: &Arc<IssuerVerifier>| -> Vec<Arc<str>> {
            let settings = verifier.issuer().settings();
            let own = || Arc::clone(&settings.name);
            match (*settings.name == *name, settings.is_named(name), &verifier.rules().namespace) {
                (false, false, _) => vec![],
                // The `iss` outlives another name in the configuration, and tokens may be known by the name alone.
                (_, _, None) => vec![own(), Arc::clone(&settings.issuer)],
                // Another entry with this `iss` has the same users, and their tokens end as well.
                (true, ..) => settings.identifiers().map(Arc::from).chain([own()]).collect(),
                (false, true, Some(_)) => vec![name.into()],
            }
        };
        let mut names: Vec<_> = self.issuer_verifiers.iter().flat_map(of).collect();
        names.sort_unstable();
        names.dedup();
        names
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
