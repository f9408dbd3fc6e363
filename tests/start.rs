//! What the program says when it starts.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

#[test]
fn too_few_open_files_for_the_connections_are_told_at_the_start() {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("gateway.yaml");
    fs::write(&file, FILE).expect("written");

    let mut gateway = Command::new("sh")
        .args(["-c", "ulimit -Sn 200; exec \"$0\" run --config \"$1\""])
        .arg(env!("CARGO_BIN_EXE_northgate"))
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .expect("it runs");

    let log = BufReader::new(gateway.0.stdout.take().expect("its log")).lines();
    let said = log.map_while(Result::ok).find(|line| line.contains("Fewer files"));
    let said = said.expect("a warning");
    for part in ["\"level\":\"warn\"", "\"most\":200", "\"max_connections\":60"] {
        assert!(said.contains(part), "{said}");
    }
}

/// Ended by its id when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const FILE: &str = "
version: 1
listen: 127.0.0.1:0
admin: { listen: 127.0.0.1:0 }
server: { workers: 1, max_connections: 60 }
logging: { format: json }
routes:
  - { id: answer, path: /, respond: { status: 204 }, auth: none }
";
