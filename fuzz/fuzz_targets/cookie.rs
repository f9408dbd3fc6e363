//! `Cookie` fields of a client without the gateway's keys.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<&[u8]>, &[u8])| {
    let (fields, value) = input;
    northgate::session::fuzz::cookies(&fields);
    northgate::session::fuzz::cookies(&[&[b"a=b; __Host-web=", value].concat()]);
});
