//! What a comparison promises, proved without any format.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

use std::num::NonZeroUsize;
use std::sync::Arc;

use goldsmith_block::{Chain, HostRange, Storage};
use goldsmith_engine::{CompareError, CompareJob, Comparison, compare};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::fault::{FaultStorage, Op};
use goldsmith_testkit::model::{ModelDisk, ModelLayer, ModelStorage, any_disk};
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::trace::TraceLayer;
use proptest::prelude::*;

fn chain(disk: &ModelDisk) -> Chain {
    Chain::new(Arc::new(ModelLayer::new(disk.clone())), [])
}

fn compared(a: &ModelDisk, b: &ModelDisk, strict: bool) -> Comparison {
    let job = |threads| CompareJob {
        strict,
        threads: NonZeroUsize::new(threads),
        ..Default::default()
    };
    let found = compare(&chain(a), &chain(b), &job(1)).unwrap();
    assert_eq!(
        found,
        compare(&chain(a), &chain(b), &job(4)).unwrap(),
        "with four threads"
    );
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The answer is that of comparing the bytes one by one.
    #[test]
    fn first_difference_is_the_first(a in any_disk(5 << 20, 512), b in any_disk(5 << 20, 512)) {
        let len = a.len().max(b.len()) as usize;
        let padded = |disk: &ModelDisk| {
            let mut bytes = disk.bytes().to_vec();
            bytes.resize(len, 0);
            bytes
        };
        let first = padded(&a).iter().zip(&padded(&b)).position(|(a, b)| a != b);
        let expected = first.map_or(Comparison::Identical, |at| Comparison::Content(at as u64));
        prop_assert_eq!(compared(&a, &b, false), expected);
        prop_assert_eq!(compared(&a, &a, true), Comparison::Identical);
    }

    /// One changed byte anywhere is found where it is.
    #[test]
    fn one_byte_makes_the_difference(base in any_disk(4 << 20, 512), at: prop::sample::Index) {
        let mut bytes = base.bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1;
        let storage = goldsmith_storage::MemoryStorage::holding("changed", bytes);
        let all_data = disk(&format!("{}:A", base.len()));
        let changed = ModelLayer::over(all_data, Arc::new(storage));
        let changed = Chain::new(Arc::new(changed), []);
        let found = compare(&chain(&base), &changed, &CompareJob::default()).unwrap();
        prop_assert_eq!(found, Comparison::Content(at as u64));
    }
}

#[test]
fn written_zeros_equal_holes_unless_strict() {
    let (a, b) = (disk("4k:A 64k:0 4k:B"), disk("4k:A 64k:- 4k:B"));
    assert_eq!(compared(&a, &b, false), Comparison::Identical);
    assert_eq!(compared(&a, &b, true), Comparison::Allocation(4096));
}

#[test]
fn zeros_behind_the_end_count_only_when_strict() {
    let (a, b) = (disk("4k:A"), disk("4k:A 3M:-"));
    assert_eq!(compared(&a, &b, false), Comparison::Identical);
    assert_eq!(compared(&b, &a, false), Comparison::Identical);
    assert_eq!(compared(&a, &b, true), Comparison::Size);
    assert_eq!(
        compared(&a, &disk("4k:A 3M:- 1k:B"), false),
        Comparison::Content(3149824)
    );
}

#[test]
fn holes_in_both_are_never_read() {
    let picture = disk("4k:A 64T:- 4k:B");
    let layer = Arc::new(TraceLayer::new(Arc::new(ModelLayer::new(picture.clone()))));
    let found = compare(
        &Chain::new(layer.clone(), []),
        &chain(&picture),
        &CompareJob::default(),
    );
    assert_eq!(found.unwrap(), Comparison::Identical);
    assert_eq!(layer.read_bytes(), 8192);
}

#[test]
fn failed_read_is_no_difference() {
    let picture = disk("4M:A");
    let storage: Arc<dyn Storage> = Arc::new(ModelStorage::new(picture.clone()));
    let faulty = Arc::new(FaultStorage::new(storage, Op::Read, 2));
    let broken = Chain::new(Arc::new(ModelLayer::over(picture.clone(), faulty)), []);
    let error = compare(&chain(&picture), &broken, &CompareJob::default()).unwrap_err();
    assert!(matches!(error, CompareError::Read(_)), "{error:?}");
}

/// Which of them is found first is up to the threads.
#[test]
fn difference_before_what_cannot_be_read_is_one_however_many_look() {
    let len = 16 << 20;
    let picture = disk("16M:A");
    let other = |at: usize| {
        let mut bytes = picture.bytes().to_vec();
        bytes[at] ^= 1;
        Arc::new(MemoryStorage::holding("other", bytes))
    };
    for (at, bad, differs) in [(5, 1 << 20, true), (15 << 20, 1 << 20, false)] {
        let bad = HostRange::new(bad, len - bad);
        let faulty = FaultStorage::without(other(at), bad);
        let layer = ModelLayer::over(picture.clone(), Arc::new(faulty));
        let broken = Chain::new(Arc::new(layer), []);
        for threads in [1, 4].map(NonZeroUsize::new) {
            for _ in 0..20 {
                let job = CompareJob {
                    threads,
                    ..CompareJob::default()
                };
                match compare(&chain(&picture), &broken, &job) {
                    Ok(found) => assert_eq!((found, differs), (Comparison::Content(5), true)),
                    Err(CompareError::Read(_)) => assert!(!differs),
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
    }
}
