//! rclone on both sides: files with odd names are copied, compared, moved and copied by the server, and removed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Route, listens};
use crate::support::{Running, free_port, programs, run};

#[tokio::test]
async fn rclone_copies_and_moves_files() {
    let suite = "clients: WebDAV";
    let Some([rclone]) = programs(suite, ["rclone"]) else { return };
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let (here, served) = (folder.path().join("here"), folder.path().join("served"));
    for name in NAMES {
        let path = here.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, name).expect("a file");
    }
    fs::write(here.join("large"), vec![b'x'; 3_000_000]).expect("a file");
    fs::create_dir(&served).expect("a folder");
    let mut server = Command::new(&rclone);
    server.args([
        "serve",
        "webdav",
        "--config",
        "/dev/null",
        "--addr",
        &format!("127.0.0.1:{port}"),
    ]);
    let _server = Running::start(server.arg(&served).stdout(Stdio::null()).stderr(Stdio::null()));
    listens(port).await;
    // The server compares the host of `Destination` with `Host`.
    let at = format!("http://127.0.0.1:{port}");
    let routes = [Route::start(&at, "").await, Route::start(&at, ", host_header: preserve").await];
    let rclone = |arguments: &[&str]| {
        let mut command = Command::new(&rclone);
        command.args(["--config", "/dev/null", "--retries", "1", "--low-level-retries", "1"]);
        run(command.arg("--no-check-certificate").args(arguments), "")
    };
    let here = here.display().to_string();

    for url in routes.iter().flat_map(|route| [&route.gateway.url, &route.secure]) {
        let at = |path: &str| format!(":webdav,url='{url}',vendor=other:{path}");
        rclone(&["copy", &here, &at("")]);
        rclone(&["check", "--download", &here, &at("")]);
        rclone(&["moveto", &at("large"), &at("semi;colon/größe 100%")]);
        rclone(&["copyto", &at("日本"), &at("a#b?c copied")]);
        rclone(&["moveto", &at("d ä"), &at("e;f + g")]);
        rclone(&["mkdir", &at("new dir/x")]);
        rclone(&["purge", &at("new dir")]);

        let read = |name: &str| fs::read(Path::new(&served).join(name)).expect("a file");
        assert_eq!(read("semi;colon/größe 100%").len(), 3_000_000);
        assert_eq!(read("a#b?c copied"), "日本".as_bytes());
        assert_eq!(read("e;f + g/ö+/a b"), "d ä/ö+/a b".as_bytes());
        rclone(&["delete", "--rmdirs", &at("")]);
        assert_eq!(rclone(&["lsf", "--recursive", &at("")]).trim(), "");
    }
}

const NAMES: [&str; 14] = [
    "d ä/ö+/a b",
    "semi;colon/x%2Fy",
    ".hidden/.f",
    "q\"u<o>t{e}|^`",
    "日本",
    "a#b?c&d=e",
    "back\\slash",
    "it's (ok)!*$,~@:",
    "end.",
    "%41",
    "100%",
    "...",
    " leading",
    "trailing ",
];
