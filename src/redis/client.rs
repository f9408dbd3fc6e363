//! Commands to Redis, over the one connection that a [`ConnectionManager`] maintains.
//!
//! Without a connection every command fails at once: no request
//! waits for a server that is known to be unavailable, and no command is used to
//! find out.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use crate::base::random::random;
use ::redis::{Cmd, FromRedisValue, Script, Value};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use super::connection_manager::{
    self, Condition, ConnectionHandle, ConnectionManager, MIN_HEARTBEAT_TIMEOUT,
};
use super::servers::{ServerConnection, Servers};
use super::settings::{InvalidUrl, Settings};

/// A Redis server, available or not.
pub struct Redis {
    settings: Settings,
    control: Handle,
    line: Arc<ConnectionHandle>,
    me: u64,
}

impl Redis {
    /// Creates a client of the server in `settings`. It connects on `control`, now and whenever the
    /// connection is lost, until this value is dropped.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`] if the client refuses the settings, which [`Settings::new`] prevents.
    pub fn new(settings: Settings, control: Handle) -> Result<Self, InvalidUrl> {
        let servers = Servers::new(&settings)?;
        let line = Arc::new(ConnectionHandle::default());
        let me = random_id();
        let connection_manager = ConnectionManager::new(&line, &settings, servers, me);
        control.spawn(connection_manager.run());
        Ok(Self { settings, control, line, me })
    }

    /// Returns the settings.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the runtime on which commands are sent, for tasks that retry later.
    pub const fn control(&self) -> &Handle {
        &self.control
    }

    /// Returns the key of `name` in the namespace `room`: `northgate:s:…`.
    pub fn key(&self, room: &str, name: &str) -> String {
        format!("{}{room}:{name}", self.settings.prefix)
    }

    /// Returns the key of the ids of all gateways, by which a script finds out whether the server has lost its data
    /// within [`RESTORE_TIME`](super::RESTORE_TIME): it is absent, or begins with `since:` and the milliseconds since
    /// the epoch.
    pub fn members_key(&self) -> String {
        connection_manager::members_key(&self.settings)
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.line.connection().is_some()
    }

    /// Returns whether the server stores data, and since when.
    pub fn condition(&self) -> Condition {
        self.line.condition()
    }

    /// Returns a counter of connections and of detected data losses:
    /// each change requires that shared state is written again.
    pub fn connections(&self) -> watch::Receiver<u64> {
        self.line.connections()
    }

    /// Returns the id of this gateway among those that share the server; never zero.
    pub const fn me(&self) -> u64 {
        self.me
    }

    /// Returns the gateways in the last heartbeat, including this one; none before the first.
    pub fn members(&self) -> Arc<Vec<u64>> {
        self.line.members()
    }

    /// Waits until a failed command may be retried: until the server is connected, else for `while_there`.
    pub async fn wait_to_retry(&self, while_there: Duration) {
        let mut connections = self.connections();
        connections.mark_unchanged();
        // The sender lives as long as this value.
        let _ = timeout(while_there, connections.changed()).await;
    }

    /// Returns the value of `key` (GET).
    ///
    /// # Errors
    ///
    /// [`Unavailable`] without a response in time.
    pub async fn find(&self, key: &str) -> Result<Option<Vec<u8>>, Unavailable> {
        self.query(::redis::cmd("GET").arg(key).take()).await
    }

    /// Returns the values of three keys at one moment (MGET).
    ///
    /// # Errors
    ///
    /// [`Unavailable`] without a response in time.
    pub async fn find_all(&self, keys: [&str; 3]) -> Result<[Option<Vec<u8>>; 3], Unavailable> {
        let (one, other, third) = self.query(::redis::cmd("MGET").arg(&keys).take()).await?;
        Ok([one, other, third])
    }

    /// Sets `key` for the duration `life` if it is absent (SET NX). `false` if it exists.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] without a response in time: the key may be set or not.
    pub async fn set_if_absent(&self, key: &str, life: Duration) -> Result<bool, Unavailable> {
        let mut command = ::redis::cmd("SET");
        command.arg(key).arg("").arg("NX").arg("PX").arg(life.as_millis() as u64);
        let set: Option<Value> = self.query(command).await?;
        Ok(set.is_some())
    }

    /// Sets each of `marks`, a key and its lifetime, if it is absent.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] without a response in time: each may be set or not.
    pub async fn mark_all(
        &self,
        marks: impl Iterator<Item = (String, Duration)>,
    ) -> Result<(), Unavailable> {
        let mut pipeline = ::redis::pipe();
        for (key, life) in marks {
            let life = life.as_millis().max(1) as u64;
            pipeline.cmd("SET").arg(key).arg("").arg("NX").arg("PX").arg(life).ignore();
        }
        let question = async move |mut line: ServerConnection| {
            if !line.is_cluster() {
                return pipeline.query_async(&mut line).await;
            }
            // Each key may be on another server.
            for command in pipeline.cmd_iter() {
                command.query_async::<Value>(&mut line).await?;
            }
            Ok(())
        };
        self.send(self.settings.timeout.max(MIN_HEARTBEAT_TIMEOUT), question).await
    }

    /// Appends an entry of these fields to the stream `key`, which is trimmed to about `max` (XADD).
    ///
    /// # Errors
    ///
    /// [`Unavailable`] without a response in time.
    pub async fn append(
        &self,
        key: &str,
        max: usize,
        fields: &[(&str, String)],
    ) -> Result<(), Unavailable> {
        let mut command = ::redis::cmd("XADD");
        command.arg(key).arg("MAXLEN").arg("~").arg(max).arg("*");
        for (name, value) in fields {
            command.arg(*name).arg(value);
        }
        // No caller needs the id of the entry.
        self.query_idempotent::<Value>(command).await.map(|_| ())
    }

    /// Returns the entries of the stream `key` after the id, the oldest first, at most `max` (XRANGE).
    ///
    /// # Errors
    ///
    /// [`Unavailable`] without a response in time.
    pub async fn entries_after(
        &self,
        key: &str,
        id: &str,
        max: usize,
    ) -> Result<Vec<Entry>, Unavailable> {
        let mut command = ::redis::cmd("XRANGE");
        command.arg(key).arg(format!("({id}")).arg("+").arg("COUNT").arg(max);
        self.query_idempotent(command).await
    }

    /// Returns the id of the last entry of the stream `key`, if there is any (XREVRANGE).
    ///
    /// # Errors
    ///
    /// [`Unavailable`] without a response in time.
    pub async fn last_entry(&self, key: &str) -> Result<Option<String>, Unavailable> {
        let mut command = ::redis::cmd("XREVRANGE");
        command.arg(key).arg("+").arg("-").arg("COUNT").arg(1);
        let last: Vec<Entry> = self.query_idempotent(command).await?;
        Ok(last.into_iter().next().map(|(id, _)| id))
    }

    /// Removes the entries `ids` from the stream `key` (XDEL).
    ///
    /// # Errors
    ///
    /// [`Unavailable`] without a response in time.
    pub async fn remove_entries(&self, key: &str, ids: &[String]) -> Result<(), Unavailable> {
        self.query_idempotent::<Value>(::redis::cmd("XDEL").arg(key).arg(ids).take())
            .await
            .map(|_| ())
    }

    /// Runs `script`, in one round trip.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] without a response in time.
    pub async fn run<T: FromRedisValue + Send + 'static>(
        &self,
        script: &'static Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<T, Unavailable> {
        self.run_within(self.settings.timeout, script, keys, arguments).await
    }

    /// Runs `script` with a longer timeout, where continuing without a response would cost more than waiting.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] without a response in time: the script may have run or not.
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
        time_limit: Duration,
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
        self.send(time_limit, question).await
    }

    async fn query<T: FromRedisValue + Send + 'static>(
        &self,
        command: Cmd,
    ) -> Result<T, Unavailable> {
        let question = async move |mut line| command.query_async(&mut line).await;
        self.send(self.settings.timeout, question).await
    }

    /// Sends a command that no request waits for.
    async fn query_idempotent<T: FromRedisValue + Send + 'static>(
        &self,
        command: Cmd,
    ) -> Result<T, Unavailable> {
        let question = async move |mut line| command.query_async(&mut line).await;
        let time_limit = self.settings.timeout.max(MIN_HEARTBEAT_TIMEOUT);
        self.send(time_limit, question).await
    }

    /// Sends a command on the control runtime, where it runs to its end even if the caller
    /// stops waiting.
    async fn send<T, F, A>(&self, time_limit: Duration, question: F) -> Result<T, Unavailable>
    where
        T: Send + 'static,
        F: FnOnce(ServerConnection) -> A,
        A: Future<Output = ::redis::RedisResult<T>> + Send + 'static,
    {
        let connection = self.line.connection().ok_or(Unavailable)?;
        let line = Arc::clone(&self.line);
        let asked = question(ServerConnection::clone(&connection));
        let task = self.control.spawn(async move {
            match timeout(time_limit, asked).await {
                Ok(Ok(response)) => {
                    line.answered();
                    Ok(response)
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

/// The server did not respond in time, or responded with an error; callers continue with local state.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("Redis is unavailable")]
pub struct Unavailable;

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("server", &self.settings.shown()).finish_non_exhaustive()
    }
}

/// Returns a random id for this gateway.
fn random_id() -> u64 {
    // Colliding ids would merge two gateways.
    u64::from_ne_bytes(random()).max(1)
}
