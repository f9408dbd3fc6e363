//! What an authorization server answers about a reference token.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &[u8])| {
    let (whole, body) = input;
    if whole {
        northgate::token::fuzz::introspection_answer(body);
    } else {
        let start: &[u8] = br#"{"active":true,"aud":"api","#;
        northgate::token::fuzz::introspection_answer(&[start, body].concat());
    }
});
