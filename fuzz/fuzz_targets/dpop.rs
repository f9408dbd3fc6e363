//! Proofs of possession (RFC 9449): none that the fuzzer makes up is signed.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use northgate::base::clock::Timestamp;
use northgate::token::binding::dpop::{Dpop, Target};

fuzz_target!(|input: (&str, &[u8], &[u8], &[u8])| {
    let (text, header, claims, signature) = input;
    let proofs = Dpop::new(&[], Default::default());
    let url = url::Url::parse("https://api.example.com/orders").expect("an address");
    let target = Target { method: "GET", url: &url, token: "token" };
    let now = Timestamp::from_secs(1_700_000_000);
    let [header, claims, signature] =
        [header, claims, signature].map(|part| URL_SAFE_NO_PAD.encode(part));
    for proof in [text.to_owned(), format!("{header}.{claims}.{signature}")] {
        assert!(proofs.read(&proof, target, now).is_err(), "{proof}");
    }
});
