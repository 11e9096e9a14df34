//! What reading an image of any format must keep to.

use std::sync::Arc;

use goldsmith_block::{Budget, ErrorKind, Layer, Limits, Match, Probe};
use goldsmith_storage::MemoryStorage;
use proptest::prelude::*;

use super::{Case, Subject, runner};
use crate::fault::{FaultStorage, Op};
use crate::hostile::{assert_extent, assert_zeros_are_zero, cuts, flips, probe, survives, walk};
use crate::model::{ModelDisk, any_disk};
use crate::pattern::{disk, noise};
use crate::sparse::SparseStorage;
use crate::trace::TraceLayer;
use crate::{hostile, image};

/// Any disk, written and opened again, is that disk, byte for byte.
pub fn any_disk_reads_as_it_was_written(subject: &Subject) {
    for case in subject.cases() {
        let disks = any_disk(case.some_units(), case.format.size_unit());
        let result = runner(24).run(&disks, |disk| {
            let layer = image::open(case.format, case.write(&disk)).unwrap();
            assert_holds(&case, &*layer, &disk);
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{case:?}: {error}"));
    }
}

fn assert_holds(case: &Case, layer: &dyn Layer, disk: &ModelDisk) {
    assert_eq!(layer.info().format, case.format.name());
    assert_eq!(
        layer.info().virtual_size,
        disk.len(),
        "{case:?}: size of {disk:?}"
    );
    let bytes = image::read(layer).unwrap();
    assert!(
        bytes == disk.bytes(),
        "{case:?}: {disk:?} reads as something else"
    );
    let extents = walk(layer, 0, disk.len(), usize::MAX).unwrap();
    assert_zeros_are_zero(&extents, &bytes);
}

/// Disks of no or hardly any bytes. A format may refuse an empty one.
pub fn tiny_disks_read_as_they_were_written(subject: &Subject) {
    for case in subject.cases() {
        for len in [0, 1, 512, 1024, 4096, 4608, 65536 + 512] {
            if !u64::is_multiple_of(len, case.format.size_unit()) {
                continue;
            }
            for fill in ["A", "-", "0", "z"] {
                let disk = disk(&format!("{len}:{fill}"));
                match image::write(case.format, &disk, case.options, case.compress) {
                    Ok(image) => {
                        let layer = image::open(case.format, image).unwrap();
                        assert_holds(&case, &*layer, &disk);
                    }
                    Err(error) => {
                        assert_eq!(
                            (error.kind(), len),
                            (ErrorKind::Usage, 0),
                            "{case:?}: {error:?}"
                        );
                    }
                }
            }
        }
    }
}

/// Extents from any offset to any limit are what the contract says, and say zero only where the
/// bytes are zero.
pub fn extents_keep_their_contract_from_any_offset(subject: &Subject) {
    for case in subject.cases() {
        let disk = case.mixed_disk();
        let layer = image::open(case.format, case.write(&disk)).unwrap();
        let borders = disk
            .runs()
            .iter()
            .map(|run| run.range.start)
            .chain([disk.len()]);
        let borders: Vec<_> = borders
            .flat_map(|at| [at.saturating_sub(1), at, at + 1])
            .collect();
        let random = (0..200).map(|seed| noise(seed) % disk.len());
        let mut offsets: Vec<_> = borders.into_iter().chain(random).collect();
        offsets.retain(|offset| *offset < disk.len());
        for (nth, offset) in offsets.into_iter().enumerate() {
            let reach = [1, 511, 512, 4096, 100_000, u64::MAX][nth % 6];
            let limit = offset.saturating_add(reach).min(disk.len());
            let extent = layer.extent_at(offset, limit).unwrap();
            assert_extent(&*layer, &extent, offset, limit);
            assert_zeros_are_zero(&[extent], disk.bytes());
        }
    }
}

/// Any part of a disk reads as that part of the whole.
pub fn any_part_reads_as_the_whole_does(subject: &Subject) {
    for case in subject.cases() {
        let disk = case.mixed_disk();
        let layer = image::open(case.format, case.write(&disk)).unwrap();
        let most = disk.len().min(2 << 20);
        let parts = (0..disk.len(), 0..=most, any::<bool>());
        let result = runner(64).run(&parts, |(start, len, short)| {
            let len = if short { len % 2000 } else { len };
            let end = (start + len).min(disk.len());
            let mut bytes = vec![0xaa; (end - start) as usize];
            layer.read_at(start, &mut bytes).unwrap();
            prop_assert!(bytes == disk.bytes()[start as usize..end as usize]);
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{case:?}: {disk:?}: {error}"));
    }
}

/// A disk with data at both ends and nothing between costs what its data costs, written and read.
/// Where the first set of options cannot make a disk so large, a smaller one has to do.
pub fn hole_of_a_tebibyte_costs_few_steps(subject: &Subject) {
    let Some(case) = subject.cases().next() else {
        return;
    };
    for hole in ["1T", "64G", "1G", "64M"] {
        let disk = disk(&format!("64k:A {hole}:- 512k:- 512:b"));
        let storage = Arc::new(SparseStorage::new());
        let sink = match case.format.create(storage.clone(), &case.spec(&disk)) {
            Ok(sink) => sink,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Usage, "{case:?}: {error:?}");
                continue;
            }
        };
        image::drive(sink, &disk).unwrap();
        assert!(
            storage.stored() < 32 << 20,
            "{case:?}: {} bytes written",
            storage.stored()
        );
        let layer = case
            .format
            .open(storage, &Budget::new(&Limits::default()))
            .unwrap();
        let layer = TraceLayer::new(layer);
        walk(&layer, 0, disk.len(), 100_000).unwrap();
        assert!(
            layer.extents() <= 64,
            "{case:?}: {} steps over {hole}",
            layer.extents()
        );
        let mut tail = [0xaa; 2048];
        layer.read_at(disk.len() - 2048, &mut tail).unwrap();
        let mut expected = [0; 2048];
        disk.read_at(disk.len() - 2048, &mut expected);
        assert!(
            tail == expected,
            "{case:?}: the end of {disk:?} reads as something else"
        );
        return;
    }
    panic!("{case:?} holds not even 64 MiB");
}

/// Many threads on one layer, and on another one over the same storage, read the same.
pub fn many_threads_read_the_same(subject: &Subject) {
    for case in subject.cases() {
        let disk = case.mixed_disk();
        let storage = Arc::new(MemoryStorage::holding("image", case.write(&disk)));
        let open = || {
            case.format
                .open(storage.clone(), &Budget::new(&Limits::default()))
                .unwrap()
        };
        let layers = [open(), open()];
        std::thread::scope(|scope| {
            for nth in 0..8 {
                let (layer, disk) = (&layers[nth % 2], &disk);
                scope.spawn(move || {
                    let mut piece = vec![0; 30_000 + 7_001 * nth];
                    for start in (0..disk.len()).step_by(piece.len()) {
                        let end = (start + piece.len() as u64).min(disk.len());
                        let piece = &mut piece[..(end - start) as usize];
                        layer.read_at(start, piece).unwrap();
                        assert!(*piece == disk.bytes()[start as usize..end as usize]);
                    }
                });
            }
        });
    }
}

/// The probe knows the format's own images, and says `No` or `Anything` to nothing at all.
pub fn own_image_is_recognised(subject: &Subject) {
    let empty = probe(subject.format, &[]);
    assert_ne!(empty, Match::Marked, "no bytes carry no mark");
    for case in subject.cases() {
        let found = probe(case.format, &case.write(&case.mixed_disk()));
        assert_ne!(found, Match::No, "{case:?}");
        assert!(
            found == Match::Marked || empty == Match::Anything,
            "{case:?}"
        );
    }
}

/// Heads and tails of any length and content get an answer.
pub fn probe_survives_any_bytes(subject: &Subject) {
    for case in subject.cases() {
        let image = case.write(&disk("4k:A"));
        for len in (0..=image.len().min(1100)).chain([image.len().min(Probe::HEAD)]) {
            let (head, tail) = (&image[..len], &image[image.len() - len.min(Probe::TAIL)..]);
            for (head, tail) in [
                (head, head),
                (tail, tail),
                (head, tail),
                (head, &[]),
                (&[], tail),
            ] {
                let tail = &tail[tail.len().saturating_sub(Probe::TAIL)..];
                let sector = tail.len().checked_sub(512).map(|at| &tail[at..]);
                case.format.probe(&Probe {
                    head,
                    tail,
                    before_zeros: sector.map(|sector| (4096, sector)),
                });
            }
        }
    }
}

/// However much of an image is missing, what is left is refused or reads as before.
pub fn cut_image_is_refused_or_reads_the_same(subject: &Subject) {
    for case in subject.cases().filter(Case::is_marked) {
        let disk = small_disk(&case);
        let image = case.write(&disk);
        // Each structure and each unit begins and ends at a multiple of a power of two.
        let boundaries: Vec<_> = (9..31).map(|bits| 1 << bits).collect();
        for cut in cuts(image.len(), &boundaries, 100) {
            let outcome = survives(case.format, image[..cut].to_vec());
            assert!(
                outcome.refused().is_some() || outcome.reads_as(disk.bytes()),
                "{case:?}: {disk:?} cut from {} to {cut} bytes reads as something else",
                image.len()
            );
        }
    }
}

/// An image with any bit of it turned round is refused or reads as something, soon.
pub fn flipped_bits_get_an_answer(subject: &Subject) {
    for case in subject.cases() {
        let image = case.write(&small_disk(&case));
        let head = flips(&image, 0..image.len().min(2048), 3);
        let tail = flips(&image, image.len().saturating_sub(512)..image.len(), 5);
        let between = flips(&image, 0..image.len(), image.len() / 200 + 1);
        for damaged in head.chain(tail).chain(between) {
            survives(case.format, damaged);
        }
    }
}

/// Several kinds of runs in as few bytes as will do.
fn small_disk(case: &Case) -> ModelDisk {
    let gap = case.unit().min(64 << 10);
    disk(&format!("1k:A 512:- 4k:b {gap}:- 512:0 1k:C 512:-"))
}

/// When one read fails, open or read fails with `Io`; when it works again, so does the layer.
pub fn failing_read_is_an_io_error_and_not_remembered(subject: &Subject) {
    for case in subject.cases() {
        let disk = small_disk(&case);
        let image = Arc::new(MemoryStorage::holding("image", case.write(&disk)));
        for nth in 0.. {
            assert!(nth < 10_000, "{case:?}: too many reads for so small a disk");
            let storage = Arc::new(FaultStorage::new(image.clone(), Op::Read, nth));
            let opened = case
                .format
                .open(storage.clone(), &Budget::new(&Limits::default()));
            let layer = match opened {
                Ok(layer) => layer,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Io, "{case:?}: {error:?}");
                    continue;
                }
            };
            let extents = hostile::walk(&*layer, 0, disk.len(), usize::MAX);
            let bytes = extents.and_then(|_| image::read(&*layer));
            if !storage.fired() {
                break;
            }
            if let Err(error) = bytes {
                assert_eq!(error.kind(), ErrorKind::Io, "{case:?}: {error:?}");
            }
            assert_holds(&case, &*layer, &disk);
        }
    }
}

/// When a file becomes shorter while it is open, somebody hears of it.
pub fn file_that_shrank_is_an_io_error_or_reads_the_same(subject: &Subject) {
    for case in subject.cases() {
        let disk = small_disk(&case);
        let image = case.write(&disk);
        let memory = Arc::new(MemoryStorage::holding("image", image.clone()));
        for cut in cuts(image.len(), &[], 20) {
            let storage = Arc::new(FaultStorage::shrunk(memory.clone(), cut as u64));
            let layer = case.format.open(storage, &Budget::new(&Limits::default()));
            match layer.and_then(|layer| image::read(&*layer)) {
                Ok(bytes) => assert!(bytes == disk.bytes(), "{case:?}: {disk:?} shrunk to {cut}"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Io, "{case:?}: {error:?}"),
            }
        }
    }
}
