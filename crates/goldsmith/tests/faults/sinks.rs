//! New images on a storage that fails.

use std::sync::Arc;

use goldsmith_block::ErrorKind;
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::ModelDisk;
use goldsmith_testkit::fault::{Fault, FaultStorage, Op};
use goldsmith_testkit::figure;
use goldsmith_testkit::pattern::disk;

use crate::{Row, row};

const OVER: &[(&str, &str)] = &[("backing_file", "behind"), ("backing_fmt", "raw")];
const BEHIND: &str = "600k:A 700k:D";

const ROWS: [Row; 17] = [
    row("raw", &[]),
    row("raw", &[("preallocation", "falloc")]),
    row("raw", &[("preallocation", "full")]),
    row("qcow2", &[]),
    row("qcow2", &[("cluster_size", "512"), ("compat", "0.10")]),
    row("qcow2", &[("cluster_size", "16k"), ("extended_l2", "on")]),
    row(
        "qcow2",
        &[("preallocation", "metadata"), ("refcount_bits", "64")],
    ),
    row("qcow2", &[("preallocation", "falloc")]),
    row("qcow2", &[("preallocation", "full")]),
    row("qcow2", &[("cluster_size", "4k")]).packed(),
    row("qcow2", &[("compression_type", "zstd")]).packed(),
    row("qcow2", OVER).over(BEHIND),
    row("qcow2", OVER).over(BEHIND).packed(),
    row("vpc", &[("block_size", "512k")]),
    row("vpc", &[("block_size", "512k"), ("batmap", "on")]),
    row("vpc", &[("subformat", "fixed")]),
    row("vpc", OVER).over(BEHIND),
];

/// The disk that is to be written.
fn picture() -> ModelDisk {
    disk("256k:A 300k:- 128k:b 64k:0 640k:- 100k:C 28k:-")
}

/// Writes the disk with each call failing once, on a storage that holds `old`. Gives the faults.
fn fail_everywhere(row: &Row, old: Option<&[u8]>) -> usize {
    let disk = picture();
    let mut faults = 0;
    for op in [Op::Write, Op::SetLen, Op::Zero, Op::Flush] {
        for fault in Fault::EACH {
            for nth in 0.. {
                let what = format!("{row:?}: {op:?} {nth}, which does {fault:?}");
                let memory = Arc::new(match old {
                    Some(old) => MemoryStorage::holding("target", old.to_vec()),
                    None => MemoryStorage::new("target"),
                });
                let faulty = FaultStorage::new(Arc::clone(&memory), op, nth).doing(fault);
                let faulty = Arc::new(faulty);
                let result = row.write(&disk, Arc::clone(&faulty) as _);
                if !faulty.fired() {
                    result.unwrap_or_else(|error| panic!("{what}: {error:?}"));
                    break;
                }
                faults += 1;
                let error = result.expect_err(&what);
                assert_eq!(error.kind(), ErrorKind::Io, "{what}");
                let report = error.report();
                assert!(report.starts_with("target: "), "{what}: {report}");
                assert!(report.contains("was told to fail"), "{what}: {report}");
                if row.format != "raw" {
                    assert_no_other_disk(row, &disk, memory.to_vec(), old, &what);
                }
            }
        }
    }
    faults
}

/// What is left is no image, or the whole new one, or the old one that nothing has touched.
fn assert_no_other_disk(
    row: &Row,
    disk: &ModelDisk,
    left: Vec<u8>,
    old: Option<&[u8]>,
    what: &str,
) {
    if old.is_some_and(|old| left == old) {
        return;
    }
    if let Ok(layer) = row.open(left)
        && let Ok(bytes) = row.guest(layer)
    {
        assert!(bytes == disk.bytes(), "{what}: it opens as another disk");
    }
}

#[test]
fn new_image_on_a_failing_storage_is_an_error_and_no_image() {
    let faults: usize = ROWS.iter().map(|row| fail_everywhere(row, None)).sum();
    figure(format_args!("{faults} faults under new images"));
    assert!(faults >= 1000, "only {faults} faults");
}

#[test]
fn image_written_over_an_old_one_on_a_failing_storage_is_no_mixture() {
    let mut faults = 0;
    for row in ROWS {
        let old = row.image(&disk("1M:x 500k:Y 16k:z"));
        faults += fail_everywhere(&row, Some(&old));
    }
    figure(format_args!(
        "{faults} faults under images that replace others in place"
    ));
    assert!(faults >= 1000, "only {faults} faults");
}
