//! The configuration file: every text is a configuration or a list of faults that can be shown.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use northgate::base::clock::Timestamp;
use northgate::config::{self, Environment};

fuzz_target!(|text: &str| {
    let (environment, now) = (Environment::default(), Timestamp::from_secs(1_700_000_000));
    match config::load_text("fuzz.yaml", text, Path::new("/nowhere"), &environment, now) {
        Ok((_, warnings)) => drop(warnings.to_string()),
        Err(faults) => assert!(!faults.to_string().is_empty()),
    }
});
