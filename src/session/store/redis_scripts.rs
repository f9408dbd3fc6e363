//! Redis scripts for sessions, each atomic; `redis.rs` describes their use.

use std::sync::LazyLock;

use crate::redis::Script;

/// A later time of last use must not restore tokens that a refresh has replaced, nor a session that has ended.
pub(crate) static SAVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local old = redis.call('GET', KEYS[1])
         if old == 'over' or (old and string.sub(old, 1, 20) > ARGV[1]) then return 0 end
         redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2], 'PX', ARGV[3])
         return 1",
    )
});
pub(crate) static REPUBLISH: LazyLock<Script> = LazyLock::new(|| {
    Script::new("redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) return 1")
});
pub(crate) static PUT: LazyLock<Script> =
    LazyLock::new(|| Script::new("redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1"));
/// Grants no lock while a result may be missing because the server has lost its data, nor for tokens older than the
/// session's.
pub(crate) static ACQUIRE_LOCK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local session = redis.call('GET', KEYS[3])
         if session == 'over' then return -1 end
         local record = redis.call('GET', KEYS[1])
         if record then return record end
         local members = redis.call('GET', KEYS[5])
         local since = tonumber(members and string.match(members, '^since:(%d+)')) or 0
         local time = since > 0 and redis.pcall('TIME')
         local age = time and not time.err and time[1] * 1000 + time[2] / 1000 - since
         if not members or (age and age >= 0 and age < tonumber(ARGV[5])) then return 3 end
         if session and string.sub(session, 1, 20) > ARGV[4] then return {session} end
         if not redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2])
           and redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
         if redis.call('SET', KEYS[4], ARGV[1], 'NX', 'PX', ARGV[3]) then return 1 end
         if redis.call('GET', KEYS[4]) == ARGV[1] then return 1 end
         return 2",
    )
});
pub(crate) static EXTEND_LOCK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local owner = redis.call('GET', KEYS[1])
         if owner and owner ~= ARGV[1] then return 0 end
         redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
         redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[3])
         return 1",
    )
});
/// A logout during the refresh wins.
pub(crate) static COMPLETE_REFRESH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
         if ARGV[4] or redis.call('GET', KEYS[5]) == ARGV[1] then redis.call('DEL', KEYS[5]) end
         if not ARGV[4] then return 1 end
         if redis.call('GET', KEYS[4]) == ARGV[3] then return 0 end
         redis.call('SET', KEYS[1], ARGV[4], 'NX', 'PX', ARGV[5])
         redis.pcall('XADD', KEYS[3], 'MAXLEN', '~', ARGV[2], '*', unpack(ARGV, 6))
         return 1",
    )
});
pub(crate) static RELEASE_LOCK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('PTTL', KEYS[1]) > tonumber(ARGV[1]) then
           redis.call('PEXPIRE', KEYS[1], ARGV[1])
         end
         local given = redis.call('GET', KEYS[2])
         if not given or given < ARGV[2] then redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3]) end
         return 1",
    )
});
