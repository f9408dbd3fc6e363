//! Frames of HTTP/2 from a client, in any pieces: after the preface, and as the first bytes of a header block.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (Vec<u8>, u8, bool)| {
    let (bytes, piece, in_block) = input;
    let length = u32::try_from(bytes.len()).unwrap_or_default().to_be_bytes();
    let head = [length[1], length[2], length[3], 1, 4, 0, 0, 0, 1];
    let start: &[u8] = if in_block { &head } else { &[] };
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    northgate::server::fuzz::client_frames(&[preface, start, &bytes].concat(), usize::from(piece));
});
