//! Shared counters in Redis, decided by one script.

use core::iter;
use std::sync::{Arc, LazyLock};

use tokio::sync::watch;

use super::backend::{Backend, Call, StoreFailure};
use super::protocol::{Caller, Message, Response};
use super::store_epoch::from_epoch_nanos;
use crate::base::clock::Clock;
use crate::limit::counters::limit_counters::Now;
use crate::redis::{Condition, Redis, Script};

/// Redis as the store of limits.
#[derive(Debug)]
pub(super) struct RedisBackend {
    redis: Arc<Redis>,
    clock: Clock,
    /// This gateway's id, in the form of the script.
    me: String,
    /// The key by which the script finds out that the server has lost its data.
    memory_key: String,
}

impl RedisBackend {
    pub(super) fn new(redis: Arc<Redis>, clock: Clock) -> Self {
        let me = format!("{:x}", redis.me());
        let memory_key = redis.key("memory", "{limits}");
        Self { redis, clock, me, memory_key }
    }
}

impl Backend for RedisBackend {
    fn call(&self, caller: Caller, messages: Vec<Message>, all_or_nothing: bool) -> Call {
        let redis = Arc::clone(&self.redis);
        let now = from_epoch_nanos(Now::of(&self.clock).now.as_nanos());
        let mode = if all_or_nothing { "all" } else { "each" };
        let memory_key = self.memory_key.clone();
        let mut arguments = vec![self.me.clone().into_bytes(), mode.into(), now.to_string().into()];
        arguments
            .extend([caller.gateways, caller.reported].map(|number| number.to_string().into()));
        for message in &messages {
            message.encode(&mut arguments);
        }
        Box::pin(async move {
            let counters = messages.iter().map(|message| &*message.key);
            let keys: Vec<&str> = iter::once(&*memory_key).chain(counters).collect();
            let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
            // Requests wait for a shorter time; a response that comes later is of use all the same.
            let numbers: Vec<i64> =
                redis.run_with_grace(&DECIDE, &keys, &arguments).await.map_err(|_| StoreFailure)?;
            Response::decode(&numbers, messages.len()).ok_or(StoreFailure)
        })
    }

    fn is_usable(&self) -> bool {
        matches!(self.redis.condition(), Condition::Usable(_))
    }

    fn gateways(&self) -> usize {
        self.redis.members().len().max(1)
    }

    fn reconnections(&self) -> watch::Receiver<u64> {
        self.redis.connections()
    }
}

static DECIDE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("decide.lua")));
