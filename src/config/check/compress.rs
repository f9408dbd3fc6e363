//! Checks `compress`: the codings of a route, and the routes whose responses may hold secrets.

use super::Check;
use super::layers::Layers;
use crate::config::auth::{Auth, TokenSource};
use crate::config::de::field::{OneOrMany, Spanned};
use crate::config::de::units::Scalar;
use crate::config::fault::Code;
use crate::config::file::routes::{CompressWord, Route as Keys};
use crate::config::route::Coding;

impl Check<'_> {
    /// Returns the codings of a route.
    ///
    /// A browser sends a session, a token in a cookie and Basic credentials by itself, also when a page of an attacker
    /// causes the request. If the response then holds a secret beside text of the attacker, its compressed size reveals
    /// the secret (BREACH). Such a route is compressed only if it has the key itself, with a warning.
    pub(super) fn compress(
        &mut self,
        keys: &Spanned<Keys>,
        layers: &Layers<'_>,
        auth: Option<&Auth>,
    ) -> Vec<Coding> {
        let Some(words) = layers.given(|keys| &keys.compress) else { return Vec::new() };
        let codings = self.codings(words);
        if codings.is_empty() || !auth.is_some_and(is_sent_by_browsers) {
            return codings;
        }
        if keys.compress.is_absent() {
            // Inherited settings are meant for routes without secrets.
            let message = "`compress` of `defaults` and policies does not hold for this route: a browser sends its credentials by itself, and compressed sizes reveal secrets beside text of an attacker (BREACH)";
            let help = "write `compress: false` here, or a list if its responses hold no secret beside text of the request";
            self.fault(Code::C110, keys.at, message, help);
            return Vec::new();
        }
        let message = "compressed sizes reveal secrets in responses that also contain text of the request (BREACH), and browsers send the credentials of this route by themselves";
        let help = "compress routes whose responses hold no secret, or none of the request's text";
        self.fault(Code::C110, words.key_at, message, help);
        codings
    }

    fn codings(&mut self, words: &Spanned<OneOrMany<Scalar<CompressWord>>>) -> Vec<Coding> {
        let mut codings = Vec::new();
        for word in &words.items {
            match word.value.0.0 {
                None if words.items.len() == 1 => {}
                None => {
                    let message = "`false` cannot be combined with codings";
                    self.fault(Code::C106, word.at, message, "write false alone, or the codings");
                }
                Some(coding) if codings.contains(&coding) => {
                    let message = format!("{} is repeated", coding.name());
                    self.fault(Code::C111, word.at, message, "keep one of them");
                }
                Some(coding) => codings.push(coding),
            }
        }
        codings
    }
}

/// Whether a browser attaches the credentials of some method without a page's doing.
fn is_sent_by_browsers(auth: &Auth) -> bool {
    auth.methods().iter().any(|auth_method| {
        !auth_method.credential.takes_tokens()
            || matches!(auth_method.token_from, TokenSource::Cookie(_))
    })
}
