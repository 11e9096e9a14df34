//! Bytes that go from file to file without passing through this process.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use goldsmith_block::{HostRange, Storage, StorageMut, Transfer};
use goldsmith_storage::{FileStorage, MemoryStorage, Target};
use goldsmith_testkit::{mount, pattern};

const MIB: u64 = 1 << 20;

/// A file with data, a hole and data again, and an odd end.
fn source(directory: &Path) -> (FileStorage, Vec<u8>) {
    let disk = pattern::disk("8m:A 8m:- 16m:B 700:C");
    let path = directory.join("source");
    let target = Target::create(&path).unwrap();
    let storage = target.storage();
    storage.write_at(0, &disk.bytes()[..8 << 20]).unwrap();
    storage
        .write_at(16 * MIB, &disk.bytes()[16 << 20..])
        .unwrap();
    storage.flush().unwrap();
    target.publish().unwrap();
    (FileStorage::open(&path).unwrap(), disk.bytes().to_vec())
}

fn bytes(storage: &Arc<dyn StorageMut>) -> Vec<u8> {
    let mut bytes = vec![0; storage.len() as usize];
    storage.read_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn shared_bytes_take_no_space_and_stay_apart() {
    for mount in mount::sharing() {
        let (source, expected) = source(mount.path());
        let before = mount.free();
        let target = Target::create(mount.path().join("target")).unwrap();
        let storage = target.storage();
        assert!(storage.transfer(&source, HostRange::new(0, source.len()), 0, Transfer::Share));
        assert_eq!(storage.len(), source.len());
        assert!(bytes(&storage) == expected);
        assert!(before - mount.free() < 2 * MIB, "24 MiB were copied");

        storage.write_at(MIB, b"silver").unwrap();
        let mut kept = vec![0; expected.len()];
        source.read_at(0, &mut kept).unwrap();
        assert!(kept == expected, "the source was written to");
    }
}

#[test]
fn shared_bytes_may_stand_elsewhere() {
    for mount in mount::sharing() {
        let (source, expected) = source(mount.path());
        let target = Target::create(mount.path().join("target")).unwrap();
        let storage = target.storage();
        storage.write_at(0, &[7; 4096]).unwrap();
        assert!(storage.transfer(
            &source,
            HostRange::new(65536, 4 * MIB),
            4096,
            Transfer::Share
        ));
        let found = bytes(&storage);
        assert!(found[..4096] == [7; 4096]);
        assert!(found[4096..] == expected[65536..65536 + (4 << 20)]);
        // File systems share whole blocks.
        assert!(!storage.transfer(&source, HostRange::new(512, 4096), 65536, Transfer::Share));
        assert!(!storage.transfer(&source, HostRange::new(0, 4096), 512, Transfer::Share));
    }
}

#[test]
fn trial_leaves_nothing_behind() {
    for mount in mount::sharing() {
        let (source, _) = source(mount.path());
        let target = Target::create(mount.path().join("target")).unwrap();
        let storage = target.storage();
        for len in [0, 1, 100_000] {
            storage.set_len(len).unwrap();
            assert_eq!(storage.best_transfer(&source), Some(Transfer::Share));
            assert_eq!(storage.len(), len);
            assert!(bytes(&storage).iter().all(|byte| *byte == 0));
        }
        target.publish().unwrap();
        assert_eq!(
            fs::metadata(mount.path().join("target")).unwrap().len(),
            100_000
        );
    }
}

#[test]
fn nothing_is_shared_across_file_systems_or_with_old_files() {
    for mount in mount::sharing() {
        let elsewhere = tempfile::tempdir().unwrap();
        let (there, _) = source(elsewhere.path());
        let (here, _) = source(mount.path());
        let target = Target::create(mount.path().join("target")).unwrap();
        assert_ne!(
            target.storage().best_transfer(&there),
            Some(Transfer::Share)
        );
        let memory = MemoryStorage::holding("memory", vec![1; 1 << 20]);
        assert_eq!(target.storage().best_transfer(&memory), None);

        fs::write(mount.path().join("old"), [1; 8192]).unwrap();
        let old = FileStorage::edit(mount.path().join("old")).unwrap();
        assert_eq!(old.best_transfer(&here), None);
    }
}

#[test]
fn a_copy_is_not_tried() {
    let directory = tempfile::tempdir().unwrap();
    let (source, _) = source(directory.path());
    let target = Target::create(directory.path().join("target")).unwrap();
    let storage = target.storage();
    let file = storage.file().unwrap();
    let changed = || file.metadata().unwrap().modified().unwrap();
    let before = changed();
    thread::sleep(Duration::from_millis(20));
    // ext4 has whoever closes a file that was cut to nothing wait for the disk.
    storage.set_len(0).unwrap();
    match storage.best_transfer(&source) {
        Some(Transfer::Share) => assert_eq!(file.metadata().unwrap().len(), 0),
        way => {
            assert_eq!(way, Some(Transfer::Copy));
            assert_eq!(changed(), before);
        }
    }
}

#[test]
fn kernel_copies_what_the_source_has_and_nothing_more() {
    let directory = tempfile::tempdir().unwrap();
    let (source, expected) = source(directory.path());
    let target = Target::create(directory.path().join("target")).unwrap();
    let storage = target.storage();
    assert!(storage.best_transfer(&source).is_some());
    let range = HostRange::new(1000, 20 * MIB);
    assert!(storage.transfer(&source, range, 33, Transfer::Copy));
    assert_eq!(storage.len(), 33 + range.len);
    assert!(bytes(&storage)[33..] == expected[1000..1000 + (20 << 20)]);

    // The caller reads what is there, and learns where it ends.
    let behind = HostRange::new(source.len() - 100, 200);
    assert!(!storage.transfer(&source, behind, 0, Transfer::Copy));
    let memory = MemoryStorage::holding("memory", vec![1; 4096]);
    assert!(!storage.transfer(&memory, HostRange::new(0, 4096), 0, Transfer::Copy));
}
