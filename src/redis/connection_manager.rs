//! Maintains the connection to Redis.
//!
//! A task on the control runtime connects, and reconnects whenever
//! the connection is lost: after some ten milliseconds at first, a quarter of
//! a second at most. Once a second it writes this gateway's id among those
//! that share the server (a *heartbeat*), which shows four things: whether the server
//! responds, whether it stores data (one that is full, or a replica,
//! does not), whether it has lost its data, and which gateways
//! share it. Five consecutive commands without a response in time count as "unavailable"
//! too, if no response arrived for half a second, since many commands may be late at one bad moment.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::sync::{Arc, LazyLock, Weak};

use ::redis::{AsyncConnectionConfig, ErrorKind, RedisError, RedisResult, Script, ServerErrorKind};
use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::servers::{ServerConnection, Servers, is_no_cluster};
use super::settings::Settings;
use crate::base::random::try_random;

/// Whether the server stores data, and since when.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Condition {
    /// Usable for this long.
    Usable(Duration),
    /// Unavailable, full, loading or a replica for this long.
    Unusable(Duration),
}

/// The connection, if there is one, and the state of the server.
pub(super) struct ConnectionHandle {
    connection: ArcSwapOption<ServerConnection>,
    began: Instant,
    /// The time of the last response, in milliseconds since the handle was created.
    answered: AtomicU64,
    /// The number of consecutive commands without a response.
    failures: AtomicU32,
    /// When the server became usable (odd) or unusable (even): twice the milliseconds since the handle was created.
    condition: AtomicU64,
    /// Whether a refusal was logged; only the first one is.
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
    pub(super) fn connection(&self) -> Option<Arc<ServerConnection>> {
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
        // The condition has not changed.
        let _ = self.condition.fetch_update(Relaxed, Relaxed, changed);
    }

    /// Records a response of the server.
    pub(super) fn answered(&self) {
        self.answered.store(self.age(), Relaxed);
        self.failures.store(0, Relaxed);
    }

    /// Records an error response to a command on `connection`.
    pub(super) fn failed_with(&self, connection: &Arc<ServerConnection>, error: &RedisError) {
        if !is_answer(error) {
            tracing::debug!(%error, "Could not get a response from Redis to a command.");
            return self.failed(connection, error.is_unrecoverable_error());
        }
        self.answered();
        if is_refusal(error) {
            self.refuse(error);
        } else {
            tracing::debug!(%error, "Redis cannot execute commands; using local state only.");
            self.is_usable(false);
        }
    }

    /// Records a command on `connection` without a response; `lost` if the connection is unusable.
    pub(super) fn failed(&self, connection: &Arc<ServerConnection>, lost: bool) {
        let failures = self.failures.fetch_add(1, Relaxed) + 1;
        let silence = self.age().saturating_sub(self.answered.load(Relaxed));
        let is_silent =
            failures >= MAX_UNANSWERED && u128::from(silence) >= MIN_HEARTBEAT_TIMEOUT.as_millis();
        if lost || is_silent {
            self.lose(connection);
        }
    }

    fn lose(&self, connection: &Arc<ServerConnection>) {
        // A newer connection may have replaced this one.
        let held = self.connection.compare_and_swap(&Some(Arc::clone(connection)), None);
        if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, connection)) {
            self.is_usable(false);
            self.lost.notify_one();
        }
    }

    /// Records that the server refuses a command: reconnecting would not help.
    fn refuse(&self, error: &RedisError) {
        if !self.refused.swap(true, Relaxed) {
            tracing::error!(%error, "Redis refused a command; features that need it are not shared with other instances.");
        }
    }

    /// Records the result of a heartbeat. Returns whether the server still has its data.
    fn apply_heartbeat(&self, heartbeat: RedisResult<Heartbeat>) -> bool {
        self.answered();
        match heartbeat {
            Ok((known, members)) => {
                self.is_usable(true);
                self.members.store(Arc::new(members.split_whitespace().filter_map(id).collect()));
                known == 1
            }
            // Other commands may work, but the heartbeat is forbidden.
            Err(error) if is_refusal(&error) => {
                self.refuse(&error);
                self.is_usable(true);
                true
            }
            Err(error) => {
                tracing::debug!(%error, "Could not write the heartbeat to Redis; using local state only.");
                self.is_usable(false);
                true
            }
        }
    }
}

/// Whether the error is a response of the server.
fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
        && error.code() != Some("LOADING")
}

/// Whether the server works, but refuses this command: access control
/// forbids it, the version does not know it, the key has another type, or it
/// is a node of a Cluster that is not spoken to as one.
fn is_refusal(error: &RedisError) -> bool {
    match error.kind() {
        // Before Redis 7, a script reports by this that the server is full, or a replica.
        ErrorKind::Server(ServerErrorKind::ResponseError) => {
            let detail = error.detail().unwrap_or_default();
            !UNUSABLE.iter().any(|code| detail.contains(code))
        }
        ErrorKind::Server(ServerErrorKind::NoPerm) => true,
        _ => matches!(error.code(), Some("WRONGTYPE" | "CROSSSLOT" | "MOVED")),
    }
}

/// The task that connects and reconnects.
pub(super) struct ConnectionManager {
    /// Dropped with the last user of the connection.
    handle: Weak<ConnectionHandle>,
    lost: Arc<Notify>,
    server: String,
    time_limit: Duration,
    connect_timeout: Duration,
    servers: Servers,
    /// This gateway's id.
    me: String,
    /// The key of the ids of all gateways.
    members: String,
}

impl ConnectionManager {
    pub(super) fn new(
        handle: &Arc<ConnectionHandle>,
        settings: &Settings,
        servers: Servers,
        me: u64,
    ) -> Self {
        Self {
            handle: Arc::downgrade(handle),
            lost: Arc::clone(&handle.lost),
            server: settings.shown(),
            time_limit: settings.timeout.max(MIN_HEARTBEAT_TIMEOUT),
            connect_timeout: settings.connect_timeout,
            servers,
            me: format!("{me:016x}"),
            members: members_key(settings),
        }
    }

    pub(super) async fn run(self) {
        let (mut logged, mut logged_no_cluster) = (None, false);
        let mut pause = FIRST_PAUSE;
        while let Some(handle) = self.handle.upgrade() {
            match self.connect().await {
                Ok((connection, heartbeat)) => {
                    pause = FIRST_PAUSE;
                    // A new connection triggers a full resynchronization in any case.
                    handle.apply_heartbeat(heartbeat);
                    handle.connection.store(Some(Arc::new(connection)));
                    handle.connected.send_modify(|times| *times += 1);
                    drop(handle);
                    if logged != Some(true) {
                        tracing::info!(server = self.server, "Connected to Redis.");
                    }
                    self.watch().await;
                    logged = Some(false);
                    tracing::warn!(
                        server = self.server,
                        "Lost connection to Redis; using local state only."
                    );
                }
                Err(error) => {
                    handle.is_usable(false);
                    drop(handle);
                    if is_no_cluster(&error) {
                        if !core::mem::replace(&mut logged_no_cluster, true) {
                            tracing::error!(
                                server = self.server,
                                %error,
                                "The servers of `redis.url` are not a Cluster; using local state only. Write the URL of one server."
                            );
                        }
                    } else if logged.is_none() {
                        logged = Some(false);
                        tracing::warn!(server = self.server, %error, "Could not connect to Redis; using local state only.");
                    }
                }
            }
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    async fn connect(&self) -> RedisResult<(ServerConnection, RedisResult<Heartbeat>)> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            // Each command has a timeout of its own.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE_CAPACITY);
        // A connection to several servers takes several steps.
        let connecting = timeout(2 * self.connect_timeout, self.servers.connect(&config)).await;
        let mut connection = connecting
            .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))?;
        let heartbeat = self.send_heartbeat(&mut connection, self.connect_timeout).await?;
        Ok((connection, heartbeat))
    }

    /// Sends heartbeats; returns when the connection is lost.
    async fn watch(&self) {
        let mut pause = HEARTBEAT_INTERVAL;
        loop {
            // A timeout is the usual case: the connection is intact.
            let _ = timeout(pause, self.lost.notified()).await;
            let Some(handle) = self.handle.upgrade() else { return };
            let Some(connection) = handle.connection() else { return };
            let mut heartbeat_connection = ServerConnection::clone(&connection);
            let Ok(heartbeat) =
                self.send_heartbeat(&mut heartbeat_connection, self.time_limit).await
            else {
                handle.lose(&connection);
                // Caused by this task itself.
                let _ = timeout(Duration::ZERO, self.lost.notified()).await;
                return;
            };
            let usable = heartbeat.is_ok();
            if !handle.apply_heartbeat(heartbeat) {
                tracing::warn!(
                    server = self.server,
                    "Redis has lost its data; publishing this gateway's shared state again."
                );
                handle.connected.send_modify(|times| *times += 1);
            }
            if !usable && self.servers.may_fail_over() {
                // The Sentinels may know a new primary by now.
                handle.lose(&connection);
                // Caused by this task itself.
                let _ = timeout(Duration::ZERO, self.lost.notified()).await;
                return;
            }
            pause = if usable { HEARTBEAT_INTERVAL } else { MAX_PAUSE };
        }
    }

    /// Writes this gateway's id, and reads all. The inner error is a response, the outer one a failure to respond.
    async fn send_heartbeat(
        &self,
        connection: &mut ServerConnection,
        time_limit: Duration,
    ) -> RedisResult<RedisResult<Heartbeat>> {
        let mut call = HEARTBEAT.prepare_invoke();
        call.key(&*self.members).arg(&*self.me).arg(MEMBER_TTL.as_millis() as u64);
        call.arg(MEMBERS_TTL.as_millis() as u64);
        match timeout(time_limit, call.invoke_async::<Heartbeat>(connection)).await {
            Ok(Err(error)) if !is_answer(&error) => Err(error),
            Ok(response) => Ok(response),
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    }
}

/// Whether this gateway's id was still present, and all ids.
type Heartbeat = (u8, String);

fn id(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// Shortens the pause randomly by up to half, so that gateways do not reconnect all at once.
fn jittered(pause: Duration) -> Duration {
    // Without randomness, gateways reconnect at the same time.
    let [chance] = try_random().unwrap_or_default();
    pause.saturating_sub(pause / 2 * u32::from(chance) / u32::from(u8::MAX))
}

/// Uses the server's clock, so that the clocks of gateways may differ.
static HEARTBEAT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local time = redis.pcall('TIME')
         local now = 0
         if not time.err then now = time[1] * 1000 + math.floor(time[2] / 1000) end
         local members = redis.call('GET', KEYS[1])
         local since = members and (string.match(members, '^since:(%d+)') or 0) or now
         local known, names, count = 0, ARGV[1], 1
         local kept = 'since:' .. since .. ' ' .. ARGV[1] .. '=' .. now
         for name, seen in string.gmatch(members or '', '(%x+)=(%d+)') do
           if name == ARGV[1] then
             known = 1
           elseif tonumber(seen) + ARGV[2] > now and count < 256 then
             names, kept, count = names .. ' ' .. name, kept .. ' ' .. name .. '=' .. seen, count + 1
           end
         end
         redis.call('SET', KEYS[1], kept, 'PX', ARGV[3])
         return {known, names}",
    )
});

/// Returns the key of the ids of all gateways: absent in a server that has lost its data, it begins with `since:` and the
/// milliseconds since the epoch at which the first gateway noticed that, or 0.
pub(super) fn members_key(settings: &Settings) -> String {
    format!("{}fleet:members", settings.prefix)
}

/// The error codes of a server that does not store data at the moment.
const UNUSABLE: [&str; 5] = ["OOM", "READONLY", "MISCONF", "NOREPLICAS", "MASTERDOWN"];
/// The interval of heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// The time in which all gateways notice that the server has lost its data, by their heartbeats, and write it again.
pub(crate) const RESTORE_TIME: Duration = Duration::from_secs(2);
/// The lifetime of a gateway's id without heartbeats.
const MEMBER_TTL: Duration = Duration::from_secs(10);
/// The lifetime of the key of all ids without a gateway: the next one to start takes its absence for lost data, which costs a
/// write of what is shared.
const MEMBERS_TTL: Duration = Duration::from_secs(3600);
/// The pause before the first attempt to reconnect; each further one is twice as long, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(15);
/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_millis(250);
/// The number of consecutive commands without a response after which the server counts as unavailable.
const MAX_UNANSWERED: u32 = 5;
/// The minimum timeout of a heartbeat, for which no request waits.
pub(super) const MIN_HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(500);
/// The maximum number of commands in flight; further ones wait.
const QUEUE_CAPACITY: usize = 1024;

#[cfg(test)]
mod tests {
    use ::redis::{Value, parse_redis_value};

    use super::*;

    #[test]
    fn a_server_that_is_no_cluster_says_so() {
        for (line, says) in [
            ("ERR This instance has cluster support disabled", true),
            ("ERR unknown command 'CLUSTER', with args beginning with: 'SLOTS'", true),
            ("CLUSTERDOWN Hash slot not served", false),
            ("NOAUTH Authentication required.", false),
            ("ERR max number of clients reached", false),
        ] {
            assert_eq!(is_no_cluster(&error(line)), says, "{line}");
        }
    }

    fn error(line: &str) -> RedisError {
        let response = parse_redis_value(format!("-{line}\r\n").as_bytes());
        response.and_then(Value::extract_error).expect_err("an error")
    }

    #[test]
    fn a_server_that_cannot_store_data_differs_from_one_that_refuses_a_command() {
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
        // A server that is loading counts as unavailable.
        assert!(!is_answer(&error("LOADING Redis is loading the dataset in memory")));
        for line in [
            "NOPERM this user has no permissions to run the 'set' command",
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "CROSSSLOT Keys in request don't hash to the same slot",
            "MOVED 3999 127.0.0.1:6381",
            "ERR unknown command 'XADD'",
        ] {
            assert!(is_answer(&error(line)) && is_refusal(&error(line)), "{line}");
        }
    }
}
