//! Checks `token_from`: the field or cookie that carries the access token.

use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};

use super::Check;
use crate::config::auth::{Credential, TokenSource};
use crate::config::de::field::{Field, Spanned};
use crate::config::fault::{Code, Position};
use crate::config::file::routes as file;

impl Check<'_> {
    /// Returns the place of the token of one accepted credential.
    pub(super) fn token_from(
        &mut self,
        from: &Field<file::TokenFrom>,
        dpop: &Field<bool>,
        credential: Option<&Credential>,
    ) -> TokenSource {
        let Some(from) = from.get() else { return TokenSource::Authorization };
        if credential.is_some_and(|credential| !credential.takes_tokens()) {
            self.token_from_means_nothing(from.key_at);
        }
        if let Some(dpop) = dpop.get().filter(|at| at.value) {
            let message = "a token with a proof travels in `Authorization` alone (RFC 9449 §7.1)";
            self.fault(Code::C106, dpop.key_at, message, "remove dpop, or token_from");
        }
        match (&from.header, &from.cookie) {
            (Field::Present(header), Field::Absent) => self.token_header(header),
            (Field::Absent, Field::Present(cookie)) => self.token_cookie(cookie),
            (header, cookie) => {
                if !header.is_bad() && !cookie.is_bad() {
                    let message = "a token is in a header field or in a cookie";
                    let help =
                        "write token_from: { header: X-Access-Token } or { cookie: access_token }";
                    self.fault(Code::C106, from.at, message, help);
                }
                TokenSource::Authorization
            }
        }
    }

    pub(super) fn token_from_means_nothing(&mut self, at: Position) {
        let message = "`token_from` has no effect here: clients present no token";
        self.fault(Code::C106, at, message, "remove it");
    }

    fn token_header(&mut self, name: &Spanned<String>) -> TokenSource {
        let Some(header) = self.field(name) else { return TokenSource::Authorization };
        if [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION].contains(&header) {
            let message = format!("`{header}` is the field of other credentials");
            self.fault(Code::C106, name.at, message, "write another field, or remove token_from");
            return TokenSource::Authorization;
        }
        TokenSource::Header(header)
    }

    fn token_cookie(&mut self, name: &Spanned<String>) -> TokenSource {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.value.is_empty() || !name.value.bytes().all(is_token) {
            let message = format!("{} is not the name of a cookie", name.shown());
            self.fault(Code::C103, name.at, message, "write one such as access_token");
            return TokenSource::Authorization;
        }
        TokenSource::Cookie(name.value.as_str().into())
    }
}
