//! Targets and hosts: one form of a path, and what is matched is what is sent.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8], bool)| {
    let (target, host, http2) = input;
    northgate::gateway::fuzz::target(target, host, http2);
    northgate::gateway::fuzz::target(&format!("/{target}"), host, http2);
});
