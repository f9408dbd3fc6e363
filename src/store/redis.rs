//! One connection to Redis, its circuit, and its upkeep.
//!
//! A keeper on the control runtime connects, asks every second whether the
//! server is still there, and connects anew for ever when it is not. While
//! there is no connection every question is refused at once: nobody waits for
//! a server that is known to be away, and no question is spent on finding out.
//! Five answers in a row that did not come in time count as "away", too, if
//! none came for half a second: many questions may be late in one bad moment.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, RedisError, Script,
    ServerErrorKind, TlsCertificates, Value,
};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::settings::{InvalidUrl, Settings};

/// A Redis server, there or away.
pub struct Redis {
    settings: Settings,
    control: Handle,
    line: Arc<Line>,
}

impl Redis {
    /// The server that `settings` describe. It is connected to from `control`, now and whenever the
    /// connection is lost, until this value is dropped.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`] if the client cannot make sense of the settings; [`Settings::new`] sees to it.
    pub fn new(settings: Settings, control: Handle) -> Result<Self, InvalidUrl> {
        let info = settings.info().map_err(|_| InvalidUrl)?;
        let client = match &settings.ca {
            Some(pem) if settings.is_encrypted() => {
                let certificates =
                    TlsCertificates { client_tls: None, root_cert: Some(pem.to_vec()) };
                Client::build_with_tls(info, certificates)
            }
            _ => Client::open(info),
        };
        let client = client.map_err(|_| InvalidUrl)?;
        let line = Arc::new(Line {
            connection: ArcSwapOption::empty(),
            began: Instant::now(),
            answered: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            refused: AtomicBool::new(false),
            connected: watch::Sender::new(0),
        });
        let keeper = Keeper {
            line: Arc::downgrade(&line),
            server: settings.shown(),
            patience: settings.timeout.max(LEAST_PATIENCE),
            connect_timeout: settings.connect_timeout,
            client,
        };
        control.spawn(keeper.run());
        Ok(Self { settings, control, line })
    }

    /// What it was told.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where its questions are asked; also the place for what is to be said later.
    pub const fn control(&self) -> &Handle {
        &self.control
    }

    /// The key of `name` in `room`: `northgate:s:…`.
    pub fn key(&self, room: &str, name: &str) -> String {
        format!("{}{room}:{name}", self.settings.prefix)
    }

    /// Whether there is a connection.
    pub fn is_there(&self) -> bool {
        self.line.connection.load().is_some()
    }

    /// How often a connection was made; changes whenever the server is back.
    pub fn connections(&self) -> watch::Receiver<u64> {
        self.line.connected.subscribe()
    }

    /// What is kept under `key`.
    ///
    /// # Errors
    ///
    /// [`Away`] if no answer comes in time.
    pub async fn find(&self, key: &str) -> Result<Option<Vec<u8>>, Away> {
        self.ask(redis::cmd("GET").arg(key).take()).await
    }

    /// What is kept under three keys, at one moment.
    ///
    /// # Errors
    ///
    /// [`Away`] if no answer comes in time.
    pub async fn find_all(&self, keys: [&str; 3]) -> Result<[Option<Vec<u8>>; 3], Away> {
        let (one, other, third) = self.ask(redis::cmd("MGET").arg(&keys).take()).await?;
        Ok([one, other, third])
    }

    /// Marks `key` for as long as `life`. `false` if it is marked already.
    ///
    /// # Errors
    ///
    /// [`Away`] if no answer comes in time: it may be marked or not.
    pub async fn mark(&self, key: &str, life: Duration) -> Result<bool, Away> {
        let mut command = redis::cmd("SET");
        command.arg(key).arg("").arg("NX").arg("PX").arg(life.as_millis() as u64);
        let set: Option<Value> = self.ask(command).await?;
        Ok(set.is_some())
    }

    /// Appends an entry of these fields to the stream `key`, which keeps the latest: about `most`.
    ///
    /// # Errors
    ///
    /// [`Away`] if no answer comes in time.
    pub async fn append(
        &self,
        key: &str,
        most: usize,
        fields: &[(&str, String)],
    ) -> Result<(), Away> {
        let mut command = redis::cmd("XADD");
        command.arg(key).arg("MAXLEN").arg("~").arg(most).arg("*");
        for (name, value) in fields {
            command.arg(*name).arg(value);
        }
        // Its id is of no interest to whoever appends it.
        self.ask_calmly::<Value>(command).await.map(|_| ())
    }

    /// The entries of the stream `key` after the one called `id`, the oldest first, at most `most`.
    ///
    /// # Errors
    ///
    /// [`Away`] if no answer comes in time.
    pub async fn entries_after(
        &self,
        key: &str,
        id: &str,
        most: usize,
    ) -> Result<Vec<Entry>, Away> {
        let mut command = redis::cmd("XRANGE");
        command.arg(key).arg(format!("({id}")).arg("+").arg("COUNT").arg(most);
        self.ask_calmly(command).await
    }

    /// The id of the last entry of the stream `key`, if there is any.
    ///
    /// # Errors
    ///
    /// [`Away`] if no answer comes in time.
    pub async fn last_entry(&self, key: &str) -> Result<Option<String>, Away> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(key).arg("+").arg("-").arg("COUNT").arg(1);
        let last: Vec<Entry> = self.ask_calmly(command).await?;
        Ok(last.into_iter().next().map(|(id, _)| id))
    }

    /// Takes the entries called `ids` out of the stream `key`.
    ///
    /// # Errors
    ///
    /// [`Away`] if no answer comes in time.
    pub async fn take_out(&self, key: &str, ids: &[String]) -> Result<(), Away> {
        self.ask_calmly::<Value>(redis::cmd("XDEL").arg(key).arg(ids).take()).await.map(|_| ())
    }

    /// Runs `script`, which takes one round trip.
    ///
    /// # Errors
    ///
    /// [`Away`] if no answer comes in time.
    pub async fn run<T: FromRedisValue + Send + 'static>(
        &self,
        script: &'static Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<T, Away> {
        self.run_within(self.settings.timeout, script, keys, arguments).await
    }

    /// The same, where going on without an answer would cost more than waiting for it.
    ///
    /// # Errors
    ///
    /// [`Away`] if no answer comes in time: the script may have run or not.
    pub async fn run_patiently<T: FromRedisValue + Send + 'static>(
        &self,
        script: &'static Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<T, Away> {
        self.run_within(self.settings.timeout.max(LEAST_PATIENCE), script, keys, arguments).await
    }

    async fn run_within<T: FromRedisValue + Send + 'static>(
        &self,
        patience: Duration,
        script: &'static Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<T, Away> {
        let mut call = script.prepare_invoke();
        for key in keys {
            call.key(*key);
        }
        for argument in arguments {
            call.arg(*argument);
        }
        let question = async move |mut line| call.invoke_async(&mut line).await;
        self.send(patience, Refusals::Count, question).await
    }

    async fn ask<T: FromRedisValue + Send + 'static>(&self, command: Cmd) -> Result<T, Away> {
        let question = async move |mut line| command.query_async(&mut line).await;
        self.send(self.settings.timeout, Refusals::Count, question).await
    }

    /// Asks for what no request waits for.
    async fn ask_calmly<T: FromRedisValue + Send + 'static>(
        &self,
        command: Cmd,
    ) -> Result<T, Away> {
        let question = async move |mut line| command.query_async(&mut line).await;
        let patience = self.settings.timeout.max(LEAST_PATIENCE);
        self.send(patience, Refusals::AreAnswers, question).await
    }

    /// Has a question asked on the control runtime: it is asked to its end even if nobody waits for
    /// the answer any more.
    async fn send<T, F, A>(
        &self,
        patience: Duration,
        refusals: Refusals,
        question: F,
    ) -> Result<T, Away>
    where
        T: Send + 'static,
        F: FnOnce(MultiplexedConnection) -> A,
        A: Future<Output = redis::RedisResult<T>> + Send + 'static,
    {
        let connection = self.line.connection.load_full().ok_or(Away)?;
        let line = Arc::clone(&self.line);
        let asked = question(MultiplexedConnection::clone(&connection));
        let task = self.control.spawn(async move {
            match timeout(patience, asked).await {
                Ok(Ok(answer)) => {
                    line.answered();
                    Ok(answer)
                }
                Ok(Err(error)) if refusals == Refusals::AreAnswers && is_refusal(&error) => {
                    line.refuse(&error);
                    Err(Away)
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "Redis did not do what it was asked.");
                    line.failed(&connection, error.is_unrecoverable_error());
                    Err(Away)
                }
                Err(_) => {
                    line.failed(&connection, false);
                    Err(Away)
                }
            }
        });
        task.await.unwrap_or(Err(Away))
    }
}

/// An entry of a stream: its id, and its fields, each name before its value.
pub type Entry = (String, Vec<Vec<u8>>);

/// What it means that the server refuses a command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Refusals {
    /// As much as no answer: enough of them, and the gateway goes on alone.
    Count,
    /// That it is there: others may get what they ask.
    AreAnswers,
}

/// Whether the server is there and well, and only does not do this for us: its access control
/// forbids it, its version does not know it, something else is kept under the key.
fn is_refusal(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::NoPerm | ServerErrorKind::ResponseError) => true,
        _ => error.code() == Some("WRONGTYPE"),
    }
}

/// The server did not answer in time, or not as it should: go on without it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the shared store is away")]
pub struct Away;

/// The connection, if there is one.
struct Line {
    connection: ArcSwapOption<MultiplexedConnection>,
    began: Instant,
    /// When the last answer came, in milliseconds since it began.
    answered: AtomicU64,
    /// Questions in a row that were not answered.
    failures: AtomicU32,
    /// Whether something was refused, which is said once.
    refused: AtomicBool,
    connected: watch::Sender<u64>,
}

impl Line {
    fn age(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// The server has answered.
    fn answered(&self) {
        self.answered.store(self.age(), Relaxed);
        self.failures.store(0, Relaxed);
    }

    /// A question asked by `connection` was not answered; `lost` if the connection is of no use any more.
    fn failed(&self, connection: &Arc<MultiplexedConnection>, lost: bool) {
        let failures = self.failures.fetch_add(1, Relaxed) + 1;
        let silence = self.age().saturating_sub(self.answered.load(Relaxed));
        let is_silent = failures >= TOLERATED && u128::from(silence) >= LEAST_PATIENCE.as_millis();
        if lost || is_silent {
            // A newer one may have taken its place meanwhile.
            self.connection.compare_and_swap(&Some(Arc::clone(connection)), None);
        }
    }

    /// The server is there, and does not do what it was asked: connecting anew would change nothing.
    fn refuse(&self, error: &RedisError) {
        if !self.refused.swap(true, Relaxed) {
            tracing::error!(%error, "Redis refuses a command: what needs it is not shared.");
        }
    }
}

/// Connects, and sees to it that there is a connection.
struct Keeper {
    /// Dropped with the last who could ask.
    line: Weak<Line>,
    server: String,
    patience: Duration,
    connect_timeout: Duration,
    client: Client,
}

impl Keeper {
    async fn run(self) {
        let mut told = None;
        while let Some(line) = self.line.upgrade() {
            match self.connect().await {
                Ok(connection) => {
                    line.answered();
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
                    drop(line);
                    if told.is_none() {
                        told = Some(false);
                        tracing::warn!(server = self.server, %error, "Redis is away: each gateway goes on alone.");
                    }
                }
            }
            sleep(PAUSE).await;
        }
    }

    async fn connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            // Each question has a patience of its own.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let mut connection =
            self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let answer = timeout(self.connect_timeout, ping(&mut connection)).await;
        answer
            .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))?;
        Ok(connection)
    }

    /// Returns when the connection is lost.
    async fn watch(&self) {
        loop {
            sleep(PAUSE).await;
            let Some(line) = self.line.upgrade() else { return };
            let Some(connection) = line.connection.load_full() else { return };
            let mut connection = MultiplexedConnection::clone(&connection);
            if !matches!(timeout(self.patience, ping(&mut connection)).await, Ok(Ok(()))) {
                line.connection.store(None);
                return;
            }
        }
    }
}

async fn ping(connection: &mut MultiplexedConnection) -> redis::RedisResult<()> {
    redis::cmd("PING").query_async::<String>(connection).await.map(|_| ())
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("server", &self.settings.shown()).finish_non_exhaustive()
    }
}

/// Between looks, and between attempts to connect.
const PAUSE: Duration = Duration::from_secs(1);
/// Unanswered questions in a row after which the server counts as away, if it has been silent for long enough.
const TOLERATED: u32 = 5;
/// A look that no request waits for may take this long, however short the timeout.
const LEAST_PATIENCE: Duration = Duration::from_millis(500);
/// Questions on their way at once; more of them wait for a place.
const QUEUE: usize = 1024;
