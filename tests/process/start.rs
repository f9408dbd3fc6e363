//! What the program says and heeds when it starts.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

use super::{Running, ask, file, free_port};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn too_few_open_files_for_the_connections_are_told_at_the_start() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("gateway.yaml");
    fs::write(&path, file("workers: 1, max_connections: 60", 0, 0)).expect("written");
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -Sn 200; exec \"$0\" run --config \"$1\""])
        .arg(env!("CARGO_BIN_EXE_northgate"))
        .arg(&path);

    let mut gateway = Running::of(&mut command, directory);

    let said = gateway.log().line("The limit on open files");
    for part in ["\"level\":\"warn\"", "\"limit\":200", "\"max_connections\":60"] {
        assert!(said.contains(part), "{said}");
    }
}

/// The workers' sockets share their port, and so would those of another process.
#[test]
fn a_second_gateway_on_the_port_of_a_running_one_is_refused() {
    let mut first = Running::start(&file("workers: 2", 0, 0), &[]);
    let mut log = first.log();
    let address = log.address();
    log.ignore();

    let mut second = Running::start(&file("workers: 2", address.port(), 0), &[]);

    assert_eq!(second.end(SOON).and_then(|status| status.code()), Some(1));
    let complaint = second.complaint();
    assert!(
        complaint.contains(&address.to_string()) && complaint.contains("is in use"),
        "{complaint}"
    );
    assert_eq!(ask(address).as_deref(), Some("204"), "the first goes on");
}

#[test]
fn a_handover_serves_from_the_new_gateway_when_the_old_one_is_told_to_end() {
    let text = file("workers: 1", free_port(), free_port());
    let mut old = Running::start(&text, &[]);
    let mut log = old.log();
    let address = log.address();
    log.ignore();

    let mut new = Running::start(&text, &["--handover"]);
    let mut log = new.log();
    assert_eq!(log.address(), address);
    log.ignore();
    old.signal("-TERM");

    assert_eq!(old.end(SOON).and_then(|status| status.code()), Some(0));
    for _ in 0..20 {
        assert_eq!(ask(address).as_deref(), Some("204"));
    }
}

/// A start after a crash: connections of the process before may not be quite over.
#[test]
fn a_gateway_starts_again_on_the_port_of_one_that_was_killed() {
    let text = file("workers: 1", free_port(), free_port());
    let mut old = Running::start(&text, &[]);
    let address = old.log().address();
    assert_eq!(ask(address).as_deref(), Some("204"));
    old.signal("-KILL");
    assert!(old.end(SOON).is_some());

    let mut new = Running::start(&text, &[]);

    assert_eq!(new.log().address(), address);
}

#[test]
fn a_worker_that_cannot_start_ends_the_process() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("gateway.yaml");
    fs::write(&path, file("workers: 40, max_connections: 10", 0, 0)).expect("written");
    let mut command = Command::new("sh");
    // Enough for the sockets, and not for what every worker waits with.
    command
        .args(["-c", "ulimit -n 80; exec \"$0\" run --config \"$1\""])
        .arg(env!("CARGO_BIN_EXE_northgate"))
        .arg(&path);

    let mut gateway = Running::of(&mut command, directory);

    assert_eq!(gateway.end(SOON).and_then(|status| status.code()), Some(1));
    let complaint = gateway.complaint();
    assert!(complaint.contains("cannot start a worker"), "{complaint}");
}

/// Until the gateway serves, the one that starts waits for what it needs: here for its file, which is a pipe.
#[test]
fn signals_are_heeded_while_the_gateway_starts() {
    for (second, code) in [("-TERM", 0), ("-INT", 0)] {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("gateway.yaml");
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        let mut command = Command::new(env!("CARGO_BIN_EXE_northgate"));
        let mut gateway = Running::of(command.arg("run").arg("--config").arg(&path), directory);
        hears(&gateway);

        gateway.signal("-HUP");
        assert!(gateway.end(Duration::from_millis(300)).is_none(), "SIGHUP ends nothing");
        gateway.signal(second);

        assert_eq!(gateway.end(SOON).and_then(|status| status.code()), Some(code), "{second}");
    }
}

/// Waits until the process catches SIGHUP, as the system sees it.
fn hears(gateway: &Running) {
    let path = format!("/proc/{}/status", gateway.child.id());
    for _ in 0..2000 {
        let status = fs::read_to_string(&path).expect("/proc");
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("a mask");
        if u64::from_str_radix(caught.trim(), 16).expect("hex") & 1 == 1 {
            return;
        }
        sleep(Duration::from_millis(5));
    }
    panic!("SIGHUP is never caught");
}
