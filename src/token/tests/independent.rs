//! An independent judge: whatever jsonwebtoken with strict settings refuses, the gateway refuses too.

use core::cell::Cell;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use super::{Bench, NOW};

#[test]
fn a_token_that_an_independent_library_refuses_is_refused() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let bench = runtime.block_on(Bench::new());
    let judge = Judge::new(&bench);
    let accepted = Cell::new(0);
    let mut runner =
        TestRunner::new(Config { cases: 3_000, failure_persistence: None, ..Config::default() });

    let outcome = runner.run(&forgery(), |forgery| {
        let token = forgery.token(&bench);
        let verdict = runtime.block_on(bench.jwt(&token));
        let independent = judge.refusal(&token);
        prop_assert!(
            verdict.is_err() || independent.is_none(),
            "accepted although {independent:?}: {token}"
        );
        accepted.set(accepted.get() + usize::from(verdict.is_ok()));
        Ok(())
    });

    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    let accepted = accepted.get();
    assert!(accepted > 50, "only {accepted} tokens were accepted: the property says nothing");
}

struct Judge {
    key: DecodingKey,
    validation: Validation,
}

impl Judge {
    fn new(bench: &Bench) -> Self {
        let jwk = bench.key.public_jwk();
        let (x, y) = (jwk["x"].as_str().unwrap(), jwk["y"].as_str().unwrap());
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[&bench.server.url]);
        validation.set_audience(&["api"]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        // The library reads the machine's clock; the gateway's stands at noon. Times are judged below.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        Self { key: DecodingKey::from_ec_components(x, y).unwrap(), validation }
    }

    /// Why the library refuses `token`; `None` if it takes it.
    fn refusal(&self, token: &str) -> Option<String> {
        let claims = match decode::<Value>(token, &self.key, &self.validation) {
            Ok(decoded) => decoded.claims,
            Err(error) => return Some(error.to_string()),
        };
        let leeway = 60.0;
        let now = NOW as f64;
        match claims["exp"].as_f64() {
            Some(exp) if exp + leeway > now => {}
            other => return Some(format!("it expired at {other:?}")),
        }
        match claims.get("nbf").map(Value::as_f64) {
            None => None,
            Some(Some(nbf)) if nbf <= now + leeway => None,
            Some(other) => Some(format!("it is not valid before {other:?}")),
        }
    }
}

/// A token that is right but for some of its parts.
#[derive(Clone, Debug)]
struct Forgery {
    header: String,
    claims: String,
    signature: Signature,
    spelling: Spelling,
    foreign_key: bool,
}

#[derive(Clone, Copy, Debug)]
enum Signature {
    Right,
    Flipped(usize),
    Cut(usize),
    Longer,
    Empty,
    OfOtherClaims,
}

#[derive(Clone, Copy, Debug)]
enum Spelling {
    Right,
    Padded,
    Standard,
    SpaceBefore,
    SpaceAfter,
    FourthPart,
    NoSignature,
    TrailingBits,
}

impl Forgery {
    fn token(&self, bench: &Bench) -> String {
        let claims = self.claims.replace("ISSUER", &bench.server.url);
        let (header, claims) = (self.spelled(&self.header), self.spelled(&claims));
        let signed = match self.signature {
            Signature::OfOtherClaims => format!("{header}.e30"),
            _ => format!("{header}.{claims}"),
        };
        let other = crate::issuer::tests::mock_issuer::signing_key("k1");
        let key = if self.foreign_key { &other } else { &bench.key };
        let mut signature = key.sign(signed.as_bytes()).unwrap();
        match self.signature {
            Signature::Right | Signature::OfOtherClaims => {}
            Signature::Flipped(bit) => signature[bit / 8 % 64] ^= 1 << (bit % 8),
            Signature::Cut(length) => signature.truncate(length % 64),
            Signature::Longer => signature.push(0),
            Signature::Empty => signature.clear(),
        }
        let signature = URL_SAFE_NO_PAD.encode(signature);
        match self.spelling {
            Spelling::SpaceBefore => format!(" {header}.{claims}.{signature}"),
            Spelling::SpaceAfter => format!("{header}.{claims}.{signature} "),
            Spelling::FourthPart => format!("{header}.{claims}.{signature}.{signature}"),
            Spelling::NoSignature => format!("{header}.{claims}"),
            Spelling::TrailingBits => {
                format!("{header}.{claims}.{}", with_trailing_bits(&signature))
            }
            Spelling::Right | Spelling::Padded | Spelling::Standard => {
                format!("{header}.{claims}.{signature}")
            }
        }
    }

    fn spelled(&self, part: &str) -> String {
        match self.spelling {
            Spelling::Padded => base64::engine::general_purpose::URL_SAFE.encode(part),
            Spelling::Standard => STANDARD.encode(part).trim_end_matches('=').to_owned(),
            _ => URL_SAFE_NO_PAD.encode(part),
        }
    }
}

/// The same bytes to a lenient decoder: the last character's unused bits are set.
fn with_trailing_bits(text: &str) -> String {
    let mut text = text.to_owned();
    let last = text.pop().unwrap_or('A');
    text.push(if last == 'A' { 'B' } else { '_' });
    text
}

/// Mostly right members with one or two wrong ones, so that every rule decides alone now and then.
fn forgery() -> impl Strategy<Value = Forgery> {
    let signature = prop_oneof![
        12 => Just(Signature::Right),
        1 => (0..512_usize).prop_map(Signature::Flipped),
        1 => (0..64_usize).prop_map(Signature::Cut),
        1 => select(vec![Signature::Longer, Signature::Empty, Signature::OfOtherClaims]),
    ];
    let spelling = prop_oneof![
        12 => Just(Spelling::Right),
        1 => select(vec![
            Spelling::Padded,
            Spelling::Standard,
            Spelling::SpaceBefore,
            Spelling::SpaceAfter,
            Spelling::FourthPart,
            Spelling::NoSignature,
            Spelling::TrailingBits,
        ]),
    ];
    let foreign_key = prop::bool::weighted(0.05);
    (object(HEADER), object(CLAIMS), signature, spelling, foreign_key).prop_map(
        |(header, claims, signature, spelling, foreign_key)| Forgery {
            header,
            claims,
            signature,
            spelling,
            foreign_key,
        },
    )
}

/// A JSON object of members, each mostly as it should be, in the order of `members` with repetitions kept.
fn object(members: &'static [(&str, &str, &[&str])]) -> impl Strategy<Value = String> {
    let values: Vec<_> = members.iter().map(|(_, right, wrong)| value(right, wrong)).collect();
    let tail = prop_oneof![20 => Just("}"), 1 => select(vec!["} ", "}}", ",}", "", "}\u{0}"])];
    (values, tail).prop_map(|(values, tail)| {
        let pairs = members.iter().zip(values);
        let written = pairs.filter(|(_, value)| !value.is_empty());
        let written = written.map(|((name, ..), value)| format!("{}:{value}", json!(name)));
        format!("{{{}{tail}", written.collect::<Vec<_>>().join(","))
    })
}

/// JSON text; empty for a member that is left out.
fn value(right: &'static str, wrong: &'static [&str]) -> BoxedStrategy<String> {
    let right = Just(right.to_owned());
    let wrong = select(wrong.to_vec()).prop_map(str::to_owned);
    prop_oneof![9 => right, 1 => wrong].boxed()
}

/// Name, right value, wrong values.
const HEADER: &[(&str, &str, &[&str])] = &[
    (
        "alg",
        r#""ES256""#,
        &[
            r#""ES384""#,
            r#""RS256""#,
            r#""HS256""#,
            r#""none""#,
            r#""es256""#,
            "",
            "null",
            "[\"ES256\"]",
        ],
    ),
    ("typ", r#""at+jwt""#, &[r#""JWT""#, r#""application/at+jwt""#, "", "1", r#""dpop+jwt""#]),
    ("kid", r#""k1""#, &[r#""k2""#, "", "1", "null", r#""../k1""#]),
    ("crit", "", &[r#"["exp"]"#, "[]", r#"["b64"]"#]),
    ("b64", "", &["false", "true"]),
    ("alg", "", &[r#""none""#, r#""HS256""#]),
    ("zip", "", &[r#""DEF""#]),
];
const CLAIMS: &[(&str, &str, &[&str])] = &[
    (
        "iss",
        r#""ISSUER""#,
        &[r#""ISSUER/""#, r#"["ISSUER"]"#, "", "null", r#""https://other.example""#],
    ),
    (
        "aud",
        r#""api""#,
        &[
            r#"["api"]"#,
            r#"["x","api"]"#,
            r#"["x"]"#,
            "",
            "1",
            r#""API""#,
            r#"{"api":1}"#,
            "[]",
            r#""api ""#,
        ],
    ),
    (
        "exp",
        "1700000300",
        &[
            "1699999000",
            "1699999990",
            r#""1700000300""#,
            "1700000300.5",
            "-1",
            "1e300",
            "",
            "null",
            "true",
            "0",
        ],
    ),
    (
        "nbf",
        "",
        &["1700000300", "1700000030", "1699999000", r#""1699999000""#, "null", "-1", "1e300"],
    ),
    ("iat", "", &["1699999990", "1700000300", r#""1699999990""#, "null"]),
    ("sub", r#""alice""#, &["1", "", "null", r#"["alice"]"#, r#""""#]),
    ("exp", "", &["1700000300", "1699999000"]),
    ("iss", "", &[r#""https://other.example""#]),
];
