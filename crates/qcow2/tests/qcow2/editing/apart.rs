//! Sinks whose data is in a file of its own, cut at every point: no table names what is not stored.

use std::sync::Arc;

use goldsmith_block::Format;
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::crash::CrashStorage;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::{image, qemu};

use super::{checked, editor, states, write_over};
use crate::bench::{Bench, budget};

/// What QEMU reads of an image that names the file `data` of `bench`, when both hold what these do.
fn assert_qemu_reads(
    bench: &Bench,
    image: &Arc<MemoryStorage>,
    data: &Arc<MemoryStorage>,
    expected: &[u8],
) {
    std::fs::write(bench.path("image"), image.to_vec()).unwrap();
    std::fs::write(bench.path("data"), data.to_vec()).unwrap();
    std::fs::write(bench.path("expected"), expected).unwrap();
    let [found, expected] = ["image", "expected"].map(|name| bench.path(name));
    qemu::compare(&found, "qcow2", &expected, "raw");
}

#[test]
fn new_image_is_none_before_its_data_file_is_stored() {
    for options in [
        &[][..],
        &[("extended_l2", "on")],
        &[("data_file_raw", "on")],
    ] {
        let bench = Bench::new();
        let name = bench.text("data");
        let options = [options, &[("cluster_size", "16k"), ("data_file", &name)]].concat();
        let picture = disk("20k:A 12k:- 30k:b 60k:- 5k:C 1k:-");
        let crash = Arc::new(CrashStorage::new("image", Vec::new()));
        let data = Arc::new(crash.beside("data", Vec::new()));
        let mut spec = image::spec(&QCOW2, picture.len(), &options, false).unwrap();
        spec.data = Some(Arc::clone(&data) as _);
        let sink = QCOW2.create(Arc::clone(&crash) as _, &spec).unwrap();
        image::drive(sink, &picture).unwrap();
        assert_qemu_reads(&bench, &crash.durable(), &data.durable(), picture.bytes());
        let mut seen = [0; 2];
        crash.each_states(|cut, files| {
            // The header is written last.
            let layer = QCOW2.open(Arc::clone(&files[0]) as _, &budget());
            seen[usize::from(layer.is_ok())] += 1;
            let Ok(layer) = layer else {
                return;
            };
            let layer = layer.with_data(Arc::clone(&files[1]) as _).unwrap();
            assert!(states(&*layer) == [picture.bytes()], "{options:?}, {cut}");
            assert!(checked(&files[0]).is_flawless(), "{options:?}, {cut}");
        });
        assert!(seen.iter().all(|count| *count > 0), "{options:?}: {seen:?}");
    }
}

/// As `disk_that_is_written_over_survives_every_cut`. What nobody has written yet stands over something
/// else in the data file, which no guest ever sees.
#[test]
fn disk_in_a_data_file_that_is_written_over_survives_every_cut() {
    for options in ["cluster_size=4k", "cluster_size=16k,extended_l2=on"] {
        let bench = Bench::new();
        let options = format!("{options},data_file={}", bench.text("data"));
        let path = bench.image("image", &options, "96k", &["write -P 7 3k 60k"]);
        let image = std::fs::read(path).unwrap();
        let mut file = std::fs::read(bench.path("data")).unwrap();
        file.truncate(64 << 10);
        file.resize(96 << 10, 0x77);
        let crash = Arc::new(CrashStorage::new("image", image));
        let data = Arc::new(crash.beside("data", file));
        let mut editor = editor(Arc::clone(&crash) as _);
        editor.set_data(Arc::clone(&data) as _).unwrap();
        let before = states(&*editor.layer()).remove(0);
        assert!(!before.contains(&0x77), "{options}");
        let parts = [
            (0, 32 << 10, 5),
            (48 << 10, 64 << 10, 0),
            (80 << 10, 96 << 10, 6),
        ];
        write_over(editor, 96 << 10, &parts);
        let mut after = before.clone();
        for (start, end, byte) in parts {
            after[start as usize..end as usize].fill(byte);
        }
        assert_qemu_reads(&bench, &crash.durable(), &data.durable(), &after);
        crash.each_states(|cut, files| {
            let layer = QCOW2.open(Arc::clone(&files[0]) as _, &budget()).unwrap();
            let layer = layer.with_data(Arc::clone(&files[1]) as _).unwrap();
            let found = states(&*layer).remove(0);
            let pairs = before.chunks(512).zip(after.chunks(512));
            for (nth, (found, (before, after))) in found.chunks(512).zip(pairs).enumerate() {
                let fine = found == before || found == after;
                assert!(fine, "{options}, {cut}: sector {nth}");
            }
            let checked = checked(&files[0]);
            assert!(
                checked.corruptions + checked.errors == 0,
                "{options}, {cut}"
            );
        });
    }
}
