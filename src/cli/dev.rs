//! `northgate dev`: the gateway, an authorization server and sample services in one process.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use super::exit::fail;
use super::load::read_in;
use super::output::print;
use super::run;
use super::signals::Signals;
use crate::base::clock::Clock;
use crate::config::Environment;
use crate::dev::{self, DevConfig, Ports};
use crate::observe::log::Log;
use crate::server::{Startup, chain};

/// Starts the development issuer, the sample services and the gateway, and prints commands to try.
pub(super) fn dev(file: &Path, offset: u16) -> ExitCode {
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return fail(&format!("cannot install signal handlers: {error}")),
    };
    let ports = match Ports::with_offset(offset) {
        Ok(ports) => ports,
        Err(error) => return fail(&error.to_string()),
    };
    let options = DevConfig {
        ports,
        configuration: file.to_owned(),
        environment: Environment::from_process(),
    };
    let environment = options.environment();
    // The sample configuration warns of what only trials should use; `northgate check` prints these warnings.
    let config = match read_in(file, &environment) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let runtime = match run::control_runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start the control runtime: {error}")),
    };
    let (clock, metrics, control) =
        (Clock::system(), run::metrics(&config), runtime.handle().clone());
    let support = match dev::start_support(&options, clock.clone(), &control) {
        Ok(support) => support,
        Err(error) => return fail(&chain(&error)),
    };
    let rust_log = environment.value("RUST_LOG").ok().flatten().map(str::to_owned);
    let log = match Log::start(&config.logging, rust_log.as_deref(), clock.clone(), &metrics) {
        Ok(log) => Arc::new(log),
        Err(error) => return fail(&format!("cannot start the logging thread: {error}")),
    };
    let launch = Startup {
        file: file.to_owned(),
        environment,
        clock,
        metrics,
        log: Arc::clone(&log),
        control,
    };
    let code = runtime.block_on(async {
        let launched = match launch.start(&config).await {
            Ok(launched) => launched,
            Err(error) if error.is_taken() => {
                return fail(&format!(
                    "{}: stop it, or move all ports with --port-offset",
                    chain(&error)
                ));
            }
            Err(error) => return fail(&chain(&error)),
        };
        runtime.spawn(Arc::clone(&launched.reload).watch());
        let program = std::env::args().next().unwrap_or_else(|| "northgate".to_owned());
        match dev::banner::lines(&support, &options, &program) {
            Ok(lines) => print(format_args!("{}\n\n{lines}\n", dev::banner::BANNER)),
            Err(error) => return fail(&chain(&error)),
        }
        run::serve(&launched, signals, None).await
    });
    log.flush();
    run::exit_with_error(runtime);
    code
}
