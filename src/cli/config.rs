//! `northgate config`: prints the effective configuration, with every default and no secret.

use std::path::Path;
use std::process::ExitCode;

use super::load::read;
use super::output::print;

/// Prints the configuration in `file` as the gateway uses it, as YAML that loads again to the same text.
pub(super) fn config(file: &Path) -> ExitCode {
    match read(file) {
        Ok(config) => {
            print(config.effective_yaml());
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}
