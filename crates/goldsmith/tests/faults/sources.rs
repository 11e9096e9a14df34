//! Sources that cannot be read, or become shorter while they are.

use std::sync::Arc;

use goldsmith_block::{Chain, ErrorKind, Options, Result, Storage};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::fault::{Fault, FaultStorage, Op};
use goldsmith_testkit::figure;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::{ModelDisk, image};

use crate::{Row, budget, one_worker, row};

const OVER: &[(&str, &str)] = &[("backing_file", "behind"), ("backing_fmt", "raw")];
const BEHIND: &str = "600k:A 700k:D";

const ROWS: [Row; 9] = [
    row("raw", &[]),
    row("qcow2", &[("cluster_size", "4k")]),
    row("qcow2", &[("cluster_size", "512"), ("compat", "0.10")]),
    row("qcow2", &[("cluster_size", "16k"), ("extended_l2", "on")]),
    row("qcow2", &[("cluster_size", "4k")]).packed(),
    row("qcow2", OVER).over(BEHIND),
    row("vpc", &[("block_size", "512k")]),
    row("vpc", &[("subformat", "fixed")]),
    row("vpc", OVER).over(BEHIND),
];

fn picture() -> ModelDisk {
    disk("256k:A 300k:- 1128k:b 64k:0 640k:- 100k:C 28k:-")
}

/// Converts the image in `storage` to RAW; `opened` is called before any guest data is read.
fn convert(row: &Row, storage: Arc<dyn Storage>, opened: impl FnOnce()) -> Result<Vec<u8>> {
    let options = Options::defaults(row.format().open_options());
    let layer = row.format().open_with(storage, &budget(), &options)?;
    opened();
    let source = Chain::new(layer, row.behind());
    let target = Arc::new(MemoryStorage::new("target"));
    let raw = goldsmith::format_named("raw")?;
    let spec = image::spec(raw, source.virtual_size(), &[], false)?;
    let sink = raw.create(Arc::clone(&target) as _, &spec)?;
    goldsmith_engine::convert(&source, sink, &one_worker())?;
    Ok(target.to_vec())
}

/// An answer, and either an error that names the image or the right bytes.
fn assert_right(
    result: Result<Vec<u8>>,
    disk: &ModelDisk,
    may_blame_image: bool,
    what: &str,
) -> bool {
    match result {
        Ok(bytes) => {
            assert!(bytes == disk.bytes(), "{what}: other bytes, and no error");
            false
        }
        Err(error) => {
            let kinds: &[_] = match may_blame_image {
                true => &[ErrorKind::Io, ErrorKind::Corrupt],
                false => &[ErrorKind::Io],
            };
            let report = error.report();
            assert!(kinds.contains(&error.kind()), "{what}: {report}");
            assert!(report.starts_with("source: "), "{what}: {report}");
            true
        }
    }
}

#[test]
fn read_that_fails_is_an_error_by_name_or_makes_no_difference() {
    let disk = picture();
    let (mut faults, mut errors) = (0, 0);
    for row in ROWS {
        let image = row.image(&disk);
        for fault in [Fault::Nothing, Fault::ForGood] {
            for nth in 0.. {
                let what = format!("{row:?}: read {nth} fails, {fault:?}");
                let memory = Arc::new(MemoryStorage::holding("source", image.clone()));
                let faulty = FaultStorage::new(memory, Op::Read, nth).doing(fault);
                let faulty = Arc::new(faulty);
                let result = convert(&row, Arc::clone(&faulty) as _, || ());
                if !faulty.fired() {
                    assert!(result.unwrap() == disk.bytes(), "{what}");
                    break;
                }
                faults += 1;
                errors += usize::from(assert_right(result, &disk, false, &what));
            }
        }
    }
    figure(format_args!(
        "{faults} reads of sources failed, {errors} of which failed the conversion"
    ));
    // A table that cannot be read as a whole is read by sectors, which makes no difference.
    assert!(
        faults >= 200 && errors * 10 >= faults * 8,
        "{faults} faults, {errors} errors"
    );
}

#[test]
fn source_that_shrinks_is_an_error_by_name_or_reads_the_same() {
    let disk = picture();
    let (mut cuts, mut errors) = (0, 0);
    for row in ROWS {
        let image = row.image(&disk);
        let len = image.len() as u64;
        for cut in (0..len)
            .step_by(32 << 10)
            .chain([len - 1, len - 511, len - 512, len - 513])
        {
            let what = format!("{row:?}: {cut} of {len} bytes are left");
            let memory = Arc::new(MemoryStorage::holding("source", image.clone()));
            let shrinking = Arc::new(FaultStorage::new(memory, Op::Any, u64::MAX));
            let shrink = || shrinking.shrink(cut);
            let result = convert(&row, Arc::clone(&shrinking) as _, shrink);
            errors += usize::from(assert_right(result, &disk, true, &what));
            cuts += 1;
        }
    }
    figure(format_args!(
        "{cuts} sources shrank after they were opened, {errors} of which failed"
    ));
    assert!(
        cuts >= 300 && errors * 2 >= cuts,
        "{cuts} cuts, {errors} errors"
    );
}
