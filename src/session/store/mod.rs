//! Session storage: encrypted cookies, process memory, or Redis.

mod encoded_state;
pub(crate) mod loaded_session;
pub(crate) mod lookup;
pub(crate) mod redis;
pub(crate) mod redis_scripts;
pub(crate) mod refresh_origin;
pub(crate) mod server_side;
pub(crate) mod shared_revocations;
pub(crate) mod state;
pub(crate) mod storage;
