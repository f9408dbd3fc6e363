//! Checks `metering`.

use core::time::Duration;
use std::path::Path;

use super::server::is_private;
use super::{Check, MAX_DURATION};
use crate::config::fault::Code;
use crate::config::file::File;
use crate::config::file::metering as file;
use crate::metering::{HttpDestination, Settings};

impl Check<'_> {
    /// Returns the destinations of usage, if there are any.
    pub(super) fn metering(&mut self, file: &File) -> Option<Settings> {
        self.metered_limits(file);
        let section = file.metering.get()?;
        let keys = &section.value;
        let has_state = file.server.get().is_some_and(|server| !server.state_dir.is_absent());
        if !has_state {
            let message =
                "`metering` needs `server.state_dir`: a restart would lose usage otherwise";
            self.fault(Code::C106, section.key_at, message, "write server: { state_dir: state }");
        }
        let interval = self.time(&keys.interval, Duration::from_secs(60), MAX_DURATION);
        let path = keys.file.get().map(|path| (path, self.path(path)));
        if let Some((at, path)) = &path
            && (path.is_dir() || !path.parent().is_some_and(is_directory))
        {
            let message = format!("{} is in no directory, or is one", at.shown());
            self.fault(Code::C108, at.at, message, "make the directory, or write another path");
        }
        let http = keys.http.get().and_then(|http| self.http_destination(http));
        let log = keys.log.or(keys.file.is_absent() && keys.http.is_absent());
        if !log && keys.file.is_absent() && keys.http.is_absent() {
            let message = "usage would go nowhere";
            self.fault(Code::C106, section.key_at, message, "write log: true, or file, or http");
        }
        Some(Settings { interval, log, file: path.map(|(_, path)| path), http })
    }

    fn http_destination(
        &mut self,
        http: &crate::config::de::field::Spanned<file::Http>,
    ) -> Option<HttpDestination> {
        let help = "write https://billing.example.com/usage";
        let url = self.required(&http.url, http.key_at, "url", help);
        if let Some(at) = url.filter(|url| !is_private(&url.value.0)) {
            let message = "usage and its token would cross the network unencrypted";
            self.fault(Code::C109, at.at, message, "write https://; http is for loopback alone");
        }
        let token = http.token.get().and_then(|token| self.secret(token));
        let ca = self.authorities(&http.ca_file);
        let timeout = self.time(&http.timeout, Duration::from_secs(5), Duration::from_secs(60));
        Some(HttpDestination { url: url?.value.0.clone(), token, ca, timeout })
    }

    /// Refuses limits whose usage goes nowhere or cannot be counted.
    fn metered_limits(&mut self, file: &File) {
        let limits = file.limits.get().into_iter().flat_map(|limits| limits.value.iter());
        let metered = limits.filter(|(_, keys)| keys.metered.or(false));
        for (_, keys) in metered.collect::<Vec<_>>() {
            let Some(at) = keys.metered.get() else { continue };
            if !keys.concurrency.is_absent() {
                let message = "a concurrency limit cannot be metered";
                self.fault(Code::C106, at.key_at, message, "remove it");
            } else if file.metering.is_absent() {
                let message = "usage of this limit would go nowhere: there is no `metering`";
                self.fault(Code::C106, at.key_at, message, "write metering: { log: true } as well");
            }
        }
    }
}

/// Whether a file can be in `directory`, which is empty for the working directory.
fn is_directory(directory: &Path) -> bool {
    directory.as_os_str().is_empty() || directory.is_dir()
}
