//! pip installs from an index: relative links with an escaped `+`, and a hash that must fit.

use std::fs;
use std::process::Command;

use super::Route;
use crate::support::{folder, run};

#[tokio::test]
async fn pip_installs_from_an_index() {
    let suite = "clients: pip";
    let Some(python) = folder(suite, "target/real/pip") else { return };
    let Some((index, route)) = Route::to_script(suite, "simple_index.py", &[]).await else {
        return;
    };
    let hash = reqwest::get(format!("{}/hash", index.url)).await.expect("an answer");
    let hash = hash.text().await.expect("text");
    let target = tempfile::tempdir().expect("a folder");
    let requirements = target.path().join("requirements.txt");
    let wanted = format!("northgate-sample==1.0+local.1 --hash=sha256:{hash}\n");
    fs::write(&requirements, wanted).expect("a file");

    for (round, base) in [&route.gateway.url, &route.secure].into_iter().enumerate() {
        let into = target.path().join(round.to_string());
        let mut pip = Command::new(python.join("bin/python"));
        pip.args(["-m", "pip", "install", "--isolated", "--no-cache-dir", "--quiet"])
            .args([
                "--disable-pip-version-check",
                "--trusted-host",
                "localhost",
                "--require-hashes",
            ])
            .arg("--index-url")
            .arg(format!("{base}/simple/"))
            .arg("--target")
            .arg(&into)
            .arg("--requirement")
            .arg(&requirements);

        run(&mut pip, "");

        assert!(into.join("northgate_sample.py").is_file());
    }
}
