//! Standard output, whose reader may end early, and standard error of the commands.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};

/// Writes `text` to standard output.
///
/// A reader that ends early, as in `northgate routes | head`, gets no more, and the command still ends with its own exit code. Any
/// other failure, such as a full disk, ends the process with exit code 1: a part of the output must not pass for the whole.
pub(super) fn print(text: impl Display) {
    let mut stdout = io::stdout().lock();
    let written = write!(stdout, "{text}").and_then(|()| stdout.flush());
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        print_error(format_args!("northgate: cannot write the output: {error}\n"));
        std::process::exit(1);
    }
}

/// Writes `text` to standard error. If that is closed too, only the exit code reports the outcome.
pub(super) fn print_error(text: impl Display) {
    _ = write!(io::stderr().lock(), "{text}");
}
