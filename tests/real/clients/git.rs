//! git over smart HTTP: clone, push, fetch; a push of more than `http.postBuffer`, which goes in chunks.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::Route;
use crate::support::{programs, run};

#[tokio::test]
async fn git_clones_pushes_and_fetches() {
    let suite = "clients: git";
    let Some([git]) = programs(suite, ["git"]) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let git = |within: &str, arguments: &[&str]| {
        let mut command = Command::new(&git);
        command
            .current_dir(folder.path().join(within))
            .args(["-c", "user.name=Alice", "-c", "user.email=alice@example.com"])
            .args(["-c", "http.sslVerify=false"])
            .args(arguments)
            .env("HOME", folder.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0");
        run(&mut command, "")
    };
    git("", &["init", "--bare", "--initial-branch=main", "served/a b;c.git"]);
    git("served/a b;c.git", &["config", "http.receivepack", "true"]);
    let served = folder.path().join("served").display().to_string();
    let Some((_server, route)) = Route::to_script(suite, "git_server.py", &[&served]).await else {
        return;
    };

    for (round, base) in [&route.gateway.url, &route.secure].into_iter().enumerate() {
        let url = format!("{base}/a%20b;c.git");
        let (here, there) = (format!("here{round}"), format!("there{round}"));
        git("", &["clone", &url, &here]);
        let large: Vec<u8> =
            (0..3_000_000_u32).flat_map(|n| n.wrapping_mul(n).to_be_bytes()).collect();
        fs::write(folder.path().join(&here).join(&here), &large).expect("a file");
        git(&here, &["add", "."]);
        git(&here, &["-c", "core.compression=0", "commit", "--message", "a large file"]);

        // curl waits for `100 Continue` before it sends the chunks.
        git(&here, &["-c", "http.extraHeader=Expect: 100-continue", "push", "origin", "HEAD:main"]);
        git("", &["clone", "--depth", "1", &url, &there]);
        git(&here, &["commit", "--allow-empty", "--message", "another"]);
        git(&here, &["tag", "v1/ä"]);
        git(&here, &["push", "origin", "HEAD:main", "v1/ä"]);
        git(&there, &["fetch", "--tags", "origin"]);

        let same = |name: &str| {
            fs::read(Path::new(&folder.path().join(&there)).join(name)).expect("a file") == large
        };
        assert!(same(&here), "another file was fetched");
        assert!(git(&there, &["log", "--oneline", "v1/ä"]).contains("another"));
        git(&here, &["push", "origin", ":v1/ä"]);
    }
}
