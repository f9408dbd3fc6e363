//! The connection to Redis, and its upkeep.
//!
//! A keeper on the control runtime connects, and connects anew for ever when
//! the connection is lost: after some ten milliseconds at first, a quarter of
//! a second at the most. Once a second it writes this gateway's name among those
//! that share the server (a *beat*), which tells four things: whether the server
//! is there, whether it keeps what it is given (one that is full, or a replica,
//! does not), whether it has lost what it was given before, and which gateways
//! share it. Five answers in a row that did not come in time count as "away",
//! too, if none came for half a second: many questions may be late in one bad moment.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::sync::{Arc, LazyLock, Weak};

use arc_swap::{ArcSwap, ArcSwapOption};
use aws_lc_rs::rand;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult, Script, ServerErrorKind,
};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::settings::Settings;

/// Whether the server keeps what it is given.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Condition {
    /// It has, for so long.
    Usable(Duration),
    /// It is away, full, loading or a replica, and has been for so long.
    Unusable(Duration),
}

/// The connection, if there is one, and what is known of the server behind it.
pub(super) struct ConnectionHandle {
    connection: ArcSwapOption<MultiplexedConnection>,
    began: Instant,
    /// The moment of the last answer, in milliseconds since it began.
    answered: AtomicU64,
    /// Questions in a row that were not answered.
    failures: AtomicU32,
    /// The moment since when the server is usable (odd) or is not (even): twice the milliseconds since it began.
    condition: AtomicU64,
    /// Whether something was refused, which is said once.
    refused: AtomicBool,
    connected: watch::Sender<u64>,
    members: ArcSwap<Vec<u64>>,
    lost: Arc<Notify>,
}

impl Default for ConnectionHandle {
    fn default() -> Self {
        Self {
            connection: ArcSwapOption::empty(),
            began: Instant::now(),
            answered: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            condition: AtomicU64::new(0),
            refused: AtomicBool::new(false),
            connected: watch::Sender::new(0),
            members: ArcSwap::default(),
            lost: Arc::default(),
        }
    }
}

impl ConnectionHandle {
    pub(super) fn connection(&self) -> Option<Arc<MultiplexedConnection>> {
        self.connection.load_full()
    }

    pub(super) fn connections(&self) -> watch::Receiver<u64> {
        self.connected.subscribe()
    }

    pub(super) fn members(&self) -> Arc<Vec<u64>> {
        self.members.load_full()
    }

    pub(super) fn condition(&self) -> Condition {
        let condition = self.condition.load(Relaxed);
        let lasted = Duration::from_millis(self.age().saturating_sub(condition / 2));
        if condition % 2 == 1 { Condition::Usable(lasted) } else { Condition::Unusable(lasted) }
    }

    fn age(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn is_usable(&self, usable: bool) {
        let now = self.age() * 2 + u64::from(usable);
        let changed = |known: u64| ((known % 2 == 1) != usable).then_some(now);
        // As it was before: it counts from then.
        let _ = self.condition.fetch_update(Relaxed, Relaxed, changed);
    }

    /// The server has answered.
    pub(super) fn answered(&self) {
        self.answered.store(self.age(), Relaxed);
        self.failures.store(0, Relaxed);
    }

    /// A question asked by `connection` was answered by `error`.
    pub(super) fn failed_with(&self, connection: &Arc<MultiplexedConnection>, error: &RedisError) {
        if !is_answer(error) {
            tracing::debug!(%error, "Redis did not do what it was asked.");
            return self.failed(connection, error.is_unrecoverable_error());
        }
        self.answered();
        if is_refusal(error) {
            self.refuse(error);
        } else {
            tracing::debug!(%error, "Redis cannot do what it was asked.");
            self.is_usable(false);
        }
    }

    /// A question asked by `connection` was not answered; `lost` if the connection is of no use any more.
    pub(super) fn failed(&self, connection: &Arc<MultiplexedConnection>, lost: bool) {
        let failures = self.failures.fetch_add(1, Relaxed) + 1;
        let silence = self.age().saturating_sub(self.answered.load(Relaxed));
        let is_silent =
            failures >= MAX_UNANSWERED && u128::from(silence) >= MIN_HEARTBEAT_TIMEOUT.as_millis();
        if lost || is_silent {
            self.lose(connection);
        }
    }

    fn lose(&self, connection: &Arc<MultiplexedConnection>) {
        // A newer one may have taken its place meanwhile.
        let held = self.connection.compare_and_swap(&Some(Arc::clone(connection)), None);
        if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, connection)) {
            self.is_usable(false);
            self.lost.notify_one();
        }
    }

    /// The server is there, and does not do what it was asked: connecting anew would change nothing.
    fn refuse(&self, error: &RedisError) {
        if !self.refused.swap(true, Relaxed) {
            tracing::error!(%error, "Redis refuses a command: what needs it is not shared.");
        }
    }

    /// Takes over what a beat has told. Whether the server still has what it was given before.
    fn heard(&self, beat: RedisResult<Heartbeat>) -> bool {
        self.answered();
        match beat {
            Ok((known, members)) => {
                self.is_usable(true);
                self.members.store(Arc::new(members.split_whitespace().filter_map(id).collect()));
                known == 1
            }
            // Whatever else this gateway may do there, it may not do that.
            Err(error) if is_refusal(&error) => {
                self.refuse(&error);
                self.is_usable(true);
                true
            }
            Err(error) => {
                tracing::debug!(%error, "Redis keeps nothing for now.");
                self.is_usable(false);
                true
            }
        }
    }
}

/// Whether the server itself says so: it is there.
fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
        && error.code() != Some("LOADING")
}

/// Whether the server is there and well, and only does not do this for us: its access control
/// forbids it, its version does not know it, something else is kept under the key.
fn is_refusal(error: &RedisError) -> bool {
    match error.kind() {
        // Before Redis 7 a script says by this that the server is full, or a replica.
        ErrorKind::Server(ServerErrorKind::ResponseError) => {
            let detail = error.detail().unwrap_or_default();
            !UNUSABLE.iter().any(|code| detail.contains(code))
        }
        ErrorKind::Server(ServerErrorKind::NoPerm) => true,
        _ => error.code() == Some("WRONGTYPE"),
    }
}

/// Connects, and sees to it that there is a connection.
pub(super) struct ConnectionKeeper {
    /// Dropped with the last who could ask.
    line: Weak<ConnectionHandle>,
    lost: Arc<Notify>,
    server: String,
    patience: Duration,
    connect_timeout: Duration,
    client: Client,
    /// This gateway's name.
    me: String,
    /// The key of the names of all gateways.
    members: String,
}

impl ConnectionKeeper {
    pub(super) fn new(
        line: &Arc<ConnectionHandle>,
        settings: &Settings,
        client: Client,
        me: u64,
        members: String,
    ) -> Self {
        Self {
            line: Arc::downgrade(line),
            lost: Arc::clone(&line.lost),
            server: settings.shown(),
            patience: settings.timeout.max(MIN_HEARTBEAT_TIMEOUT),
            connect_timeout: settings.connect_timeout,
            client,
            me: format!("{me:016x}"),
            members,
        }
    }

    pub(super) async fn run(self) {
        let mut told = None;
        let mut pause = FIRST_PAUSE;
        while let Some(line) = self.line.upgrade() {
            match self.connect().await {
                Ok((connection, beat)) => {
                    pause = FIRST_PAUSE;
                    // On a new connection all is said again in any case.
                    line.heard(beat);
                    line.connection.store(Some(Arc::new(connection)));
                    line.connected.send_modify(|times| *times += 1);
                    drop(line);
                    if told != Some(true) {
                        tracing::info!(server = self.server, "Redis is there.");
                    }
                    self.watch().await;
                    told = Some(false);
                    tracing::warn!(
                        server = self.server,
                        "Redis is away: each gateway goes on alone."
                    );
                }
                Err(error) => {
                    line.is_usable(false);
                    drop(line);
                    if told.is_none() {
                        told = Some(false);
                        tracing::warn!(server = self.server, %error, "Redis is away: each gateway goes on alone.");
                    }
                }
            }
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    async fn connect(&self) -> RedisResult<(MultiplexedConnection, RedisResult<Heartbeat>)> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            // Each question has a patience of its own.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE_CAPACITY);
        let mut connection =
            self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let beat = self.send_heartbeat(&mut connection, self.connect_timeout).await?;
        Ok((connection, beat))
    }

    /// Returns when the connection is lost.
    async fn watch(&self) {
        let mut pause = HEARTBEAT_INTERVAL;
        loop {
            // A timeout is the usual case: nothing was lost.
            let _ = timeout(pause, self.lost.notified()).await;
            let Some(line) = self.line.upgrade() else { return };
            let Some(connection) = line.connection() else { return };
            let mut asked = MultiplexedConnection::clone(&connection);
            let Ok(beat) = self.send_heartbeat(&mut asked, self.patience).await else {
                line.lose(&connection);
                // Told to itself.
                let _ = timeout(Duration::ZERO, self.lost.notified()).await;
                return;
            };
            let usable = beat.is_ok();
            if !line.heard(beat) {
                tracing::warn!(
                    server = self.server,
                    "Redis has lost what it was given: it is told again."
                );
                line.connected.send_modify(|times| *times += 1);
            }
            pause = if usable { HEARTBEAT_INTERVAL } else { MAX_PAUSE };
        }
    }

    /// Writes this gateway's name, and reads all. The inner error is the server's, the outer one that it is away.
    async fn send_heartbeat(
        &self,
        connection: &mut MultiplexedConnection,
        patience: Duration,
    ) -> RedisResult<RedisResult<Heartbeat>> {
        let mut call = HEARTBEAT.prepare_invoke();
        call.key(&*self.members).arg(&*self.me).arg(MEMBER_TTL.as_millis() as u64);
        match timeout(patience, call.invoke_async::<Heartbeat>(connection)).await {
            Ok(Err(error)) if !is_answer(&error) => Err(error),
            Ok(answer) => Ok(answer),
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    }
}

/// Whether this gateway's name was still there, and all names.
type Heartbeat = (u8, String);

fn id(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// Up to half less, so that gateways which lost one server do not come back all at once.
fn jittered(pause: Duration) -> Duration {
    let mut chance = [0];
    // Without chance they come together.
    let _ = rand::fill(&mut chance);
    pause.saturating_sub(pause / 2 * u32::from(chance[0]) / u32::from(u8::MAX))
}

/// By the server's clock, so that gateways' own may differ.
static HEARTBEAT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local time = redis.pcall('TIME')
         local now = 0
         if not time.err then now = time[1] * 1000 + math.floor(time[2] / 1000) end
         local known, names, kept, count = 0, ARGV[1], ARGV[1] .. '=' .. now, 1
         for name, seen in string.gmatch(redis.call('GET', KEYS[1]) or '', '(%x+)=(%d+)') do
           if name == ARGV[1] then
             known = 1
           elseif tonumber(seen) + ARGV[2] > now and count < 256 then
             names, kept, count = names .. ' ' .. name, kept .. ' ' .. name .. '=' .. seen, count + 1
           end
         end
         redis.call('SET', KEYS[1], kept)
         return {known, names}",
    )
});

/// Codes by which a server says that it keeps nothing for now.
const UNUSABLE: [&str; 5] = ["OOM", "READONLY", "MISCONF", "NOREPLICAS", "MASTERDOWN"];
/// Between looks whether the server is there and has what it was given.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// A gateway that has not written its name for so long is gone.
const MEMBER_TTL: Duration = Duration::from_secs(10);
/// Before the first attempt to connect anew; each next one is twice as long…
const FIRST_PAUSE: Duration = Duration::from_millis(15);
/// … up to this.
const MAX_PAUSE: Duration = Duration::from_millis(250);
/// Unanswered questions in a row after which the server counts as away, if it has been silent for long enough.
const MAX_UNANSWERED: u32 = 5;
/// A look that no request waits for may take this long, however short the timeout.
pub(super) const MIN_HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(500);
/// Questions on their way at once; more of them wait for a place.
const QUEUE_CAPACITY: usize = 1024;

#[cfg(test)]
mod tests {
    use redis::{Value, parse_redis_value};

    use super::*;

    #[test]
    fn a_server_that_keeps_nothing_for_now_is_told_from_one_that_forbids() {
        let error = |line: &str| {
            let answer = parse_redis_value(format!("-{line}\r\n").as_bytes());
            answer.and_then(Value::extract_error).expect_err("it is an error")
        };
        for line in [
            "READONLY You can't write against a read only replica.",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "MISCONF Redis is configured to save RDB snapshots, but it's unable to persist to disk.",
            "NOREPLICAS Not enough good replicas to write.",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "CLUSTERDOWN The cluster is down",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "BUSY Redis is busy running a script.",
            "ERR Error running script (call to f_0): @user_script:1: -READONLY You can't write",
        ] {
            assert!(is_answer(&error(line)) && !is_refusal(&error(line)), "{line}");
        }
        // One that loads answers nothing at all: it is away.
        assert!(!is_answer(&error("LOADING Redis is loading the dataset in memory")));
        for line in [
            "NOPERM this user has no permissions to run the 'set' command",
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "ERR unknown command 'XADD'",
        ] {
            assert!(is_answer(&error(line)) && is_refusal(&error(line)), "{line}");
        }
    }
}
