//! Finding, starting and stopping real servers.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

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

/// The folder at `path` of the repository, where `.ci/run` installs what `suite` needs; `None` after
/// saying that the suite is left out.
///
/// # Panics
///
/// If it is missing and `NORTHGATE_REAL=require`.
pub(crate) fn folder(suite: &str, path: &str) -> Option<PathBuf> {
    let wanted = env::var_os("NORTHGATE_REAL").unwrap_or_default();
    let folder = repository(path);
    if wanted.is_empty() {
        return left_out(suite, "NORTHGATE_REAL is not set");
    }
    if folder.is_dir() {
        return Some(folder);
    }
    assert!(wanted != "require", "{suite}: there is no {path}");
    left_out(suite, &format!("there is no {path}"))
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

/// A program that ends with the test that started it.
pub(crate) struct Running(Child);

impl Running {
    /// Starts `command`. It sees its standard input end when the test is gone, however that came.
    pub(crate) fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::piped()).spawn();
        Self(child.unwrap_or_else(|error| panic!("{}: {error}", command.get_program().display())))
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Sends it a signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().expect("there is kill");
        assert!(sent.success(), "it has ended before");
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn terminate(self) {
        self.signal("TERM");
        self.wait();
    }

    /// Waits until it has ended, and well.
    pub(crate) fn wait(mut self) {
        let ended = self.0.wait().expect("it is ours");
        assert!(ended.success(), "{ended}");
    }

    /// The first line that it prints, if its standard output was piped.
    pub(crate) fn first_line(&mut self) -> String {
        let said = self.0.stdout.take().expect("its output is piped");
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line).expect("it prints text");
        line.trim().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended by itself, then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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

/// Asks again and again until there is an answer.
///
/// # Panics
///
/// If there is none within `limit`; with what was said last.
pub(crate) async fn eventually<T>(
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let end = tokio::time::Instant::now() + limit;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(said) if tokio::time::Instant::now() > end => panic!("still not: {said}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A port that no server has, and that no connection of this machine is given meanwhile.
pub(crate) fn free_port() -> u16 {
    let first = FIRST_PORT + (std::process::id() % 10_000) as u16;
    (first..LAST_PORT).find(|port| reserve(&[*port])).expect("a free port")
}

/// Whether `ports` are free and below the range that the system gives to connections, and none of them was
/// reserved before in this process; they are reserved then.
pub(crate) fn reserve(ports: &[u16]) -> bool {
    static RESERVED: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut reserved = RESERVED.lock().expect("no reservation panics");
    let is_free = |port: &u16| {
        (FIRST_PORT..LAST_PORT).contains(port)
            && !reserved.contains(port)
            && std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()
    };
    let are_free = ports.iter().all(is_free);
    if are_free {
        reserved.extend(ports);
    }
    are_free
}

const FIRST_PORT: u16 = 12_000;
/// The first of Linux's ephemeral ports.
const LAST_PORT: u16 = 32_768;

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
