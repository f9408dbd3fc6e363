//! The questions that are asked of Redis, over the one connection that a [`ConnectionKeeper`] keeps up.
//!
//! While there is no connection every question is refused at once: no request
//! waits for a server that is known to be away, and no question is spent on
//! finding out.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use aws_lc_rs::rand;
use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, FromRedisValue, Script, TlsCertificates, Value};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use super::keeper::{Condition, ConnectionHandle, ConnectionKeeper, MIN_HEARTBEAT_TIMEOUT};
use super::settings::{InvalidUrl, Settings};

/// A Redis server, there or away.
pub struct Redis {
    settings: Settings,
    control: Handle,
    line: Arc<ConnectionHandle>,
    me: u64,
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
        let line = Arc::new(ConnectionHandle::default());
        let (me, members) = (random_id(), settings.prefix.to_string() + "fleet:members");
        let keeper = ConnectionKeeper::new(&line, &settings, client, me, members);
        control.spawn(keeper.run());
        Ok(Self { settings, control, line, me })
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
    pub fn is_connected(&self) -> bool {
        self.line.connection().is_some()
    }

    /// Whether what is written there is kept, and since when that is so.
    pub fn condition(&self) -> Condition {
        self.line.condition()
    }

    /// How often a connection was made, or the server was found without what it had been given:
    /// changes whenever that has to be said again.
    pub fn connections(&self) -> watch::Receiver<u64> {
        self.line.connections()
    }

    /// The name of this gateway among those that share the server; never zero.
    pub const fn me(&self) -> u64 {
        self.me
    }

    /// The gateways that shared the server when it was last asked, this one included; none before that.
    pub fn members(&self) -> Arc<Vec<u64>> {
        self.line.members()
    }

    /// Waits until what could not be said may be said again: until the server is back, else for `while_there`.
    pub async fn wait_to_retry(&self, while_there: Duration) {
        let mut connections = self.connections();
        connections.mark_unchanged();
        // The sender lives as long as this value.
        let _ = timeout(while_there, connections.changed()).await;
    }

    /// What is kept under `key`.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if no answer comes in time.
    pub async fn find(&self, key: &str) -> Result<Option<Vec<u8>>, Unavailable> {
        self.query(redis::cmd("GET").arg(key).take()).await
    }

    /// What is kept under three keys, at one moment.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if no answer comes in time.
    pub async fn find_all(&self, keys: [&str; 3]) -> Result<[Option<Vec<u8>>; 3], Unavailable> {
        let (one, other, third) = self.query(redis::cmd("MGET").arg(&keys).take()).await?;
        Ok([one, other, third])
    }

    /// Marks `key` for as long as `life`. `false` if it is marked already.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if no answer comes in time: it may be marked or not.
    pub async fn set_if_absent(&self, key: &str, life: Duration) -> Result<bool, Unavailable> {
        let mut command = redis::cmd("SET");
        command.arg(key).arg("").arg("NX").arg("PX").arg(life.as_millis() as u64);
        let set: Option<Value> = self.query(command).await?;
        Ok(set.is_some())
    }

    /// Marks each of `marks`, a key and for how long, unless it is marked already.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if no answer comes in time: each may be marked or not.
    pub async fn mark_all(
        &self,
        marks: impl Iterator<Item = (String, Duration)>,
    ) -> Result<(), Unavailable> {
        let mut pipeline = redis::pipe();
        for (key, life) in marks {
            let life = life.as_millis().max(1) as u64;
            pipeline.cmd("SET").arg(key).arg("").arg("NX").arg("PX").arg(life).ignore();
        }
        let question = async move |mut line| pipeline.query_async(&mut line).await;
        self.send(self.settings.timeout.max(MIN_HEARTBEAT_TIMEOUT), question).await
    }

    /// Appends an entry of these fields to the stream `key`, which keeps the latest: about `most`.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if no answer comes in time.
    pub async fn append(
        &self,
        key: &str,
        most: usize,
        fields: &[(&str, String)],
    ) -> Result<(), Unavailable> {
        let mut command = redis::cmd("XADD");
        command.arg(key).arg("MAXLEN").arg("~").arg(most).arg("*");
        for (name, value) in fields {
            command.arg(*name).arg(value);
        }
        // Its id is of no interest to whoever appends it.
        self.query_idempotent::<Value>(command).await.map(|_| ())
    }

    /// The entries of the stream `key` after the one called `id`, the oldest first, at most `most`.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if no answer comes in time.
    pub async fn entries_after(
        &self,
        key: &str,
        id: &str,
        most: usize,
    ) -> Result<Vec<Entry>, Unavailable> {
        let mut command = redis::cmd("XRANGE");
        command.arg(key).arg(format!("({id}")).arg("+").arg("COUNT").arg(most);
        self.query_idempotent(command).await
    }

    /// The id of the last entry of the stream `key`, if there is any.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if no answer comes in time.
    pub async fn last_entry(&self, key: &str) -> Result<Option<String>, Unavailable> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(key).arg("+").arg("-").arg("COUNT").arg(1);
        let last: Vec<Entry> = self.query_idempotent(command).await?;
        Ok(last.into_iter().next().map(|(id, _)| id))
    }

    /// Takes the entries called `ids` out of the stream `key`.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if no answer comes in time.
    pub async fn remove_entries(&self, key: &str, ids: &[String]) -> Result<(), Unavailable> {
        self.query_idempotent::<Value>(redis::cmd("XDEL").arg(key).arg(ids).take())
            .await
            .map(|_| ())
    }

    /// Runs `script`, which takes one round trip.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if no answer comes in time.
    pub async fn run<T: FromRedisValue + Send + 'static>(
        &self,
        script: &'static Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<T, Unavailable> {
        self.run_within(self.settings.timeout, script, keys, arguments).await
    }

    /// The same, where going on without an answer would cost more than waiting for it.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if no answer comes in time: the script may have run or not.
    pub async fn run_with_grace<T: FromRedisValue + Send + 'static>(
        &self,
        script: &'static Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<T, Unavailable> {
        self.run_within(self.settings.timeout.max(MIN_HEARTBEAT_TIMEOUT), script, keys, arguments)
            .await
    }

    async fn run_within<T: FromRedisValue + Send + 'static>(
        &self,
        patience: Duration,
        script: &'static Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<T, Unavailable> {
        let mut call = script.prepare_invoke();
        for key in keys {
            call.key(*key);
        }
        for argument in arguments {
            call.arg(*argument);
        }
        let question = async move |mut line| call.invoke_async(&mut line).await;
        self.send(patience, question).await
    }

    async fn query<T: FromRedisValue + Send + 'static>(
        &self,
        command: Cmd,
    ) -> Result<T, Unavailable> {
        let question = async move |mut line| command.query_async(&mut line).await;
        self.send(self.settings.timeout, question).await
    }

    /// Asks for what no request waits for.
    async fn query_idempotent<T: FromRedisValue + Send + 'static>(
        &self,
        command: Cmd,
    ) -> Result<T, Unavailable> {
        let question = async move |mut line| command.query_async(&mut line).await;
        let patience = self.settings.timeout.max(MIN_HEARTBEAT_TIMEOUT);
        self.send(patience, question).await
    }

    /// Has a question asked on the control runtime: it is asked to its end even if nobody waits for
    /// the answer any more.
    async fn send<T, F, A>(&self, patience: Duration, question: F) -> Result<T, Unavailable>
    where
        T: Send + 'static,
        F: FnOnce(MultiplexedConnection) -> A,
        A: Future<Output = redis::RedisResult<T>> + Send + 'static,
    {
        let connection = self.line.connection().ok_or(Unavailable)?;
        let line = Arc::clone(&self.line);
        let asked = question(MultiplexedConnection::clone(&connection));
        let task = self.control.spawn(async move {
            match timeout(patience, asked).await {
                Ok(Ok(answer)) => {
                    line.answered();
                    Ok(answer)
                }
                Ok(Err(error)) => {
                    line.failed_with(&connection, &error);
                    Err(Unavailable)
                }
                Err(_) => {
                    line.failed(&connection, false);
                    Err(Unavailable)
                }
            }
        });
        task.await.unwrap_or(Err(Unavailable))
    }
}

/// An entry of a stream: its id, and its fields, each name before its value.
pub type Entry = (String, Vec<Vec<u8>>);

/// The server did not answer in time, or not as it should: go on without it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the shared store is away")]
pub struct Unavailable;

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("server", &self.settings.shown()).finish_non_exhaustive()
    }
}

/// A name that no other gateway has.
fn random_id() -> u64 {
    let mut bytes = [0; 8];
    // Without random numbers there is no TLS either, and names that collide would make one gateway of two.
    rand::fill(&mut bytes).expect("the system has random numbers");
    u64::from_ne_bytes(bytes).max(1)
}
