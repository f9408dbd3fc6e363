//! Three gateways share limits through one Redis: the promises of a fleet while it works, and while it fails.

use std::time::Duration;

use reqwest::StatusCode;

use super::super::gateway::{Echo, Gateway};
use super::super::support::eventually;
use super::Redis;

/// Three gateways, one Redis, and an upstream.
pub(super) struct Limits {
    pub(super) redis: Redis,
    pub(super) gateways: Vec<Gateway>,
    http: reqwest::Client,
    _echo: Echo,
}

/// The responses to many requests.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) admitted: u64,
    limited: u64,
    pub(super) others: Vec<u16>,
}

impl Limits {
    async fn start(suite: &str, limit: &str) -> Option<Self> {
        Self::start_with(suite, limit, "").await
    }

    async fn start_with(suite: &str, limit: &str, redis_keys: &str) -> Option<Self> {
        let redis = Redis::begin(suite)?;
        let url = format!("\"{}\"", redis.url());
        Some(Self::over(redis, &url, limit, redis_keys).await)
    }

    /// Starts the gateways with this `url` of servers, of which `redis` is one.
    pub(super) async fn over(redis: Redis, url: &str, limit: &str, redis_keys: &str) -> Self {
        let echo = Echo::start().await;
        let text = CONFIGURATION
            .replace("LIMIT", limit)
            .replace("KEYS", redis_keys)
            .replace("REDIS", url)
            .replace("ECHO", &echo.url);
        let mut gateways = Vec::new();
        for _ in 0..3 {
            gateways.push(Gateway::start_quietly(&text).await);
        }
        let http = reqwest::Client::builder().build().expect("a client");
        let limits = Self { redis, gateways, http, _echo: echo };
        limits.know_each_other().await;
        limits
    }

    /// Waits until every gateway asks Redis.
    pub(super) async fn know_each_other(&self) {
        for gateway in &self.gateways {
            eventually(Duration::from_secs(10), async || {
                let url = format!("{}/metrics", gateway.admin);
                let text = self.http.get(url).send().await.map_err(|error| error.to_string())?;
                let text = text.text().await.map_err(|error| error.to_string())?;
                if text.contains("northgate_limit_store_usable 1") { Ok(()) } else { Err(text) }
            })
            .await;
        }
        // A heartbeat tells each gateway of the others.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
    }

    /// Returns how many requests the gateways decided without the store.
    pub(super) async fn decided_alone(&self) -> u64 {
        let series =
            r#"northgate_limit_decisions_total{limit="shared",route="api",result="store_error"}"#;
        let mut sum = 0;
        for gateway in &self.gateways {
            let metrics = self.http.get(format!("{}/metrics", gateway.admin)).send().await;
            let text = metrics.expect("a response").text().await.expect("text");
            let count = text.lines().find_map(|line| line.strip_prefix(series));
            sum += count.map_or(0, |count| count.trim().parse::<u64>().expect("a number"));
        }
        sum
    }

    /// Sends `count` requests, and then some more until two rounds of them are refused.
    ///
    /// On a busy machine Redis may respond too late for some moments: then a gateway gives out its share little by little,
    /// and refuses the rest. What it refuses so, and what it holds as a lease, is admitted later.
    pub(super) async fn use_up(&self, count: u64) -> Tally {
        let mut all = self.send(count).await;
        let mut refused_rounds = 0;
        for _ in 0..MAX_ROUNDS {
            // Unused leases are returned after half a second, and within a second the share of an outage is the whole one.
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            let round = self.send(90).await;
            refused_rounds = if round.admitted == 0 { refused_rounds + 1 } else { 0 };
            all = all.and(round);
            if refused_rounds == 2 {
                return all;
            }
        }
        panic!("the quota is never used up: {all:?}");
    }

    /// Sends `count` requests, and again those that a gateway has refused without the store.
    pub(super) async fn admit(&self, count: u64) -> Tally {
        let mut all = self.send(count).await;
        for _ in 0..MAX_ROUNDS {
            let missing = count - all.admitted;
            if missing == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            all = all.and(self.send_some(missing).await);
        }
        assert_eq!((all.admitted, all.others.len()), (count, 0), "{all:?}");
        all
    }

    /// Sends `count` requests to one gateway; returns how many were admitted.
    async fn send_to(&self, gateway: usize, count: u64) -> u64 {
        let mut tally = Tally::default();
        for _ in 0..count {
            let response = self.http.get(&self.gateways[gateway].url).send().await;
            tally.add(response.expect("a response").status());
        }
        tally.admitted
    }

    /// Sends `count` requests one after the other, to the gateways in turn.
    async fn send_some(&self, count: u64) -> Tally {
        let mut tally = Tally::default();
        for gateway in self.gateways.iter().cycle().take(count as usize) {
            tally.add(self.http.get(&gateway.url).send().await.expect("a response").status());
        }
        tally
    }

    /// Sends `count` requests over all gateways, with some at a time at each.
    pub(super) async fn send(&self, count: u64) -> Tally {
        let tasks = self.gateways.iter().flat_map(|gateway| {
            (0..CONCURRENCY).map(|_| {
                let (http, url) = (self.http.clone(), gateway.url.clone());
                let count = count / 3 / CONCURRENCY;
                tokio::runtime::Handle::current().spawn(async move {
                    let mut tally = Tally::default();
                    for _ in 0..count {
                        let response = http.get(&url).send().await.expect("a response");
                        tally.add(response.status());
                    }
                    tally
                })
            })
        });
        let mut all = Tally::default();
        for task in tasks.collect::<Vec<_>>() {
            let tally = task.await.expect("no panic");
            all.admitted += tally.admitted;
            all.limited += tally.limited;
            all.others.extend(tally.others);
        }
        all
    }
}

impl Tally {
    fn add(&mut self, status: StatusCode) {
        match status {
            StatusCode::OK => self.admitted += 1,
            StatusCode::TOO_MANY_REQUESTS => self.limited += 1,
            status => self.others.push(status.as_u16()),
        }
    }

    pub(super) fn and(mut self, other: Self) -> Self {
        self.admitted += other.admitted;
        self.limited += other.limited;
        self.others.extend(other.others);
        self
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_gateways_admit_a_quota_exactly_together() {
    let Some(limits) = Limits::start("limits: quota", "quota: 6000/day").await else { return };

    let tally = limits.use_up(9_000).await;

    assert!(tally.others.is_empty(), "{:?}", tally.others);
    // A response may come too late.
    let most = 6_000 + limits.decided_alone().await;
    assert!((6_000..=most).contains(&tally.admitted), "{} of at most {most}", tally.admitted);
    let calls: String = limits.redis.ask(&["INFO", "commandstats"]);
    let calls = calls_of(&calls, "evalsha");
    assert!(calls < 3_000, "{calls} calls for 9000 requests");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exact_quota_asks_once_per_request() {
    let limit = "quota: 60/day, exact: true";
    let Some(limits) = Limits::start("limits: exact", limit).await else { return };

    let tally = limits.use_up(180).await;

    assert!(tally.others.is_empty(), "{:?}", tally.others);
    let most = 60 + limits.decided_alone().await;
    assert!((60..=most).contains(&tally.admitted), "{} of at most {most}", tally.admitted);
    let keys: Vec<String> = limits.redis.ask(&["KEYS", "northgate:{limits}:*"]);
    assert_eq!(keys.len(), 1, "{keys:?}");
    let ttl: i64 = limits.redis.ask(&["PTTL", &keys[0]]);
    assert!(ttl > 0, "{ttl}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_fails_in_any_way_causes_no_errors_and_no_overrun() {
    for failure in ["kill", "freeze", "fill", "replica", "empty"] {
        let suite = format!("limits: {failure}");
        let Some(mut limits) = Limits::start(&suite, "quota: 3000/day").await else { return };
        let mut tally = limits.admit(1_200).await;

        match failure {
            "kill" | "empty" => limits.redis.stop(),
            "freeze" => limits.redis.fall_silent(),
            "fill" => drop(limits.redis.ask::<String>(&["CONFIG", "SET", "maxmemory", "1"])),
            _ => drop(limits.redis.ask::<String>(&["REPLICAOF", "127.0.0.1", "1"])),
        }
        tally = tally.and(limits.send(900).await);
        match failure {
            "kill" | "empty" => limits.redis.start(),
            "freeze" => limits.redis.speak_again(),
            "fill" => drop(limits.redis.ask::<String>(&["CONFIG", "SET", "maxmemory", "0"])),
            _ => drop(limits.redis.ask::<String>(&["REPLICAOF", "NO", "ONE"])),
        }
        if failure != "empty" {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
        }
        tally = tally.and(limits.use_up(3_000).await);

        assert!(tally.others.is_empty(), "{failure}: {:?}", tally.others);
        // One lease and one first share of each gateway.
        let bound = 3_000 + 3 * (2 + 16);
        assert!(tally.admitted <= bound, "{failure}: {} of 3000", tally.admitted);
        assert!(tally.admitted >= 2_900, "{failure}: {} of 3000", tally.admitted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_decides_what_an_outage_does() {
    for (policy, admitted) in [("allow", 90), ("deny", 0)] {
        let limit = format!("quota: 30/day, exact: true, on_store_error: {policy}");
        let Some(mut limits) = Limits::start(&format!("limits: {policy}"), &limit).await else {
            return;
        };
        limits.redis.stop();
        tokio::time::sleep(Duration::from_millis(500)).await;

        let tally = limits.send(90).await;

        assert_eq!((tally.admitted, tally.others.len()), (admitted, 0), "{policy}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acl_user_needs_the_commands_of_the_documentation_only() {
    let Some(redis) = Redis::begin("limits: ACL") else { return };
    let _: String = redis.ask(&[
        "ACL",
        "SETUSER",
        "gateway",
        "on",
        ">secret",
        "~northgate:*",
        "+@read",
        "+@write",
        "+@scripting",
        "+@connection",
        "+time",
    ]);
    let echo = Echo::start().await;
    let text = CONFIGURATION
        .replace("LIMIT", "quota: 10/day, exact: true, on_store_error: deny")
        .replace("KEYS", ", username: gateway, password: secret")
        .replace("REDIS", &format!("\"{}\"", redis.url()))
        .replace("ECHO", &echo.url);
    let gateway = Gateway::start_quietly(&text).await;
    let http = reqwest::Client::new();
    eventually(Duration::from_secs(10), async || {
        let status =
            http.get(&gateway.url).send().await.map_err(|error| error.to_string())?.status();
        if status == StatusCode::OK { Ok(()) } else { Err(status.to_string()) }
    })
    .await;

    let keys: Vec<String> = redis.ask(&["KEYS", "northgate:{limits}:*"]);
    assert_eq!(keys.len(), 1, "{keys:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_ends_returns_its_lease() {
    let Some(mut limits) = Limits::start("limits: drain", "quota: 20000/day").await else { return };
    limits.admit(900).await;

    for gateway in &mut limits.gateways {
        gateway.terminate();
    }

    let keys: Vec<String> = limits.redis.ask(&["KEYS", "northgate:{limits}:*"]);
    let granted: u64 = limits.redis.ask(&["HGET", &keys[0], "t"]);
    assert_eq!(granted, 900);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_its_gateway_does_not_renew_returns_to_the_others() {
    let limit = "quota: 600/day, exact: true";
    let Some(limits) = Limits::start("limits: expired lease", limit).await else { return };
    limits.admit(90).await;

    // A gateway that has reported 100 of 300, and was killed.
    let keys: Vec<String> = limits.redis.ask(&["KEYS", "northgate:{limits}:*"]);
    let time: Vec<u64> = limits.redis.ask(&["TIME"]);
    let expires = (time[0] - 1_700_000_000) * 1_000_000 + time[1] + LEASE_MICROS;
    let expires = expires.to_string();
    let lease = format!("300 7 100 {expires}");
    let fields = ["dead:1", &lease, "t", "390", "f", "390", "x", &expires];
    let _: u64 = limits.redis.ask(&[&["HSET", &keys[0]], &fields[..]].concat());
    let before = limits.send(60).await;
    let granted: u64 = limits.redis.ask(&["HGET", &keys[0], "t"]);
    assert!(granted > 390, "{granted}: the lease has expired already");
    tokio::time::sleep(Duration::from_micros(LEASE_MICROS)).await;
    let tally = limits.use_up(900).await;

    assert!(tally.others.is_empty(), "{:?}", tally.others);
    let least = 600 - 90 - 100 - before.admitted;
    let most = least + limits.decided_alone().await;
    assert!((least..=most).contains(&tally.admitted), "{} of at most {most}", tally.admitted);
}

#[test]
fn use_within_another_plan_is_no_debt_and_an_excess_is() {
    let Some(redis) = Redis::begin("limits: debts of plans") else { return };
    for (limit, granted) in [(10, 0), (1_000, 1)] {
        let _: String = redis.ask(&["FLUSHALL"]);
        let first = decide(&redis, Message { limit: 1_000, pending: 500, ..Message::default() });
        let charged = Message { seq: 2, limit: 10, used: 525, window: first, ..Message::default() };
        decide(&redis, Message { granted: 500, excess: 25, ..charged });
        end_window(&redis, Duration::from_millis(1));

        let next = decide(&redis, Message { seq: 3, limit, pending: 1, ..Message::default() });

        assert_eq!((next.total, next.granted), (25 + granted, granted), "owed of {limit} units");
    }
}

#[test]
fn idle_windows_pay_a_debt_and_a_refusal_waits_for_the_last_of_them() {
    let Some(redis) = Redis::begin("limits: debts") else { return };
    let (hour, half) = (3_600_000_000_u64, Duration::from_secs(1_800));
    // Hours after the window, the rest of the debt with what is granted, and whole hours until the next unit or window.
    for (passed, total, wait) in [(0_u32, 30, 2), (1, 20, 1), (2, 10, 0), (3, 1, 1)] {
        let _: String = redis.ask(&["FLUSHALL"]);
        let first = decide(&redis, Message { limit: 10, pending: 10, ..Message::default() });
        let charged = Message { seq: 2, limit: 10, used: 40, window: first, ..Message::default() };
        decide(&redis, Message { granted: 10, excess: 30, ..charged });
        let more = Message { seq: 3, pending: 1, granted: 40, ..charged };
        assert_eq!(decide(&redis, more).wait / hour, 3, "this window and three more");
        let lifetime: u64 = redis.ask(&["PTTL", "{limits}:a"]);
        assert!(lifetime > 3 * hour / 1_000, "{lifetime}");
        end_window(&redis, half + passed * 2 * half);

        let later = Message { seq: 4, limit: 10, pending: 1, ..Message::default() };
        let reply = decide(&redis, later);

        assert_eq!((reply.total, reply.wait / hour), (total, wait), "{passed} hours later");
    }
}

#[test]
fn a_debt_that_gateways_remember_is_owed_after_a_loss_of_data_and_counts_once() {
    let Some(redis) = Redis::begin("limits: debts after a loss") else { return };
    let first = decide(&redis, Message { limit: 10, pending: 10, ..Message::default() });
    let charged = Message { seq: 2, limit: 10, used: 40, window: first, ..Message::default() };
    let before = decide(&redis, Message { granted: 10, excess: 30, ..charged });
    let _: String = redis.ask(&["FLUSHALL"]);

    // Another gateway asks first, which knows nothing.
    decide_as("other", &redis, Message { limit: 10, pending: 4, ..Message::default() });
    let report = Message { seq: 3, granted: 40, used: 40, window: before, ..charged };
    for _ in 0..2 {
        let after = decide(&redis, report);

        assert_eq!((after.total, after.debt, after.until), (44, 30, before.until));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_without_a_record_gets_no_second_limit_of_an_emptied_redis() {
    let limit = "quota: 60/day, exact: true";
    let Some(limits) = Limits::start("limits: emptied", limit).await else { return };
    let mut admitted = limits.send_to(0, 40).await + limits.send_to(1, 40).await;
    assert!(admitted >= 60, "{admitted}");
    let _: String = limits.redis.ask(&["FLUSHALL"]);

    admitted += limits.send_to(2, 100).await;
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    for gateway in [2, 0, 1] {
        admitted += limits.send_to(gateway, 60).await;
    }

    // One lease and one first share of each gateway.
    assert!(admitted <= 60 + 3 * 17, "{admitted}");
}

/// Ends the window of the counter that [`decide`] is about, as if this long ago.
fn end_window(redis: &Redis, ago: Duration) {
    let time: Vec<u64> = redis.ask(&["TIME"]);
    let now = (time[0] - 1_700_000_000) * 1_000_000 + time[1];
    let end = now - u64::try_from(ago.as_micros()).expect("hours");
    let _: u64 = redis.ask(&["HSET", "{limits}:a", "u", &end.to_string()]);
}

/// A message about a window with debts, as the gateway `me` sends it.
#[derive(Clone, Copy)]
struct Message {
    seq: u64,
    limit: u64,
    used: u64,
    pending: u64,
    granted: u64,
    excess: u64,
    /// The window as the gateway knows it.
    window: Reply,
}

impl Default for Message {
    fn default() -> Self {
        let window = Reply::default();
        Self { seq: 1, limit: 1, used: 0, pending: 0, granted: 0, excess: 0, window }
    }
}

#[derive(Clone, Copy, Default)]
struct Reply {
    generation: u64,
    until: u64,
    total: u64,
    granted: u64,
    wait: u64,
    debt: u64,
    debt_limit: u64,
}

/// Has Redis decide about `message` by the script of the gateway.
fn decide(redis: &Redis, message: Message) -> Reply {
    decide_as("me", redis, message)
}

/// The same of another gateway.
fn decide_as(me: &str, redis: &Redis, message: Message) -> Reply {
    let Message { seq, limit, used, pending, granted, excess, window } = message;
    let hour = 3_600_000_000_u64;
    let before = [limit, 0, hour, hour, used, pending, granted, 0, 1];
    let (debt, debt_limit) = (window.debt, window.debt_limit);
    let Reply { generation, until, total, .. } = window;
    let after = [generation, until, total, 0, excess, 10, 1, debt, debt_limit];
    let numbers = before.iter().chain(&after).map(ToString::to_string);
    let named = ["w".to_owned(), "1".to_owned(), seq.to_string(), "ad".to_owned()];
    let args: Vec<String> = named.into_iter().chain(numbers).collect();
    let script = include_str!("../../../src/limit/shared/decide.lua");
    let call = ["EVAL", script, "2", "memory:{limits}", "{limits}:a", me, "all", "0", "1", "0"];
    let call: Vec<&str> = call.into_iter().chain(args.iter().map(String::as_str)).collect();
    let numbers: Vec<u64> = redis.ask(&call);
    let [_, _, _, generation, until, total, granted, wait, _, debt, debt_limit] = numbers[..]
    else {
        panic!("one reply")
    };
    Reply { generation, until, total, granted, wait, debt, debt_limit }
}

/// Returns the number of calls of `command` in the section `commandstats`.
fn calls_of(stats: &str, command: &str) -> u64 {
    let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")));
    let calls = line.and_then(|line| line.split_once("calls=")?.1.split(',').next());
    calls.map_or(0, |calls| calls.parse().expect("a number"))
}

/// The rest of the lifetime of a lease.
const LEASE_MICROS: u64 = 2_000_000;

/// The rounds after which what an outage refused must have been admitted.
const MAX_ROUNDS: usize = 20;

/// The requests at a time at each gateway.
const CONCURRENCY: u64 = 5;

const CONFIGURATION: &str = r"
listen: OWN
redis: { url: REDISKEYS }
limits:
  shared: { store: redis, by: global, LIMIT }
upstreams:
  echo: { targets: [ECHO] }
routes:
  - { id: api, path: /**, upstream: echo, auth: none, limits: [shared] }
";
