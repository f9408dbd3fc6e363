//! What a crash, a disk or another account has left of a journal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use northgate::fuzz::record;

fuzz_target!(|input: (&[u8], Vec<(&str, &str)>, u16, u8)| {
    let (bytes, fields, at, by) = input;
    let read = record::read(bytes);
    assert!(read.length <= bytes.len());

    // Whole lines are read as they were written, and a spoiled byte takes no other line with it.
    let time = northgate::base::clock::Timestamp::from_secs(1);
    let written = record::Record::new(fields.iter().copied(), time, time);
    let mut lines = Vec::new();
    for _ in 0..3 {
        written.write(&mut lines);
    }
    assert_eq!(record::read(&lines).records, [written.clone(), written.clone(), written.clone()]);
    let spoiled = usize::from(at) % lines.len();
    lines[spoiled] ^= by | 1;
    let read = record::read(&lines);
    assert!(!read.records.is_empty() && read.records.len() < 3);
    assert!(read.records.iter().all(|record| *record == written));
    northgate::token::fuzz::ended(&read.records);
});
