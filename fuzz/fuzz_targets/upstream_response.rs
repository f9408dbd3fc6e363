//! An upstream's response: head, framing, chunks, trailers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, bool, u8, &[u8])| {
    let (piece, to_head, start, bytes) = input;
    let start: &[u8] = match start % 4 {
        0 => b"",
        1 => b"HTTP/1.1 200 OK\r\n",
        2 => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        _ => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    };
    northgate::fuzz::upstream_response(&[start, bytes].concat(), usize::from(piece), to_head);
});
