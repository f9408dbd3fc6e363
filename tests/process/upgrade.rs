//! SIGUSR2 replaces the program without a gap.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::{Running, ask, file, free_port};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn sigusr2_starts_the_new_program_and_loses_nothing() {
    let directory = TempDir::new().expect("a directory");
    let (path, program) =
        (directory.path().join("gateway.yaml"), directory.path().join("northgate"));
    let text = file("workers: 2, drain_delay: 5s", free_port(), free_port());
    fs::write(&path, &text).expect("written");
    symlink(env!("CARGO_BIN_EXE_northgate"), &program).expect("a link");
    let mut old =
        Running::of(Command::new(&program).args(["run", "--config"]).arg(&path), directory);
    let mut log = old.log();
    let address = log.address();
    let load = Load::start(address);
    // The new one answers otherwise.
    fs::write(&path, text.replace("204", "202")).expect("written");

    old.signal("-USR2");

    let serves = log.line("The new program serves; this process drains.");
    let pid = serde_json::from_str::<serde_json::Value>(&serves).expect("JSON")["pid"].to_string();
    log.ignore();
    let _new = Ended(pid);
    assert_eq!(old.end(SOON).and_then(|status| status.code()), Some(0));
    assert_eq!(ask(address).as_deref(), Some("202"));
    assert!(load.end() > 0, "requests went on all the time");
}

#[test]
fn a_new_program_that_does_not_serve_changes_nothing() {
    let directory = TempDir::new().expect("a directory");
    let (path, program) =
        (directory.path().join("gateway.yaml"), directory.path().join("northgate"));
    let text = file("workers: 1", free_port(), free_port());
    fs::write(&path, &text).expect("written");
    symlink(env!("CARGO_BIN_EXE_northgate"), &program).expect("a link");
    let mut gateway =
        Running::of(Command::new(&program).args(["run", "--config"]).arg(&path), directory);
    let mut log = gateway.log();
    let address = log.address();

    fs::write(&path, "routes: [").expect("written");
    gateway.signal("-USR2");
    let told = log.line("Could not start the new program");
    assert!(told.contains("exit status: 78"), "{told}");
    fs::remove_file(&program).expect("removed");
    gateway.signal("-USR2");
    let told = log.line("Could not start the new program");
    assert!(told.contains("cannot start the new program"), "{told}");

    log.ignore();
    assert_eq!(ask(address).as_deref(), Some("204"));
    gateway.signal("-TERM");
    assert_eq!(gateway.end(SOON).and_then(|status| status.code()), Some(0));
}

/// A service manager that has stopped the gateway may start it again: no process may be left that listens.
#[test]
fn sigterm_during_an_upgrade_ends_the_new_program_as_well() {
    let directory = TempDir::new().expect("a directory");
    let [path, program] = ["gateway.yaml", "northgate"].map(|name| directory.path().join(name));
    fs::write(&path, file("workers: 1", free_port(), free_port())).expect("written");
    symlink(env!("CARGO_BIN_EXE_northgate"), &program).expect("a link");
    let mut old =
        Running::of(Command::new(&program).args(["run", "--config"]).arg(&path), directory);
    let mut log = old.log();
    log.address();
    // This one never serves.
    fs::remove_file(&program).expect("removed");
    fs::write(&program, "#!/bin/sh\necho started as $$\nexec sleep 300\n").expect("written");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("executable");
    old.signal("-USR2");
    let started = log.line("started as ").trim().rsplit(' ').next().expect("its id").to_owned();
    log.ignore();

    old.signal("-TERM");

    assert_eq!(old.end(SOON).and_then(|status| status.code()), Some(0));
    let lives = Command::new("kill").args(["-0", &started]).stderr(Stdio::null()).status();
    assert!(!lives.expect("kill runs").success(), "the new program goes on");
}

#[test]
fn a_new_program_whose_predecessor_is_gone_stops() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("gateway.yaml");
    fs::write(&path, file("workers: 1", free_port(), free_port())).expect("written");
    let (ours, theirs) = UnixStream::pair().expect("a channel");
    drop(ours);
    let mut command = Command::new(env!("CARGO_BIN_EXE_northgate"));
    command.args(["run", "--config"]).arg(&path).env("NORTHGATE_SUCCESSOR", "1");

    let mut orphan = Running::of(command.stdin(OwnedFd::from(theirs)), directory);

    orphan.log().ignore();
    assert_eq!(orphan.end(SOON).and_then(|status| status.code()), Some(1));
}

/// Clients that ask all the time, each request on a connection of its own or on one that is kept.
struct Load {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let (over, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let clients = (0..4)
            .map(|number| {
                let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
                thread::spawn(move || {
                    let mut kept: Option<TcpStream> = None;
                    'next: while !over.load(SeqCst) {
                        let reused = kept.is_some();
                        let mut stream = kept.take().unwrap_or_else(|| {
                            TcpStream::connect(address).expect("no connection is refused")
                        });
                        stream.set_read_timeout(Some(SOON)).expect("a socket");
                        let line = if number % 2 == 0 { "" } else { "Connection: close\r\n" };
                        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n");
                        let sent = stream.write_all(request.as_bytes());
                        assert!(reused || sent.is_ok(), "no connection is reset");
                        let mut head = Vec::new();
                        let mut byte = [0];
                        while !head.ends_with(b"\r\n\r\n") {
                            match stream.read(&mut byte) {
                                Ok(1) => head.push(byte[0]),
                                // An idle connection may be closed at any time: the client tries another.
                                _ if reused && head.is_empty() => continue 'next,
                                other => panic!("no request is lost: {other:?}, {head:?}"),
                            }
                        }
                        let head = String::from_utf8(head).expect("text").to_lowercase();
                        assert!(head.starts_with("http/1.1 20"), "{head}");
                        answered.fetch_add(1, SeqCst);
                        if number % 2 == 0 && !head.contains("connection: close") {
                            kept = Some(stream);
                        }
                        thread::sleep(Duration::from_millis(2));
                    }
                })
            })
            .collect();
        Self { over, answered, clients }
    }

    fn end(self) -> usize {
        self.over.store(true, SeqCst);
        for client in self.clients {
            client.join().expect("every request was answered");
        }
        self.answered.load(SeqCst)
    }
}

/// A process that this test did not start itself, ended by its id.
struct Ended(String);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", &self.0]).status();
    }
}
