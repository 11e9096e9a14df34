//! What a conversion promises, proved without any format.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

use std::num::{NonZeroU64, NonZeroUsize};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use goldsmith_block::{
    Chain, Codec, Demand, ErrorKind, Extent, Layer, LayerInfo, Packing, Placement, Result,
    SinkProfile, Storage, ZeroPolicy,
};
use goldsmith_engine::{Algorithm, Behind, Cancel, Digest, Job, Progress, convert};
use goldsmith_testkit::fault::{FaultStorage, Op};
use goldsmith_testkit::model::{Fill, ModelDisk, ModelLayer, ModelStorage, any_disk};
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::record::{Recording, Step};
use goldsmith_testkit::trace::TraceLayer;
use proptest::prelude::*;

fn chain(disk: &ModelDisk) -> Chain {
    Chain::new(Arc::new(ModelLayer::new(disk.clone())), [])
}

fn threads(count: usize) -> Job<'static> {
    Job {
        threads: NonZeroUsize::new(count),
        ..Job::default()
    }
}

/// All digests of `bytes`; tests/checksum.rs holds them against others' digests.
fn digests(bytes: &[u8]) -> Vec<Digest> {
    let algorithms = Algorithm::ALL.iter();
    algorithms.map(|it| Digest::of(*it, bytes)).collect()
}

fn demanded(recording: &Recording) -> Vec<(u64, u64)> {
    recording
        .reserves()
        .iter()
        .map(|demand| (demand.range.start, demand.range.end))
        .collect()
}

#[derive(Clone, Debug)]
struct Shape {
    grain: u64,
    identity: bool,
    written_zeroes: bool,
    codec: Option<Codec>,
    threads: usize,
    sparse: u64,
}

fn any_shape() -> impl Strategy<Value = Shape> {
    let codec = prop_oneof![
        Just(None),
        Just(Some(Codec::Deflate)),
        Just(Some(Codec::Zstd))
    ];
    let sparse = prop::sample::select(vec![0u64, 512, 4096, 100_000]);
    (
        9u32..=21,
        any::<bool>(),
        any::<bool>(),
        codec,
        1usize..5,
        sparse,
    )
        .prop_map(
            |(grain_bits, identity, written_zeroes, codec, threads, sparse)| Shape {
                grain: 1 << grain_bits,
                identity: identity && codec.is_none(),
                written_zeroes,
                codec,
                threads,
                sparse,
            },
        )
}

impl Shape {
    fn recording(&self, virtual_size: u64) -> Arc<Recording> {
        let placement = if self.identity {
            Placement::Identity
        } else {
            Placement::Allocated
        };
        let zeroes = if self.written_zeroes {
            ZeroPolicy::Written
        } else {
            ZeroPolicy::Implied
        };
        let packing = self.codec.map(|codec| Packing {
            codec,
            unit: self.grain,
        });
        let profile = Recording::profile(virtual_size, self.grain);
        Recording::new(SinkProfile {
            placement,
            zeroes,
            packing,
            ..profile
        })
    }

    fn job(&self) -> Job<'static> {
        Job {
            sparse: self.sparse,
            digests: Algorithm::ALL,
            ..threads(self.threads)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The sink gets the guest's bytes, whatever it asks for and however many work.
    #[test]
    fn sink_gets_the_bytes_of_the_chain(
        top in any_disk(6 << 20, 512),
        back in any_disk(6 << 20, 512),
        shape in any_shape(),
        step in prop::sample::select(vec![512u64, 70_000, u64::MAX]),
    ) {
        let layer = ModelLayer::new(top.clone()).in_steps_of(step);
        let source = Chain::new(Arc::new(layer), [Arc::new(ModelLayer::new(back)) as Arc<dyn Layer>]);
        let mut expected = vec![0; top.len() as usize];
        source.read_at(0, &mut expected).unwrap();

        let recording = shape.recording(top.len());
        let outcome = convert(&source, recording.sink(), &shape.job()).unwrap();
        prop_assert!(recording.is_committed());
        prop_assert!(recording.bytes() == expected);
        prop_assert_eq!(outcome.digests, digests(&expected));
    }

    /// What decides the target's bytes, the demands and their order, is the same for any crew.
    #[test]
    fn demands_do_not_depend_on_threads(disk in any_disk(6 << 20, 512), shape in any_shape()) {
        let source = chain(&disk);
        let demands = |threads| {
            let shape = Shape { threads, identity: false, ..shape.clone() };
            let recording = shape.recording(disk.len());
            convert(&source, recording.sink(), &shape.job()).unwrap();
            recording.reserves()
        };
        prop_assert_eq!(demands(1), demands(4));
    }
}

#[test]
fn zeros_are_left_out_to_the_grain() {
    let source = chain(&disk("4k:A 4k:0 8k:B 64k:- 4k:0 4k:C"));
    let recording = Recording::new(Recording::profile(source.virtual_size(), 4096));
    convert(&source, recording.sink(), &threads(2)).unwrap();
    assert_eq!(
        demanded(&recording),
        [(0, 4096), (8192, 16384), (86016, 90112)]
    );
}

#[test]
fn runs_of_zeros_below_the_sparse_size_are_stored() {
    let source = chain(&disk("4k:A 8k:0 4k:B 8k:- 4k:C 12k:0 4k:D 12k:- 4k:E"));
    let recording = Recording::new(Recording::profile(source.virtual_size(), 4096));
    let job = Job {
        sparse: 12 << 10,
        ..threads(1)
    };
    convert(&source, recording.sink(), &job).unwrap();
    let k = |kib: u64| kib << 10;
    assert_eq!(
        demanded(&recording),
        [(0, k(28)), (k(40), k(44)), (k(56), k(60))]
    );
}

#[test]
fn sparse_size_zero_stores_every_byte() {
    let source = chain(&disk("4k:A 3M:- 4k:0"));
    let recording = Recording::new(Recording::profile(source.virtual_size(), 65536));
    convert(
        &source,
        recording.sink(),
        &Job {
            sparse: 0,
            ..threads(2)
        },
    )
    .unwrap();
    let stored: u64 = demanded(&recording)
        .iter()
        .map(|(start, end)| end - start)
        .sum();
    assert_eq!(stored, source.virtual_size());
}

#[test]
fn unit_that_does_not_shrink_is_stored_as_it_is() {
    // Lower-case letters are noise.
    let source = chain(&disk("64k:A 64k:a"));
    let packing = Some(Packing {
        codec: Codec::Deflate,
        unit: 65536,
    });
    let profile = Recording::profile(source.virtual_size(), 65536);
    let recording = Recording::new(SinkProfile { packing, ..profile });
    convert(&source, recording.sink(), &threads(1)).unwrap();
    let packed: Vec<_> = recording
        .reserves()
        .iter()
        .map(|Demand { packed, .. }| packed.is_some())
        .collect();
    assert_eq!(packed, [true, false]);
}

#[test]
fn sink_larger_than_the_source_ends_in_zeros() {
    let disk = disk("1000:A 1:B");
    for written in [ZeroPolicy::Implied, ZeroPolicy::Written] {
        let profile = SinkProfile {
            zeroes: written,
            ..Recording::profile(1 << 22, 512)
        };
        let recording = Recording::new(profile);
        let job = Job {
            digests: Algorithm::ALL,
            ..threads(2)
        };
        let outcome = convert(&chain(&disk), recording.sink(), &job).unwrap();
        let mut expected = disk.bytes().to_vec();
        expected.resize(1 << 22, 0);
        assert!(recording.bytes() == expected);
        // They are the target's, with which they can be compared.
        assert_eq!(outcome.digests, digests(&expected));
    }
}

#[test]
fn sink_smaller_than_the_source_is_refused() {
    let recording = Recording::new(Recording::profile(512, 512));
    let error = convert(&chain(&disk("1k:A")), recording.sink(), &threads(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert_eq!(
        error.report(),
        "the source has 1024 bytes, the target only 512"
    );
    assert!(!recording.is_committed());
}

#[test]
fn empty_disk_commits() {
    let recording = Recording::new(Recording::profile(0, 512));
    convert(&chain(&disk("")), recording.sink(), &threads(2)).unwrap();
    assert!(recording.is_committed());
}

/// 64 TiB with 1 MiB of data must cost what the data costs.
#[test]
fn hole_of_any_length_is_one_step() {
    let disk = disk("512k:A 32T:- 256k:B 31T:- 256k:C");
    let layer = Arc::new(TraceLayer::new(Arc::new(ModelLayer::new(disk.clone()))));
    let source = Chain::new(layer.clone(), []);
    let recording = Recording::new(Recording::profile(disk.len(), 65536));
    let outcome = convert(&source, recording.sink(), &threads(2)).unwrap();
    assert_eq!(outcome.data, 1 << 20);
    assert_eq!(layer.read_bytes(), 1 << 20);
    assert!(
        layer.extents() < 30,
        "{} calls of extent_at",
        layer.extents()
    );
    assert_eq!(recording.reserves().len(), 3);
}

#[test]
fn source_that_fails_anywhere_stops_the_conversion() {
    let disk = disk("6M:A 2M:- 6M:B 512:C");
    for count in [1, 3] {
        let mut nth = 0;
        loop {
            let storage: Arc<dyn Storage> = Arc::new(ModelStorage::new(disk.clone()));
            let faulty = Arc::new(FaultStorage::new(storage, Op::Read, nth));
            let layer = Arc::new(ModelLayer::over(disk.clone(), faulty.clone()));
            let recording = Recording::new(Recording::profile(disk.len(), 65536));
            let result = convert(&Chain::new(layer, []), recording.sink(), &threads(count));
            if !faulty.fired() {
                assert!(result.is_ok() && recording.is_committed());
                break;
            }
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Io);
            assert!(!recording.is_committed());
            nth += 1;
        }
        assert!(nth >= 7, "only {nth} reads failed");
    }
}

#[test]
fn sink_that_fails_anywhere_stops_the_conversion() {
    let disk = disk("6M:A 2M:- 6M:B 512:C");
    for step in [Step::Reserve, Step::Write, Step::WriteZeroes, Step::Commit] {
        for count in [1, 3] {
            let profile = Recording::profile(disk.len(), 65536);
            let profile = SinkProfile {
                zeroes: ZeroPolicy::Written,
                ..profile
            };
            let mut nth = 0;
            loop {
                let recording = Recording::failing(profile.clone(), step, nth);
                let result = convert(&chain(&disk), recording.sink(), &threads(count));
                if recording.calls(step) <= nth {
                    assert!(result.is_ok() && recording.is_committed());
                    break;
                }
                assert_eq!(result.unwrap_err().kind(), ErrorKind::Io);
                assert!(!recording.is_committed());
                nth += 1;
            }
            assert!(nth >= 1, "{step:?} was never called");
        }
    }
}

/// A layer to which something happens before each read, of which it is told the offset.
struct Before<F>(ModelLayer, F);

impl<F: Fn(u64) + Send + Sync> Layer for Before<F> {
    fn info(&self) -> &LayerInfo {
        self.0.info()
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        self.0.storage()
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.0.extent_at(offset, limit)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.1(offset);
        self.0.read_at(offset, buf)
    }
}

#[test]
fn panic_of_one_worker_does_not_leave_the_others_waiting() {
    let bug = |offset| assert!(offset < 2 << 20, "as the test wants it");
    let source = Chain::new(Arc::new(Before(ModelLayer::new(disk("8M:A")), bug)), []);
    let recording = Recording::new(Recording::profile(8 << 20, 65536));
    let sink = recording.sink();
    let result = catch_unwind(AssertUnwindSafe(|| convert(&source, sink, &threads(4))));
    assert!(result.is_err());
    assert!(!recording.is_committed());
}

#[test]
fn cancelled_conversion_does_not_commit() {
    let cancel = Cancel::new();
    let progress = |_: Progress| cancel.cancel();
    let job = Job {
        cancel: Some(&cancel),
        progress: Some(&progress),
        ..threads(2)
    };
    let recording = Recording::new(Recording::profile(64 << 20, 65536));
    let error = convert(&chain(&disk("64M:A")), recording.sink(), &job).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(!recording.is_committed());
    assert!(recording.reserves().len() < 64, "it went on");
}

#[test]
fn progress_ends_at_the_whole_disk() {
    let disk = disk("1M:A 1G:- 3M:B");
    let (most, data) = (AtomicU64::new(0), AtomicU64::new(0));
    let totals = Mutex::new(Vec::new());
    let progress = |progress: Progress| {
        most.fetch_max(progress.done, Ordering::Relaxed);
        data.fetch_max(progress.data, Ordering::Relaxed);
        totals.lock().unwrap().push(progress.total);
    };
    let job = Job {
        progress: Some(&progress),
        ..threads(3)
    };
    let recording = Recording::new(Recording::profile(disk.len(), 65536));
    convert(&chain(&disk), recording.sink(), &job).unwrap();
    assert_eq!(most.into_inner(), disk.len());
    assert_eq!(data.into_inner(), 4 << 20);
    assert!(
        totals
            .into_inner()
            .unwrap()
            .iter()
            .all(|total| *total == disk.len())
    );
}

/// What a guest reads from a target that stands before `behind`, and the digests of the source.
fn over<'a>(
    source: &Chain,
    behind: &'a Chain,
    how: impl FnOnce(&'a Chain) -> Behind<'a>,
    shape: &Shape,
) -> (Vec<u8>, Vec<Digest>) {
    let len = source.virtual_size();
    let profile = SinkProfile {
        zeroes: ZeroPolicy::Covering,
        ..shape.recording(len).sink().profile().clone()
    };
    let recording = Recording::new(profile);
    let job = Job {
        sparse: shape.sparse,
        behind: how(behind),
        digests: Algorithm::ALL,
        ..threads(shape.threads)
    };
    let digests = convert(source, recording.sink(), &job).unwrap().digests;
    let mut bytes = vec![0; len as usize];
    let there = behind.virtual_size().min(len) as usize;
    behind.read_at(0, &mut bytes[..there]).unwrap();
    recording.lay_over(&mut bytes);
    (bytes, digests)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever stands behind the target, the guest finds the source in it.
    #[test]
    fn any_disk_over_any_other_reads_as_itself(
        disk in any_disk(3 << 20, 512),
        behind in any_disk(3 << 20, 512),
        mut shape in any_shape(),
    ) {
        shape.identity = false;
        let behind = chain(&behind);
        for how in [Behind::Disk, Behind::Unread] {
            let (bytes, found) = over(&chain(&disk), &behind, how, &shape);
            prop_assert!(bytes == disk.bytes());
            prop_assert_eq!(found, digests(disk.bytes()));
        }
        let blank = chain(&ModelDisk::new([(disk.len(), Fill::Hole)]));
        let (bytes, _) = over(&chain(&disk), &blank, |_| Behind::Zeros, &shape);
        prop_assert!(bytes == disk.bytes());
    }
}

/// What the target has is written over without a look at it, and its holes stay.
#[test]
fn data_of_the_target_is_not_read_before_it_is_written_over() {
    let source = chain(&disk("64k:A 64k:- 64k:- 64k:0 1M:-"));
    let below = Arc::new(TraceLayer::new(Arc::new(ModelLayer::new(disk(
        "64k:A 64k:B 64k:- 64k:- 1M:-",
    )))));
    let behind = Chain::new(Arc::clone(&below) as Arc<dyn Layer>, []);
    for (how, zeros) in [(Behind::Unread(&behind), 1), (Behind::Zeros, 0)] {
        let recording = Recording::new(SinkProfile {
            zeroes: ZeroPolicy::Covering,
            ..Recording::profile(source.virtual_size(), 4096)
        });
        let job = Job {
            behind: how,
            ..threads(2)
        };
        convert(&source, recording.sink(), &job).unwrap();
        assert_eq!(demanded(&recording), [(0, 64 << 10)]);
        assert_eq!(recording.calls(Step::ReserveZeroes), zeros);
    }
    assert_eq!(below.reads(), 0);
}

/// As [`chain`], with layers of these disks behind the first one.
fn layers(disks: &[&Arc<ModelLayer>]) -> Chain {
    let mut layers = disks
        .iter()
        .map(|layer| Arc::clone(layer) as Arc<dyn Layer>);
    Chain::new(layers.next().unwrap(), layers)
}

#[test]
fn what_both_disks_are_made_of_is_not_read() {
    let [top, base] = ["64k:B 8M:- 64k:C", "8M:A 128k:-"].map(disk);
    let top = Arc::new(ModelLayer::new(top));
    let base = Arc::new(ModelLayer::new(base));
    let source = layers(&[&top, &base]);
    let behind = layers(&[&base]);
    let recording = Recording::new(SinkProfile {
        zeroes: ZeroPolicy::Covering,
        ..Recording::profile(source.virtual_size(), 65536)
    });
    let job = Job {
        behind: Behind::Disk(&behind),
        ..threads(2)
    };
    let outcome = convert(&source, recording.sink(), &job).unwrap();
    let size = source.virtual_size();
    assert_eq!(demanded(&recording), [(0, 65536), (size - 65536, size)]);
    assert!(outcome.data <= 3 << 20, "{}", outcome.data);
}

/// What a sink that covers is told when `source` comes before `behind`, and the bytes read for it.
fn told(source: &Chain, behind: &Chain) -> (Arc<Recording>, u64) {
    let recording = Recording::new(SinkProfile {
        zeroes: ZeroPolicy::Covering,
        ..Recording::profile(source.virtual_size(), 4096)
    });
    let job = Job {
        behind: Behind::Disk(behind),
        ..threads(2)
    };
    let outcome = convert(source, recording.sink(), &job).unwrap();
    (recording, outcome.data)
}

/// A rebase: what the image holds itself is never read, whatever it is based on.
#[test]
fn image_over_another_base_says_only_where_the_bases_differ() {
    let layer = |picture: &str| Arc::new(ModelLayer::new(disk(picture)));
    let top = layer("64k:T 192k:- 8M:T");
    let (old, new) = (layer("128k:A 64k:B 1M:-"), layer("128k:A 128k:N 9M:n"));
    let (source, behind) = (layers(&[&top, &old]), layers(&[&top, &new]));
    let (recording, data) = told(&source, &behind);
    assert_eq!(demanded(&recording), [(128 << 10, 192 << 10)]);
    assert_eq!(
        data,
        128 << 10,
        "what stands in the old base beside the image"
    );
    let mut bytes = vec![0; source.virtual_size() as usize];
    behind.read_at(0, &mut bytes).unwrap();
    recording.lay_over(&mut bytes);
    let mut expected = bytes.clone();
    source.read_at(0, &mut expected).unwrap();
    assert!(bytes == expected);
}

/// A rebase onto a deeper image of the chain, which reads only what it leaves out.
#[test]
fn image_over_a_deeper_base_says_what_lay_between() {
    let layer = |picture: &str| Arc::new(ModelLayer::new(disk(picture)));
    let (top, middle) = (layer("64k:T 2M:-"), layer("128k:M 512k:- 4k:0 2M:-"));
    let base = layer("8M:B");
    let source = layers(&[&top, &middle, &base]);
    let (recording, data) = told(&source, &layers(&[&top, &base]));
    assert_eq!(demanded(&recording), [(64 << 10, 128 << 10)]);
    assert_eq!(data, 64 << 10);
    let mut bytes = vec![7; source.virtual_size() as usize];
    recording.lay_over(&mut bytes);
    let zeros = bytes.iter().filter(|byte| **byte == 0).count();
    assert_eq!(zeros, 4096);
}

/// The base may be longer than another one, or end inside the image: what none has is zeros.
#[test]
fn bases_of_any_length_make_the_image_what_it_was() {
    let layer = |picture: &str| Arc::new(ModelLayer::new(disk(picture)));
    let top = layer("64k:- 64k:T 128k:-");
    for (old, new) in [
        ("32k:A", "256k:B"),
        ("256k:A", "32k:B"),
        ("256k:A", "200k:A"),
        ("4k:-", "256k:B"),
        ("256k:-", "256k:B"),
    ] {
        let source = layers(&[&top, &layer(old)]);
        let behind = layers(&[&top, &layer(new)]);
        let (recording, _) = told(&source, &behind);
        let mut bytes = vec![0; source.virtual_size() as usize];
        behind.read_at(0, &mut bytes).unwrap();
        recording.lay_over(&mut bytes);
        let mut expected = bytes.clone();
        source.read_at(0, &mut expected).unwrap();
        assert!(bytes == expected, "{old} to {new}");
    }
}

#[test]
fn target_that_covers_needs_to_know_what() {
    let source = chain(&disk("64k:A"));
    let covering = || {
        Recording::new(SinkProfile {
            zeroes: ZeroPolicy::Covering,
            ..Recording::profile(65536, 4096)
        })
    };
    let error = convert(&source, covering().sink(), &Job::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    let job = Job {
        behind: Behind::Disk(&source),
        ..Job::default()
    };
    let plain = Recording::new(Recording::profile(65536, 4096));
    assert_eq!(
        convert(&source, plain.sink(), &job).unwrap_err().kind(),
        ErrorKind::Usage
    );
    let same = covering();
    convert(&source, same.sink(), &job).unwrap();
    assert!(demanded(&same).is_empty() && same.is_committed());
}

/// At this rate it would take a month. What is not paid for is not written, and who waits for that
/// hears that the job is stopped.
#[test]
fn rate_holds_back_what_is_written_until_the_job_is_stopped() {
    for (rate, written) in [(None, 1), (NonZeroU64::new(1), 0)] {
        let cancel = Cancel::new();
        let disk = disk("3M:a");
        let raise = cancel.clone();
        let layer = Before(ModelLayer::new(disk.clone()), move |_| raise.cancel());
        let recording = Recording::new(Recording::profile(disk.len(), 65536));
        let job = Job {
            rate,
            cancel: Some(&cancel),
            ..threads(1)
        };
        let source = Chain::new(Arc::new(layer), []);
        let error = convert(&source, recording.sink(), &job).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(recording.calls(Step::Write), written);
    }
}

/// A rate that is never reached changes nothing.
#[test]
fn rate_above_what_there_is_gives_the_same() {
    let disk = disk("1M:a 1M:- 1M:B");
    let recording = Recording::new(Recording::profile(disk.len(), 65536));
    let job = Job {
        rate: NonZeroU64::new(u64::MAX),
        ..threads(2)
    };
    convert(&chain(&disk), recording.sink(), &job).unwrap();
    assert!(recording.bytes() == disk.bytes());
}
