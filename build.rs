//! Tells the program which compiler built it, and from which commit.

use std::process::Command;

#[expect(clippy::disallowed_methods, reason = "this is how Cargo talks to a build script")]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=NORTHGATE_COMMIT");

    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    // `rustc 1.95.0 (59807616e 2026-04-14)`: the second word.
    let version = said(&rustc, &["--version"]);
    let version = version.split(' ').nth(1).unwrap_or("unknown");
    println!("cargo::rustc-env=NORTHGATE_RUSTC={version}");
}

/// What a program prints, or nothing if it cannot be run.
fn said(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => String::new(),
    }
}
