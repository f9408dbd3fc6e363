//! Lines for the log, and the one thread that writes them.
//!
//! A worker must never wait for a disk or a full pipe. It leaves its line in a
//! buffer and goes on; a thread takes the whole buffer and writes it. When the
//! thread cannot keep up and the buffer is full, lines are dropped, and counted
//! in `northgate_log_lines_dropped_total`.

use core::fmt;
use core::time::Duration;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use tracing_subscriber::fmt::MakeWriter;

use super::metrics::Metrics;

/// Where lines are left. Clones lead to the same thread.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Lines have come, or the end has.
    changed: Condvar,
    /// All that came before was written.
    written: Condvar,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    buffer: Vec<u8>,
    /// Lines in the buffer.
    lines: u64,
    /// The thread is writing what it took.
    writing: bool,
    /// Somebody waits in [`Lines::flush`], or the writer is going: hurry.
    urgent: bool,
    ended: bool,
    /// The thread has gone.
    gone: bool,
}

impl Lines {
    /// Leaves one line, with its line feed; drops it if too many wait already.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.0.lock();
        if state.ended || state.buffer.len() + line.len() > CAPACITY {
            self.0.metrics.process().log_lines_dropped.inc();
            return;
        }
        let first = state.buffer.is_empty();
        state.buffer.extend_from_slice(line);
        state.lines += 1;
        drop(state);
        // Only the first line of a batch wakes the thread: waking costs as much as a request.
        if first {
            self.0.changed.notify_one();
        }
    }

    /// Waits until every line left so far was written, or the log's reader has taken too little for
    /// [`MOST_WAITED`]: a process that ends does not wait for it. Not for workers.
    pub(super) fn flush(&self) {
        let mut state = self.0.lock();
        state.urgent = true;
        self.0.changed.notify_one();
        self.0.wait(state, |state| !state.gone && (state.writing || !state.buffer.is_empty()));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits as long as `pending`, and no longer than [`MOST_WAITED`].
    fn wait(&self, mut state: MutexGuard<'_, State>, pending: impl Fn(&State) -> bool) {
        let until = Instant::now() + MOST_WAITED;
        while pending(&state) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state.urgent = true;
            let waited = self.written.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The thread's life: gather, take, write.
    fn write(&self, out: &mut dyn Write) {
        let mut batch = Vec::new();
        loop {
            let (lines, ended) = {
                let mut state = self.lock();
                while state.buffer.is_empty() && !state.ended {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                // Let a batch gather, unless somebody waits for it.
                let hurry = |state: &mut State| !state.ended && !state.urgent;
                let gathered = self.changed.wait_timeout_while(state, GATHER, hurry);
                let (mut state, _) = gathered.unwrap_or_else(PoisonError::into_inner);
                core::mem::swap(&mut state.buffer, &mut batch);
                state.writing = true;
                state.urgent = false;
                (core::mem::take(&mut state.lines), state.ended)
            };
            if out.write_all(&batch).and_then(|()| out.flush()).is_err() {
                // Nobody reads any more. There is no log to say it in.
                self.metrics.process().log_lines_dropped.add(lines);
            }
            batch.clear();
            batch.shrink_to(KEPT);
            self.lock().writing = false;
            self.written.notify_all();
            if ended {
                return;
            }
        }
    }
}

/// Writes a line of `tracing`'s: it comes in one piece.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

/// The writing thread. Dropping this writes what is left, as far as its reader takes it, and ends it.
#[derive(Debug)]
pub(super) struct Writer {
    lines: Lines,
}

/// Says that the thread has gone, also if it has panicked.
struct Going(Arc<Shared>);

impl Drop for Going {
    fn drop(&mut self) {
        self.0.lock().gone = true;
        self.0.written.notify_all();
    }
}

impl Writer {
    /// Starts a thread that writes to `out`.
    ///
    /// # Errors
    ///
    /// If the system gives no thread.
    pub(super) fn start(mut out: Box<dyn Write + Send>, metrics: &Metrics) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            written: Condvar::new(),
            metrics: metrics.clone(),
        });
        let writing = Going(Arc::clone(&shared));
        let thread = thread::Builder::new().name("log".to_owned());
        // Not joined: it may hang in a write for as long as the log's reader does.
        thread.spawn(move || {
            let writing = writing;
            writing.0.write(&mut *out);
            drop(out);
        })?;
        Ok(Self { lines: Lines(shared) })
    }

    /// Where to leave lines for it.
    pub(super) fn lines(&self) -> &Lines {
        &self.lines
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let shared = &self.lines.0;
        let mut state = shared.lock();
        state.ended = true;
        shared.changed.notify_all();
        shared.wait(state, |state| !state.gone);
    }
}

/// Bytes that may wait: a tenth of a second of a busy gateway's lines.
const CAPACITY: usize = 4 << 20;

/// Bytes of buffer kept after a burst.
const KEPT: usize = 64 << 10;

/// How long a process that ends waits for its log's reader.
const MOST_WAITED: Duration = Duration::from_secs(2);

/// How long lines gather before they are written together.
const GATHER: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

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
        writer.lines().flush();

        assert_eq!(written.try_recv().as_deref(), Ok("now\n"));
    }

    #[test]
    fn a_writer_that_hangs_costs_lines_and_not_the_worker() {
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
    fn a_process_that_ends_does_not_wait_for_a_reader_that_hangs() {
        let (_open, gate) = mpsc::channel();
        let writer = Writer::start(Box::new(Hanging(gate)), &Metrics::default()).expect("a thread");
        let (tell, told) = mpsc::channel();

        writer.lines().push(b"one\n");
        thread::spawn(move || {
            writer.lines().flush();
            drop(writer);
            tell.send(())
        });

        told.recv_timeout(3 * MOST_WAITED).expect("it has ended");
    }

    #[test]
    fn lines_nobody_reads_are_counted() {
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

    /// Takes nothing until told.
    struct Hanging(mpsc::Receiver<()>);

    impl Write for Hanging {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // An error means that the test is over: write on.
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
