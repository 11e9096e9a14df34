//! What the engine does to each byte (looking for zeros, packing, unpacking) and to each unit
//! (decoding tables, walking extents, reserving places).
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use goldsmith_block::{
    Budget, Chain, Codec, Demand, Format, GuestRange, Layer, Limits, Sink, Storage, is_zero,
};
use goldsmith_codec::{Packer, Unpacker};
use goldsmith_engine::{Algorithm, ChecksumJob, checksum};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::model::ModelLayer;
use goldsmith_testkit::sparse::SparseStorage;
use goldsmith_testkit::{image, pattern};

const UNIT: usize = 64 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const ALLOCATING: [(&str, &dyn Format); 2] = [
    ("qcow2", &goldsmith_qcow2::QCOW2),
    ("vpc", &goldsmith_vhd::VHD),
];

/// Bytes that pack to about a third, as programs and text do.
fn half_noise() -> Vec<u8> {
    let mut unit = vec![0; UNIT];
    for (index, part) in unit.chunks_mut(256).enumerate() {
        // Lower-case letters are noise, upper-case ones repeat themselves.
        let letter = if index % 3 == 0 { b'a' } else { b'A' };
        pattern::fill(letter, (index * 256) as u64, part);
    }
    unit
}

fn zero_scan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("zero scan");
    group.throughput(Throughput::Bytes(UNIT as u64));
    let zeros = vec![0; UNIT];
    group.bench_function("64 KiB of zeros", |bench| {
        bench.iter(|| is_zero(black_box(&zeros)))
    });
    let data = half_noise();
    group.bench_function("64 KiB of data", |bench| {
        bench.iter(|| is_zero(black_box(&data)))
    });
    group.finish();
}

fn codecs(criterion: &mut Criterion) {
    let unit = half_noise();
    for codec in [Codec::Deflate, Codec::Zstd] {
        let mut group = criterion.benchmark_group(format!("{codec:?}"));
        group.throughput(Throughput::Bytes(UNIT as u64));
        let mut packer = Packer::new(codec);
        let mut packed = Vec::new();
        packer
            .pack(&unit, &mut packed)
            .expect("it packs")
            .expect("it shrinks");
        let mut out = Vec::new();
        group.bench_function("pack 64 KiB", |bench| {
            bench.iter(|| {
                out.clear();
                packer.pack(black_box(&unit), &mut out)
            });
        });
        let mut unpacker = Unpacker::new();
        let mut whole = vec![0; UNIT];
        group.bench_function("unpack 64 KiB", |bench| {
            bench.iter(|| unpacker.unpack(codec, black_box(&packed), &mut whole));
        });
        group.finish();
    }
}

/// What a digest costs of data and of zeros, on one thread.
fn digests(criterion: &mut Criterion) {
    const LEN: u64 = 8 * MIB;
    for (what, picture) in [("data", "8M:a"), ("a hole", "8M:-")] {
        let layer = ModelLayer::new(pattern::disk(picture));
        let disk = Chain::new(Arc::new(layer), []);
        let mut group = criterion.benchmark_group(format!("digest of {what}"));
        group.throughput(Throughput::Bytes(LEN));
        for algorithm in Algorithm::ALL {
            let job = ChecksumJob {
                algorithms: &[*algorithm],
                threads: NonZeroUsize::new(1),
                ..ChecksumJob::default()
            };
            group.bench_function(algorithm.name(), |bench| {
                bench.iter(|| checksum(black_box(&disk), &job).expect("it is read"));
            });
        }
        group.finish();
    }
}

/// Nothing is written to the places that are reserved, so they need not take memory.
fn create(format: &dyn Format, virtual_size: u64) -> (Arc<SparseStorage>, Box<dyn Sink>) {
    let storage = Arc::new(SparseStorage::new());
    let spec = image::spec(format, virtual_size, &[], false).expect("the spec is right");
    let sink = format
        .create(storage.clone(), &spec)
        .expect("it is created");
    (storage, sink)
}

fn open(format: &dyn Format, storage: Arc<dyn Storage>) -> Arc<dyn Layer> {
    let budget = Budget::new(&Limits::default());
    format.open(storage, &budget).expect("it opens")
}

/// Opening the largest image without data: the table in memory is all there is to it.
fn table_decode(criterion: &mut Criterion) {
    let sizes = [(64 << 10, 512 * MIB), (2040, 2 * MIB)];
    let mut group = criterion.benchmark_group("table decode");
    for ((name, format), (gibibytes, unit)) in ALLOCATING.into_iter().zip(sizes) {
        let (storage, sink) = create(format, gibibytes * GIB);
        sink.commit().expect("it commits");
        group.throughput(Throughput::Elements(gibibytes * GIB / unit));
        group.bench_function(name, |bench| bench.iter(|| open(format, storage.clone())));
    }
    group.finish();
}

/// Every other cluster of 4 KiB, so that each extent is one table entry.
fn extent_walk(criterion: &mut Criterion) {
    const CLUSTERS: u64 = 8192;
    let disk = pattern::disk(&"4k:A 4k:- ".repeat(CLUSTERS as usize / 2));
    let options = [("cluster_size", "4k")];
    let bytes = image::write(&goldsmith_qcow2::QCOW2, &disk, &options, false);
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::holding(
        "bench",
        bytes.expect("it is written"),
    ));
    let walk = |layer: &dyn Layer| {
        let (mut at, mut extents) = (0, 0);
        while at < disk.len() {
            let extent = layer.extent_at(at, disk.len()).expect("it is valid");
            at = extent.range.end;
            extents += 1;
        }
        assert_eq!(extents, CLUSTERS);
    };
    let mut group = criterion.benchmark_group("extent walk, qcow2");
    group.throughput(Throughput::Elements(CLUSTERS));
    let layer = open(&goldsmith_qcow2::QCOW2, storage.clone());
    group.bench_function("opened before", |bench| bench.iter(|| walk(&*layer)));
    group.bench_function("with opening", |bench| {
        bench.iter(|| walk(&*open(&goldsmith_qcow2::QCOW2, storage.clone())));
    });
    group.finish();
}

/// Places for claims of 1 MiB, as the engine asks for them.
fn reserve(criterion: &mut Criterion) {
    const CLAIMS: u64 = 1024;
    let mut group = criterion.benchmark_group("reserve");
    group.throughput(Throughput::Elements(CLAIMS));
    for (name, format) in ALLOCATING {
        group.bench_function(name, |bench| {
            let mut slots = Vec::new();
            bench.iter_batched_ref(
                || create(format, CLAIMS * MIB).1,
                |sink| {
                    for claim in 0..CLAIMS {
                        let range = GuestRange::new(claim * MIB, (claim + 1) * MIB);
                        slots.clear();
                        sink.reserve(
                            &[Demand {
                                range,
                                packed: None,
                            }],
                            &mut slots,
                        )
                        .expect("there is room");
                    }
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(
    benches,
    zero_scan,
    codecs,
    digests,
    table_decode,
    extent_walk,
    reserve
);
criterion_main!(benches);
