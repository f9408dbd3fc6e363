//! Loads the configuration file of a command, and prints its faults.

use std::path::Path;
use std::process::ExitCode;

use super::exit::EX_CONFIG;
use super::output::print_error;
use crate::base::clock::Clock;
use crate::config::{Config, Environment, Faults, Format};

/// Loads the configuration in `file` and prints its warnings or faults to standard error.
pub(super) fn load(file: &Path, environment: &Environment) -> Result<Config, ExitCode> {
    match crate::config::load(file, environment, Clock::system().now()) {
        Ok((config, warnings)) => {
            print_faults(&warnings);
            Ok(config)
        }
        Err(faults) => {
            print_faults(&faults);
            Err(ExitCode::from(EX_CONFIG))
        }
    }
}

/// Loads the configuration in `file` with the variables of the process, printing faults only.
pub(super) fn read(file: &Path) -> Result<Config, ExitCode> {
    read_in(file, &Environment::from_process())
}

/// Loads the configuration in `file` and prints its faults; warnings are left to `northgate check`.
pub(super) fn read_in(file: &Path, environment: &Environment) -> Result<Config, ExitCode> {
    match crate::config::load(file, environment, Clock::system().now()) {
        Ok((config, _)) => Ok(config),
        Err(faults) => {
            print_faults(&faults);
            Err(ExitCode::from(EX_CONFIG))
        }
    }
}

fn print_faults(faults: &Faults) {
    if !faults.is_empty() {
        print_error(faults.render(Format::Text));
    }
}
