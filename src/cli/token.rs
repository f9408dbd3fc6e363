//! `northgate token inspect`: decodes a token and validates it against the configuration.
//!
//! The token itself is never printed, because the part after its last dot would
//! let a reader of the output use it.

use core::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::exit::fail;
use super::load::read;
use super::output::print;
use super::{display, run, token_diagnostics};
use crate::base::clock::Clock;
use crate::base::strict_json;
use crate::config::auth::TokenSource;
use crate::config::{
    self, Auth, AuthMethod, Config, Credential, Route, TokenBinding, format_duration,
};
use crate::gateway::view::explain::{Verdict, refusal, verify};
use crate::gateway::{Rejection, RetainedState};
use crate::observe::metrics::AuthResult;
use crate::server::chain;
use crate::token::jwe::is_encrypted;
use crate::token::jwt::unverified_claims::UnverifiedClaims;
use crate::token::principal::claim_at;
use crate::token::{Audience, Confirmation, Principal, TokenError, TokenUse, ValidationRules};

/// Decodes `token` and validates it for every issuer of `file`.
pub(super) fn inspect(token: &str, file: &Path) -> ExitCode {
    let config = match read(file) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let check = TokenCheck { config: &config, token };
    match check.of_every_issuer() {
        Ok(text) => print(text),
        Err(code) => return code,
    }
    ExitCode::SUCCESS
}

/// A token and the verifier that judges it.
pub(super) struct TokenCheck<'a> {
    pub(super) config: &'a Config,
    pub(super) token: &'a str,
}

impl TokenCheck<'_> {
    /// Returns the result of presenting the token to `route`.
    pub(super) fn on(&self, route: &Route) -> Result<String, ExitCode> {
        let mut text = self.contents();
        let Auth::AnyOf { methods, .. } = &route.auth else {
            text.push_str("  is not verified: the route is public.\n");
            return Ok(text);
        };
        let takes_tokens = |auth_method: &&AuthMethod| auth_method.credential.takes_tokens();
        // The first accepted credential that is a token in `Authorization` decides: an invalid token never falls
        // through to another. If there is none, a method with the token in another place is used.
        let in_authorization = |auth_method: &&AuthMethod| {
            takes_tokens(auth_method) && auth_method.token_from == TokenSource::Authorization
        };
        let auth_method =
            methods.iter().find(in_authorization).or_else(|| methods.iter().find(takes_tokens));
        let Some(auth_method) = auth_method else {
            text.push_str("  is not accepted: 401, the route requires other credentials.\n");
            return Ok(text);
        };
        let verdict = self.verdict(&auth_method.credential)?;
        let result = match &verdict {
            Verdict::Good(principal) | Verdict::Unchecked(principal) => {
                match refusal(auth_method, principal, Clock::system().now()) {
                    Some((_, rejection @ Rejection::InsufficientAuthentication { .. })) => {
                        refused(&rejection, &weakness(auth_method, principal))
                    }
                    Some((result, rejection)) => {
                        let why = Self::lacks(result, auth_method, principal);
                        refused(&rejection, &why)
                    }
                    None => on_binding(auth_method, principal),
                }
            }
            Verdict::Refused(error) => self.broken(*error, &auth_method.credential),
            Verdict::NotTaken => "is not accepted here".to_owned(),
        };
        let _ = writeln!(text, "  {result}.");
        if matches!(verdict, Verdict::Unchecked(_)) {
            text.push_str(UNCHECKED);
        }
        Ok(text)
    }

    /// Returns the result of each issuer's verification.
    fn of_every_issuer(&self) -> Result<String, ExitCode> {
        let mut text = self.contents();
        for name in self.config.issuers.keys() {
            let credential =
                Credential::Token { accepts: TokenUse::Bearer, issuers: vec![Arc::clone(name)] };
            if let Some(why) = self.why_not_for(name) {
                let _ = writeln!(text, "  for issuer {name}: {why}.");
                continue;
            }
            let result = match self.verdict(&credential)? {
                Verdict::Good(principal) => format!("is good{}", and_bound(&principal)),
                Verdict::Unchecked(principal) => {
                    let bound = and_bound(&principal);
                    format!("breaks no rule{bound}.\n{}", UNCHECKED.trim_end_matches(".\n"))
                }
                Verdict::Refused(error) => self.broken(error, &credential),
                Verdict::NotTaken => "is not accepted".to_owned(),
            };
            let _ = writeln!(text, "  for issuer {name}: {result}.");
        }
        Ok(text)
    }

    /// Returns why the token is not presented to the issuer `name`: a JWT of another issuer would let its server act as
    /// the user, and without a client there is no introspection.
    fn why_not_for(&self, name: &str) -> Option<String> {
        let config::Issuer { settings, .. } = self.config.issuers.get(name)?;
        let rings = self.config.issuers.values().filter_map(|it| it.rules.decryption.as_ref());
        let inner = || rings.clone().find_map(|ring| ring.open(self.token).ok());
        let inside = || UnverifiedClaims::read(inner()?.expose());
        match UnverifiedClaims::read(self.token).or_else(inside) {
            Some(claims) if !claims.issuer().is_some_and(|iss| settings.is_named(iss)) => {
                let iss = claims.issuer().map_or("absent".into(), |iss| shown("iss", &iss.into()));
                let error = TokenError::Issuer;
                Some(format!(
                    "is refused: 401, {error} (iss is {iss}, and {name} is {})",
                    settings.issuer
                ))
            }
            None if settings.client.is_none() => {
                Some("cannot be introspected: the issuer has no `client`".to_owned())
            }
            _ => None,
        }
    }

    /// Verifies the token as `credential`; introspects it where that is required.
    fn verdict(&self, credential: &Credential) -> Result<Verdict, ExitCode> {
        let runtime = run::control_runtime()
            .map_err(|error| fail(&format!("cannot start a runtime: {error}")))?;
        let clock = Clock::system();
        let state =
            RetainedState::new(clock.clone(), run::metrics(self.config), runtime.handle().clone());
        let verdict =
            runtime.block_on(verify(self.config, credential, self.token, clock.now(), &state));
        drop(state);
        run::exit_with_error(runtime);
        verdict.map_err(|error| fail(&chain(&error)))
    }

    /// Returns the header and the claims, without verification.
    fn contents(&self) -> String {
        if let Some(header) = encrypted_header(self.token) {
            let rows: Vec<_> = header
                .iter()
                .filter(|(name, _)| JWE_HEADER.contains(&name.as_str()))
                .map(|(name, value)| [shown_name(name), shown(name, value)])
                .collect();
            let what = "  is an encrypted token (JWE): its claims can be read only with the key it is encrypted for.\n";
            return display::align(&rows) + what;
        }
        let Some((header, claims)) = decoded(self.token) else {
            return if looks_signed(self.token) {
                "  cannot be parsed as a JWT.\n".to_owned()
            } else {
                "  is not a JWT: only its issuer can read it.\n".to_owned()
            };
        };
        let mut rows = Vec::new();
        for (name, value) in header.iter().filter(|(name, _)| HEADER.contains(&name.as_str())) {
            rows.push([shown_name(name), shown(name, value)]);
        }
        for (name, value) in &claims {
            rows.push([shown_name(name), shown(name, value)]);
        }
        display::align(&rows)
    }

    /// Returns the rule of the issuer that the token breaks.
    fn broken(&self, error: TokenError, credential: &Credential) -> String {
        let rejection = match error {
            TokenError::Unavailable { .. } => {
                return "cannot be verified: 503, the authorization server is unavailable"
                    .to_owned();
            }
            error => error,
        };
        let (header, claims) = decoded(self.token)
            .or_else(|| Some((encrypted_header(self.token)?, Map::new())))
            .unwrap_or_default();
        let says = |name: &str| {
            claims.get(name).map_or_else(|| "absent".to_owned(), |value| shown(name, value))
        };
        let of_header = |name: &str| {
            header.get(name).map_or_else(|| "absent".to_owned(), |value| shown(name, value))
        };
        let Some(issuer) = self.issuer(credential, &claims) else { return rejection.to_string() };
        let config::Issuer { settings, rules, .. } = issuer;
        let leeway = format_duration(rules.leeway);
        let detail = match error {
            TokenError::Expired => format!("exp is {}, leeway {leeway}", says("exp")),
            TokenError::NotYetValid => {
                format!("nbf is {}, iat is {}, leeway {leeway}", says("nbf"), says("iat"))
            }
            TokenError::Issuer => {
                format!("iss is {}, and {} is {}", says("iss"), settings.name, settings.issuer)
            }
            TokenError::Audience => match &rules.audience {
                Audience::OneOf(taken) => {
                    format!(
                        "aud is {}, {} takes {}",
                        says("aud"),
                        settings.name,
                        display::list(&**taken)
                    )
                }
                Audience::Any => format!("aud is {}", says("aud")),
            },
            TokenError::Type => format!(
                "typ is {}, {} takes {}",
                of_header("typ"),
                settings.name,
                display::list(&rules.token_types)
            ),
            TokenError::Algorithm => format!(
                "alg is {}, {} takes {}",
                of_header("alg"),
                settings.name,
                display::list(&rules.algorithms)
            ),
            TokenError::Malformed | TokenError::TooLarge => self.malformed(credential, rules),
            TokenError::Claim => format!(
                "{} missing or empty, {} wants {}",
                are(&lacking(&claims, rules)),
                settings.name,
                display::list(wanted(rules))
            ),
            TokenError::UnknownKey | TokenError::Signature => {
                format!("kid is {}", of_header("kid"))
            }
            _ => String::new(),
        };
        let detail = if detail.is_empty() { detail } else { format!(" ({detail})") };
        format!("is refused: 401, {error}{detail}")
    }

    /// Returns why the token is malformed.
    fn malformed(&self, credential: &Credential, rules: &ValidationRules) -> String {
        let may_be_opaque = !credential.introspecting_issuers().is_empty();
        let is_jwt =
            || looks_signed(self.token) || (is_encrypted(self.token) && rules.decryption.is_some());
        let is_read_here = !credential.jwt_issuers().is_empty() && (!may_be_opaque || is_jwt());
        if is_read_here {
            token_diagnostics::describe(self.token, rules).unwrap_or_default()
        } else {
            "the introspection response has a member of the wrong type".to_owned()
        }
    }

    /// Returns the issuer that the token names, else the first of `credential`.
    fn issuer(
        &self,
        credential: &Credential,
        claims: &Map<String, Value>,
    ) -> Option<&config::Issuer> {
        let names = credential.token_issuers();
        let claimed = claims.get("iss").and_then(Value::as_str);
        let issuers = || names.iter().filter_map(|name| self.config.issuers.get(name));
        issuers()
            .find(|issuer| claimed.is_some_and(|iss| issuer.settings.is_named(iss)))
            .or_else(|| issuers().next())
    }

    /// Returns the requirement of the route that the token does not meet.
    fn lacks(result: AuthResult, auth_method: &AuthMethod, principal: &Principal) -> String {
        match result {
            AuthResult::Scope => format!(
                "the route requires {} of {}, the token has {}",
                if auth_method.scopes.is_subset(&principal.scopes) { "one" } else { "every scope" },
                display::list(if auth_method.scopes.is_subset(&principal.scopes) {
                    auth_method.any_scope.iter().collect::<Vec<_>>()
                } else {
                    auth_method.scopes.iter().collect()
                }),
                or_none(display::list(principal.scopes.iter()))
            ),
            AuthResult::Audience => format!(
                "the route requires an audience of {}, the token has {}",
                display::list(&auth_method.audience),
                or_none(display::list(&principal.audience))
            ),
            AuthResult::Client => format!(
                "the route requires a client of {}, the token's is {}",
                display::list(&auth_method.clients),
                or_none(display::list(&principal.client))
            ),
            _ => format!(
                "a claim does not match what the route requires: {}",
                display::list(auth_method.claims.iter().map(|claim| &claim.path))
            ),
        }
    }
}

/// Returns what the route demands of the login, and what the token's claims state about it.
fn weakness(auth_method: &AuthMethod, principal: &Principal) -> String {
    let mut demands = Vec::new();
    if let Some(level) = &auth_method.level {
        if !level.acr.is_empty() {
            demands.push(format!("acr {}", level.acr_values()));
        }
        demands.extend(level.max_age.map(|age| format!("a login within {}", format_duration(age))));
    }
    let says = |name: &str| {
        principal.claims.get(name).map_or_else(|| "absent".to_owned(), |value| shown(name, value))
    };
    format!(
        "the route requires {}, acr is {}, auth_time is {}",
        demands.join(" and "),
        says("acr"),
        says("auth_time")
    )
}

/// Returns the result of the route's rule about bound tokens (`cnf`, RFC 7800).
fn on_binding(auth_method: &AuthMethod, principal: &Principal) -> String {
    let fits = match (auth_method.bound_to, &principal.confirmation) {
        (_, Some(Confirmation::Unknown)) => false,
        (None, _)
        | (Some(TokenBinding::Key), Some(Confirmation::Key(_)))
        | (Some(TokenBinding::Certificate), Some(Confirmation::Certificate(_))) => true,
        _ => false,
    };
    match (fits, bound_to(principal)) {
        (true, None) => "is good here: the request may pass".to_owned(),
        (true, Some((what, how))) => {
            format!("is bound to {what}: the request may pass, but only {how}")
        }
        (false, what) => {
            let wanted = match auth_method.bound_to {
                Some(TokenBinding::Key) => "a token bound to a key (DPoP)",
                Some(TokenBinding::Certificate) => "a token bound to a certificate (mutual TLS)",
                None => "a token bound to nothing, to one key or to one certificate",
            };
            let what = what.map_or("nothing", |(what, _)| what);
            format!("is refused: 401, the route requires {wanted}, this one is bound to {what}")
        }
    }
}

fn and_bound(principal: &Principal) -> String {
    bound_to(principal)
        .map_or_else(String::new, |(what, how)| format!(", and bound to {what}: good only {how}"))
}

/// Returns what a token is bound to, and how it can be presented.
fn bound_to(principal: &Principal) -> Option<(&'static str, &'static str)> {
    principal.confirmation.as_ref().map(|confirmation| match confirmation {
        Confirmation::Key(_) => ("a key", "as `Authorization: DPoP`, with a proof of that key"),
        Confirmation::Certificate(_) => {
            ("a certificate", "over a connection with that client certificate")
        }
        Confirmation::Unknown => ("an unsupported confirmation method", "elsewhere"),
    })
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}

fn refused(rejection: &Rejection, why: &str) -> String {
    format!("is refused: {}, {why}", rejection.status().as_u16())
}

/// Returns the claims that a JWT must have.
fn wanted(rules: &ValidationRules) -> Vec<&str> {
    let always = ["iss", "exp"];
    let age = rules.max_token_age.map(|_| "iat");
    let required = rules.required_claims.iter().map(|name| &**name);
    let mut wanted: Vec<&str> = Vec::new();
    for name in always.into_iter().chain(required).chain(age) {
        if !wanted.contains(&name) {
            wanted.push(name);
        }
    }
    wanted
}

/// Returns the required claims that are missing or empty.
fn lacking<'r>(claims: &Map<String, Value>, rules: &'r ValidationRules) -> Vec<&'r str> {
    let says_nothing = |name: &&str| match claim_at(claims, name) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    wanted(rules).into_iter().filter(says_nothing).collect()
}

fn are(names: &[&str]) -> String {
    format!("{} {}", display::list(names), if names.len() == 1 { "is" } else { "are" })
}

fn looks_signed(token: &str) -> bool {
    token.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// Decodes the header of an encrypted token (RFC 7516 §9: it has five parts, and says `enc`).
fn encrypted_header(token: &str) -> Option<Map<String, Value>> {
    let (header, _) = token.split_once('.').filter(|_| is_encrypted(token))?;
    let header = strict_json::parse_object(&strict_json::base64url(header).ok()?).ok()?;
    header.contains_key("enc").then_some(header)
}

/// Decodes header and claims without verifying the signature.
fn decoded(token: &str) -> Option<(Map<String, Value>, Map<String, Value>)> {
    let (header, rest) = token.split_once('.')?;
    let (claims, _) = rest.split_once('.')?;
    let object = |part| strict_json::parse_object(&strict_json::base64url(part).ok()?).ok();
    Some((object(header)?, object(claims)?))
}

/// Returns a name, indented, with control characters escaped and at most [`MAX_NAME_CHARS`] long.
fn shown_name(name: &str) -> String {
    let mut shown: String =
        name.chars().take(MAX_NAME_CHARS).flat_map(char::escape_debug).collect();
    if name.chars().nth(MAX_NAME_CHARS).is_some() {
        shown.push('…');
    }
    format!("  {shown}")
}

/// Returns a value with control characters escaped, and dates in readable form.
fn shown(name: &str, value: &Value) -> String {
    let date = value.as_i64().filter(|_| DATES.contains(&name));
    if let Some(date) = date.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok()) {
        return date.to_string();
    }
    match value {
        Value::String(text) if text.chars().all(|c| c.is_ascii_graphic() || c == ' ') => {
            text.clone()
        }
        value => value.to_string().escape_debug().to_string().replace("\\\"", "\""),
    }
}

/// Characters of the name of a claim, at most; a longer one is cut.
const MAX_NAME_CHARS: usize = 64;
const HEADER: [&str; 3] = ["alg", "kid", "typ"];
const JWE_HEADER: [&str; 6] = ["alg", "enc", "kid", "typ", "cty", "zip"];
const DATES: [&str; 4] = ["exp", "iat", "nbf", "auth_time"];
const UNCHECKED: &str = "  The signature was not checked: the issuer's keys are unavailable.\n";
