//! One path for every trigger: read → load (all faults) → compile → swap. Anything wrong keeps the old.

use core::error::Error;
use core::time::Duration;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::time::interval;

use crate::config::{self, Environment};
use crate::observe::log::Log;
use crate::server::Server;

/// Loads the file anew and swaps what is served, whoever asks: SIGHUP, the operator, a changed file.
#[derive(Debug)]
pub struct Reload {
    file: PathBuf,
    environment: Environment,
    server: Arc<Server>,
    log: Arc<Log>,
    /// One at a time.
    turn: Mutex<()>,
}

/// What a reload has done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reloaded {
    /// The hash of the file that is served from now on.
    pub hash: String,
    /// Keys that have changed since the start and wait for a restart.
    pub waiting: Vec<&'static str>,
}

impl Reload {
    /// Reloads `server` from `file`.
    pub fn new(
        file: PathBuf,
        environment: Environment,
        server: Arc<Server>,
        log: Arc<Log>,
    ) -> Self {
        Self { file, environment, server, log, turn: Mutex::new(()) }
    }

    /// Reloads. What happened is logged and counted.
    ///
    /// # Errors
    ///
    /// The story of what is wrong, for the operator; everything stays as it was then.
    pub async fn run(&self) -> Result<Reloaded, String> {
        let _turn = self.turn.lock().await;
        let kept = &self.server.shared().retained;
        match self.swap() {
            Ok(reloaded) => {
                let Reloaded { hash, waiting } = &reloaded;
                kept.metrics.process().reloaded(hash, kept.clock.now());
                tracing::info!(hash, "The configuration was reloaded.");
                for key in waiting {
                    tracing::warn!(
                        key,
                        "This key has changed and waits for a restart: the gateway goes on with its old value."
                    );
                }
                Ok(reloaded)
            }
            Err(story) => {
                kept.metrics.process().reload_failed();
                tracing::error!(faults = %story, "The configuration was not reloaded; the old one stays.");
                Err(story)
            }
        }
    }

    /// Reloads whenever the file's content has changed, until the control runtime ends. Looks every two
    /// seconds: that survives symlinks that are swapped, bind mounts and network file systems.
    pub async fn watch(self: Arc<Self>) {
        let mut seen = self.content();
        let mut looks = interval(POLL_INTERVAL);
        loop {
            looks.tick().await;
            let now = self.content();
            // A file that is gone for a moment is being replaced.
            if now.is_some() && now != seen {
                seen = now;
                // What is wrong is in the log and in the metrics.
                let _ = self.run().await;
            }
        }
    }

    fn content(&self) -> Option<Vec<u8>> {
        std::fs::read(&self.file).ok()
    }

    fn swap(&self) -> Result<Reloaded, String> {
        let now = self.server.shared().retained.clock.now();
        let (config, warnings) = config::load(&self.file, &self.environment, now)
            .map_err(|faults| faults.to_string())?;
        for warning in warnings.iter() {
            tracing::warn!(code = %warning.code, line = warning.place.line, warning = warning.message, "The configuration has a weakness.");
        }
        let waiting = self.server.reload(&config).map_err(|error| chain(&error))?;
        self.log.reload(&config.logging);
        Ok(Reloaded { hash: config.hash, waiting })
    }
}

const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// An error with its causes, on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut story = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(story, ": {error}");
        cause = error.source();
    }
    story
}
