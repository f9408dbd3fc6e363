//! Grafana's own types accept the dashboards. Grafana itself cannot be had here, its types can.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::npm::node;
use super::support::{repository, run};

#[test]
fn grafanas_types_accept_every_dashboard() {
    let Some(mut check) = node("grafana: types", "grafana.mjs") else { return };

    run(check.arg(repository("dashboards")), "");

    // And it does find faults: one that Grafana would not say a word about.
    let faulty = tempfile::tempdir().expect("a folder");
    let text = fs::read_to_string(repository("dashboards/overview.json")).expect("a file");
    plant(faulty.path(), &text.replacen(r#""w": 3"#, r#""w": "3""#, 1));
    let mut again = node("grafana: types", "grafana.mjs").expect("it was there before");
    assert!(complains(again.arg(faulty.path())), "a width that is a text was accepted");
}

fn plant(folder: &Path, text: &str) {
    fs::write(folder.join("faulty.json"), text).expect("a file");
}

fn complains(check: &mut Command) -> bool {
    let output = check.output().expect("it ran before");
    !output.status.success() && String::from_utf8_lossy(&output.stdout).contains("TS2322")
}
