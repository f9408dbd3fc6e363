//! Signal handling on a thread of its own.
//!
//! The thread starts first and depends on no other one: neither on the one that starts the gateway,
//! which may wait for a file or for Redis, nor on the control runtime. So SIGTERM ends a start that
//! hangs, and a second SIGTERM ends the process in any case.

use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::io;
use std::process;
use std::sync::Arc;
use std::thread;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// The signals received so far.
#[derive(Clone, Debug)]
pub(crate) struct Signals {
    serves: Arc<AtomicBool>,
    /// The number of SIGHUPs received.
    reloads: watch::Receiver<u64>,
    /// The number of SIGUSR2s received.
    upgrades: watch::Receiver<u64>,
    /// Whether SIGTERM or SIGINT was received.
    ends: watch::Receiver<bool>,
}

impl Signals {
    /// Starts to listen for SIGHUP, SIGUSR2, SIGINT and SIGTERM. Until [`Signals::serving`] is called there is nothing to drain,
    /// and SIGINT or SIGTERM ends the process with exit code 0.
    ///
    /// # Errors
    ///
    /// If the system refuses the thread or a signal handler.
    pub(crate) fn listen() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let (mut hangup, mut user2, mut interrupt, mut terminate) = {
            let _runtime = runtime.enter();
            let listen = |kind: SignalKind| -> io::Result<Signal> { signal(kind) };
            (
                listen(SignalKind::hangup())?,
                listen(SignalKind::user_defined2())?,
                listen(SignalKind::interrupt())?,
                listen(SignalKind::terminate())?,
            )
        };
        let serves = Arc::new(AtomicBool::new(false));
        let (reload, reloads) = watch::channel(0);
        let (upgrade, upgrades) = watch::channel(0);
        let (end, ends) = watch::channel(false);
        let signals = Self { serves: Arc::clone(&serves), reloads, upgrades, ends };
        let hear = async move {
            loop {
                let code = tokio::select! {
                    _ = hangup.recv() => {
                        reload.send_modify(|count| *count += 1);
                        continue;
                    }
                    _ = user2.recv() => {
                        upgrade.send_modify(|count| *count += 1);
                        continue;
                    }
                    _ = interrupt.recv() => SECOND_INTERRUPT,
                    _ = terminate.recv() => SECOND_TERMINATE,
                };
                if !serves.load(SeqCst) {
                    process::exit(0);
                }
                if end.send_replace(true) {
                    process::exit(code);
                }
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(hear))?;
        Ok(signals)
    }

    /// Marks the gateway as serving: from here on the first SIGINT or SIGTERM starts a drain.
    pub(crate) fn serving(&self) {
        self.serves.store(true, SeqCst);
    }

    /// Waits until SIGHUP is received, counting those since the last call or the start of the process.
    pub(crate) async fn reload(&mut self) {
        if self.reloads.changed().await.is_err() {
            // The sender lives as long as the process; if it were gone, there would be no signal to wait for.
            core::future::pending::<()>().await;
        }
    }

    /// Waits until SIGUSR2 is received, counting those since the last call or the start of the process.
    pub(crate) async fn upgrade(&mut self) {
        if self.upgrades.changed().await.is_err() {
            // As above.
            core::future::pending::<()>().await;
        }
    }

    /// Waits until SIGINT or SIGTERM is received.
    pub(crate) async fn end(&mut self) {
        // An error means that no signal can be received any more, so the gateway stops too.
        let _ = self.ends.wait_for(|ends| *ends).await;
    }
}

/// Exit codes after a second signal, as shells define them: 128 plus the signal's number.
const SECOND_INTERRUPT: i32 = 130;
const SECOND_TERMINATE: i32 = 143;
