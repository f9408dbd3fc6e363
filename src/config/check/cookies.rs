//! Checks that cookies of several sessions cannot be confused in one browser.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Check;
use crate::config::fault::{Code, Position};
use crate::config::file::File;
use crate::session::{Settings, TokenStorage};

impl Check<'_> {
    /// Refuses sessions whose cookies overwrite each other, and cookies whose path excludes the session's own paths.
    pub(super) fn cookies(&mut self, file: &File, sessions: &BTreeMap<Arc<str>, Settings>) {
        let mut earlier: Vec<&Settings> = Vec::new();
        let written = file.sessions.get().into_iter().flat_map(|map| map.value.iter());
        for (name, _) in written {
            let Some(session) = sessions.get(name.value.as_str()) else { continue };
            if let Some(other) = earlier.iter().find(|other| share_a_cookie(other, session)) {
                let message = format!("browsers take its cookies for those of `{}`", other.name);
                let help = "give one of the two sessions another `cookie.prefix`";
                self.fault(Code::C106, name.at, message, help);
            }
            self.reaches_its_paths(name.at, session);
            earlier.push(session);
        }
    }

    fn reaches_its_paths(&mut self, at: Position, session: &Settings) {
        let cookie = session.cookie.path.trim_end_matches('/');
        let unseen = |path: &&str| {
            path.strip_prefix(cookie).is_none_or(|rest| !rest.is_empty() && !rest.starts_with('/'))
        };
        if let Some(path) = session.own_paths().find(unseen) {
            let message = format!("`cookie.path` keeps the session's cookies away from {path}");
            self.fault(Code::C106, at, message, "write `paths` below it, or remove it");
        }
    }
}

/// Whether the session writes a cookie of this name, or a part of one.
pub(super) fn writes(session: &Settings, name: &str) -> bool {
    names(session).iter().any(|own| is_part(name, own))
}

/// Whether a browser may send cookies of both sessions to one host and path.
fn share_a_cookie(one: &Settings, other: &Settings) -> bool {
    let apart = one.public_url.host() != other.public_url.host()
        && one.cookie.domain.is_none()
        && other.cookie.domain.is_none();
    !apart && names(one).iter().any(|a| names(other).iter().any(|b| is_part(a, b) || is_part(b, a)))
}

fn names(session: &Settings) -> Vec<String> {
    let Settings { name, cookie, .. } = session;
    let own: &[&str] = match session.tokens {
        TokenStorage::PlainCookies => &["access_token", "refresh_token", name],
        TokenStorage::SealedCookies | TokenStorage::Server(_) => &[name],
    };
    let beside =
        ["csrf", "login", "rounds", "form"].map(|kind| format!("{}{name}.{kind}", cookie.prefix));
    own.iter().map(|name| format!("{}{name}", cookie.prefix)).chain(beside).collect()
}

/// Whether `a` is the cookie `b`, or one of the parts that long values are split into: `b.1`.
fn is_part(a: &str, b: &str) -> bool {
    a.strip_prefix(b).is_some_and(|rest| matches!(rest.as_bytes(), [] | [b'.', b'1'..=b'7']))
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;
    use crate::issuer::{Client, ClientAuth};
    use crate::session::Flow;

    fn session(name: &str, tokens: TokenStorage, host: &str) -> Settings {
        let client = Client { id: "web".into(), auth: ClientAuth::None };
        let url = Url::parse(&format!("https://{host}")).unwrap();
        Settings { tokens, ..Settings::new(name, "main", client, Flow::Code, url) }
    }

    #[test]
    fn two_plain_sessions_share_their_cookies_on_one_host() {
        let plain = |name, host| session(name, TokenStorage::PlainCookies, host);

        assert!(share_a_cookie(&plain("a", "x.test"), &plain("b", "x.test")));
        assert!(!share_a_cookie(&plain("a", "x.test"), &plain("b", "y.test")));
        let mut wide = plain("b", "y.test");
        wide.cookie.domain = Some("test".into());
        assert!(share_a_cookie(&plain("a", "x.test"), &wide));
        let mut other = plain("b", "x.test");
        other.cookie.prefix = "__Host-b-".into();
        assert!(!share_a_cookie(&plain("a", "x.test"), &other));
    }

    #[test]
    fn a_part_of_one_is_not_the_whole_of_another() {
        let sealed = |name| session(name, TokenStorage::SealedCookies, "x.test");
        let mut dotted = sealed("1");
        dotted.cookie.prefix = "__Host-web.".into();

        assert!(share_a_cookie(&sealed("web"), &dotted));
        assert!(!share_a_cookie(&sealed("web"), &sealed("web1")));
        assert!(share_a_cookie(
            &session("a", TokenStorage::PlainCookies, "x.test"),
            &sealed("access_token")
        ));
    }
}
