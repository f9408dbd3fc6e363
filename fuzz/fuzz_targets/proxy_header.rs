//! The first bytes of a connection taken for a header of the PROXY protocol.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (start, bytes) = input;
    let start: &[u8] = match start % 4 {
        0 => b"",
        1 => b"PROXY TCP4 ",
        2 => b"PROXY TCP6 ",
        _ => b"\r\n\r\n\0\r\nQUIT\n\x21",
    };
    northgate::server::fuzz::proxy_header(&[start, bytes].concat());
});
