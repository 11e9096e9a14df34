//! What writing an image of any format must keep to.

use std::sync::Arc;

use goldsmith_block::{
    Budget, Demand, ErrorKind, GuestRange, Limits, Options, Placement, Result, SECTOR, Slot,
    align_down, align_up, is_zero,
};
use goldsmith_storage::MemoryStorage;

use super::{Case, Subject, runner};
use crate::device::DeviceStorage;
use crate::fault::{FaultStorage, Op};
use crate::hostile::survives;
use crate::image::{self, Drive, Order};
use crate::model::{ModelDisk, any_disk};
use crate::pattern::{disk, noise};

/// The defaults of all options are values of them.
pub fn every_option_has_a_default(subject: &Subject) {
    Options::defaults(subject.format.options());
    for option in subject.format.options() {
        assert!(
            !option.help.is_empty(),
            "option {} lacks its line of help",
            option.name
        );
    }
}

/// Slots written in any order, or from many threads, make the same file.
pub fn order_of_writes_leaves_no_trace(subject: &Subject) {
    for case in subject.cases() {
        let disks = any_disk(case.some_units(), case.format.size_unit());
        let result = runner(6).run(&disks, |disk| {
            let straight = case.write(&disk);
            for order in [Order::Reversed, Order::Shuffled(1), Order::Concurrent] {
                let drive = Drive {
                    order,
                    ..Drive::default()
                };
                assert!(
                    write(&case, &disk, drive) == straight,
                    "{case:?}: {disk:?} {order:?}"
                );
            }
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{case:?}: {error}"));
    }
}

/// Data reserved in short or in long pieces makes the same file.
pub fn length_of_demands_leaves_no_trace(subject: &Subject) {
    for case in subject.cases() {
        let disk = case.mixed_disk();
        let whole = case.write(&disk);
        for cut in [3, 16, u64::MAX] {
            let drive = Drive {
                cut,
                ..Drive::default()
            };
            assert!(
                write(&case, &disk, drive) == whole,
                "{case:?}: {disk:?} cut to {cut} grains"
            );
        }
    }
}

/// Under [`Placement::Identity`] the order of `reserve` is as free as that of `write`.
pub fn reserving_backwards_leaves_no_trace_under_identity(subject: &Subject) {
    for case in subject.cases() {
        let disk = case.mixed_disk();
        let storage = Arc::new(MemoryStorage::new("image"));
        let sink = case.format.create(storage, &case.spec(&disk)).unwrap();
        if sink.profile().placement == Placement::Identity {
            let drive = Drive {
                order: Order::Backwards,
                cut: 5,
            };
            assert!(
                write(&case, &disk, drive) == case.write(&disk),
                "{case:?}: {disk:?}"
            );
        }
    }
}

/// A sink that takes a disk in any order takes it in sectors as well, each of them alone.
pub fn disk_in_any_order_is_the_same_disk(subject: &Subject) {
    for case in subject.cases() {
        let disk = case.mixed_disk();
        let storage = Arc::new(MemoryStorage::new("image"));
        let mut sink = case
            .format
            .create(storage.clone(), &case.spec(&disk))
            .unwrap();
        let budget = Budget::new(&Limits::default());
        if !sink.take_any_order(&budget).unwrap() {
            continue;
        }
        let (grain, len) = (sink.profile().grain, disk.len());
        let mut sectors: Vec<u64> = (0..len).step_by(SECTOR as usize).collect();
        sectors.sort_by_key(|at| noise(*at));
        for start in sectors {
            let range = GuestRange::new(start, len.min(start + SECTOR));
            let mut bytes = vec![0; range.len() as usize];
            disk.read_at(start, &mut bytes);
            if is_zero(&bytes) {
                continue;
            }
            let end = align_up(range.end, grain).unwrap().min(len);
            let demand = Demand {
                range: GuestRange::new(align_down(start, grain), end),
                packed: None,
            };
            let mut slots = Vec::new();
            sink.reserve(&[demand], &mut slots).unwrap();
            let slot = slots.iter().find(|slot| slot.range.end > start).unwrap();
            let host = slot.host + (start - slot.range.start);
            let packed = None;
            let part = Slot {
                range,
                host,
                packed,
            };
            sink.write(part, &bytes).unwrap();
        }
        let committed = sink.commit().unwrap();
        let image = storage.to_vec();
        assert_eq!(committed.file_len, image.len() as u64, "{case:?}");
        let outcome = survives(case.format, image);
        assert!(
            outcome.reads_as(disk.bytes()),
            "{case:?}: {disk:?} in any order is {:?}",
            outcome.refused()
        );
    }
}

fn write(case: &Case, disk: &ModelDisk, drive: Drive) -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::new("image"));
    let sink = case
        .format
        .create(storage.clone(), &case.spec(disk))
        .unwrap();
    let committed = drive.run(sink, disk).unwrap();
    let image = storage.to_vec();
    assert_eq!(committed.file_len, image.len() as u64, "{case:?}");
    image
}

/// Over a file full of other bytes, longer or shorter than the image, the disk is the same.
pub fn old_content_of_the_storage_does_not_show(subject: &Subject) {
    for case in subject.cases() {
        let disk = case.mixed_disk();
        let len = case.write(&disk).len();
        for old in [1, len / 2, len + 100_001] {
            let storage = Arc::new(MemoryStorage::holding("image", vec![0xdb; old]));
            let sink = case
                .format
                .create(storage.clone(), &case.spec(&disk))
                .unwrap();
            image::drive(sink, &disk).unwrap();
            let outcome = survives(case.format, storage.to_vec());
            assert!(
                outcome.reads_as(disk.bytes()),
                "{case:?}: {disk:?} over {old} old bytes is {:?}",
                outcome.refused()
            );
        }
    }
}

/// A device that is larger than the image holds the disk all the same, unless the format cannot
/// live on one and says so. Where there are no marks, the disk is as large as the device.
pub fn device_holds_the_disk_or_is_refused(subject: &Subject) {
    for case in subject.cases() {
        let disk = case.mixed_disk();
        let len = case.write(&disk).len();
        for spare in [0, 100 * 512] {
            let storage = Arc::new(DeviceStorage::holding(vec![0xdb; len + spare]));
            let sink = match case.format.create(storage.clone(), &case.spec(&disk)) {
                Ok(sink) => sink,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Usage, "{case:?}: {error:?}");
                    continue;
                }
            };
            image::drive(sink, &disk).unwrap();
            let mut expected = disk.bytes().to_vec();
            if !case.is_marked() {
                expected.resize(len + spare, 0xdb);
            }
            let outcome = survives(case.format, storage.to_vec());
            assert!(
                outcome.reads_as(&expected),
                "{case:?}: {disk:?} on a device with {spare} bytes to spare is {:?}",
                outcome.refused()
            );
        }
    }
}

/// A device that cannot hold the image is refused, at the latest when it is full.
pub fn device_that_is_too_small_is_an_error(subject: &Subject) {
    for case in subject.cases() {
        let disk = case.mixed_disk();
        for len in [0, 512, 4096, case.write(&disk).len() - 512] {
            let storage = Arc::new(DeviceStorage::holding(vec![0xdb; len]));
            let sink = case.format.create(storage, &case.spec(&disk));
            let error = match sink.and_then(|sink| image::drive(sink, &disk)) {
                Ok(_) => panic!("{case:?}: {disk:?} fits on {len} bytes"),
                Err(error) => error,
            };
            assert!(
                matches!(error.kind(), ErrorKind::Usage | ErrorKind::Io),
                "{case:?}: {error:?}"
            );
        }
    }
}

/// A sink that is dropped before `commit` leaves nothing that opens.
pub fn uncommitted_image_does_not_open(subject: &Subject) {
    for case in subject.cases().filter(Case::is_marked) {
        let disk = case.mixed_disk();
        let storage = Arc::new(MemoryStorage::new("image"));
        let sink = case
            .format
            .create(storage.clone(), &case.spec(&disk))
            .unwrap();
        Drive::default().fill(&*sink, &disk).unwrap();
        drop(sink);
        let outcome = survives(case.format, storage.to_vec());
        assert!(
            outcome.refused().is_some(),
            "{case:?} opens without its commit"
        );
    }
}

/// The same where an older image stood: `create` made sure that it opens no more.
pub fn uncommitted_image_over_an_old_one_does_not_open(subject: &Subject) {
    for case in subject.cases().filter(Case::is_marked) {
        let old = case.write(&case.mixed_disk());
        let disk = disk("4k:- 4k:Z 4k:-");
        let storage = Arc::new(MemoryStorage::holding("image", old));
        let sink = case
            .format
            .create(storage.clone(), &case.spec(&disk))
            .unwrap();
        Drive::default().fill(&*sink, &disk).unwrap();
        drop(sink);
        let outcome = survives(case.format, storage.to_vec());
        assert!(
            outcome.refused().is_some(),
            "{case:?} opens, though its header is an old one"
        );
    }
}

/// Whichever call of the storage fails, somebody hears of it, and what is left is no other image.
pub fn failing_storage_is_an_io_error(subject: &Subject) {
    for case in subject.cases() {
        let disk = disk("4608:A 64k:- 512:b 3k:0 64k:C 512:-");
        for op in [Op::Write, Op::SetLen, Op::Zero, Op::Read, Op::Flush] {
            for nth in 0.. {
                assert!(nth < 10_000, "{case:?}: too many calls for so small a disk");
                let memory = Arc::new(MemoryStorage::holding("image", vec![0xdb; 4096]));
                let storage = Arc::new(FaultStorage::new(memory.clone(), op, nth));
                let result = attempt(&case, storage.clone(), &disk);
                if !storage.fired() {
                    result.unwrap();
                    break;
                }
                let outcome = survives(case.format, memory.to_vec());
                match result {
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Io, "{case:?}: {error:?}"),
                    // There may be another way to know or to zero something.
                    Ok(()) => assert!(
                        matches!(op, Op::Read | Op::Zero) && outcome.reads_as(disk.bytes()),
                        "{case:?}: failure of {op:?} number {nth} was not reported"
                    ),
                }
                assert!(
                    !case.is_marked()
                        || outcome.refused().is_some()
                        || outcome.reads_as(disk.bytes()),
                    "{case:?}: after failure of {op:?} number {nth} there is another image"
                );
            }
        }
    }
}

fn attempt(case: &Case, storage: Arc<FaultStorage<MemoryStorage>>, disk: &ModelDisk) -> Result<()> {
    let sink = case.format.create(storage, &case.spec(disk))?;
    image::drive(sink, disk).map(|_| ())
}
