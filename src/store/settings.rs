//! Settings of the Redis connection, validated on construction.

use core::hash::{Hash, Hasher};
use core::time::Duration;
use std::sync::Arc;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use crate::base::secret::Secret;

/// Settings of the Redis connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// `redis://` or `rediss://` with host, port and database; may hold a password.
    url: Secret<String>,
    /// ACL user name. Default: the server's default user.
    pub username: Option<Arc<str>>,
    /// The password. Default: the one in the URL, if any.
    pub password: Option<Secret<String>>,
    /// Timeout of a command. Default 50 ms; a limit waits 5 ms at most.
    pub timeout: Duration,
    /// Timeout of a new connection. Default 1 s.
    pub connect_timeout: Duration,
    /// Prefix of every key. Default `northgate:`.
    pub prefix: Arc<str>,
    /// PEM certificates of the trusted authorities. Default: the system's.
    pub ca: Option<Arc<[u8]>>,
}

impl Settings {
    /// Creates settings for the server at `url`, with defaults.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`] if it is not the URL of a Redis server.
    pub fn new(url: &str) -> Result<Self, InvalidUrl> {
        let known = ["redis://", "rediss://"].iter().any(|scheme| url.starts_with(scheme));
        // A fragment could disable verification.
        if !known || url.contains('#') || url.into_connection_info().is_err() {
            return Err(InvalidUrl);
        }
        Ok(Self {
            url: url.into(),
            username: None,
            password: None,
            timeout: Duration::from_millis(50),
            connect_timeout: Duration::from_secs(1),
            prefix: "northgate:".into(),
            ca: None,
        })
    }

    /// Returns the URL without any password: `rediss://cache.internal:6379/2`.
    pub fn shown(&self) -> String {
        let Ok(info) = self.info() else { return String::new() };
        let scheme = match info.addr() {
            ConnectionAddr::TcpTls { .. } => "rediss",
            _ => "redis",
        };
        format!("{scheme}://{}/{}", info.addr(), info.redis_settings().db())
    }

    /// Whether the connection uses TLS.
    pub fn is_encrypted(&self) -> bool {
        self.url.expose().starts_with("rediss://")
    }

    /// Returns the settings in the client's form.
    pub(super) fn info(&self) -> redis::RedisResult<ConnectionInfo> {
        let info = self.url.expose().as_str().into_connection_info()?;
        let mut server = info.redis_settings().clone();
        if let Some(username) = &self.username {
            server = server.set_username(username);
        }
        if let Some(password) = &self.password {
            server = server.set_password(password.expose());
        }
        Ok(info.set_redis_settings(server))
    }
}

impl Hash for Settings {
    /// Hashes without the secrets: equal settings still have equal hashes.
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.username, self.timeout, self.connect_timeout, &self.prefix, &self.ca).hash(state);
    }
}

/// The text is not the URL of a Redis server.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("is not the URL of a Redis server")]
pub struct InvalidUrl;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shown_url_has_no_password() {
        let shown = |url: &str| Settings::new(url).map(|settings| settings.shown());

        assert_eq!(shown("redis://cache"), Ok("redis://cache:6379/0".to_owned()));
        assert_eq!(shown("rediss://:hunter2@cache:7000/3"), Ok("rediss://cache:7000/3".to_owned()));
        let settings = Settings::new("redis://:hunter2@cache").expect("a URL");
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn invalid_and_insecure_urls_are_refused() {
        for url in ["", "cache:6379", "http://cache", "redis://", "rediss://cache#insecure"] {
            assert_eq!(Settings::new(url).err(), Some(InvalidUrl), "{url}");
        }
    }
}
