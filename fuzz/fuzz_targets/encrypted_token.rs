//! Encrypted tokens: as text, and as a header and parts in the coding that lets them be read.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, [&[u8]; 5])| {
    let (text, parts) = input;
    northgate::token::fuzz::encrypted(text);
    let [header, rest @ ..] = parts.map(|part| URL_SAFE_NO_PAD.encode(part));
    let known = r#"{"alg":"A128KW","enc":"A128GCM","kid":"a"}"#;
    for header in [header, URL_SAFE_NO_PAD.encode(known)] {
        northgate::token::fuzz::encrypted(&format!("{header}.{}", rest.join(".")));
    }
});
