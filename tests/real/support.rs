//! Finding, starting and stopping real servers.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The programs that `suite` needs, by name; `None` after saying that it is left out.
///
/// # Panics
///
/// If one is missing and `NORTHGATE_REAL=require`.
pub(crate) fn programs<const N: usize>(suite: &str, names: [&str; N]) -> Option<[PathBuf; N]> {
    let wanted = env::var_os("NORTHGATE_REAL").unwrap_or_default();
    if wanted.is_empty() {
        return left_out(suite, "NORTHGATE_REAL is not set");
    }
    let mut found = Vec::new();
    for name in names {
        match find(name) {
            Some(path) => found.push(path),
            None if wanted == "require" => panic!("{suite}: there is no {name}"),
            None => return left_out(suite, &format!("there is no {name}")),
        }
    }
    found.try_into().ok()
}

/// Where `name` is: at the path that a variable of that name (`PROMTOOL`) gives, or in `PATH`.
fn find(name: &str) -> Option<PathBuf> {
    let variable = name.to_uppercase().replace('-', "_");
    if let Some(path) = env::var_os(variable) {
        return Some(path.into());
    }
    let path: OsString = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Says so on the terminal itself: what a test that passes prints is not shown.
fn left_out<T>(suite: &str, why: &str) -> Option<T> {
    let _ = writeln!(io::stderr(), "left out: {suite} ({why})");
    None
}

/// Runs `command` to its end, with `input`, and returns what it said.
///
/// # Panics
///
/// If it fails; with what it said.
pub(crate) fn run(command: &mut Command, input: &str) -> String {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it was found, so it starts");
    let mut stdin = child.stdin.take().expect("it was asked for");
    stdin.write_all(input.as_bytes()).expect("it reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{} failed:\n{said}", command.get_program().display());
    said
}

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
