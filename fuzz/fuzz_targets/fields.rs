//! A request's fields: forwarding, identity and hop-by-hop ones in every spelling.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|fields: Vec<(&[u8], &[u8])>| northgate::gateway::fuzz::fields(&fields));
