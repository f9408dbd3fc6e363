//! Limits shared through a Cluster, through the primary of Sentinels, and over TLS as a user of an access list.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use super::super::support::{Running, eventually, free_port, programs, run};
use super::Redis;
use super::limits::Limits;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_share_a_quota_through_a_cluster() {
    let suite = "Redis: limits in a Cluster";
    let Some([cli]) = programs(suite, ["redis-cli"]) else { return };
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let bus = free_port().to_string();
        let arguments = ["--cluster-enabled", "yes", "--cluster-port", &bus];
        let Some(node) = Redis::begin_with(suite, &arguments) else { return };
        nodes.push(node);
    }
    let addresses = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port));
    run(Command::new(cli).args(["--cluster", "create"]).args(addresses).arg("--cluster-yes"), "");
    let urls: Vec<_> = nodes.iter().map(|node| format!("\"{}\"", node.url())).collect();
    let first = nodes.remove(0);

    let limits = Limits::over(first, &format!("[{}]", urls.join(", ")), "quota: 300/day", "").await;
    let tally = limits.use_up(600).await;

    assert!(tally.others.is_empty(), "{:?}", tally.others);
    let most = 300 + limits.decided_alone().await;
    assert!((300..=most).contains(&tally.admitted), "{} of at most {most}", tally.admitted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_share_a_quota_through_a_list_of_one_server_that_is_no_cluster() {
    let Some(redis) = Redis::begin_with("limits in a list of one server", &[]) else { return };
    let url = format!("[\"{}\"]", redis.url());

    let limits = Limits::over(redis, &url, "quota: 300/day", "").await;
    let tally = limits.admit(30).await;

    assert_eq!((tally.admitted, &tally.others[..]), (30, &[][..]));
    let keys: Vec<String> = limits.redis.ask(&["KEYS", "northgate:{limits}:*"]);
    assert_eq!(keys.len(), 1, "the server counts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_share_a_quota_over_tls_as_a_user_of_the_access_list() {
    let suite = "Redis: limits over TLS";
    let files = Certificates::new();
    let port = free_port();
    let (tls_port, [ca, cert, key]) = (port.to_string(), files.paths());
    let arguments = [
        "--tls-port",
        &tls_port,
        "--tls-ca-cert-file",
        &ca,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-auth-clients",
        "no",
    ];
    let Some(redis) = Redis::begin_with(suite, &arguments) else { return };
    let rights = ["~northgate:*", "+@read", "+@write", "+@scripting", "+@connection", "+time"];
    let user = ["ACL", "SETUSER", "gateway", "on", ">two words"];
    let _: String = redis.ask(&[&user[..], &rights].concat());
    let password = files.file("password", "two words\n");

    let url = format!("\"rediss://127.0.0.1:{port}\"");
    let keys =
        format!(", ca_file: \"{ca}\", username: gateway, password: {{ file: \"{password}\" }}");
    let limits = Limits::over(redis, &url, "quota: 300/day", &keys).await;
    let tally = limits.use_up(600).await;

    assert!(tally.others.is_empty(), "{:?}", tally.others);
    let most = 300 + limits.decided_alone().await;
    assert!((300..=most).contains(&tally.admitted), "{} of at most {most}", tally.admitted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_follow_the_sentinels_to_a_new_primary() {
    let suite = "Redis: limits with Sentinels";
    let Some(primary) = Redis::begin_with(suite, &["--repl-diskless-sync-delay", "0"]) else {
        return;
    };
    let of = primary.port.to_string();
    let replica = Redis::begin_with(suite, &["--replicaof", "127.0.0.1", &of]).expect("a replica");
    let sentinels: Vec<_> = (0..3).map(|_| Sentinel::start(&primary)).collect();
    for sentinel in &sentinels {
        sentinel.knows_all().await;
    }
    let hosts: Vec<_> =
        sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
    let url = format!("\"redis-sentinel://{}/mymaster/0\"", hosts.join(","));
    let mut limits = Limits::over(primary, &url, "quota: 900/day", "").await;
    let mut tally = limits.admit(300).await;

    limits.redis.stop();
    tally = tally.and(limits.send(90).await);
    eventually(Duration::from_secs(20), async || {
        let roles: Vec<redis::Value> = replica.ask(&["ROLE"]);
        match &roles[..] {
            [redis::Value::BulkString(role), ..] if role == b"master" => Ok(()),
            roles => Err(format!("{roles:?}")),
        }
    })
    .await;
    limits.know_each_other().await;
    tally = tally.and(limits.use_up(1_200).await);

    assert!(tally.others.is_empty(), "{:?}", tally.others);
    let most = 900 + limits.decided_alone().await;
    assert!((900..=most).contains(&tally.admitted), "{} of at most {most}", tally.admitted);
    let keys: Vec<String> = replica.ask(&["KEYS", "northgate:{limits}:*"]);
    assert_eq!(keys.len(), 1, "the new primary counts");
}

/// An authority of its own, and the certificate of a server.
struct Certificates(TempDir);

impl Certificates {
    fn new() -> Self {
        let mut authority = CertificateParams::new(Vec::new()).expect("no names");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(authority, key).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let names = vec!["127.0.0.1".to_owned()];
        let server = CertificateParams::new(names).expect("an address");
        let server = server.signed_by(&key, &authority).expect("a certificate");
        let files = Self(tempfile::tempdir().expect("a folder"));
        files.file("ca.pem", &authority.pem());
        files.file("cert.pem", &server.pem());
        files.file("key.pem", &key.serialize_pem());
        files
    }

    /// The files of the authority, the certificate and its key.
    fn paths(&self) -> [String; 3] {
        ["ca.pem", "cert.pem", "key.pem"].map(|name| self.0.path().join(name).display().to_string())
    }

    /// Writes a file for its owner alone, and returns its path.
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        path.display().to_string()
    }
}

/// One of three Sentinels that watch a primary.
struct Sentinel {
    port: u16,
    _process: Running,
    _folder: TempDir,
}

impl Sentinel {
    fn start(primary: &Redis) -> Self {
        let (port, folder) = (free_port(), tempfile::tempdir().expect("a folder"));
        let file = folder.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor mymaster 127.0.0.1 {} 2\n\
             sentinel down-after-milliseconds mymaster 500\n\
             sentinel failover-timeout mymaster 3000\n",
            folder.path().display(),
            primary.port
        );
        fs::write(&file, text).expect("a file");
        let mut command = Command::new(&primary.program);
        let command = command.arg(file).arg("--sentinel");
        let process = Running::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        Self { port, _process: process, _folder: folder }
    }

    /// Waits until it knows the other Sentinels and the replica.
    async fn knows_all(&self) {
        eventually(Duration::from_secs(20), async || {
            let client = redis::Client::open(("127.0.0.1", self.port)).expect("an address");
            let mut connection = client.get_connection().map_err(|error| error.to_string())?;
            let mut count = |of: &str| {
                let known: redis::RedisResult<Vec<redis::Value>> =
                    redis::cmd("SENTINEL").arg(of).arg("mymaster").query(&mut connection);
                known.map(|known| known.len()).map_err(|error| error.to_string())
            };
            match (count("SENTINELS")?, count("REPLICAS")?) {
                (2, 1) => Ok(()),
                known => Err(format!("{known:?}")),
            }
        })
        .await;
    }
}
