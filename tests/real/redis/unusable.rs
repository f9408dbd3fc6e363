//! Redis responds but stores nothing: full, a replica, a replica without its primary, one whose disk has failed, one that
//! is loading. Each counts as an outage, and none ends a session.

use std::fs;
use std::time::Duration;

use http::StatusCode;

use super::super::support::{eventually, free_port};
use super::faults::{LONG, is_over};
use super::{Fleet, Redis, SERVER, cookies_of};

#[tokio::test]
async fn a_redis_that_stores_nothing_accepts_no_login_and_loses_no_logout() {
    // A replica without its primary has no data.
    let nowhere = free_port().to_string();
    let replica: &[&str] = &["REPLICAOF", "127.0.0.1", &nowhere];
    let primary: &[&str] = &["REPLICAOF", "NO", "ONE"];
    let stale = |serves| ["CONFIG", "SET", "replica-serve-stale-data", serves];
    for (code, ill, well) in [
        (
            "OOM",
            vec![&["CONFIG", "SET", "maxmemory", "1"][..]],
            vec![&["CONFIG", "SET", "maxmemory", "0"][..]],
        ),
        (
            "NOREPLICAS",
            vec![&["CONFIG", "SET", "min-replicas-to-write", "1"][..]],
            vec![&["CONFIG", "SET", "min-replicas-to-write", "0"][..]],
        ),
        ("READONLY", vec![replica], vec![primary]),
        ("MASTERDOWN", vec![&stale("no")[..], replica], vec![primary, &stale("yes")[..]]),
        (
            "MISCONF",
            vec![&["CONFIG", "SET", "save", "3600 1000000"][..], &["BGSAVE"]],
            vec![&["CONFIG", "SET", "save", ""][..]],
        ),
    ] {
        let Some(mut fleet) = Fleet::with_tokens_of(LONG, code, SERVER).await else { return };
        let state = tempfile::tempdir().expect("a folder");
        fleet.keep_state_of(0, state.path()).await;
        let (cookie, other) = (fleet.log_in(0).await, fleet.log_in(0).await);
        for cookie in [&cookie, &other] {
            assert_eq!(fleet.get(1, "/app", cookie).await.status(), StatusCode::OK);
        }
        // A snapshot that cannot be written is what Redis calls a failed disk.
        fs::create_dir(fleet.redis.folder.path().join("dump.rdb")).expect("a folder");
        for command in &ill {
            let _: String = fleet.redis.ask(command);
        }
        eventually(Duration::from_secs(10), async || match fleet.redis.refusals() {
            said if said.iter().any(|said| said == code) => Ok(()),
            said => Err(format!("{code}: {said:?}")),
        })
        .await;

        let login = fleet.try_to_log_in(1).await;
        assert_eq!(login.status(), StatusCode::SERVICE_UNAVAILABLE, "{code}");
        assert_eq!(cookies_of(&login), "", "{code}");
        assert_eq!(fleet.get(0, "/app", &cookie).await.status(), StatusCode::OK, "{code}");
        assert_eq!(fleet.post(0, "/auth/logout", &cookie).await.status(), StatusCode::OK, "{code}");
        // A store that cannot be read cannot report an ended session.
        let over = match code {
            "MASTERDOWN" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNAUTHORIZED,
        };
        assert_eq!(fleet.get(0, "/app", &cookie).await.status(), over, "{code}");
        assert_eq!(fleet.get(1, "/app", &other).await.status(), StatusCode::OK, "{code}");

        for command in &well {
            let _: String = fleet.redis.ask(command);
        }
        is_over(&fleet, 1, &cookie).await;
        assert_eq!(fleet.get(1, "/app", &other).await.status(), StatusCode::OK, "{code}");
        eventually(Duration::from_secs(5), async || match fleet.try_to_log_in(1).await.status() {
            StatusCode::OK => Ok(()),
            status => Err(format!("{code}: {status}")),
        })
        .await;
    }
}

#[tokio::test]
async fn a_promoted_replica_gets_the_pending_writes() {
    let Some(mut fleet) = Fleet::with_tokens_of(LONG, "failover", SERVER).await else { return };
    let state = tempfile::tempdir().expect("a folder");
    fleet.keep_state_of(0, state.path()).await;
    let Some(mut primary) = Redis::begin("failover: the primary") else { return };
    let (cookie, ended) = (fleet.log_in(0).await, fleet.log_in(0).await);
    let port = primary.port.to_string();
    let _: String = primary.ask(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
    // It copies the data of the primary, which has none, and is loading meanwhile.
    let _: String = fleet.redis.ask(&["REPLICAOF", "127.0.0.1", &port]);
    eventually(Duration::from_secs(10), async || {
        let role: Vec<redis::Value> = fleet.redis.ask(&["ROLE"]);
        let is_connected = format!("{role:?}").contains("connected");
        if is_connected { Ok(()) } else { Err(format!("{role:?}")) }
    })
    .await;
    primary.stop();
    assert_eq!(fleet.try_to_log_in(1).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(fleet.post(0, "/auth/logout", &ended).await.status(), StatusCode::OK);

    let _: String = fleet.redis.ask(&["REPLICAOF", "NO", "ONE"]);

    is_over(&fleet, 1, &ended).await;
    eventually(Duration::from_secs(5), async || {
        match fleet.get(1, "/app", &cookie).await.status() {
            StatusCode::OK => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    eventually(Duration::from_secs(5), async || match fleet.try_to_log_in(1).await.status() {
        StatusCode::OK => Ok(()),
        status => Err(status.to_string()),
    })
    .await;
}

impl Redis {
    /// The error codes by which Redis refuses writes and reads.
    fn refusals(&self) -> Vec<String> {
        let commands =
            [redis::cmd("SET").arg("probe").arg("1").take(), redis::cmd("GET").arg("probe").take()];
        let ask = |command: &redis::Cmd| command.query::<redis::Value>(&mut self.connection());
        let code = |error: redis::RedisError| error.code().map(str::to_owned);
        commands.iter().filter_map(|command| ask(command).err().and_then(code)).collect()
    }
}
