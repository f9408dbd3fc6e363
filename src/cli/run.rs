//! `northgate run`: starts, listens to signals, ends.

use core::time::Duration;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{fail, load};
use crate::base::clock::Clock;
use crate::config::{Config, Environment};
use crate::observe::log::Log;
use crate::observe::metrics::Metrics;
use crate::server::{Launch, Launched, chain, files};

/// Runs the gateway until it is told to stop.
pub(super) fn run(file: &Path, watch: bool) -> ExitCode {
    let environment = Environment::of_process();
    let config = match load(file, &environment) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let runtime = match control() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no threads to run on: {error}")),
    };
    let (clock, metrics) = (Clock::system(), metrics(&config));
    let rust_log = environment.value("RUST_LOG").ok().flatten();
    let log = match Log::start(&config.logging, rust_log, clock.clone(), &metrics) {
        Ok(log) => Arc::new(log),
        Err(error) => return fail(&format!("no thread to log with: {error}")),
    };
    let launch = Launch {
        file: file.to_owned(),
        environment: environment.clone(),
        clock,
        metrics,
        log: Arc::clone(&log),
        control: runtime.handle().clone(),
    };
    let code = runtime.block_on(async {
        let launched = match launch.start(&config).await {
            Ok(launched) => launched,
            Err(error) => return fail(&chain(&error)),
        };
        for address in launched.server.addresses() {
            tracing::info!(%address, "Listening.");
        }
        tracing::info!(address = %launched.admin, "Listening for the operator.");
        files::warn_if_few(config.server.max_connections);
        if watch {
            runtime.spawn(Arc::clone(&launched.reload).watch());
        }
        serve(&launched).await
    });
    log.flush();
    stop(runtime);
    code
}

/// Ends the control runtime. Calls to authorization servers that nobody waits for any more do not keep the process.
pub(crate) fn stop(runtime: Runtime) {
    runtime.shutdown_timeout(Duration::from_millis(100));
}

/// The runtime for everything that is not a request.
pub(crate) fn control() -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
}

/// Where a configuration wants things counted.
pub(crate) fn metrics(config: &Config) -> Metrics {
    Metrics::with(config.metrics.settings.clone())
}

/// Waits for signals: SIGHUP reloads, SIGTERM and SIGINT drain, a second one of these ends at once.
pub(crate) async fn serve(launched: &Launched) -> ExitCode {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return fail(&format!("signals cannot be waited for: {error}")),
    };
    while let Asked::Reload = signals.next().await {
        // What is wrong is in the log and in the metrics; the old configuration stays.
        drop(launched.reload.run().await);
    }
    let server = launched.server.snapshot().server.clone();
    tracing::info!("Draining: nothing new is taken, what was accepted ends.");
    launched.readiness.drain();
    let drained = async {
        tokio::time::sleep(server.drain_delay).await;
        let politely = launched.server.drain(server.drain_timeout).await;
        // Now that the last request has been counted.
        launched.upkeep.finish().await;
        politely
    };
    tokio::select! {
        politely = drained => {
            if !politely {
                tracing::warn!("Connections were cut: they had not ended within the drain timeout.");
            }
            tracing::info!("Stopped.");
            ExitCode::SUCCESS
        }
        code = signals.second() => ExitCode::from(code),
    }
}

enum Asked {
    Reload,
    End,
}

struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.terminate.recv() => Asked::End,
        }
    }

    /// The exit code of a second signal, as shells say it: 128 and the signal's number.
    async fn second(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }
}

const CONTROL_THREADS: usize = 2;
