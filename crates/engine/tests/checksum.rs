//! What digests promise, held against those that everybody else makes.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use goldsmith_block::{Chain, ErrorKind, Storage};
use goldsmith_engine::{Algorithm, Cancel, ChecksumJob, Crc32, Digest, Phase, Progress, checksum};
use goldsmith_testkit::fault::{FaultStorage, Op};
use goldsmith_testkit::model::{ModelDisk, ModelLayer, ModelStorage, any_disk};
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::trace::TraceLayer;
use md5::Md5;
use proptest::prelude::*;
use sha2::{Digest as _, Sha256, Sha512};

fn chain(disk: &ModelDisk) -> Chain {
    Chain::new(Arc::new(ModelLayer::new(disk.clone())), [])
}

fn job(threads: usize) -> ChecksumJob<'static> {
    ChecksumJob {
        algorithms: Algorithm::ALL,
        threads: NonZeroUsize::new(threads),
        ..ChecksumJob::default()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The root of the tree over `blocks`, as the documentation of Linux tells it: level by level.
fn fsverity(bytes: &[u8]) -> String {
    let level = |below: &[u8]| {
        let blocks = below.chunks(4096).flat_map(|block| {
            let mut block = block.to_vec();
            block.resize(4096, 0);
            Sha256::digest(block)
        });
        blocks.collect::<Vec<u8>>()
    };
    let mut root = level(bytes);
    while root.len() > 32 {
        root = level(&root);
    }
    root.resize(32, 0);
    digest_of_root(&root, bytes.len() as u64)
}

fn digest_of_root(root: &[u8], len: u64) -> String {
    let mut descriptor = vec![1, 1, 12, 0, 0, 0, 0, 0];
    descriptor.extend(len.to_le_bytes());
    descriptor.extend(root);
    descriptor.resize(256, 0);
    hex(&Sha256::digest(descriptor))
}

/// In the order of [`Algorithm::ALL`], by those who have nothing to do with our trees and turns.
fn by_others(bytes: &[u8]) -> Vec<String> {
    let mut crc32 = crc32fast::Hasher::new();
    crc32.update(bytes);
    vec![
        fsverity(bytes),
        blake3::hash(bytes).to_hex().to_string(),
        hex(&Sha256::digest(bytes)),
        hex(&Sha512::digest(bytes)),
        hex(&Md5::digest(bytes)),
        format!("{:08x}", crc32.finalize()),
    ]
}

fn shown(digests: &[Digest]) -> Vec<String> {
    digests.iter().map(Digest::to_string).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// For any number of threads, and however the disk says what is a hole.
    #[test]
    fn digests_of_a_disk_are_those_of_its_bytes(
        disk in any_disk(9 << 20, 512),
        threads in 1usize..5,
        step in prop::sample::select(vec![512u64, 70_000, u64::MAX]),
    ) {
        let layer = ModelLayer::new(disk.clone()).in_steps_of(step);
        let source = Chain::new(Arc::new(layer), []);
        let found = checksum(&source, &job(threads)).unwrap();
        prop_assert_eq!(shown(&found), by_others(disk.bytes()));
    }
}

#[test]
fn digests_at_the_edges_of_blocks_and_trees_are_those_of_others() {
    let mib = 1 << 20;
    for len in [
        0,
        1,
        1023,
        1024,
        1025,
        4095,
        4096,
        4097,
        512 << 10,
        (512 << 10) + 1,
        mib - 1,
        mib,
        mib + 1,
        2 * mib,
        3 * mib + 5,
        7 * mib,
        8 * mib + 4097,
        // A level of the tree that is full, and one more.
        64 * mib,
        64 * mib + 1,
    ] {
        for fill in ['a', '0', '-'] {
            // Noise takes its time, and has said all by then.
            if fill == 'a' && len > 9 * mib {
                continue;
            }
            let picture = format!("{len}:{fill}");
            let disk = disk(&picture);
            let found = checksum(&chain(&disk), &job(3)).unwrap();
            assert_eq!(shown(&found), by_others(disk.bytes()), "{picture}");
            if len <= mib + 1 {
                let whole = Algorithm::ALL.iter();
                let whole = whole.map(|it| Digest::of(*it, disk.bytes()));
                assert_eq!(found, whole.collect::<Vec<_>>(), "{picture}");
            }
        }
    }
}

/// A level of the tree is the same everywhere in it, and 1 TiB is five levels and nothing else.
#[test]
fn any_number_of_zeros_costs_nothing() {
    let algorithms = &[Algorithm::FsVerity, Algorithm::Crc32];
    let job = ChecksumJob {
        algorithms,
        ..job(2)
    };
    let mut root = Sha256::digest([0; 4096]);
    for _ in 0..4 {
        root = Sha256::digest(root.repeat(128));
    }
    let found = checksum(&chain(&disk("1T:-")), &job).unwrap();
    assert_eq!(found[0].to_string(), digest_of_root(&root, 1 << 40));
    let crc32 = Crc32::of_zeros(1 << 40).value();
    assert_eq!(found[1].to_string(), format!("{crc32:08x}"));

    let picture = disk("1M:a 63T:- 1M:b 512:-");
    let source = chain(&picture);
    let data = [0, (63 << 40) + (1 << 20)].map(|at| {
        let mut bytes = vec![0; 1 << 20];
        source.read_at(at, &mut bytes).unwrap();
        (at, bytes)
    });
    let found = checksum(&source, &job).unwrap();
    assert_eq!(found[0].to_string(), sparse_fsverity(&data, picture.len()));
    let [(_, a), (_, b)] = &data;
    let crc32 = Crc32::of(a)
        .then(Crc32::of_zeros(63 << 40))
        .then(Crc32::of(b));
    let crc32 = crc32.then(Crc32::of_zeros(512)).value();
    assert_eq!(found[1].to_string(), format!("{crc32:08x}"));
}

/// As [`fsverity`], for a disk that is zeros but for `data`, at multiples of a block.
fn sparse_fsverity(data: &[(u64, Vec<u8>)], len: u64) -> String {
    let mut zero = Sha256::digest([0; 4096]);
    let mut level = BTreeMap::new();
    for (at, bytes) in data {
        for (nth, block) in bytes.chunks(4096).enumerate() {
            level.insert(at / 4096 + nth as u64, Sha256::digest(block));
        }
    }
    let mut nodes = len.div_ceil(4096);
    while nodes > 1 {
        let last = (nodes - 1) / 128;
        let mut above: BTreeMap<u64, Vec<u8>> = level.keys().map(|at| (at / 128, vec![])).collect();
        above.insert(last, vec![]);
        for (at, block) in &mut above {
            for node in at * 128..(at * 128 + 128).min(nodes) {
                block.extend(level.get(&node).unwrap_or(&zero));
            }
            block.resize(4096, 0);
        }
        level = above
            .into_iter()
            .map(|(at, block)| (at, Sha256::digest(block)))
            .collect();
        zero = Sha256::digest(zero.repeat(128));
        nodes = last + 1;
    }
    digest_of_root(&level[&0], len)
}

#[test]
fn holes_are_not_read() {
    let picture = disk("1M:A 64M:- 3M:B 200M:-");
    let layer = Arc::new(TraceLayer::new(Arc::new(ModelLayer::new(picture))));
    checksum(&Chain::new(layer.clone(), []), &job(2)).unwrap();
    assert_eq!(layer.read_bytes(), 4 << 20);
}

#[test]
fn failed_read_is_no_digest() {
    let picture = disk("8M:A");
    let storage: Arc<dyn Storage> = Arc::new(ModelStorage::new(picture.clone()));
    for nth in [0, 3, 7] {
        let faulty = Arc::new(FaultStorage::new(Arc::clone(&storage), Op::Read, nth));
        let broken = Chain::new(Arc::new(ModelLayer::over(picture.clone(), faulty)), []);
        let error = checksum(&broken, &job(3)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
    }
}

/// Though hashing them would take minutes.
#[test]
fn zeros_that_must_be_hashed_are_told_of_and_can_be_stopped() {
    let cancel = Cancel::new();
    let told = Mutex::new(Vec::new());
    let progress = |progress: Progress| {
        told.lock().unwrap().push((progress.phase, progress.done));
        if progress.done > 0 {
            cancel.cancel();
        }
    };
    let job = ChecksumJob {
        algorithms: &[Algorithm::Sha256],
        progress: Some(&progress),
        cancel: Some(&cancel),
        ..job(2)
    };
    let error = checksum(&chain(&disk("1T:-")), &job).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let told = told.into_inner().unwrap();
    assert_eq!(told[0], (Phase::Checksum, 0));
    assert!(told.iter().all(|(_, done)| *done < 1 << 30), "{told:?}");
}
