//! curl: queries as people type them, raw and escaped, in every version of HTTP; Prometheus answers as it does without the
//! gateway, and other targets arrive byte for byte.

use std::process::{Command, Stdio};

use super::{Route, listens};
use crate::support::{Running, free_port, programs, run};

#[tokio::test]
async fn curl_queries_prometheus() {
    let suite = "clients: PromQL";
    let Some([curl, prometheus]) = programs(suite, ["curl", "prometheus"]) else { return };
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    std::fs::write(folder.path().join("prometheus.yml"), "global: {}").expect("a file");
    let mut command = Command::new(prometheus);
    command
        .current_dir(folder.path())
        .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _prometheus = Running::start(&mut command);
    listens(port).await;
    let direct = format!("http://127.0.0.1:{port}");
    let route = Route::start(&direct, "").await;

    for query in [
        r#"/api/v1/query?time=9&query={__name__=~"a|b"}"#,
        "/api/v1/query?time=9&query=vector(1)>0",
        r#"/api/v1/query?time=9&query=label_replace(vector(2)<3,"a","<`é>","","")"#,
        "/api/v1/query?time=9&query=%7B__name__%3D~%22a%7Cb%22%7D%20or%20vector%281%29",
        r#"/api/v1/series?match[]={job="a"}&match[]=up"#,
        "/api/v1/label/__name__/values",
    ] {
        let expected = ask(&curl, &["--http1.1"], &format!("{direct}{query}"));
        assert!(expected.contains(r#""status":"success""#), "{query}: {expected}");
        for (options, base) in versions(&route) {
            let answer = ask(&curl, options, &format!("{base}{query}"));
            assert_eq!(answer, expected, "{options:?} {query}");
        }
    }
}

#[tokio::test]
async fn curl_sends_any_target() {
    let suite = "clients: curl";
    let Some([curl]) = programs(suite, ["curl"]) else { return };
    let Some((_echo, route)) = Route::to_script(suite, "raw_echo.py", &[]).await else { return };

    for target in [
        r#"/graphql?query={user(id:"1"){name}}"#,
        "/http://example.com//a/?u=https://b",
        "/;jsessionid=1A",
        "/a;jsessionid=1A/b;c=d",
        "/<a>/\"b\"/`c`/{d}|^",
        "/a//b///c%2Fd%5Ce%3B",
        "/a\\b",
        "/a%20b+c&d='e'",
        "/caf\u{e9}/\u{65e5}?\u{1f600}",
    ] {
        for (options, base) in versions(&route) {
            let options = [options, &["--request-target", target]].concat();
            let answer = ask(&curl, &options, base);
            let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
            // The service writes each byte as a character.
            let bytes = answer["target"].as_str().expect("text").chars().map(|byte| byte as u8);
            let seen = String::from_utf8(bytes.collect()).expect("UTF-8");
            assert_eq!(seen, target, "{options:?}");
        }
    }
}

/// What curl is told to speak, and where.
fn versions(route: &Route) -> [(&'static [&'static str], &str); 4] {
    [
        (&["--http1.1"], &route.gateway.url),
        (&["--http2-prior-knowledge"], &route.gateway.url),
        (&["--http1.1"], &route.secure),
        (&["--http2"], &route.secure),
    ]
}

/// What the server answers, to curl's own spelling.
fn ask(curl: &std::path::Path, options: &[&str], url: &str) -> String {
    let mut command = Command::new(curl);
    command.args(["--globoff", "--silent", "--show-error", "--insecure", "--fail-with-body"]);
    run(command.args(options).arg(url), "")
}
