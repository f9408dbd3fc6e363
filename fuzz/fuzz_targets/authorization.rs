//! `Authorization` fields, and a target beside them (security.md rule 13).
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    fields: Vec<&'a [u8]>,
    scheme: bool,
    target: &'a str,
}

fuzz_target!(|input: Input<'_>| {
    northgate::gateway::fuzz::authorization(&input.fields, input.target);
    if let (true, Some(first)) = (input.scheme, input.fields.first()) {
        let query = format!("/?{}", input.target);
        for scheme in [&b"Bearer "[..], b"basic "] {
            northgate::gateway::fuzz::authorization(&[&[scheme, first].concat()], &query);
        }
    }
});
