//! The exit codes of the commands, and their last words.

use std::process::ExitCode;

use super::output::print_error;

/// The exit code for a configuration that cannot be used (`EX_CONFIG` of sysexits), so that a service manager does
/// not restart the process.
pub(super) const EX_CONFIG: u8 = 78;
/// The exit code for invalid arguments, as `clap` has it.
pub(super) const EX_USAGE: u8 = 2;

/// Prints an error and returns the exit code of a failure.
pub(super) fn fail(message: &str) -> ExitCode {
    exit_with(1, message)
}

/// Prints an error and returns `code`.
pub(super) fn exit_with(code: u8, message: &str) -> ExitCode {
    print_error(format_args!("northgate: {message}\n"));
    ExitCode::from(code)
}
