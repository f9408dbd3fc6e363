//! Purposes of calls to an authorization server. Each has a circuit breaker of its own, and classes of
//! purposes share permits of the concurrency limit.

use aws_lc_rs::digest;

/// The purpose of a call to an authorization server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::issuer) enum Purpose {
    /// Redeem a user's name and password (RFC 6749 §4.3).
    Password,
    /// Redeem an authorization code (RFC 6749 §4.1.3).
    Code,
    /// Redeem a refresh token (RFC 6749 §6).
    Refresh,
    /// Get a token for the gateway itself (RFC 6749 §4.4).
    ClientCredentials,
    /// Introspect a token (RFC 7662).
    Introspection,
    /// Revoke a token (RFC 7009).
    Revocation,
    /// Push an authorization request (RFC 9126).
    Push,
}

/// A class of purposes that share permits, the most important first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::issuer) enum Class {
    /// Refreshes of sessions.
    Renewal,
    /// Introspection of presented tokens.
    Introspection,
    /// Revocation of tokens.
    Revocation,
    /// Logins, which any stranger can begin.
    Login,
}

impl Purpose {
    /// The number of purposes.
    pub(in crate::issuer) const COUNT: usize = 7;

    /// Returns the class whose permits its calls use.
    pub(in crate::issuer) const fn class(self) -> Class {
        match self {
            Self::Refresh | Self::ClientCredentials => Class::Renewal,
            Self::Introspection => Class::Introspection,
            Self::Revocation => Class::Revocation,
            Self::Password | Self::Code | Self::Push => Class::Login,
        }
    }
}

impl Class {
    /// The number of classes.
    pub(in crate::issuer) const COUNT: usize = 4;

    /// Returns its name in the log.
    pub(in crate::issuer) const fn name(self) -> &'static str {
        match self {
            Self::Renewal => "renewal",
            Self::Introspection => "introspection",
            Self::Revocation => "revocation",
            Self::Login => "login",
        }
    }
}

/// The input of one call: a token, a code, a name with its password.
#[derive(Clone, Copy, Debug)]
pub(in crate::issuer) struct Input {
    /// SHA-256 of the whole request except client authentication: a failure is
    /// remembered for calls that are the same in every byte.
    pub(in crate::issuer) exact: [u8; 32],
    /// SHA-256 of the caller: the name, whatever the password; else the same. Used
    /// only by the circuit breaker: many guesses at one name are the failures of one caller.
    pub(in crate::issuer) caller: [u8; 32],
}

impl Input {
    /// Returns the input of a call for `purpose` as the client `client`, that sends `form` and accepts `accept`.
    pub(in crate::issuer) fn new(purpose: Purpose, client: &str, accept: &str, form: &str) -> Self {
        let exact = sum(purpose, &[client, accept, form]);
        Self { exact, caller: exact }
    }

    /// Returns the input with another `caller`.
    #[must_use]
    pub(in crate::issuer) fn of_caller(self, purpose: Purpose, caller: &str) -> Self {
        Self { caller: sum(purpose, &[caller]), ..self }
    }
}

/// SHA-256 of texts, each preceded by its length, so that different lists give different bytes.
fn sum(purpose: Purpose, texts: &[&str]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[purpose as u8]);
    for text in texts {
        context.update(&(text.len() as u64).to_be_bytes());
        context.update(text.as_bytes());
    }
    let mut sum = [0; 32];
    sum.copy_from_slice(context.finish().as_ref());
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_that_differ_in_any_part_are_distinct() {
        let input = |purpose, client, accept, form| Input::new(purpose, client, accept, form).exact;
        let all = [
            input(Purpose::Introspection, "a", "json", "token=t"),
            input(Purpose::Revocation, "a", "json", "token=t"),
            input(Purpose::Introspection, "b", "json", "token=t"),
            input(Purpose::Introspection, "a", "jwt", "token=t"),
            input(Purpose::Introspection, "a", "json", "token=u"),
            input(Purpose::Introspection, "aj", "son", "token=t"),
            input(Purpose::Introspection, "a", "jsont", "oken=t"),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[..index].contains(one), "{index}");
        }
    }

    #[test]
    fn guesses_at_one_name_share_a_caller_but_not_an_input() {
        let of = |form| {
            Input::new(Purpose::Password, "web", "json", form).of_caller(Purpose::Password, "alice")
        };
        let (one, other) = (of("password=1"), of("password=2"));

        assert_eq!(one.caller, other.caller);
        assert_ne!(one.exact, other.exact);
    }
}
