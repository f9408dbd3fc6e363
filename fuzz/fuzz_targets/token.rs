//! Signed tokens: as text, and as header and claims in the coding that lets them be read.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use northgate::token::jwt::verify::Unverified;

fuzz_target!(|input: (&str, &[u8], &[u8])| {
    let (text, header, claims) = input;
    let _ = Unverified::read(text);
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
    let plain = r#"{"alg":"ES256","kid":"a"}"#;
    for header in [header, URL_SAFE_NO_PAD.encode(plain)] {
        let token = format!("{header}.{claims}.AAAA");
        if let Ok(read) = Unverified::read(&token) {
            let _ = read.issuer();
        }
    }
});
