use serde_json::json;

use super::*;

#[test]
fn a_killed_process_bills_everything_once_whenever_it_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let now = Timestamp::from_secs(1_000);
    let mut first = open(&dir).unwrap();
    first.save(vec![record(3)]).unwrap();
    first.collect(vec![record(5)], now);
    // Killed before the batch was on disk: 3 of 5 were.
    drop(first);

    let mut second = open(&dir).unwrap();
    assert!(second.take_over(Vec::new(), now).unwrap());
    assert_eq!(units(&second), 3);
    second.collect(vec![record(4)], now);
    second.save(Vec::new()).unwrap();
    let exported: Vec<_> = events(&second);
    // Killed after the export, before the batches were removed.
    drop(second);

    let mut third = open(&dir).unwrap();
    assert!(third.take_over(Vec::new(), now).unwrap());
    let again: Vec<_> = events(&third);
    assert_eq!(exported, again, "under the same ids");
    assert!(!third.take_over(Vec::new(), now).unwrap());
}

#[test]
fn the_file_of_a_living_process_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let now = Timestamp::from_secs(1_000);
    let mut living = open(&dir).unwrap();
    living.save(vec![record(3)]).unwrap();

    let mut other = open(&dir).unwrap();

    assert!(!other.take_over(Vec::new(), now).unwrap());
    assert!(other.waiting() == 0);
}

#[test]
fn a_process_that_is_killed_after_it_took_over_another_loses_no_usage_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let now = Timestamp::from_secs(1_000);
    let mut first = open(&dir).unwrap();
    first.save(vec![record(3)]).unwrap();
    let mut second = open(&dir).unwrap();
    second.save(vec![record(5)]).unwrap();
    drop(first);

    assert!(second.take_over(vec![record(5)], now).unwrap());
    drop(second);
    let mut third = open(&dir).unwrap();
    assert!(third.take_over(Vec::new(), now).unwrap());

    assert_eq!(units(&third), 8);
}

#[test]
fn a_damaged_file_is_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let directory = Directory::at(dir.path());
    directory.replace("usage-0.json", b"{").unwrap();
    directory
        .replace("usage-1.json", br#"{"version":3,"next":0,"pending":[],"batches":[]}"#)
        .unwrap();

    let mut outbox = open(&dir).unwrap();

    outbox.take_over(Vec::new(), Timestamp::from_secs(1)).unwrap();

    assert_eq!(outbox.waiting(), 0);
    for name in ["usage-0.json.damaged", "usage-1.json.damaged"] {
        assert!(dir.path().join(name).exists(), "{name}");
    }
}

#[test]
fn a_file_that_cannot_be_read_has_no_other_taken_over_twice() {
    let dir = tempfile::tempdir().unwrap();
    let now = Timestamp::from_secs(1_000);
    let mut first = open(&dir).unwrap();
    let before = file_of(&first.instance);
    first.collect(vec![record(7)], now);
    first.save(vec![record(-4)]).unwrap();
    drop(first);
    for name in ["usage-0.json", "usage-z.json"] {
        std::os::unix::fs::symlink("nowhere", dir.path().join(name)).unwrap();
    }

    let mut second = open(&dir).unwrap();
    for _ in 0..3 {
        second.take_over(Vec::new(), now).expect_err("two are links");
        let numbers: Vec<_> = second.due("http", 10).iter().map(|due| due.number).collect();
        for number in numbers {
            for destination in ["file", "http"] {
                second.exported(destination, number);
            }
        }
    }
    assert_eq!(second.next_file, 1, "one batch, once");
    assert!(!dir.path().join(before).exists());
    second.collect(vec![record(5)], now);

    assert_eq!(units(&second), 1, "4 are owed once");
}

#[test]
fn a_refund_lowers_later_events() {
    let dir = tempfile::tempdir().unwrap();
    let now = Timestamp::from_secs(1_000);
    let mut outbox = open(&dir).unwrap();
    outbox.collect(vec![record(-1)], now);
    assert!(outbox.waiting() == 0);
    outbox.collect(vec![record(5)], now);

    assert_eq!(units(&outbox), 4);
}

#[test]
fn a_destination_that_is_away_lacks_its_batches_and_no_other_does() {
    let dir = tempfile::tempdir().unwrap();
    let now = Timestamp::from_secs(1_000);
    let mut outbox = open(&dir).unwrap();
    for units in 1..=3 {
        outbox.collect(vec![record(units)], now);
        outbox.save(Vec::new()).unwrap();
    }

    for due in outbox.due("file", 10) {
        assert_eq!(outbox.exported("file", due.number), None);
    }
    outbox.save(Vec::new()).unwrap();
    drop(outbox);
    let mut next = open(&dir).unwrap();
    next.take_over(Vec::new(), now).unwrap();

    assert!(next.due("file", 10).is_empty());
    let due = next.due("http", 10);
    assert_eq!(due.len(), 3, "after a restart as before");
    let exported = due.iter().map(|due| next.exported("http", due.number));
    assert!(exported.eq([Some(1); 3]));
    next.save(Vec::new()).unwrap();
    let directory = Directory::at(dir.path());
    assert!(directory.names("", ".batch").unwrap().is_empty(), "what all have is removed");
}

#[test]
fn the_file_of_a_process_does_not_grow_with_the_batches_that_wait() {
    let dir = tempfile::tempdir().unwrap();
    let mut outbox = open(&dir).unwrap();
    let directory = Directory::at(dir.path());
    outbox.save(Vec::new()).unwrap();
    let file = file_of(&outbox.instance);
    let before = directory.read(&file).unwrap().unwrap().len();

    for _ in 0..9 {
        outbox.collect(vec![record(1)], Timestamp::from_secs(1_000));
        outbox.save(Vec::new()).unwrap();
    }

    assert_eq!(directory.read(&file).unwrap().unwrap().len(), before);
}

#[test]
fn a_process_killed_between_a_batch_and_its_file_bills_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let now = Timestamp::from_secs(1_000);
    let mut killed = open(&dir).unwrap();
    killed.collect(vec![record(-2)], now);
    killed.save(vec![record(5)]).unwrap();
    killed.collect(vec![record(6)], now);
    let (number, waiting) = killed.waiting.last_key_value().unwrap();
    let (batch, carried) = waiting.unsaved.as_ref().unwrap();
    killed.files.write(*number, batch, carried).unwrap();
    drop(killed);

    let mut next = open(&dir).unwrap();
    next.take_over(Vec::new(), now).unwrap();
    next.collect(vec![record(1)], now);
    next.save(Vec::new()).unwrap();

    assert_eq!(units(&next), 5, "six less two, and one more");
}

#[test]
fn batches_of_version_1_are_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let batch = Batch {
        done: vec!["file".into()],
        ..Batch::new("0-7".into(), Timestamp::from_secs(1), vec![record(4)])
    };
    let content = json!({ "version": 1, "next": 8, "pending": [record(2)], "batches": [batch] });
    let content = content.to_string();
    Directory::at(dir.path()).replace("usage-0.json", content.as_bytes()).unwrap();

    let mut next = open(&dir).unwrap();
    next.take_over(Vec::new(), Timestamp::from_secs(2)).unwrap();

    assert_eq!(units(&next), 6);
    assert_eq!(next.due("file", 10).len(), 1);
}

fn open(dir: &tempfile::TempDir) -> io::Result<Outbox> {
    Outbox::open(Directory::at(dir.path()), ["file", "http"])
}

/// The events of all waiting batches.
fn events(outbox: &Outbox) -> Vec<Value> {
    let batch = |(number, waiting): (&u64, &Waiting)| match &waiting.unsaved {
        Some((batch, _)) => batch.events(),
        None => outbox.files.read(*number).unwrap().unwrap().batch.events(),
    };
    outbox.waiting.iter().flat_map(batch).collect()
}

fn units(outbox: &Outbox) -> i64 {
    events(outbox).iter().filter_map(|event| event["data"]["units"].as_i64()).sum()
}

fn record(units: i64) -> Record {
    let key = json!({ "client": "app" }).as_object().cloned().unwrap_or_default();
    Record { limit: "daily".into(), key, plan: None, window_end: Some(2_000), units }
}
