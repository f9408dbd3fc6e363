//! Tests of the redaction of secrets.

use std::path::Path;

use super::tree::*;
use super::*;
use crate::base::clock::Timestamp;
use crate::config::fault::{Faults, Format, Line, Position};
use crate::config::variable_expansion::Environment;
use crate::config::yaml::Kind;
use crate::config::{load_text, yaml};

#[test]
fn secrets_are_blotted_out_where_they_stand() {
    assert_eq!(
        masked(
            "client: { id: a, secret: hunter2 }\nkeys:\n  - 'aaaa'\n  - { file: /x }\nscret: hunter2\nurl: redis://:pw@host\n"
        ),
        "client: { id: a, secret: *** }\nkeys:\n  - ***\n  - { file: /x }\nscret: ***\nurl: ***\n"
    );
}

#[test]
fn a_secret_of_several_lines_is_blotted_out_whole() {
    assert_eq!(masked("token: \"one\n  two\"\nversion: 1\n"), "token: ***\n***\nversion: 1\n");
    for block in ["|", ">", "|-", ">+"] {
        let text = format!("a:\n  token: {block}\n    hunter2\n\n    hunter2\n  b: c\n");
        let masked = masked(&text);
        assert!(!masked.contains("hunter2") && masked.contains("b: c"), "{masked}");
    }
}

#[test]
fn every_key_that_is_called_like_a_secret_hides_what_is_below_it() {
    for key in [
        "Authorization",
        "X-Api-Key",
        "x_api_key",
        "APIKEY",
        "client-secret",
        "adminToken",
        "passwords",
        "PASSWD",
        "Set-Cookie",
        "proxy-authorization",
        "secretes",
        "x.access.token",
        "tokens",
        "max_keys",
    ] {
        for value in [
            "hunter2",
            "'hunter2'",
            "\"hunter2 ${X}\"",
            "${X:-hunter2}",
            "[hunter2, [hunter2]]",
            "{ a: hunter2 }",
            "{hunter2}",
            "{ a: [{ b: hunter2 }] }",
            "\n  - hunter2\n  - b: hunter2",
            "|\n  hunter2",
            "\n  hunter2\n  hunter2",
            "&anchor hunter2",
        ] {
            let text = format!("{key}: {value}\nnext: shown\n");
            let masked = masked(&text);
            assert!(
                !masked.contains("hunter2") && masked.contains("next: shown"),
                "{text}{masked}"
            );
        }
    }
}

#[test]
fn a_value_that_looks_like_a_credential_is_hidden_under_any_key() {
    for secret in [
        "Bearer hunter2",
        "Basic aHVudGVyMg==",
        "x Bearer hunter2",
        "https://a:hunter2@b.example/",
        "a:hunter2@b:80",
        "https://b.example/?api_key=hunter2",
        "/x?a=b&access_token=hunter2#c",
        "{\"password\": \"hunter2\"}",
        "secret = hunter2",
        "eyJhunter2.hunter2.hunter2",
        "-----BEGIN EC PRIVATE KEY-----\nhunter2",
    ] {
        assert!(gives_a_secret_away(secret), "{secret}");
        let text = format!("a: {}\n", serde_json::json!(secret));
        assert!(!masked(&text).contains("hunter2"), "{text}");
    }
    for plain in [
        "https://a.example/b",
        "header:X-Api-Key",
        "claim:sub",
        "a@b.example",
        "Basic",
        "realm=\"a\"",
        "{claim:sub}",
        "northgate=debug,info",
        "/keys/{key}",
        "key=",
        "x-token",
        "redirect: /a",
    ] {
        assert!(!gives_a_secret_away(plain), "{plain}");
    }
}

#[test]
fn a_secret_without_the_blank_or_the_colon_before_it_is_in_no_message() {
    for written in [
        "secret:hunter2",
        "secret=hunter2",
        "secret hunter2",
        "\"secret: hunter2\"",
        "client_secret:hunter2",
        "scret hunter2",
        "token hunter2",
        "password:hunter2",
        "password:hunter2, password:hunter2",
        "X-Api-Key:hunter2",
        "\"Authorization: Bearer hunter2\"",
        "pass hunter2",
        "pin=hunter2",
    ] {
        for file in [
            format!("issuers: {{ a: {{ client: {{ id: a, {written} }} }} }}\n"),
            format!("admin: {{ listen: 127.0.0.1:1, {written} }}\n"),
            format!("admin: {written}\n"),
            format!("limits: {{ {written} }}\n"),
            format!("routes: [{{ id: a, headers: {{ request: {{ set: {{ {written} }} }} }} }}]\n"),
        ] {
            let faults = load(&format!("version: 1\n{file}"));
            for format in [Format::Text, Format::Json, Format::Github] {
                let rendered = faults.render(format);
                assert!(!rendered.contains("hunter2"), "{file}\n{rendered}");
            }
        }
    }
    for block in [
        "token hunter2:",
        "? token hunter2",
        "token:hunter2",
        "listen 127.0.0.1:1\n  token hunter2",
    ] {
        let rendered = load(&format!("version: 1\nadmin:\n  {block}\n")).render(Format::Json);
        assert!(!rendered.contains("hunter2"), "{block}\n{rendered}");
    }
}

#[test]
fn names_of_secrets_are_known_as_words_and_not_within_other_words() {
    for secret in [
        "pass",
        "pwd",
        "psw",
        "psk",
        "pin",
        "otp",
        "dsn",
        "sig",
        "hmac",
        "X-Pass",
        "X-Pwd",
        "auth_pass",
        "authPass",
        "pass2",
        "X-Signature",
        "X-Jwt",
        "jwt-assertion",
        "passcode",
        "Passwort",
        "creds",
        "X-Origin-Verify",
        "pass word",
    ] {
        assert!(is_secret(secret), "{secret}");
        assert!(!masked(&format!("a: {{ {secret}: hunter2 }}\n")).contains("hunter2"), "{secret}");
    }
    for plain in [
        "pinned",
        "compass",
        "bypass",
        "signed_answer",
        "jwt",
        "jwt_cache",
        "bearer",
        "passive",
        "design",
        "opting",
        "pint",
        "saltwater",
    ] {
        assert!(!is_secret(plain), "{plain}");
    }
    for url in [
        "https://a.example/?sig=hunter2",
        "https://a.example/?a=b&code=hunter2",
        "redis://h?auth=hunter2",
    ] {
        assert!(gives_a_secret_away(url), "{url}");
    }
    assert!(!gives_a_secret_away("flow: code"));
    assert_eq!(masked("client: \"gw:hunter2\"\n"), "client: ***\n");
    assert_eq!(masked("client: [gw, hunter2]\n"), "client: [***, ***]\n");
}

#[test]
fn a_value_of_the_type_of_its_key_is_shown_and_any_other_is_hidden() {
    for (key, shown, hidden) in [
        ("max_token_size", "64KiB", "hunter2"),
        ("max_token_size", "100GiB", "4hunter2"),
        ("max_token_age", "1h30m", "a1b2c3"),
        ("max_keys", "100_000", "hunter2"),
        ("token_types", "at+jwt", "hunter2"),
        ("token_types", "application/secevent+JWT", "x y jwt"),
        ("tokens", "servr", "hunter2"),
        ("forward_token", "jwt", "hunter2"),
        ("hmac_secret_encoding", "base46", "hunter2"),
    ] {
        let secrecy = Secrecy::Open.below(key);

        assert!(!secrecy.hides(shown), "{key}: {shown}");
        assert!(secrecy.hides(hidden), "{key}: {hidden}");
        assert_eq!(secrecy.of_mapping().below("a"), Secrecy::Secret, "{key}");
    }
}

#[test]
fn the_names_of_a_field_and_a_cookie_are_shown_below_token_from_alone() {
    let from = Secrecy::Open.below("token_from");

    assert!(!from.below("header").hides("X-Access-Token"));
    assert!(!from.below("cokie").hides("access_token"));
    assert!(from.below("header").hides("Bearer hunter2"));
    assert!(from.below("secret").hides("hunter2") && from.hides("hunter2"));
    assert!(Secrecy::Secret.below("header").hides("hunter2"));
}

#[test]
fn a_reference_to_a_secret_is_shown() {
    let text = "admin: { token: { file: /run/token } }\nkey: tls/key.pem\nidentity_keys: [a.pem]\nsecret: { env: NAME }\n\
                password: \"${NAME}\"\npassword_grant: { scopes: [a] }\nforward_token: false\n";
    assert_eq!(masked(text), text);
    assert_eq!(
        masked("key: hunter2\npassword_grant: hunter2\n"),
        "key: ***\npassword_grant: ***\n"
    );
    assert_eq!(
        masked("set: [{ name: X-Key, value: hunter2 }]\n"),
        "set: [{ name: X-Key, value: *** }]\n"
    );
}

#[test]
fn a_secret_that_is_written_twice_or_in_a_comment_is_hidden() {
    assert!(!masked("token: hunter2\ntoken: hunter2\n").contains("hunter2"));
    assert_eq!(masked("a: b # the token is hunter2\n"), "a: b \n");
    assert_eq!(masked("a: 'b # c' # plain\n"), "a: 'b # c' # plain\n");
}

#[test]
fn text_that_cannot_be_parsed_is_shown_only_where_it_holds_no_secret() {
    for (text, shown) in [
        ("a: b: c\nsecret: hunter2\n", "a: b: c\n\n"),
        ("secret: hunter2: x\n", "\n"),
        ("X-Api-Key: hunter2: x\n", "\n"),
        ("token: \"hunter2\n  hunter2\": b: c\n", "\n\n"),
        ("token:\n  a: hunter2: b\n", "\n\n"),
        ("admin: { token: x }\na: b: c\n", "\na: b: c\n"),
        ("a: &a hunter2: x\nb: c\n", "\n\n"),
        ("a: { b: c,d: &a hunter2: x }\n", "\n"),
    ] {
        let mut faults = Vec::new();
        assert!(crate::config::parse(text, &mut faults).is_none());

        assert_eq!(joined(&without_guess(text, &faults)), shown);
    }
}

fn masked(text: &str) -> String {
    let root = crate::config::parse(text, &mut Vec::new()).expect("a tree");
    joined(&without_secrets(text, &root))
}

fn joined(lines: &[Line]) -> String {
    lines.iter().map(Line::text).collect::<Vec<_>>().join("\n")
}

#[test]
fn an_excerpt_tells_nothing_of_how_long_a_secret_is_and_the_caret_still_points() {
    for (before, behind) in [
        ("server: { a_secret: ", ", colour: blue }"),
        ("server: { tokens: [x, ", "], colour: blue }"),
        ("server: { tokens: {", ": x}, colour: blue }"),
        ("server: { \u{e9}: ä, password: '", "', colour: blue, token: y }"),
        ("server: { a: &a ", ", my_secret: *a, colour: blue }"),
    ] {
        let rendered = |secret: &str| {
            let text = format!("version: 1\n{before}{secret}{behind}\n");
            let faults = load(&text);
            let position = faults.iter().find(|fault| fault.message.contains("`colour`"));
            let position = position.expect("an unknown key").position;
            let all = faults.render(Format::Text);
            let rendered =
                all.lines().skip_while(|line| !line.contains("`colour`")).skip(1).take(3);
            let rendered: Vec<String> = rendered.map(str::to_owned).collect();
            let written: Vec<char> = text.lines().nth(1).unwrap().chars().collect();
            assert_eq!(written[position.column as usize - 1], 'c', "{text}");
            let caret = rendered[2].chars().position(|c| c == '^').expect("a caret");
            let shown: Vec<char> = rendered[1].chars().collect();
            // The excerpt has the prefix `2 | ` before the line and `  | ` before the caret.
            assert!(shown[caret..].starts_with(&['c', 'o', 'l']), "{rendered:?}");
            rendered
        };
        let short = rendered("hunter2");
        assert!(short[1].contains(HIDDEN), "{short:?}");
        for length in 4..40 {
            assert_eq!(rendered(&"h".repeat(length)), short, "{before}");
        }
    }
}

#[test]
fn a_line_ends_where_yaml_says() {
    for end in ["\n", "\r\n", "\r"] {
        let text = format!("\u{feff}a: b{end}secret: hunter2{end}{end}c: d{end}");
        assert_eq!(masked(&text).trim_end(), "a: b\nsecret: ***\n\nc: d");
    }
}

/// Puts a secret in every position of a file in turn, by an alias before or after it, as a value
/// and as a key, in each style of writing.
#[test]
fn a_secret_of_one_key_is_shown_at_no_other() {
    let secrets = [
        "hunter2",
        "'hunter2 hunter2'",
        "\"hunter2\"",
        "\"${UNSET:-hunter2}\"",
        "\"${hunter2!}\"",
        "4hunter2",
        "https://hunter2.example",
        "/hunter2/{hunter2}/**",
    ];
    let mut leaks = Vec::new();
    for file in [include_str!("../../../gateway.yaml"), FILE] {
        let root = crate::config::parse(file, &mut Vec::new()).expect("a tree");
        let mut spans = Vec::new();
        spans_of(&root, &mut spans);
        for (index, (from, to)) in
            spans.iter().filter(|(from, to)| from.line == to.line).enumerate()
        {
            let lines: Vec<Vec<char>> = file.lines().map(|line| line.chars().collect()).collect();
            let line = &lines[from.line as usize - 1];
            let (before, behind) = line.split_at(from.column as usize - 1);
            let behind = &behind[(to.column - from.column) as usize..];
            let with = |put: &str| {
                let text = |part: &[char]| part.iter().collect::<String>();
                let mut lines: Vec<String> = lines.iter().map(|line| text(line)).collect();
                lines[from.line as usize - 1] = format!("{}{put}{}", text(before), text(behind));
                lines.join("\n")
            };
            let secret = secrets[(index + index / 4) % secrets.len()];
            // Each position is tried with one of the forms, in turn.
            let texts = [
                format!("x-secret: &h {secret}\n{}", with("*h ")),
                format!("x: {{ tokens: {{ a: [b, &h {secret}] }} }}\n{}", with("*h ")),
                format!("{}\nx: {{ my_password: *h }}\n", with(&format!("&h {secret} "))),
                format!("{}\ntokens: [*h, x]\n", with(&format!("&h {secret} "))),
            ];
            let faults = load(&texts[index % texts.len()]);
            for format in [Format::Text, Format::Json] {
                let rendered = faults.render(format);
                let leak = |line: &&str| line.contains("hunter2");
                leaks.extend(rendered.lines().filter(leak).map(str::to_owned));
            }
        }
    }
    leaks.sort_unstable();
    leaks.dedup();
    assert!(leaks.is_empty(), "{}", leaks.join("\n"));
}

#[test]
fn a_key_that_is_a_secret_is_not_called_by_its_name() {
    for text in [
        "server: { &a hunter2: 1 }\nx: { token: *a }\n",
        "x: { token: { hunter2, hunter2 } }\n",
        "x: { token: &a hunter2 }\nserver: { *a : 1, *a : 2 }\n",
        "x: { token: { hunter2: &a y }, z: { secret: { hunter2: *a } } }\n",
        "x: { token: &a hunter2 }\nlimits: { *a : { rate: none } }\n",
    ] {
        let rendered = load(text).render(Format::Text);
        assert!(rendered.contains(HIDDEN) && !rendered.contains("hunter2"), "{text}\n{rendered}");
    }
}

fn load(text: &str) -> Faults {
    let environment = Environment::default();
    match load_text("f", text, Path::new("/nowhere"), &environment, Timestamp::from_secs(1)) {
        Ok((_, faults)) | Err(faults) => faults,
    }
}

/// Collects the positions of every scalar and key.
fn spans_of(node: &yaml::Node, spans: &mut Vec<(Position, Position)>) {
    match &node.kind {
        Kind::Scalar(_) => spans.push((node.at, node.end)),
        Kind::Sequence(items) => items.iter().for_each(|item| spans_of(item, spans)),
        Kind::Mapping(entries) => {
            for entry in entries {
                spans.push((entry.key_at, entry.key_end));
                spans_of(&entry.value, spans);
            }
        }
    }
}

/// The settings that gateway.yaml leaves out.
const FILE: &str = "\
version: 1
listen: [{ address: 0.0.0.0:8080, redirect_https: 443 }, 0.0.0.0:8443]
server: { trusted_proxies: [10.0.0.0/8], forwarded_headers: x, workers: 2, body_timeout: 3s, public_url: https://a.example }
admin: { listen: 127.0.0.1:9901 }
issuers:
  main:
    issuer: https://auth.example.com
    audience: [https://api.example.com]
    algorithms: [ES256]
    endpoints: { introspection: https://auth.example.com/introspect }
    client: { id: gateway, auth: client_secret_basic, secret: { env: NAME } }
    introspection: { cache: 10s, max_entries: 100 }
sessions:
  web: { issuer: main, flow: code, public_url: https://a.example, prompt: login, paths: { login: /login }, cookie: { prefix: __Host-a, same_site: lax } }
limits:
  spike: { rate: 10/s, burst: 20, by: [ip, header:X-A] }
  daily: { quota: 100/day, window: calendar, timezone: Europe/Berlin, methods: [GET] }
upstreams:
  shop: { targets: [{ url: http://10.0.0.1:80, weight: 1 }], balance: round_robin, timeout: 3s, retries: { attempts: 2, on: [connect] } }
policies: { p: { limits: [spike] } }
defaults: { policies: [p] }
routes:
  - { id: a, host: [a.example, '*.b.example'], path: '/a/{id}/**', methods: [GET], match_headers: { X-A: b, X-C: { prefix: d } }, upstream: shop, auth: { jwt: main, scopes: [a], claims: { b: { one_of: [c] } } }, limits: [daily], rewrite: { strip_prefix: /a } }
  - { id: b, path: /b, redirect: { to: /c, status: 308 }, auth: none, headers: { response: { set: { X-E: f }, remove: [X-G] } } }
  - { id: c, path: /c, respond: { status: 200, body: text, headers: { X-H: i } }, auth: { session: web }, cors: { origins: [https://c.example], methods: [GET] } }
logging: { level: info, format: json, sample: 50% }
metrics: { path: /metrics, buckets: [0.1, 1] }
";
