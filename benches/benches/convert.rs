//! Whole conversions in memory, with nothing, half and all of the disk allocated.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::num::NonZeroUsize;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use goldsmith_block::{Chain, Format};
use goldsmith_engine::{Job, convert};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::model::ModelLayer;
use goldsmith_testkit::{image, pattern};

const DISKS: [(&str, &str); 3] = [
    ("empty", "32M:-"),
    ("half", "8M:A 8M:- 8M:b 8M:-"),
    ("full", "16M:A 16M:b"),
];

fn into_every_format(criterion: &mut Criterion) {
    let formats: [(&str, &dyn Format, bool); 4] = [
        ("raw", &goldsmith_raw::RAW, false),
        ("qcow2", &goldsmith_qcow2::QCOW2, false),
        ("qcow2 -c", &goldsmith_qcow2::QCOW2, true),
        ("vpc", &goldsmith_vhd::VHD, false),
    ];
    for (name, format, compress) in formats {
        let mut group = criterion.benchmark_group(format!("to {name}"));
        group.sample_size(10);
        group.throughput(Throughput::Bytes(32 << 20));
        for (kind, picture) in DISKS {
            let disk = pattern::disk(picture);
            let source = Chain::new(Arc::new(ModelLayer::new(disk.clone())), []);
            let spec = image::spec(format, disk.len(), &[], compress).expect("the spec is right");
            for threads in [1, 2] {
                let job = Job {
                    threads: NonZeroUsize::new(threads),
                    ..Job::default()
                };
                let id = BenchmarkId::new(kind, format!("{threads} threads"));
                group.bench_function(id, |bench| {
                    bench.iter(|| {
                        let storage = Arc::new(MemoryStorage::new("bench"));
                        let sink = format.create(storage, &spec).expect("it is created");
                        convert(&source, sink, &job).expect("it converts")
                    });
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, into_every_format);
criterion_main!(benches);
