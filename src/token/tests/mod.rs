//! Tests that need an issuer, a clock and more than one file.

mod attacks;
mod cache_lifetime;
mod encrypted;
mod independent;
mod reference;
mod revocation;
mod token_identity;
mod wycheproof;

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::{
    Audience, IssuerVerifier, Principal, RevocationList, TokenError, TokenUse, ValidationRules,
    Verifier,
};
use crate::base::clock::{Clock, Timestamp};
use crate::base::secret::Secret;
use crate::issuer::keys::signing_key::SigningKey;
use crate::issuer::tests::mock_issuer::{Server, eventually, signing_key};
use crate::issuer::{Client, ClientAuth, Issuer, Settings};
use crate::observe::metrics::Metrics;

const NOW: u64 = 1_700_000_000;

/// An authorization server with one key, and a verifier of its tokens.
struct Bench {
    server: Server,
    key: SigningKey,
    clock: Clock,
    metrics: Metrics,
    revocations: RevocationList,
    issuer_verifier: Arc<IssuerVerifier>,
}

impl Bench {
    async fn new() -> Self {
        Self::with(|_| (), |_| ()).await
    }

    /// Returns one with other settings or rules.
    async fn with(
        settings: impl FnOnce(&mut Settings),
        rules: impl FnOnce(&mut ValidationRules),
    ) -> Self {
        let server = Server::start().await;
        let key = signing_key("k1");
        server.publishes(&[&key]);
        let mut own_settings = server.settings();
        own_settings.client =
            Some(Client { id: "gateway".into(), auth: ClientAuth::Basic(Secret::from("s3cret")) });
        settings(&mut own_settings);
        let mut own_rules = ValidationRules::new(Audience::OneOf(["api".into()].into()));
        rules(&mut own_rules);

        let clock = Clock::manual(Timestamp::from_secs(NOW));
        let metrics = Metrics::new(&[1.0]);
        let revocations = RevocationList::new(clock.clone());
        let issuer = Issuer::new(own_settings, clock.clone(), &metrics, Handle::current()).unwrap();
        let issuer = Arc::new(issuer);
        eventually("the keys", || issuer.keys().is_some()).await;
        let issuer_verifier = Arc::new(IssuerVerifier::new(
            issuer,
            own_rules,
            revocations.clone(),
            clock.clone(),
            &metrics,
            Handle::current(),
        ));
        Self { server, key, clock, metrics, revocations, issuer_verifier }
    }

    fn verifier(&self, kind: TokenUse) -> Verifier {
        Verifier::new(kind, [Arc::clone(&self.issuer_verifier)])
    }

    /// Returns the verifier of the same server after a reload that changed settings or rules, such as its name.
    async fn reloaded(
        &self,
        settings: impl FnOnce(&mut Settings),
        rules: impl FnOnce(&mut ValidationRules),
    ) -> Arc<IssuerVerifier> {
        let before = &self.issuer_verifier;
        let (mut own_settings, mut own_rules) =
            (before.issuer().settings().clone(), before.rules().clone());
        settings(&mut own_settings);
        rules(&mut own_rules);
        let (clock, control) = (|| self.clock.clone(), Handle::current);
        let issuer = Issuer::new(own_settings, clock(), &self.metrics, control()).unwrap();
        eventually("the keys", || issuer.keys().is_some()).await;
        Arc::new(IssuerVerifier::succeeding(
            &[Arc::clone(before)],
            Arc::new(issuer),
            own_rules,
            self.revocations.clone(),
            clock(),
            &self.metrics,
            control(),
        ))
    }

    /// Verifies a token as a route with `jwt` does.
    async fn jwt(&self, token: &str) -> Result<Arc<Principal>, TokenError> {
        self.verifier(TokenUse::Jwt).verify(token, self.clock.now(), None).await
    }

    /// Verifies a token as a route with `introspection` does.
    async fn reference(&self, token: &str) -> Result<Arc<Principal>, TokenError> {
        self.verifier(TokenUse::Introspection).verify(token, self.clock.now(), None).await
    }

    /// Valid claims with these in addition.
    fn claims(&self, extra: Value) -> Value {
        let claims = json!({
            "iss": self.server.url, "sub": "alice", "aud": "api", "exp": NOW + 300,
        });
        merged(claims, extra)
    }

    /// A valid token with these claims in addition.
    fn token(&self, extra: Value) -> String {
        self.signed(json!({}), extra)
    }

    /// A valid token with these header parameters and claims in addition.
    fn signed(&self, header: Value, extra: Value) -> String {
        let header = merged(json!({ "alg": "ES256", "kid": "k1", "typ": "at+jwt" }), header);
        self.key.sign_jwt(&header, &self.claims(extra)).unwrap()
    }
}

fn merged(mut into: Value, extra: Value) -> Value {
    for (name, value) in extra.as_object().unwrap() {
        into[name] = value.clone();
    }
    into
}
