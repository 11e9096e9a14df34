//! `none` and `directsync`: past the system's cache, and the same bytes.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]
#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::IoSliceMut;
use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{HostRange, Storage, StorageMut, Transfer, Zeroing};
use goldsmith_storage::{Cache, FileStorage, MemoryStorage, Target, is_direct};
use goldsmith_testkit::{pattern, storage_conformance};
use proptest::prelude::*;
use rustix::io::{ReadWriteFlags, preadv2};
use tempfile::TempDir;

/// A directory on a disk: in memory there is no cache to pass.
fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn blank(cache: Cache) -> Arc<dyn StorageMut> {
    let directory = directory();
    let target = Target::create_cached(directory.path().join("disk"), cache).unwrap();
    target.storage()
}

storage_conformance!(|| blank(Cache::None), none);
storage_conformance!(|| blank(Cache::Directsync), directsync);

/// Whether the system has byte `at` of the file in memory. To ask may bring its neighbours there.
fn is_cached(path: &Path, at: u64) -> bool {
    let file = File::open(path).unwrap();
    let mut byte = [0];
    preadv2(
        &file,
        &mut [IoSliceMut::new(&mut byte)],
        at,
        ReadWriteFlags::NOWAIT,
    )
    .is_ok()
}

#[test]
fn what_is_written_past_the_cache_is_not_in_it() {
    let directory = directory();
    for (cache, cached) in [(Cache::Writeback, true), (Cache::None, false)] {
        let path = directory.path().join("disk");
        std::fs::write(&path, b"").unwrap();
        let storage = FileStorage::edit(&path).unwrap().cached(cache);
        assert_eq!(is_direct(&storage), !cached);
        storage.write_at(0, &vec![7; 3 << 20]).unwrap();
        assert_eq!(is_cached(&path, 1 << 20), cached, "{cache:?}");
        // Nobody has waited for anything yet.
        storage.write_at(100, &vec![8; 2 << 20]).unwrap();
        assert_eq!(is_cached(&path, (1 << 20) + 8192), cached, "{cache:?}");
        drop(storage);
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[..100].iter().all(|byte| *byte == 7));
        assert!(bytes[100..100 + (2 << 20)].iter().all(|byte| *byte == 8));
        assert!(bytes[100 + (2 << 20)..].iter().all(|byte| *byte == 7));
        assert_eq!(bytes.len(), 3 << 20);
    }
}

#[test]
fn what_is_read_past_the_cache_does_not_come_into_it() {
    let directory = directory();
    let path = directory.path().join("disk");
    for (cache, cached) in [(Cache::None, false), (Cache::Writeback, true)] {
        let writer = Target::create_cached(&path, Cache::None).unwrap();
        writer.storage().write_at(0, &vec![7; 3 << 20]).unwrap();
        writer.publish().unwrap();
        let storage = FileStorage::open(&path).unwrap().cached(cache);
        let mut bytes = vec![0; 1 << 20];
        storage.read_at((1 << 20) + 100, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
        assert_eq!(is_cached(&path, (1 << 20) + 8192), cached, "{cache:?}");
    }
}

/// The kernel copies through the cache.
#[test]
fn nothing_is_copied_by_the_kernel_where_the_cache_is_to_be_passed() {
    let directory = directory();
    let path = directory.path().join("source");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let all = HostRange::new(0, 1 << 20);
    let target = |cache| {
        let target = Target::create_cached(directory.path().join("target"), cache);
        target.unwrap().storage()
    };
    for (from, to) in [
        (Cache::None, Cache::Writeback),
        (Cache::Writeback, Cache::None),
    ] {
        let source = FileStorage::open(&path).unwrap().cached(from);
        assert!(!target(to).transfer(&source, all, 0, Transfer::Copy));
        assert_ne!(target(to).best_transfer(&source), Some(Transfer::Copy));
    }
    let source = FileStorage::open(&path).unwrap();
    assert!(target(Cache::Writeback).transfer(&source, all, 0, Transfer::Copy));
}

/// Those that share a block among them: nothing of what one writes is undone by another.
#[test]
fn neighbours_written_at_once_all_stand_there() {
    const LEN: usize = 5000;
    for cache in [Cache::None, Cache::Directsync] {
        let storage = blank(cache);
        std::thread::scope(|scope| {
            for thread in 0..4_usize {
                let storage = &storage;
                scope.spawn(move || {
                    for nth in (thread..200).step_by(4) {
                        let data = vec![nth as u8; LEN];
                        storage.write_at((nth * LEN) as u64, &data).unwrap();
                    }
                });
            }
        });
        storage.flush().unwrap();
        let mut found = vec![0; 200 * LEN];
        storage.read_at(0, &mut found).unwrap();
        let expected: Vec<u8> = (0..200).flat_map(|nth| vec![nth as u8; LEN]).collect();
        assert!(found == expected);
    }
}

#[test]
fn odd_end_of_a_file_is_read_and_what_is_behind_it_is_not() {
    let directory = directory();
    let path = directory.path().join("disk");
    std::fs::write(&path, pattern::disk("64k:A 700:b").bytes()).unwrap();
    let storage = FileStorage::open(&path).unwrap().cached(Cache::None);
    let mut bytes = vec![0; 1700];
    storage.read_at(64536, &mut bytes).unwrap();
    assert_eq!(bytes, std::fs::read(&path).unwrap()[64536..]);
    // It becomes shorter meanwhile.
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(65000)
        .unwrap();
    let report = storage.read_at(64536, &mut bytes).unwrap_err().report();
    assert!(
        report.contains("past the end of the file (65000 bytes)"),
        "{report}"
    );
}

/// What is done to a file.
#[derive(Clone, Debug)]
enum Call {
    Write(u64, usize, u8),
    Zero(u64, u64),
    SetLen(u64),
    Read(u64, usize),
}

fn call() -> impl Strategy<Value = Call> {
    // Around blocks and pieces, more often than anywhere else.
    let at = || {
        prop_oneof![
            0u64..20_000,
            (0u64..5, 0u64..3).prop_map(|(n, by)| n * 4096 + by)
        ]
    };
    let len = || {
        prop_oneof![
            0usize..15_000,
            Just(4096),
            Just(8192),
            1_048_000usize..1_060_000
        ]
    };
    prop_oneof![
        4 => (at(), len(), any::<u8>()).prop_map(|(at, len, byte)| Call::Write(at, len, byte)),
        1 => (at(), 0u64..15_000).prop_map(|(at, len)| Call::Zero(at, len)),
        1 => at().prop_map(Call::SetLen),
        2 => (at(), len()).prop_map(|(at, len)| Call::Read(at, len)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// As in memory, whoever looks: by the same object, and by the cache.
    #[test]
    fn file_holds_what_a_file_in_memory_would(calls in prop::collection::vec(call(), 1..12)) {
        let directory = directory();
        let path = directory.path().join("disk");
        File::create(&path).unwrap();
        let storage = FileStorage::edit(&path).unwrap().cached(Cache::None);
        let model = MemoryStorage::new("model");
        for call in calls {
            match call {
                Call::Write(at, len, byte) => {
                    let data: Vec<u8> = (0..len).map(|n| byte ^ (n % 251) as u8).collect();
                    storage.write_at(at, &data).unwrap();
                    model.write_at(at, &data).unwrap();
                }
                Call::Zero(at, len) => {
                    let range = HostRange::new(at, len);
                    let done = storage.zero(range, Zeroing::Keep).is_ok();
                    prop_assert_eq!(done, model.zero(range, Zeroing::Keep).is_ok());
                }
                Call::SetLen(len) => {
                    storage.set_len(len).unwrap();
                    model.set_len(len).unwrap();
                }
                Call::Read(at, len) => {
                    let [mut found, mut expected] = [vec![1; len], vec![1; len]];
                    let done = storage.read_at(at, &mut found).is_ok();
                    prop_assert_eq!(done, model.read_at(at, &mut expected).is_ok());
                    prop_assert!(!done || found == expected);
                }
            }
        }
        prop_assert!(std::fs::read(&path).unwrap() == model.to_vec());
        storage.flush().unwrap();
    }
}
