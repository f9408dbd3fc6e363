//! `northgate run`: starts, listens to signals, ends.

use core::time::Duration;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};

use super::signals::Signals;
use super::{fail, load};
use crate::base::clock::Clock;
use crate::config::{Config, Environment};
use crate::observe::log::Log;
use crate::observe::metrics::Metrics;
use crate::server::{RunningGateway, Startup, chain, fd_limit};

/// Runs the gateway until it is told to stop. With `handover` it starts beside another one on the same addresses.
pub(super) fn run(file: &Path, watch: bool, handover: bool) -> ExitCode {
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return fail(&format!("signals cannot be waited for: {error}")),
    };
    let environment = Environment::from_process();
    let config = match load(file, &environment) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let runtime = match control_runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no threads to run on: {error}")),
    };
    let (clock, metrics) = (Clock::system(), metrics(&config));
    let rust_log = environment.value("RUST_LOG").ok().flatten();
    let log = match Log::start(&config.logging, rust_log, clock.clone(), &metrics) {
        Ok(log) => Arc::new(log),
        Err(error) => return fail(&format!("no thread to log with: {error}")),
    };
    let launch = Startup {
        file: file.to_owned(),
        environment: environment.clone(),
        clock,
        metrics,
        log: Arc::clone(&log),
        control: runtime.handle().clone(),
    };
    let code = runtime.block_on(async {
        let started =
            if handover { launch.take_over(&config).await } else { launch.start(&config).await };
        let launched = match started {
            Ok(launched) => launched,
            Err(error) => return fail(&chain(&error)),
        };
        for address in launched.server.addresses() {
            tracing::info!(%address, "Listening.");
        }
        tracing::info!(address = %launched.admin, "Listening for the operator.");
        fd_limit::warn_if_few(config.server.max_connections);
        if watch {
            runtime.spawn(Arc::clone(&launched.reload).watch());
        }
        serve(&launched, signals).await
    });
    log.flush();
    exit_with_error(runtime);
    code
}

/// Ends the control runtime. Calls to authorization servers that nobody waits for any more do not keep the process.
pub(crate) fn exit_with_error(runtime: Runtime) {
    runtime.shutdown_timeout(Duration::from_millis(100));
}

/// The runtime for everything that is not a request.
pub(crate) fn control_runtime() -> std::io::Result<Runtime> {
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

/// Serves until a signal or a fault ends it: SIGHUP reloads, SIGTERM and SIGINT drain, a second one of these ends the
/// process at once.
pub(crate) async fn serve(launched: &RunningGateway, mut signals: Signals) -> ExitCode {
    // A reload takes its time, and a drain does not wait for it.
    let reloading = tokio::runtime::Handle::current().spawn({
        let (mut signals, reload) = (signals.clone(), Arc::clone(&launched.reload));
        async move {
            loop {
                signals.reload().await;
                // What is wrong is in the log and in the metrics; the old configuration stays.
                drop(reload.run().await);
            }
        }
    });
    signals.serving();
    let code = tokio::select! {
        () = signals.end() => ExitCode::SUCCESS,
        () = launched.server.failed() => {
            tracing::error!("A worker has ended: the gateway ends, too, since it would serve only a part of its clients.");
            ExitCode::FAILURE
        }
    };
    reloading.abort();
    drain(launched).await;
    code
}

async fn drain(launched: &RunningGateway) {
    let server = launched.server.snapshot().server.clone();
    tracing::info!("Draining: nothing new is taken, what was accepted ends.");
    launched.readiness.drain();
    tokio::time::sleep(server.drain_delay).await;
    if !launched.server.drain(server.drain_timeout).await {
        tracing::warn!("Connections were cut: they had not ended within the drain timeout.");
    }
    // Now that the last request has been counted.
    if tokio::time::timeout(SAVE_TIMEOUT, launched.upkeep.finish()).await.is_err() {
        tracing::error!(
            "Could not save quotas and revocations in time; the files of the last save stay."
        );
    }
    tracing::info!("Stopped.");
}

const CONTROL_THREADS: usize = 2;
/// How long an end waits for a disk.
const SAVE_TIMEOUT: Duration = Duration::from_secs(10);
