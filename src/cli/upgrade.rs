//! Upgrade of the binary: the running gateway starts its successor beside itself, and drains once that serves.
//!
//! SIGUSR2 starts the program a second time, from the path and with the arguments of this process, so that a replaced
//! file or link is followed. Both listen on the same addresses until the old one has drained. A successor that does not
//! serve changes nothing.

use core::time::Duration;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use tokio::io::AsyncReadExt as _;

use super::signals::Signals;
use crate::server::{RunningGateway, chain};

/// The program that replaces this process.
#[derive(Debug)]
pub(crate) struct Successor {
    program: PathBuf,
    arguments: Vec<OsString>,
}

/// An error of starting the successor.
#[derive(Debug, thiserror::Error)]
enum UpgradeError {
    #[error("cannot start the new program")]
    Spawn(#[source] io::Error),
    #[error("the new program ended before it served: {0}")]
    Ended(ExitStatus),
    #[error("the new program did not serve within {} s, and was ended", READY_TIMEOUT.as_secs())]
    Late,
}

impl Successor {
    /// Returns the successor of this process. To be called at startup: a relative path is that of the directory at
    /// that time.
    pub(crate) fn of_this_process() -> Option<Self> {
        let mut arguments = std::env::args_os();
        let program = PathBuf::from(arguments.next()?);
        // A bare name is searched for in PATH, then as now.
        let is_path = program.components().nth(1).is_some();
        let program = if is_path { std::path::absolute(program).ok()? } else { program };
        Some(Self { program, arguments: arguments.collect() })
    }

    /// Waits for the signal to upgrade, and until a successor serves. Failures are logged, and change nothing.
    pub(crate) async fn takes_over(
        this: Option<&Self>,
        signals: &mut Signals,
        launched: &RunningGateway,
    ) {
        loop {
            signals.upgrade().await;
            let Some(successor) = this else {
                tracing::warn!("Ignored SIGUSR2: this command cannot be upgraded.");
                continue;
            };
            // The successor begins with the counters of now.
            launched.upkeep.save().await;
            tracing::info!(program = %successor.program.display(), "Upgrade started: starting the new program beside this one.");
            match successor.start().await {
                Ok(pid) => {
                    launched.upkeep.leave_to_successor().await;
                    tracing::info!(pid, "The new program serves; this process drains.");
                    return;
                }
                Err(error) => {
                    tracing::error!(error = %chain(&error), "Could not start the new program; this process continues to serve.");
                }
            }
        }
    }

    /// Starts the program and waits until it serves; returns its process id. If the wait is dropped, the program is ended.
    async fn start(&self) -> Result<u32, UpgradeError> {
        let (ours, theirs) = UnixStream::pair().map_err(UpgradeError::Spawn)?;
        ours.set_nonblocking(true).map_err(UpgradeError::Spawn)?;
        let mut ours = tokio::net::UnixStream::from_std(ours).map_err(UpgradeError::Spawn)?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env(SUCCESSOR, "1")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .map_err(UpgradeError::Spawn)?;
        let mut starting = Starting { child, serves: false };
        let mut word = [0; READY.len()];
        match tokio::time::timeout(READY_TIMEOUT, ours.read_exact(&mut word)).await {
            Ok(Ok(_)) => {
                starting.serves = true;
                Ok(starting.child.id())
            }
            // It has ended, or has closed the channel of its report.
            Ok(Err(_)) => {
                let _ = starting.child.kill();
                Err(starting.child.wait().map_or_else(UpgradeError::Spawn, UpgradeError::Ended))
            }
            Err(_) => Err(UpgradeError::Late),
        }
    }
}

/// A successor that is starting. It ends when this is dropped, unless it serves: this process may have been told to stop
/// meanwhile.
struct Starting {
    child: Child,
    serves: bool,
}

impl Drop for Starting {
    fn drop(&mut self) {
        if !self.serves {
            // Both fail if it has ended.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Whether this process is the successor of a running gateway.
pub(crate) fn is_successor() -> bool {
    std::env::var_os(SUCCESSOR).is_some()
}

/// Tells the gateway that started this process that this one serves.
///
/// # Errors
///
/// If that gateway is gone.
pub(crate) fn report_ready() -> io::Result<()> {
    let channel = io::stdin().as_fd().try_clone_to_owned()?;
    UnixStream::from(channel).write_all(READY)
}

/// Tells the service manager, if there is one that listens (`sd_notify`), that this process serves.
///
/// # Errors
///
/// If the service manager does not receive the message.
pub(crate) fn notify_service_manager() -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match socket.as_bytes() {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)?
        }
        _ => SocketAddr::from_pathname(&socket)?,
    };
    // The main process changes with an upgrade.
    let state = format!("READY=1\nMAINPID={}\n", std::process::id());
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// The environment variable that a successor is started with.
const SUCCESSOR: &str = "NORTHGATE_SUCCESSOR";
/// The message of a successor that serves.
const READY: &[u8] = b"ready";
/// The time in which a successor must serve.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
