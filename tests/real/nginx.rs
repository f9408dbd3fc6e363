//! nginx as a service: it ends each connection after a number of requests, and reloads under load.

use std::fs;
use std::process::Command;
use std::time::Duration;

use tokio::task::JoinSet;

use super::gateway::Gateway;
use super::support::{Running, eventually, free_port, programs};

#[tokio::test]
async fn nginx_ends_its_connections_and_no_request_is_lost() {
    let Some([nginx]) = programs("nginx", ["nginx"]) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (http1, http2) = (free_port(), free_port());
    let here = folder.path().display();
    let server =
        |listen: &str| format!("server {{ listen {listen}; location / {{ return 200 fine; }} }}\n");
    let text = format!(
        "daemon off; master_process off; pid {here}/pid; error_log {here}/log;\nevents {{}}\nhttp {{ access_log off;\n\
         client_body_temp_path {here}/a; proxy_temp_path {here}/b; fastcgi_temp_path {here}/c;\n\
         uwsgi_temp_path {here}/d; scgi_temp_path {here}/e;\n\
         keepalive_requests 20; http2_max_concurrent_streams 5;\n{}{}}}\n",
        server(&format!("127.0.0.1:{http1}")),
        server(&format!("127.0.0.1:{http2} http2")),
    );
    let file = folder.path().join("nginx.conf");
    fs::write(&file, text).expect("a file");
    let mut command = Command::new(nginx);
    let service = Running::start(command.arg("-e").arg("stderr").arg("-c").arg(&file));
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
