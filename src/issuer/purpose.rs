//! What an authorization server is called for. Each purpose has a circuit of its own, and purposes that
//! stand for one another share places among the calls at once.

use aws_lc_rs::digest;

/// Why an authorization server is called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Purpose {
    /// A person's name and password are redeemed (RFC 6749 §4.3).
    Password,
    /// An authorization code is redeemed (RFC 6749 §4.1.3).
    Code,
    /// A refresh token is redeemed (RFC 6749 §6).
    Refresh,
    /// The gateway gets a token for itself (RFC 6749 §4.4).
    ClientCredentials,
    /// A token's meaning is asked for (RFC 7662).
    Introspection,
    /// A token is given back (RFC 7009).
    Revocation,
    /// An authorization request is pushed (RFC 9126).
    Push,
}

/// Purposes that share places among the calls at once, those that matter most first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Class {
    /// What keeps those going who are logged in.
    Renewal,
    /// What lets those in who bring a token.
    Introspection,
    /// What ends tokens.
    Revocation,
    /// What any stranger may begin.
    Login,
}

impl Purpose {
    /// How many there are.
    pub(super) const COUNT: usize = 7;

    /// Which places its calls take.
    pub(super) const fn class(self) -> Class {
        match self {
            Self::Refresh | Self::ClientCredentials => Class::Renewal,
            Self::Introspection => Class::Introspection,
            Self::Revocation => Class::Revocation,
            Self::Password | Self::Code | Self::Push => Class::Login,
        }
    }
}

impl Class {
    /// How many there are.
    pub(super) const COUNT: usize = 4;

    /// The word for it in the log.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Renewal => "renewal",
            Self::Introspection => "introspection",
            Self::Revocation => "revocation",
            Self::Login => "login",
        }
    }
}

/// What one call is about: a token, a code, a name with its password.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input {
    /// SHA-256 of all that is sent, but for how the gateway proves itself: what is remembered about a
    /// call is remembered for calls that are the same in every byte.
    pub(super) exact: [u8; 32],
    /// SHA-256 of what tells callers apart: the name, whatever the password; else the same. Counts
    /// only towards a circuit: many guesses at one name are one caller's trouble.
    pub(super) caller: [u8; 32],
}

impl Input {
    /// The input of a call for `purpose` as the client `client_auth`, that sends `form` and accepts `accept`.
    pub(super) fn new(purpose: Purpose, client: &str, accept: &str, form: &str) -> Self {
        let exact = sum(purpose, &[client, accept, form]);
        Self { exact, caller: exact }
    }

    /// The same, on the word of `caller`.
    #[must_use]
    pub(super) fn of_caller(self, purpose: Purpose, caller: &str) -> Self {
        Self { caller: sum(purpose, &[caller]), ..self }
    }
}

/// SHA-256 of texts, each behind its length, so that no two lists are the same bytes.
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
    fn inputs_that_differ_in_any_part_are_told_apart() {
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
    fn guesses_at_one_name_are_one_callers_and_different_inputs() {
        let of = |form| {
            Input::new(Purpose::Password, "web", "json", form).of_caller(Purpose::Password, "alice")
        };
        let (one, other) = (of("password=1"), of("password=2"));

        assert_eq!(one.caller, other.caller);
        assert_ne!(one.exact, other.exact);
    }
}
