//! Signals, heard on a thread of their own from the first moment of the process.
//!
//! No other thread has to be free for it: not the one that starts the gateway,
//! which may wait for a file or for Redis, and not the control runtime. So
//! SIGTERM ends a start, and the second one ends the process, whatever hangs.

use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::io;
use std::process;
use std::sync::Arc;
use std::thread;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// What signals have asked for so far.
#[derive(Clone, Debug)]
pub(crate) struct Signals {
    serves: Arc<AtomicBool>,
    /// How many times SIGHUP came.
    reloads: watch::Receiver<u64>,
    /// Whether SIGTERM or SIGINT came.
    ends: watch::Receiver<bool>,
}

impl Signals {
    /// Hears SIGHUP, SIGINT and SIGTERM from here on. Until [`Signals::serving`] is called there is nothing to drain,
    /// and SIGINT or SIGTERM ends the process with exit code 0.
    ///
    /// # Errors
    ///
    /// If the system gives no thread, or lets no signal be waited for.
    pub(crate) fn listen() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let (mut hangup, mut interrupt, mut terminate) = {
            let _runtime = runtime.enter();
            let listen = |kind: SignalKind| -> io::Result<Signal> { signal(kind) };
            (
                listen(SignalKind::hangup())?,
                listen(SignalKind::interrupt())?,
                listen(SignalKind::terminate())?,
            )
        };
        let serves = Arc::new(AtomicBool::new(false));
        let (reload, reloads) = watch::channel(0);
        let (end, ends) = watch::channel(false);
        let signals = Self { serves: Arc::clone(&serves), reloads, ends };
        let hear = async move {
            loop {
                let code = tokio::select! {
                    _ = hangup.recv() => {
                        reload.send_modify(|count| *count += 1);
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

    /// The gateway serves from here on: the first SIGINT or SIGTERM lets it drain.
    pub(crate) fn serving(&self) {
        self.serves.store(true, SeqCst);
    }

    /// Waits until SIGHUP has come since the last call, or since the process began.
    pub(crate) async fn reload(&mut self) {
        if self.reloads.changed().await.is_err() {
            // The thread never ends: there is nothing more to be heard, then.
            core::future::pending::<()>().await;
        }
    }

    /// Waits until SIGINT or SIGTERM has come.
    pub(crate) async fn end(&mut self) {
        // An error would mean that no signal can be heard any more: that is the end, too.
        let _ = self.ends.wait_for(|ends| *ends).await;
    }
}

/// Exit codes of a second signal, as shells say them: 128 and the signal's number.
const SECOND_INTERRUPT: i32 = 130;
const SECOND_TERMINATE: i32 = 143;
