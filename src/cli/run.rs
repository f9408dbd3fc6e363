//! `northgate run`: starts the gateway, reacts to signals, and drains at the end.

use core::time::Duration;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};

use super::exit::fail;
use super::load::load;
use super::signals::Signals;
use super::upgrade::{self, Successor};
use crate::base::clock::Clock;
use crate::config::{Config, Environment};
use crate::observe::log::Log;
use crate::observe::metrics::Metrics;
use crate::server::{RunningGateway, Startup, chain, fd_limit};

/// Runs the gateway until a signal stops it. With `handover`, binds beside another gateway on the same addresses.
pub(super) fn run(file: &Path, watch: bool, handover: bool) -> ExitCode {
    let (successor, is_successor) = (Successor::of_this_process(), upgrade::is_successor());
    let handover = handover || is_successor;
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return fail(&format!("cannot install signal handlers: {error}")),
    };
    let environment = Environment::from_process();
    let config = match load(file, &environment) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let runtime = match control_runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start the control runtime: {error}")),
    };
    let (clock, metrics) = (Clock::system(), metrics(&config));
    let rust_log = environment.value("RUST_LOG").ok().flatten();
    let log = match Log::start(&config.logging, rust_log, clock.clone(), &metrics) {
        Ok(log) => Arc::new(log),
        Err(error) => return fail(&format!("cannot start the logging thread: {error}")),
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
        tracing::info!(address = %launched.admin, "Admin listener bound.");
        fd_limit::warn_if_few(config.server.max_connections);
        if watch {
            runtime.spawn(Arc::clone(&launched.reload).watch());
        }
        if is_successor && let Err(error) = upgrade::report_ready() {
            tracing::error!(%error, "The previous gateway ended before this one served, so its state is not handed over; stopping.");
            return ExitCode::FAILURE;
        }
        if let Err(error) = upgrade::notify_service_manager() {
            tracing::warn!(%error, "Could not notify the service manager (NOTIFY_SOCKET); it may take this process for not started.");
        }
        serve(&launched, signals, successor).await
    });
    log.flush();
    exit_with_error(runtime);
    code
}

/// Shuts the control runtime down without waiting for calls to authorization servers that are still in flight.
pub(crate) fn exit_with_error(runtime: Runtime) {
    runtime.shutdown_timeout(Duration::from_millis(100));
}

/// Builds the control runtime, which runs everything except requests.
pub(crate) fn control_runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
}

/// Returns the metrics registry, with the histogram buckets of `config`.
pub(crate) fn metrics(config: &Config) -> Metrics {
    Metrics::with(config.metrics.settings.clone())
}

/// Serves until a signal or a fault ends it: SIGHUP reloads; SIGUSR2 starts `successor` and drains once that serves;
/// SIGTERM and SIGINT drain; a second SIGTERM or SIGINT ends the process at once.
pub(crate) async fn serve(
    launched: &RunningGateway,
    mut signals: Signals,
    successor: Option<Successor>,
) -> ExitCode {
    // A separate task, so that a drain does not wait for a slow reload.
    let reloading = tokio::runtime::Handle::current().spawn({
        let (mut signals, reload) = (signals.clone(), Arc::clone(&launched.reload));
        async move {
            loop {
                signals.reload().await;
                // The reload logs and counts its failure; the previous configuration stays in use.
                drop(reload.run().await);
            }
        }
    });
    signals.serving();
    let mut upgraded = false;
    let mut upgrading = signals.clone();
    let code = tokio::select! {
        () = signals.end() => ExitCode::SUCCESS,
        () = launched.server.failed() => {
            tracing::error!("A worker ended unexpectedly; shutting down, because only a part of the clients would be served.");
            ExitCode::FAILURE
        }
        () = Successor::takes_over(successor.as_ref(), &mut upgrading, launched) => {
            // The successor answers the health checks of load balancers: they need not notice anything.
            launched.server.release_admin();
            upgraded = true;
            ExitCode::SUCCESS
        }
    };
    reloading.abort();
    drain(launched, upgraded).await;
    code
}

async fn drain(launched: &RunningGateway, upgraded: bool) {
    let server = launched.server.snapshot().server().clone();
    tracing::info!(
        "Draining started: accepting no new connections, completing requests in flight."
    );
    launched.readiness.drain();
    if !upgraded {
        tokio::time::sleep(server.drain_delay).await;
    }
    if !launched.server.drain(server.drain_timeout).await {
        tracing::warn!("Drain timeout expired; the remaining connections were closed.");
    }
    // After the last request, so that its counts are saved too.
    if tokio::time::timeout(SAVE_TIMEOUT, launched.upkeep.finish()).await.is_err() {
        tracing::error!(
            "Could not save quotas and revocations in time; the previously saved files remain in use."
        );
    }
    tracing::info!("Stopped.");
}

const CONTROL_THREADS: usize = 2;
/// The time limit of the last save to disk.
const SAVE_TIMEOUT: Duration = Duration::from_secs(10);
