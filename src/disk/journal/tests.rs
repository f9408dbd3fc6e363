use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::mpsc;

use tempfile::TempDir;

use super::*;
use crate::base::clock::Timestamp;

const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);
const FEW: Kind =
    Kind { name: "test", title: "test", max_records: 1_000, loss: "events are forgotten" };

#[tokio::test]
async fn a_record_that_was_waited_for_is_read_by_the_next_process() {
    let (directory, clock) = (TempDir::new().unwrap(), Clock::manual(NOON));
    let (journal, before) = open(directory.path(), &clock);
    assert!(before.is_empty());
    journal.wait(journal.append(record("a", 60))).await.unwrap();
    let _ = journal.append(record("b", 60));
    journal.wait_for_all().await.unwrap();

    // As after a kill: the journal is not closed.
    let left = copy(directory.path());

    let (_, found) = open(left.path(), &clock);
    assert_eq!(keys(&found), ["n=a", "n=b"]);
}

#[tokio::test]
async fn expired_records_are_dropped_and_equal_keys_keep_the_later_expiry() {
    let (directory, clock) = (TempDir::new().unwrap(), Clock::manual(NOON));
    let (journal, _) = open(directory.path(), &clock);
    for (name, seconds) in [("a", 10), ("b", 60), ("b", 30)] {
        let _ = journal.append(record(name, seconds));
    }
    journal.wait_for_all().await.unwrap();
    clock.advance(Duration::from_secs(10));

    let (_, found) = open(copy(directory.path()).path(), &clock);

    assert_eq!(found, [record("b", 60)]);
}

#[tokio::test]
async fn a_withdrawn_record_is_not_read_again_whatever_file_is_read_first() {
    let (directory, clock) = (TempDir::new().unwrap(), Clock::manual(NOON));
    let (journal, _) = open(directory.path(), &clock);
    let (stays, goes) = (record("a", 60), record("b", 60));
    let _ = journal.append(stays.clone());
    let _ = journal.append(goes.clone());
    journal.wait_for_all().await.unwrap();
    let left = copy(directory.path());
    // Another process has taken over the file, but could not remove it.
    for name in ["test-0.journal", "test-zzzzzzzzzzzzzzzzzzzz.journal"] {
        let mut bytes = Vec::new();
        goes.withdrawal(NOON).write(&mut bytes);
        let other = copy(left.path());
        let file = other.path().join(name);
        fs::write(&file, bytes).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();

        for _ in 0..2 {
            let (journal, found) = open(other.path(), &clock);
            assert!(found.contains(&stays) && !found.contains(&goes), "{name}: {found:?}");
            drop(journal);
        }
    }
}

#[tokio::test]
async fn expired_records_are_compacted() {
    let (directory, clock) = (TempDir::new().unwrap(), Clock::manual(NOON));
    let (journal, _) = open(directory.path(), &clock);
    let _ = journal.append(record("stays", 1_000_000));
    for number in 0..2_000 {
        let until = NOON.plus_secs(number + 1);
        let record = Record::new([("n", number.to_string())], NOON, until);
        journal.wait(journal.append(record)).await.unwrap();
        clock.advance(Duration::from_secs(1));
    }

    let files: Vec<_> = fs::read_dir(directory.path()).unwrap().map(Result::unwrap).collect();
    let length = files.iter().map(|file| file.metadata().unwrap().len()).sum::<u64>();
    assert!(length < 10_000, "{length} bytes");
    assert_eq!(files.len(), 1);
    assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let (_, found) = open(copy(directory.path()).path(), &clock);
    assert_eq!(keys(&found), ["n=stays"]);
}

#[tokio::test]
async fn the_oldest_records_are_dropped_beyond_the_maximum() {
    let (directory, clock) = (TempDir::new().unwrap(), Clock::manual(NOON));
    let (journal, _) = open(directory.path(), &clock);
    for number in 0..3_000 {
        let _ = journal.append(record(&number.to_string(), 60));
    }
    journal.wait_for_all().await.unwrap();

    let (_, found) = open(copy(directory.path()).path(), &clock);

    assert_eq!(found.len(), FEW.max_records);
    assert_eq!(found.last(), Some(&record("2999", 60)));
}

#[tokio::test]
async fn withdrawals_push_out_no_record() {
    let (directory, clock) = (TempDir::new().unwrap(), Clock::manual(NOON));
    let (journal, _) = open(directory.path(), &clock);
    let _ = journal.append(record("owed", 60));
    for number in 0..3_000 {
        let _ = journal.append(record(&number.to_string(), 60).withdrawal(NOON));
    }
    journal.wait_for_all().await.unwrap();

    let (_, found) = open(copy(directory.path()).path(), &clock);

    assert_eq!((found.len(), found.first()), (FEW.max_records, Some(&record("owed", 60))));
}

#[tokio::test]
async fn failed_records_are_an_error_and_are_written_when_the_directory_recovers() {
    let (directory, clock) = (TempDir::new().unwrap(), Clock::manual(NOON));
    let state = directory.path().join("state");
    fs::create_dir(&state).unwrap();
    let (journal, _) = open(&state, &clock);
    journal.wait(journal.append(record("a", 60))).await.unwrap();
    fs::rename(&state, directory.path().join("away")).unwrap();
    fs::remove_dir_all(directory.path().join("away")).unwrap();

    assert_eq!(journal.wait(journal.append(record("b", 60))).await, Err(WriteFailed));
    assert_eq!(journal.wait_for_all().await, Err(WriteFailed), "a second wait has the same result");

    fs::create_dir(&state).unwrap();
    while journal.wait_for_all().await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(keys(&open(copy(&state).path(), &clock).1), ["n=a", "n=b"]);
}

#[tokio::test]
async fn a_missing_directory_is_an_error() {
    let (directory, clock) = (TempDir::new().unwrap(), Clock::manual(NOON));
    let (journal, _) = open(directory.path(), &clock);
    journal.wait(journal.append(record("a", 60))).await.unwrap();
    drop(journal);
    let gone = directory.path().join("gone");

    let opened = Journal::open(Directory::at(&gone), FEW, clock.clone(), Box::new(|_| {}));

    assert!(matches!(opened, Err(OpenError::Read { path, .. }) if path == gone));
}

#[tokio::test]
async fn a_torn_last_line_is_ignored_and_a_damaged_file_is_set_aside() {
    let (directory, clock) = (TempDir::new().unwrap(), Clock::manual(NOON));
    let (journal, _) = open(directory.path(), &clock);
    for name in ["a", "b", "c"] {
        let _ = journal.append(record(name, 60));
    }
    journal.wait_for_all().await.unwrap();
    let torn = copy(directory.path());
    edit(torn.path(), |bytes| bytes.truncate(bytes.len() - 3));
    let damaged = copy(directory.path());
    edit(damaged.path(), |bytes| bytes[5] ^= 1);

    assert_eq!(keys(&open(torn.path(), &clock).1), ["n=a", "n=b"]);
    assert_eq!(keys(&open(damaged.path(), &clock).1), ["n=b", "n=c"]);

    let aside = |path: &Path| {
        let names = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().ends_with(".damaged")).count()
    };
    assert_eq!((aside(torn.path()), aside(damaged.path())), (0, 1));
}

#[tokio::test]
async fn a_file_writable_by_other_accounts_is_refused() {
    let (directory, clock) = (TempDir::new().unwrap(), Clock::manual(NOON));
    let name = directory.path().join("test-0.journal");
    let refused = || {
        let directory = Directory::at(directory.path());
        let opened = Journal::open(directory, FEW, clock.clone(), Box::new(|_| {}));
        matches!(opened, Err(OpenError::Read { path, .. }) if path == name)
    };

    fs::write(&name, "").unwrap();
    fs::set_permissions(&name, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(refused());
    fs::remove_file(&name).unwrap();
    symlink("/etc/hostname", &name).unwrap();
    assert!(refused());
}

#[tokio::test]
async fn a_directory_that_was_replaced_gets_the_records_of_the_one_before() {
    let (parent, clock) = (TempDir::new().unwrap(), Clock::manual(NOON));
    let path = parent.path().join("state");
    let make = || fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
    make();
    let (journal, _) = open(&path, &clock);
    journal.wait(journal.append(record("a", 60))).await.unwrap();

    fs::rename(&path, parent.path().join("away")).unwrap();
    assert!(journal.wait(journal.append(record("b", 60))).await.is_err(), "there is none");
    make();
    while journal.wait(journal.append(record("c", 60))).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let mut found = open(copy(&path).path(), &clock).1;
    found.sort_by_key(|record| record.key().to_owned());
    assert_eq!(keys(&found), ["n=a", "n=b", "n=c"]);
}

#[tokio::test]
async fn two_processes_side_by_side_read_each_others_records() {
    let (directory, clock) = (TempDir::new().unwrap(), Clock::manual(NOON));
    let (old, _) = open(directory.path(), &clock);
    old.wait(old.append(record("a", 60))).await.unwrap();
    let (told, hears) = mpsc::channel();
    let heard: RecordListener = Box::new(move |records| told.send(records.to_vec()).unwrap());

    let directory_of_both = Directory::at(directory.path());
    let (new, found) = Journal::open(directory_of_both, FEW, clock.clone(), heard).unwrap();
    assert_eq!(keys(&found), ["n=a"]);
    new.wait(new.append(record("b", 60))).await.unwrap();
    old.wait(old.append(record("c", 60))).await.unwrap();
    let heard = tokio::task::spawn_blocking(move || hears.recv().unwrap()).await.unwrap();
    assert_eq!(keys(&heard), ["n=c"], "records of the old process");
    drop(old);

    // The old file is removed as soon as the new one has all its records.
    while fs::read_dir(directory.path()).unwrap().count() > 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut found = open(copy(directory.path()).path(), &clock).1;
    found.sort_by_key(|record| record.key().to_owned());
    assert_eq!(keys(&found), ["n=a", "n=b", "n=c"]);
}

#[tokio::test]
async fn concurrent_waits_share_one_write() {
    let (directory, clock) = (TempDir::new().unwrap(), Clock::manual(NOON));
    let (journal, _) = open(directory.path(), &clock);
    let waiting = (0..500).map(|number| {
        let number = journal.append(record(&number.to_string(), 60));
        journal.wait(number)
    });

    let kept = futures_util::future::join_all(waiting).await;

    assert!(kept.iter().all(Result::is_ok));
    assert_eq!(open(copy(directory.path()).path(), &clock).1.len(), 500);
}

fn open(directory: &Path, clock: &Clock) -> (Journal, Vec<Record>) {
    let directory = Directory::at(directory);
    Journal::open(directory, FEW, clock.clone(), Box::new(|_| {})).unwrap()
}

fn record(name: &str, seconds: u64) -> Record {
    Record::new([("n", name)], NOON, NOON.plus_secs(seconds))
}

fn keys(records: &[Record]) -> Vec<&str> {
    records.iter().map(Record::key).collect()
}

/// Copies the files on disk at this moment to another directory.
fn copy(directory: &Path) -> TempDir {
    let copied = TempDir::new().unwrap();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), copied.path().join(entry.file_name())).unwrap();
    }
    copied
}

fn edit(directory: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let entry = fs::read_dir(directory).unwrap().next().unwrap().unwrap();
    let mut bytes = fs::read(entry.path()).unwrap();
    change(&mut bytes);
    fs::write(entry.path(), bytes).unwrap();
}
