//! What the engine does to each byte: looking for zeros, packing, unpacking.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use goldsmith_block::{Codec, is_zero};
use goldsmith_codec::{Packer, Unpacker};
use goldsmith_testkit::pattern;

const UNIT: usize = 64 << 10;

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

criterion_group!(benches, zero_scan, codecs);
criterion_main!(benches);
