//! Warns of issuers in a list of which an earlier one accepts every token first (C110).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Check;
use crate::config::Issuer;
use crate::config::auth::Credential;
use crate::config::fault::Code;
use crate::config::file::File;
use crate::config::route::Route;
use crate::token::{Audience, TokenUse};

impl Check<'_> {
    /// Warns of each issuer whose entry no token reaches in a list of `jwt`.
    pub(super) fn unused_issuers(
        &mut self,
        file: &File,
        issuers: &BTreeMap<Arc<str>, Issuer>,
        routes: &[Route],
    ) {
        let lists: BTreeSet<&[Arc<str>]> = routes
            .iter()
            .flat_map(|route| route.auth.methods())
            .filter_map(|method| match &method.credential {
                Credential::Token { accepts: TokenUse::Jwt, issuers } => Some(&**issuers),
                _ => None,
            })
            .collect();
        let covered: BTreeSet<(&Arc<str>, &Arc<str>)> = lists
            .into_iter()
            .flat_map(|list| {
                list.iter().enumerate().filter_map(move |(index, later)| {
                    let covers = |first: &&Arc<str>| accepts_all(&issuers[*first], &issuers[later]);
                    list[..index].iter().find(covers).map(|first| (later, first))
                })
            })
            .collect();
        let written = file.issuers.get().into_iter().flat_map(|map| map.value.iter());
        for (name, _) in written {
            for (_, first) in covered.iter().filter(|(later, _)| ***later == *name.value) {
                let message = format!(
                    "issuer {} is never used behind `{first}` in a list: that accepts all of its tokens",
                    name.shown()
                );
                let help = "keep one of them, or give each its own keys or audience";
                self.fault(Code::C110, name.at, message, help);
            }
        }
    }
}

/// Whether `first` accepts every signed token that `later` does: of the same `iss`, by the same keys, and by rules that
/// are no stricter.
fn accepts_all(first: &Issuer, later: &Issuer) -> bool {
    let (ours, theirs) = (&first.rules, &later.rules);
    let is_audience = match (&ours.audience, &theirs.audience) {
        (Audience::Any, _) => true,
        (ours, Audience::OneOf(names)) => names.iter().all(|name| ours.lists(name)),
        (_, Audience::Any) => false,
    };
    let is_young =
        ours.max_token_age.is_none_or(|ours| theirs.max_token_age.is_some_and(|it| it <= ours));
    later.settings.identifiers().all(|iss| first.settings.is_named(&iss))
        && first.settings.has_keys_of(&later.settings)
        && is_audience
        && is_young
        && ours.audience_claim == theirs.audience_claim
        && theirs.algorithms.iter().all(|it| ours.algorithms.contains(it))
        && theirs.token_types.iter().all(|it| ours.token_types.contains(it))
        && ours.required_claims.iter().all(|it| theirs.required_claims.contains(it))
        && ours.leeway >= theirs.leeway
        && ours.max_token_size >= theirs.max_token_size
        && ours.decryption == theirs.decryption
        && (ours.access_only <= theirs.access_only)
        && (ours.revocation_check <= theirs.revocation_check)
}
