//! An entry of the Redis stream by which gateways replicate revocations.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|fields: Vec<&[u8]>| northgate::gateway::fuzz::revocation_entry(&fields));
