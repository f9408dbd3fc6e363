//! `northgate check`: reports every fault of a configuration file at once.

use std::path::Path;
use std::process::ExitCode;

use super::display;
use super::exit::EX_CONFIG;
use super::output::print;
use crate::base::clock::Clock;
use crate::config::{self, Environment, Format};

/// Checks `file` and prints its faults to standard output; with `strict`, warnings are an error too.
pub(super) fn check(file: &Path, format: Format, strict: bool) -> ExitCode {
    match config::load(file, &Environment::from_process(), Clock::system().now()) {
        Ok((config, warnings)) => {
            print(warnings.render(format));
            if matches!(format, Format::Text) {
                let (routes, warnings) = (config.routes.len(), warnings.iter().count());
                print(format_args!(
                    "{}: {}, {}\n",
                    file.display(),
                    display::count(routes, "route"),
                    display::count(warnings, "warning")
                ));
            }
            if strict && !warnings.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(faults) => {
            print(faults.render(format));
            ExitCode::from(EX_CONFIG)
        }
    }
}
