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

mod bytes;
mod ends;
mod over;

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
    uncached: bool,
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
        any::<bool>(),
        sparse,
    )
        .prop_map(
            |(grain_bits, identity, written_zeroes, codec, threads, uncached, sparse)| Shape {
                grain: 1 << grain_bits,
                identity: identity && codec.is_none(),
                written_zeroes,
                codec,
                threads,
                uncached,
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
            uncached: self.uncached,
            sparse: self.sparse,
            digests: Algorithm::ALL,
            ..threads(self.threads)
        }
    }
}
