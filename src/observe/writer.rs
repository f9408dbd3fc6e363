//! A non-blocking, batching writer of log lines on one thread.
//!
//! A worker must never wait for a disk or a full pipe. It appends its line to a
//! buffer; a thread swaps out the whole buffer and writes it. When the
//! thread cannot keep up and the buffer is full, lines are dropped, and counted
//! in `northgate_log_lines_dropped_total`.

use crate::base::lock::IgnorePoison;
use core::fmt;
use core::time::Duration;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use tracing_subscriber::fmt::MakeWriter;

use super::metrics::Metrics;

/// The queue of log lines. Clones share the thread.
#[derive(Clone)]
pub(super) struct LineQueue(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Lines were added, or the queue was closed.
    changed: Condvar,
    /// All earlier lines are written.
    written: Condvar,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    buffer: Vec<u8>,
    /// Lines in the buffer.
    lines: u64,
    /// Bytes added since the start.
    left: u64,
    /// Bytes of these that the thread has finished with.
    done: u64,
    /// A caller waits in [`LineQueue::flush`]: write without delay.
    urgent: bool,
    /// The queue is closed: no more lines are accepted.
    ended: bool,
    /// The thread has written the last line.
    over: bool,
    /// The value of `done` after the last failure to write.
    failed: u64,
    /// A flush timed out: the reader of the log does not read.
    stuck: bool,
}

impl LineQueue {
    /// Appends one line, including its line feed; drops it if the buffer is full.
    pub(super) fn push(&self, line: &[u8]) {
        if !self.try_push(line) {
            self.0.metrics.process().log_lines_dropped.inc();
        }
    }

    /// Appends one line, including its line feed, if there is room; returns whether there is.
    pub(super) fn try_push(&self, line: &[u8]) -> bool {
        let mut state = self.0.lock();
        if state.ended || state.buffer.len() + line.len() > CAPACITY {
            return false;
        }
        let first = state.buffer.is_empty();
        state.buffer.extend_from_slice(line);
        state.left += line.len() as u64;
        state.lines += 1;
        drop(state);
        // Only the first line of a batch wakes the thread, since waking costs as much as a request.
        if first {
            self.0.changed.notify_one();
        }
        true
    }

    /// Returns the number of the next line, for [`flush_since`](Self::flush_since).
    pub(super) fn position(&self) -> u64 {
        self.0.lock().left
    }

    /// Waits as [`flush`](Self::flush) does.
    ///
    /// # Errors
    ///
    /// If the output has not taken all lines since the line `began`.
    pub(super) fn flush_since(&self, began: u64, timeout: Duration) -> io::Result<()> {
        let wanted = self.position();
        self.flush(timeout);
        let state = self.0.lock();
        if state.done < wanted {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if state.failed > began { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }

    /// Waits until every line so far is written, without waiting for later ones, `timeout` at most, because the
    /// reader of the log may have stopped. Must not be called on a worker.
    pub(super) fn flush(&self, timeout: Duration) {
        let mut state = self.0.lock();
        let wanted = state.left;
        if state.done >= wanted {
            return;
        }
        state.urgent = true;
        self.0.changed.notify_one();
        let waits = |state: &mut State| state.done < wanted && !state.over;
        let waited = self.0.written.wait_timeout_while(state, timeout, waits);
        let (mut state, waited) = waited.ignore_poison();
        state.stuck = waited.timed_out();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().ignore_poison()
    }

    /// Runs the thread: gather, swap, write.
    fn write(&self, out: &mut dyn Write) {
        let mut batch = Vec::new();
        loop {
            let (lines, ended) = {
                let mut state = self.lock();
                while state.buffer.is_empty() && !state.ended {
                    state = self.changed.wait(state).ignore_poison();
                }
                // Let a batch gather, unless a flush waits for it.
                let hurry = |state: &mut State| !state.ended && !state.urgent;
                let gathered = self.changed.wait_timeout_while(state, COALESCE_DELAY, hurry);
                let (mut state, _) = gathered.ignore_poison();
                core::mem::swap(&mut state.buffer, &mut batch);
                state.urgent = false;
                (core::mem::take(&mut state.lines), state.ended)
            };
            let failed = out.write_all(&batch).and_then(|()| out.flush()).is_err();
            if failed {
                // The output is closed, and there is no log to report that in.
                self.metrics.process().log_lines_dropped.add(lines);
            }
            {
                let mut state = self.lock();
                state.done += batch.len() as u64;
                if failed {
                    state.failed = state.done;
                }
                state.over = ended;
            }
            self.written.notify_all();
            if ended {
                return;
            }
            batch.clear();
            batch.shrink_to(MAX_RETAINED_BYTES);
        }
    }
}

/// Writes a line of `tracing`, which arrives in one piece.
impl Write for LineQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LineQueue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl fmt::Debug for LineQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

/// The writer's thread. Dropping this writes the remaining lines and ends the thread, unless the reader of the log
/// reads nothing for [`FLUSH_TIMEOUT`].
#[derive(Debug)]
pub(super) struct Writer {
    lines: LineQueue,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts a thread that writes to `out`.
    ///
    /// # Errors
    ///
    /// If the system refuses the thread.
    pub(super) fn start(mut out: Box<dyn Write + Send>, metrics: &Metrics) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            written: Condvar::new(),
            metrics: metrics.clone(),
        });
        let writing = Arc::clone(&shared);
        let thread = thread::Builder::new().name("log".to_owned());
        let thread = thread.spawn(move || writing.write(&mut *out))?;
        Ok(Self { lines: LineQueue(shared), thread: Some(thread) })
    }

    /// Returns the queue of lines.
    pub(super) fn lines(&self) -> &LineQueue {
        &self.lines
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut state = self.lines.0.lock();
        state.ended = true;
        self.lines.0.changed.notify_all();
        // One timeout is enough.
        let timeout = if state.stuck { Duration::ZERO } else { FLUSH_TIMEOUT };
        let waits = |state: &mut State| !state.over;
        let waited = self.lines.0.written.wait_timeout_while(state, timeout, waits);
        let (state, _) = waited.ignore_poison();
        let over = state.over;
        drop(state);
        if let Some(thread) = self.thread.take()
            && (over || thread.is_finished())
        {
            // The thread panicked: its lines are lost, and its panic was printed.
            let _ = thread.join();
        }
    }
}

/// The time limit for writing the last lines. Lines that the reader has not taken by then are lost.
pub(super) const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The maximum of buffered bytes: a tenth of a second of a busy gateway's lines.
const CAPACITY: usize = 4 << 20;

/// The buffer capacity in bytes that is kept after a burst.
const MAX_RETAINED_BYTES: usize = 64 << 10;

/// How long lines gather before they are written together.
const COALESCE_DELAY: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::sync::mpsc;

    use tokio::time::Instant;

    use super::*;

    #[test]
    fn lines_are_written_whole_and_in_order() {
        let (out, written) = mpsc::channel();
        let writer = Writer::start(Box::new(Channel(out)), &Metrics::default()).expect("a thread");

        for line in ["one\n", "two\n", "three\n"] {
            writer.lines().push(line.as_bytes());
        }
        drop(writer);

        assert_eq!(written.iter().collect::<String>(), "one\ntwo\nthree\n");
    }

    #[test]
    fn flush_returns_when_the_line_is_out() {
        let (out, written) = mpsc::channel();
        let writer = Writer::start(Box::new(Channel(out)), &Metrics::default()).expect("a thread");

        writer.lines().push(b"now\n");
        writer.lines().flush(FLUSH_TIMEOUT);

        assert_eq!(written.try_recv().as_deref(), Ok("now\n"));
    }

    #[test]
    fn a_blocked_output_drops_lines_and_does_not_block_the_worker() {
        let (open, gate) = mpsc::channel();
        let metrics = Metrics::default();
        let writer = Writer::start(Box::new(Hanging(gate)), &metrics).expect("a thread");
        let line = vec![b'x'; 1 << 20];

        // More than fits, however much of it the thread has taken by now.
        for _ in 0..12 {
            writer.lines().push(&line);
        }
        let dropped = metrics.process().log_lines_dropped.value();
        open.send(()).expect("the thread waits");
        drop(open);

        assert!((4..=8).contains(&dropped), "{dropped} lines dropped");
    }

    #[test]
    fn a_blocked_output_delays_neither_a_flush_nor_the_end() {
        let (open, gate) = mpsc::channel();
        let writer = Writer::start(Box::new(Hanging(gate)), &Metrics::default()).expect("a thread");
        writer.lines().push(b"one\n");
        let began = Instant::now();

        writer.lines().flush(Duration::from_millis(50));
        drop(writer);

        assert!(began.elapsed() < FLUSH_TIMEOUT, "{:?}", began.elapsed());
        drop(open);
    }

    /// Lines added while a flush waits are left to the next one, since a busy gateway would never finish.
    #[test]
    fn a_flush_waits_for_earlier_lines_only() {
        let (out, written) = mpsc::channel();
        let writer = Writer::start(Box::new(Channel(out)), &Metrics::default()).expect("a thread");
        let (lines, over) = (writer.lines().clone(), Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&over);
        let pushing = thread::spawn(move || {
            while !seen.load(SeqCst) {
                lines.push(b"more\n");
            }
        });

        let first = written.recv();
        writer.lines().flush(Duration::from_secs(60));
        over.store(true, SeqCst);

        assert!(first.is_ok());
        pushing.join().expect("no panic");
    }

    #[test]
    fn lines_without_a_reader_are_counted() {
        let metrics = Metrics::default();
        let writer = Writer::start(Box::new(Closed), &metrics).expect("a thread");

        writer.lines().push(b"one\n");
        writer.lines().push(b"two\n");
        drop(writer);

        assert_eq!(metrics.process().log_lines_dropped.value(), 2);
    }

    struct Channel(mpsc::Sender<String>);

    impl Write for Channel {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8(bytes.to_vec()).expect("text");
            self.0.send(text).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// An output that blocks until it is released.
    struct Hanging(mpsc::Receiver<()>);

    impl Write for Hanging {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // An error means that the test has ended.
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
