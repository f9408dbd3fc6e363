//! Checks `redis`.

use core::time::Duration;

use super::{Check, MAX_DURATION};
use crate::config::de::field::Field;
use crate::config::de::units::InvalidValue;
use crate::config::fault::Code;
use crate::config::file::File;
use crate::redis::{Settings, Topology};

impl Check<'_> {
    /// Returns the settings of the shared Redis, if there are any.
    pub(super) fn redis(&mut self, file: &File) -> Option<Settings> {
        let section = file.redis.get()?;
        let keys = &section.value;
        let help = "write redis://host:6379, or rediss:// for TLS";
        let urls = self.required(&keys.url, section.key_at, "url", help);
        let made = urls.and_then(|urls| {
            let first = urls.value.items.first()?;
            Some((
                first,
                match &urls.value.items[..] {
                    // A list of one begins before its item, and is a Cluster as well.
                    [one] if one.at == urls.at => Settings::new(&one.value),
                    nodes => {
                        let urls: Vec<_> = nodes.iter().map(|url| url.value.as_str()).collect();
                        Settings::cluster(&urls)
                    }
                },
            ))
        });
        if let Some((url, Err(error))) = &made {
            self.wrong(url, InvalidValue::new(error.to_string(), help));
        }
        let username = keys.username.get().map(|at| at.value.as_str().into());
        let password = keys.password.get().and_then(|at| self.secret(at));
        let timeout = self.time(&keys.timeout, Duration::from_millis(50), MAX_DURATION);
        let connect_timeout =
            self.time(&keys.connect_timeout, Duration::from_secs(1), MAX_DURATION);
        if let Some(at) =
            keys.prefix.get().filter(|at| !at.value.bytes().all(|b| b.is_ascii_graphic()))
        {
            self.wrong(
                at,
                InvalidValue::new("cannot begin a key", "write letters, digits and `:`"),
            );
        }
        let ca = self.authorities(&keys.ca_file);
        let (_, Ok(mut settings)) = made? else { return None };
        if let (Some(at), false) = (keys.ca_file.get(), settings.is_encrypted()) {
            let message = "`ca_file` has no effect without TLS";
            self.fault(Code::C106, at.key_at, message, "write rediss:// in `url`, or remove it");
        }
        if let (Topology::Cluster, Some(sessions)) = (settings.topology(), file.sessions.get())
            && sessions.iter().next().is_some()
        {
            let message = "sessions cannot be shared through a Redis Cluster";
            let help = "write the URL of one server, or of Sentinels: what changes together must be on one server";
            self.fault(Code::C106, section.key_at, message, help);
        }
        settings.username = username;
        settings.password = password;
        settings.timeout = timeout;
        settings.connect_timeout = connect_timeout;
        settings.prefix = keys.prefix.or(settings.prefix.to_string()).into();
        settings.ca = ca;
        Some(settings)
    }

    /// Refuses a setting that needs Redis in a file without `redis`.
    pub(super) fn shares<T>(&mut self, set: &Field<T>, file: &File, what: &str) {
        if let (Some(at), true) = (set.get(), file.redis.is_absent()) {
            let message = format!("{what} needs `redis`");
            self.fault(
                Code::C106,
                at.at,
                message,
                "write redis: { url: redis://host:6379 } as well",
            );
        }
    }
}
