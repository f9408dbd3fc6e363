//! nginx as a service: it ends each connection after a number of requests, and reloads under load.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::task::JoinSet;

use super::gateway::Gateway;
use super::support::{Running, eventually, free_port, programs};

#[tokio::test]
async fn nginx_ends_its_connections_and_no_request_is_lost() {
    let Some([nginx]) = programs("nginx", ["nginx"]) else { return };
    let (service, gateway, client) =
        started(&nginx, "master_process off;", "keepalive_requests 20;").await;

    let mut asking = JoinSet::new();
    for number in 0..32 {
        let (client, gateway) = (client.clone(), gateway.url.clone());
        asking.spawn(async move {
            for round in 0..30 {
                let path = if number % 2 == 0 { "one" } else { "two" };
                let url = format!("{gateway}/{path}");
                let request = if round % 2 == 0 { client.get(url) } else { client.post(url) };
                let answer = request.body("content").send().await.expect("an answer");
                assert_eq!(answer.status(), 200, "{path} {round}");
            }
        });
    }
    while let Some(asked) = asking.join_next().await {
        asked.expect("every answer");
    }
    drop((service, gateway));
}

/// A request in HTTP/2 that a connection no longer takes is told so by GOAWAY, and in HTTP/1.1 only what is idempotent can
/// be sent again.
#[tokio::test]
async fn nginx_reloads_under_load_and_no_request_is_lost() {
    let Some([nginx]) = programs("nginx reloads", ["nginx"]) else { return };
    let (service, gateway, client) = started(&nginx, "worker_processes 2;", "").await;

    let mut asking = JoinSet::new();
    for number in 0..16 {
        let (client, gateway) = (client.clone(), gateway.url.clone());
        asking.spawn(async move {
            for round in 0..60 {
                let request = if number % 2 == 0 {
                    client.get(format!("{gateway}/one"))
                } else {
                    client.post(format!("{gateway}/two")).body("content")
                };
                let answer = request.send().await.expect("an answer");
                assert_eq!(answer.status(), 200, "{number} {round}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    while !asking.is_empty() {
        service.process.as_ref().expect("it runs").signal("HUP");
        let until = tokio::time::Instant::now() + Duration::from_millis(300);
        while let Ok(Some(asked)) = tokio::time::timeout_at(until, asking.join_next()).await {
            asked.expect("every answer");
        }
    }
    drop((service, gateway));
}

/// nginx, which is asked to end: a master that is killed leaves its workers behind.
struct Nginx {
    process: Option<Running>,
    _folder: TempDir,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take()
            && !process.has_ended()
        {
            process.terminate();
        }
    }
}

/// Starts nginx with further directives of its own and of its servers, one in HTTP/1.1 and one in HTTP/2, and a gateway
/// before it.
async fn started(nginx: &Path, main: &str, http: &str) -> (Nginx, Gateway, reqwest::Client) {
    let folder = tempfile::tempdir().expect("a folder");
    let (http1, http2) = (free_port(), free_port());
    let here = folder.path().display();
    let server =
        |listen: &str| format!("server {{ listen {listen}; location / {{ return 200 fine; }} }}\n");
    let text = format!(
        "daemon off; {main} pid {here}/pid; error_log {here}/log;\nevents {{}}\nhttp {{ access_log off;\n\
         client_body_temp_path {here}/a; proxy_temp_path {here}/b; fastcgi_temp_path {here}/c;\n\
         uwsgi_temp_path {here}/d; scgi_temp_path {here}/e;\n\
         {http} http2_max_concurrent_streams 5;\n{}{}}}\n",
        server(&format!("127.0.0.1:{http1}")),
        server(&format!("127.0.0.1:{http2} http2")),
    );
    let file = folder.path().join("nginx.conf");
    fs::write(&file, text).expect("a file");
    let mut command = Command::new(nginx);
    let process = Running::start(command.arg("-e").arg("stderr").arg("-c").arg(&file));
    let service = Nginx { process: Some(process), _folder: folder };
    let gateway = Gateway::start_quietly(&format!(
        "listen: OWN
upstreams:
  one: {{ targets: [\"http://127.0.0.1:{http1}\"] }}
  two: {{ targets: [\"http://127.0.0.1:{http2}\"], http2: always, timeout: 60s }}
routes:
  - {{ id: one, path: /one, upstream: one, auth: none }}
  - {{ id: two, path: /two, upstream: two, auth: none }}
"
    ))
    .await;
    let client = reqwest::Client::builder().timeout(Duration::from_secs(20));
    let client = client.build().expect("a client");
    for path in ["/one", "/two"] {
        let url = format!("{}{path}", gateway.url);
        eventually(Duration::from_secs(10), async || {
            let answer = client.get(&url).send().await.map_err(|error| error.to_string())?;
            if answer.status() == 200 { Ok(()) } else { Err(answer.status().to_string()) }
        })
        .await;
    }
    (service, gateway, client)
}
