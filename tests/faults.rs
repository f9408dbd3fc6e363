//! Every fault of a configuration is reported with its position, the line and the fix.
//!
//! The catalogue is `tests/faults.txt`: a file, `-----`, and the gateway's output.
//! Required keys that a file leaves out, and that it does not test, are
//! added below it. With `BLESS=1` in the environment the catalogue is
//! rewritten; read the difference before you commit it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use northgate::base::clock::Timestamp;
use northgate::config::{self, Environment, Format};
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

#[test]
fn every_fault_is_reported_as_in_the_catalogue() {
    let files = files();
    let mut written = String::new();
    let mut wrong = Vec::new();
    for case in CATALOGUE.split("=====\n").filter(|case| !case.trim().is_empty()) {
        let (title, rest) = case.split_once('\n').expect("a title");
        let (file, expected) = rest.split_once("-----\n").unwrap_or((rest, ""));
        let reported = reported(&whole(file), files.path());
        if reported.trim_end_matches('\n') != expected.trim_end_matches('\n') {
            wrong.push(format!("{title}\n{reported}instead of\n{expected}"));
        }
        written.extend([title, "\n", file, "-----\n", &reported, "=====\n"]);
    }
    if std::env::var_os("BLESS").is_some() {
        fs::write("tests/faults.txt", written).expect("the catalogue can be written");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn every_class_of_fault_is_in_the_catalogue() {
    for class in 101..=112 {
        assert!(CATALOGUE.contains(&format!(": [C{class}] ")), "C{class}");
    }
}

#[test]
fn ten_mistakes_in_one_file_are_ten_faults() {
    let text = "\
verison: 1
listen: 8080
server: { workers: 0, header_timeout: soon, max_header_size: 1 }
issuers:
  main: { issuer: http://auth.example.com, audience: any }
upstreams:
  shop: { targets: [10.0.0.1:80] }
routes:
  - { id: a, path: /a/*, upstream: shpo, auth: none }
";
    let faults = config::load_text("f", text, Path::new(""), &Environment::default(), NOW)
        .expect_err("a file with faults");

    let lines: Vec<u32> = faults.iter().map(|fault| fault.position.line).collect();
    assert_eq!(lines, [1, 2, 3, 3, 3, 5, 5, 7, 9, 9], "{faults}");
}

#[test]
fn a_byte_that_is_not_utf_8_is_reported_where_it_stands() {
    let directory = files();
    let path = directory.path().join("latin-1.yaml");
    fs::write(&path, b"version: 1\nlisten: \xe9\n").expect("a file");

    let faults = config::load(&path, &Environment::default(), NOW).expect_err("it is not text");

    let position = faults.iter().next().expect("a fault").position;
    assert_eq!((position.line, position.column), (2, 9), "{faults}");
}

#[test]
fn the_value_of_a_variable_is_never_shown() {
    let values =
        ["unlikely-1", "unlikely-2", "unlikely-3", "unlikely-4", "unlikely-5", "unlikely-6"];
    let environment: Environment = values
        .iter()
        .enumerate()
        .map(|(index, value)| (format!("V{}", index + 1), *value))
        .collect();
    let text = "\
version: ${V1}
listen: ${V2}
server: { header_timeout: \"${V3}\", workers: \"${V1}\" }
issuers: { main: { issuer: \"${V4}\", algorithms: [\"${V1}\"], client: { id: x, secret: { file: \"${V5}\" } } } }
limits: { a: { rate: \"${V6}\", by: \"${V2}\" } }
upstreams: { shop: { targets: [\"${V1}\"] } }
routes:
  - { id: \"${V1}!\", path: \"${V2}\", upstream: \"${V3}\", auth: { jwt: \"${V4}\", session: \"${V4}\" }, limits: [\"${V5}\"] }
  - { id: b, path: /b, redirect: { to: \"${V6}\" }, auth: { any: [{ jwt: \"${V4}\" }] }, policies: [\"${V6}\"], rewrite: { strip_prefix: \"${V1}\" } }
";
    let faults =
        config::load_text("f", text, Path::new(""), &environment, NOW).expect_err("all wrong");

    assert!(faults.iter().count() > 12, "{faults}");
    for format in [Format::Text, Format::Json, Format::Github] {
        let shown = faults.render(format);
        assert!(!shown.contains("unlikely"), "{shown}");
        assert!(shown.contains("${V1}"));
    }
}

#[test]
fn a_secret_in_the_file_is_never_shown() {
    let text = "\
version: 1
listen: 127.0.0.1:8080
admin: { token: hunter2-token, listn: x }
issuers:
  main: { issuer: https://a.example, client: { id: a, secret: hunter2, colour: blue }, hmac_secret: hunter2-short }
sessions:
  web: { issuer: main, flow: password, public_url: https://a.example, keys: [hunter2, aHVudGVyMg==] }
upstreams: { a: { targets: [https://user:hunter2@a.example] } }
routes: []
";
    let faults = config::load_text("f", text, Path::new(""), &Environment::default(), NOW)
        .expect_err("it has mistakes");

    let shown = faults.render(Format::Text);
    assert!(shown.contains("colour") && shown.contains("decodes to 7 bytes"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

fn reported(text: &str, directory: &Path) -> String {
    match config::load_text("gateway.yaml", text, directory, &environment(), NOW) {
        Ok((_, warnings)) => warnings.render(Format::Text),
        Err(faults) => faults.render(Format::Text),
    }
}

/// `file` with the keys it needs and does not have.
fn whole(file: &str) -> String {
    if file.starts_with("version") || file.starts_with('#') {
        return file.to_owned();
    }
    let mut text = file.to_owned();
    for (key, value) in [
        ("version", "version: 1"),
        ("listen", "listen: 127.0.0.1:8080"),
        ("upstreams", "upstreams: { shop: { targets: [http://10.0.0.31:8080] } }"),
        ("routes", "routes: [{ id: all, path: /**, upstream: shop, auth: none }]"),
        ("server", "server: { state_dir: state }"),
    ] {
        if !file.lines().any(|line| line.starts_with(&format!("{key}:"))) {
            text.push_str(value);
            text.push('\n');
        }
    }
    text
}

/// What the catalogue's files name: certificates, keys and things that are none.
fn files() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, content: &str, mode: u32| {
        let path = directory.path().join(name);
        fs::write(&path, content).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
    };
    let certificate = |name: &str, year: i32| {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let made = params.self_signed(&key).expect("a certificate");
        write(&format!("{name}.pem"), &made.pem(), 0o644);
        write(&format!("{name}-key.pem"), &key.serialize_pem(), 0o600);
    };
    certificate("tls", 2100);
    certificate("other", 2100);
    certificate("expired", 2020);
    let open = KeyPair::generate().expect("a key").serialize_pem();
    write("open-key.pem", &open, 0o640);
    for (name, mode) in [("state", 0o700), ("looked-into", 0o755), ("written", 0o770)] {
        let path = directory.path().join(name);
        fs::create_dir(&path).expect("a directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
    }
    kept(&directory.path().join("kept"));
    write("plain.txt", "plain text\n", 0o644);
    write("hmac.txt", "0123456789abcdef0123456789abcdef\n", 0o600);
    // The key of RFC 7517 §A.1, and one that only encrypts.
    let point = "\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4\",\
                 \"y\":\"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM\"";
    write("jwks.json", &format!("{{\"keys\":[{{{point}}}]}}"), 0o644);
    write("keyless.json", &format!("{{\"keys\":[{{{point},\"use\":\"enc\"}}]}}"), 0o644);
    write("key.txt", "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=\n", 0o600);
    write("short-key.txt", "c2hvcnQ=\n", 0o600);
    directory
}

/// A state directory in which other accounts have been.
fn kept(path: &Path) {
    fs::create_dir(path).expect("a directory");
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("its mode");
    for (name, mode) in [
        ("ended-0.journal", 0o644),
        ("unverified-0.journal", 0o600),
        ("keys-main.json", 0o620),
        ("identity-keys.json", 0o604),
        ("README", 0o644),
    ] {
        fs::write(path.join(name), "").expect("a file");
        fs::set_permissions(path.join(name), fs::Permissions::from_mode(mode)).expect("its mode");
    }
    symlink("unverified-0.journal", path.join("proofs-0.journal")).expect("a link");
    fs::create_dir(path.join("quotas")).expect("a directory");
}

fn environment() -> Environment {
    [("SET", "set"), ("EMPTY", ""), ("NESTED", "${SET}")].into_iter().collect()
}

const CATALOGUE: &str = include_str!("faults.txt");
const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
