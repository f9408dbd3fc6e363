//! Reload, for every trigger: read, load (all faults), compile, replace. On any error the current configuration
//! stays.

use core::error::Error;
use core::time::Duration;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{interval, timeout};

use crate::config::{self, Environment};
use crate::observe::log::Log;
use crate::server::Server;

/// Reloads the configuration, whatever the trigger: SIGHUP, the admin API, or a changed file.
#[derive(Debug)]
pub struct Reload {
    file: PathBuf,
    environment: Environment,
    server: Arc<Server>,
    log: Arc<Log>,
    /// Serializes reloads.
    lock: Mutex<()>,
}

/// The result of a reload.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reloaded {
    /// The hash of the new configuration.
    pub hash: String,
    /// The keys that have changed since the start and wait for a restart.
    pub waiting: Vec<&'static str>,
}

impl Reload {
    /// Creates the reload of `server` from `file`.
    pub fn new(
        file: PathBuf,
        environment: Environment,
        server: Arc<Server>,
        log: Arc<Log>,
    ) -> Self {
        Self { file, environment, server, log, lock: Mutex::new(()) }
    }

    /// Reloads. The result is logged and counted.
    ///
    /// # Errors
    ///
    /// The faults, as text for the operator; everything stays as it was then.
    pub async fn run(&self) -> Result<Reloaded, String> {
        let _lock = self.lock.lock().await;
        let retained = self.server.shared().retained();
        match self.swap().await {
            Ok(reloaded) => {
                let Reloaded { hash, waiting } = &reloaded;
                retained.metrics.process().reloaded(hash, retained.clock.now());
                tracing::info!(hash, "Configuration reloaded.");
                for key in waiting {
                    tracing::warn!(
                        key,
                        "A changed key needs a restart; its previous value stays in force."
                    );
                }
                Ok(reloaded)
            }
            Err(faults) => {
                retained.metrics.process().reload_failed();
                tracing::error!(faults = %faults, "Could not reload the configuration; the current one stays in force.");
                Err(faults)
            }
        }
    }

    /// Reloads whenever the content of the file changes, until the control runtime ends. Polls every two seconds,
    /// which works with replaced symlinks, bind mounts and network file systems.
    pub async fn watch(self: Arc<Self>) {
        let mut last = self.content().await;
        let mut ticks = interval(POLL_INTERVAL);
        loop {
            ticks.tick().await;
            let now = self.content().await;
            // A missing file is being replaced.
            if now.is_some() && now != last {
                last = now;
                // Errors are logged and counted.
                let _ = self.run().await;
            }
        }
    }

    async fn content(&self) -> Option<Vec<u8>> {
        let file = self.file.clone();
        read(move || std::fs::read(file).ok()).await.ok().flatten()
    }

    async fn swap(&self) -> Result<Reloaded, String> {
        let now = self.server.shared().retained().clock.now();
        let (file, environment) = (self.file.clone(), self.environment.clone());
        let loaded = read(move || config::load(&file, &environment, now)).await?;
        let (config, warnings) = loaded.map_err(|faults| faults.to_string())?;
        for warning in warnings.iter() {
            tracing::warn!(code = %warning.code, line = warning.position.line, warning = warning.message, "Configuration warning.");
        }
        let waiting = self.server.reload(&config).map_err(|error| chain(&error))?;
        self.log.reload(&config.logging);
        Ok(Reloaded { hash: config.hash, waiting })
    }
}

/// Runs `work`, which reads files, on a thread of its own: a file system that does not respond must not stop the control
/// runtime.
async fn read<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let Ok(read) = timeout(READ_TIMEOUT, spawn_blocking(work)).await else {
        let seconds = READ_TIMEOUT.as_secs();
        return Err(format!("cannot read the configuration: no file was read within {seconds} s"));
    };
    read.map_err(|error| format!("cannot read the configuration: {error}"))
}

const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The time in which the configuration and the files that it names must be read.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Formats an error and its causes on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
