//! Settings of the Redis connection, validated on construction.

use core::hash::{Hash, Hasher};
use core::time::Duration;
use std::sync::Arc;

use ::redis::{ConnectionInfo, IntoConnectionInfo};

use crate::base::secret::Secret;

/// Settings of the Redis connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// `redis://` or `rediss://` with host, port and database; may hold a password. One for each known server.
    urls: Box<[Secret<String>]>,
    topology: Topology,
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
    /// Creates settings for the server at `url`, or the primary of the Sentinels in it, with defaults.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`] if it is not the URL of a Redis server: `redis://host:6379/0`, `rediss://…` with TLS, or
    /// `redis-sentinel://host:26379,host:26379/service/0` (`rediss-sentinel://…`).
    pub fn new(url: &str) -> Result<Self, InvalidUrl> {
        match url.split_once("-sentinel://") {
            Some((scheme, rest)) => Self::sentinels(scheme, rest),
            None => Self::with(vec![url.to_owned()], Topology::Single),
        }
    }

    /// Creates settings for the Cluster that has these nodes among others, with defaults.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`] unless each is the URL of a Redis server, all with TLS or none, and without a database.
    pub fn cluster(urls: &[&str]) -> Result<Self, InvalidUrl> {
        let settings =
            Self::with(urls.iter().map(|&url| url.to_owned()).collect(), Topology::Cluster)?;
        let nodes = settings.nodes().map_err(|_| InvalidUrl)?;
        let zero = nodes.iter().all(|node| node.redis_settings().db() == 0);
        if zero && !nodes.is_empty() { Ok(settings) } else { Err(InvalidUrl) }
    }

    /// Reads `[user:password@]host:port,host:port/service[/database]`.
    fn sentinels(scheme: &str, rest: &str) -> Result<Self, InvalidUrl> {
        let (authority, path) = rest.split_once('/').ok_or(InvalidUrl)?;
        let (service, database) = path.split_once('/').unwrap_or((path, "0"));
        let database = database.parse().map_err(|_| InvalidUrl)?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if service.is_empty() || !service.bytes().all(plain) {
            return Err(InvalidUrl);
        }
        let (access, hosts) = match authority.rsplit_once('@') {
            Some((access, hosts)) => (format!("{access}@"), hosts),
            None => (String::new(), authority),
        };
        let url = |host: &str| {
            let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
            let port = if has_port { "" } else { ":26379" };
            format!("{scheme}://{access}{host}{port}")
        };
        let urls = hosts.split(',').map(url).collect();
        Self::with(urls, Topology::Sentinel { service: service.into(), database })
    }

    fn with(urls: Vec<String>, topology: Topology) -> Result<Self, InvalidUrl> {
        let known = |scheme: &str| urls.iter().all(|url| url.starts_with(scheme));
        // A fragment could disable verification, and a query would be ignored: `?password=…`.
        let is_valid =
            |url: &String| !url.contains(['#', '?']) && url.as_str().into_connection_info().is_ok();
        if !(known("redis://") || known("rediss://")) || !urls.iter().all(is_valid) {
            return Err(InvalidUrl);
        }
        Ok(Self {
            urls: urls.into_iter().map(Secret::from).collect(),
            topology,
            username: None,
            password: None,
            timeout: Duration::from_millis(50),
            connect_timeout: Duration::from_secs(1),
            prefix: "northgate:".into(),
            ca: None,
        })
    }

    /// Returns how the servers are found.
    pub const fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Returns the URLs without any password: `rediss://cache.internal:6379/2`.
    pub fn shown(&self) -> String {
        let Ok(nodes) = self.nodes() else { return String::new() };
        let tls = if self.is_encrypted() { "s" } else { "" };
        let hosts = nodes.iter().map(|node| node.addr().to_string()).collect::<Vec<_>>();
        match &self.topology {
            Topology::Single => {
                let database = nodes.first().map_or(0, |node| node.redis_settings().db());
                format!("redis{tls}://{}/{database}", hosts.join(","))
            }
            Topology::Sentinel { service, database } => {
                format!("redis{tls}-sentinel://{}/{service}/{database}", hosts.join(","))
            }
            Topology::Cluster => {
                let url = |host: &String| format!("redis{tls}://{host}");
                hosts.iter().map(url).collect::<Vec<_>>().join(",")
            }
        }
    }

    /// Whether the connection uses TLS.
    pub fn is_encrypted(&self) -> bool {
        self.urls.iter().any(|url| url.expose().starts_with("rediss://"))
    }

    /// Returns the known servers, or Sentinels, in the client's form.
    pub(super) fn nodes(&self) -> ::redis::RedisResult<Vec<ConnectionInfo>> {
        let node = |url: &Secret<String>| {
            let info = url.expose().as_str().into_connection_info()?;
            if matches!(self.topology, Topology::Sentinel { .. }) {
                return Ok(info);
            }
            let mut server = info.redis_settings().clone();
            if let Some(username) = &self.username {
                server = server.set_username(username);
            }
            if let Some(password) = &self.password {
                server = server.set_password(password.expose());
            }
            Ok(info.set_redis_settings(server))
        };
        self.urls.iter().map(node).collect()
    }
}

/// How the servers are found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Topology {
    /// One server.
    Single,
    /// Sentinels name the primary of a service.
    Sentinel {
        /// The service, `mymaster` by custom.
        service: Arc<str>,
        /// The database of the primary.
        database: i64,
    },
    /// The nodes of a Cluster know each other.
    Cluster,
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
        let sentinels = |url: &str| Settings::new(url).map(|settings| settings.shown());
        assert_eq!(
            sentinels("redis-sentinel://:hunter2@one,two:26380/mymaster/3"),
            Ok("redis-sentinel://one:26379,two:26380/mymaster/3".to_owned())
        );
        let cluster = Settings::cluster(&["redis://one", "redis://two:7000"]).expect("a cluster");
        assert_eq!(cluster.shown(), "redis://one:6379,redis://two:7000");
        for urls in [&[][..], &["redis://one", "rediss://two"], &["redis://one/1"]] {
            assert_eq!(Settings::cluster(urls).err(), Some(InvalidUrl), "{urls:?}");
        }
        for url in ["redis-sentinel://one", "redis-sentinel://one/", "redis-sentinel://one/a b"] {
            assert_eq!(Settings::new(url).err(), Some(InvalidUrl), "{url}");
        }
        for url in ["", "cache:6379", "http://cache", "redis://", "rediss://cache#insecure"] {
            assert_eq!(Settings::new(url).err(), Some(InvalidUrl), "{url}");
        }
    }
}
