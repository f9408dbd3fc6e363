//! Frames of HTTP/2 from a service, in any pieces, and answers to health checks.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (Vec<u8>, u8)| {
    let (bytes, piece) = input;
    northgate::fuzz::frames(&bytes, usize::from(piece));
});
