//! The program as a service manager meets it: a process, its signals, its exit code, its standard output.
#![allow(clippy::pedantic, reason = "scripts read best plainly")]

mod flood;
mod log;
mod start;
mod stop;
mod upgrade;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

/// A process of the gateway. It is ended by its id when the test ends.
struct Running {
    child: Child,
    _directory: TempDir,
}

impl Running {
    /// `northgate run` with this file, and these further arguments.
    fn start(text: &str, arguments: &[&str]) -> Self {
        Self::within(TempDir::new().expect("a directory"), text, arguments)
    }

    fn within(directory: TempDir, text: &str, arguments: &[&str]) -> Self {
        let file = directory.path().join("gateway.yaml");
        fs::write(&file, text).expect("written");
        Self::of(
            Command::new(env!("CARGO_BIN_EXE_northgate"))
                .arg("run")
                .arg("--config")
                .arg(&file)
                .args(arguments),
            directory,
        )
    }

    fn of(command: &mut Command, directory: TempDir) -> Self {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        Self { child, _directory: directory }
    }

    /// Its log, to be read.
    fn log(&mut self) -> Log {
        Log(BufReader::new(self.child.stdout.take().expect("its log")))
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Its exit status, if it ends within `patience`.
    fn end(&mut self, patience: Duration) -> Option<ExitStatus> {
        for _ in 0..patience.as_millis() / 10 {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return Some(status);
            }
            sleep(Duration::from_millis(10));
        }
        None
    }

    /// What it has written to standard error, once it has ended.
    fn complaint(&mut self) -> String {
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().expect("its standard error");
        stderr.read_to_string(&mut text).expect("text");
        text
    }

    /// The most memory it has had so far, in MiB.
    fn peak_memory(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("/proc");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") / 1024
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Log(BufReader<ChildStdout>);

impl Log {
    /// The first line from here on that contains `part`.
    fn line(&mut self, part: &str) -> String {
        let mut line = String::new();
        while self.0.read_line(&mut line).expect("text") > 0 {
            if line.contains(part) {
                return line;
            }
            line.clear();
        }
        panic!("the log has ended, and never said {part:?}");
    }

    /// Where the gateway's next listener is.
    fn address(&mut self) -> SocketAddr {
        let line = self.line("\"Listening.\"");
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        line["address"].as_str().expect("an address").parse().expect("an address")
    }

    /// Lets the process write whatever it likes.
    fn ignore(mut self) {
        std::thread::spawn(move || std::io::copy(&mut self.0, &mut std::io::sink()));
    }
}

/// The status of the answer to one request; `None` if there is none.
fn ask(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1).map(str::to_owned)
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}

/// A gateway that answers 204, with these settings of `server`, on these ports.
fn file(server: &str, port: u16, admin: u16) -> String {
    format!(
        "version: 1\nlisten: 127.0.0.1:{port}\nadmin: {{ listen: \"127.0.0.1:{admin}\" }}\n\
         server: {{ {server} }}\nlogging: {{ format: json }}\n\
         routes:\n  - {{ id: answer, path: /, respond: {{ status: 204 }}, auth: none }}\n"
    )
}
