//! What somebody has put where gateways tell each other what is revoked.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|fields: Vec<&[u8]>| northgate::gateway::fuzz::fleet(&fields));
