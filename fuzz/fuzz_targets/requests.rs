//! A connection's bytes taken for requests, in pieces and whole.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (piece, start, bytes) = input;
    let start: &[u8] = match start % 3 {
        0 => b"",
        1 => b"POST / HTTP/1.1\r\nHost: a\r\n",
        _ => b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    };
    northgate::server::fuzz::requests(&[start, bytes].concat(), usize::from(piece));
});
