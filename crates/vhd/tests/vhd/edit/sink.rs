//! Writing over the disk of an image that is there: what commit and safe rebase do.

use std::sync::Arc;

use goldsmith_block::{
    Chain, Committed, Demand, Edit, ErrorKind, Format, GuestRange, Placement, Result, Sink,
    StorageMut, ZeroPolicy, is_zero,
};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::crash::CrashStorage;
use goldsmith_testkit::fault::{FaultStorage, Op};
use goldsmith_testkit::sparse::SparseStorage;
use goldsmith_testkit::{ModelDisk, image, pattern, qemu};
use goldsmith_vhd::VHD;

use super::{
    BLOCK, JUDGED, KIB, assert_durable, assert_flawless_but_for_footers, assert_sound, check,
    child, content, edit, edited, forge, nothing, parent, takes_a_block_of_qemu,
};
use crate::forge::Forge;
use crate::judges::extract;

const SECTOR: usize = 512;

/// Makes the sectors of `new` that differ from those of `old` the disk's, as the engine does.
pub(super) fn cover(sink: Box<dyn Sink>, old: &[u8], new: &[u8]) -> Result<Committed> {
    assert_eq!(sink.profile().virtual_size, new.len() as u64);
    let mut start = 0;
    while start < new.len() {
        let kind = |at: usize| {
            let (was, is) = (&old[at..at + SECTOR], &new[at..at + SECTOR]);
            (was != is).then(|| is_zero(is))
        };
        let mut end = start;
        while end < new.len() && kind(end) == kind(start) {
            end += SECTOR;
        }
        let range = GuestRange::new(start as u64, end as u64);
        match kind(start) {
            None => {}
            Some(true) => sink.reserve_zeroes(range)?,
            Some(false) => {
                let mut slots = Vec::new();
                let packed = None;
                sink.reserve(&[Demand { range, packed }], &mut slots)?;
                for slot in slots {
                    let part = slot.range.start as usize..slot.range.end as usize;
                    sink.write(slot, &new[part])?;
                }
            }
        }
        start = end;
    }
    sink.commit()
}

pub(super) fn sink(storage: Arc<dyn StorageMut>, len: u64) -> Box<dyn Sink> {
    edit(storage).unwrap().into_sink(len).unwrap()
}

/// `disk` with some sectors changed: alone, in a row over blocks, to zeros, at the end.
fn changed(disk: &[u8]) -> Vec<u8> {
    let mut new = disk.to_vec();
    let len = new.len();
    let data = pattern::disk("400k:Z");
    for (from, to) in [
        (512, 1024),
        (BLOCK + 13 * 1024, BLOCK + 15 * 1024),
        (BLOCK + 28 * 1024, 2 * BLOCK + 1024),
        (3 * BLOCK - 512, 3 * BLOCK + 4096),
        (len - 512, len),
    ] {
        new[from..to].copy_from_slice(&data.bytes()[from..to]);
    }
    new[3 * BLOCK + 8192..3 * BLOCK + 16384].fill(0);
    new[4 * BLOCK + 1024..4 * BLOCK + 2048].fill(0);
    new
}

fn images() -> Vec<(&'static str, Vec<u8>, ModelDisk)> {
    let mut little = child();
    (little.creator, little.creator_version) = (*b"tap\0", 1);
    let mut batmap = child();
    (batmap.creator, batmap.creator_version) = (*b"tap\0", 0x0001_0003);
    batmap.batmap = Some((0x0001_0002, None, vec![0x14]));
    let mut short = forge();
    short.footer_len = 511;
    let fixed = Forge::new(325 * KIB, 0).fixed(pattern::disk("325k:q").bytes());
    vec![
        ("dynamic", forge().dynamic(), nothing()),
        ("short", short.dynamic(), nothing()),
        ("fixed", fixed, nothing()),
        ("child", child().dynamic(), parent()),
        ("little", little.dynamic(), parent()),
        ("batmap", batmap.dynamic(), parent()),
    ]
}

#[test]
fn disk_is_the_new_one_to_the_sector() {
    for (name, image, parent) in images() {
        let old = content(&image, &parent);
        let new = changed(&old);
        let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
        let sink = sink(storage.clone(), new.len() as u64);
        assert_eq!(
            (sink.profile().grain, sink.profile().zeroes),
            (512, ZeroPolicy::Covering)
        );
        let committed = cover(sink, &old, &new).unwrap();
        let after = storage.to_vec();
        assert_eq!(committed.file_len, after.len() as u64);
        assert_sound(&after);
        assert!(content(&after, &parent) == new, "{name}");
        if parent.is_empty() {
            assert!(qemu::read("vpc", &after) == new, "{name}");
        }
        // What nobody wrote is still the parent's.
        let other = pattern::disk("325k:w");
        let (was, is) = (content(&image, &other), content(&after, &other));
        for (at, sector) in new.chunks(SECTOR).enumerate() {
            let range = at * SECTOR..(at + 1) * SECTOR;
            if *sector == old[range.clone()] {
                assert!(was[range.clone()] == is[range], "{name}: sector {at}");
            }
        }
    }
}

/// [qemu] What stands behind all blocks shows in the next one that is added.
#[test]
fn sink_that_never_commits_leaves_nothing_behind_the_blocks() {
    for (name, image, parent) in images() {
        let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
        let old = content(&image, &parent);
        let sink = sink(storage.clone(), old.len() as u64);
        let before = storage.to_vec();
        let range = GuestRange::new(0, old.len() as u64);
        let (mut slots, packed) = (Vec::new(), None);
        sink.reserve(&[Demand { range, packed }], &mut slots)
            .unwrap();
        for slot in slots {
            let part = slot.range.start as usize..slot.range.end as usize;
            sink.write(slot, &old[part]).unwrap();
        }
        drop(sink);
        let after = storage.to_vec();
        // A footer of 511 bytes has become a whole one.
        assert_eq!(after.len(), before.len().next_multiple_of(512), "{name}");
        assert_eq!(check(&after).flaws, check(&before).flaws, "{name}");
        assert!(content(&after, &parent) == old, "{name}");
    }
}

/// So does one that could not make sure of something before the table told of a new block.
#[test]
fn sink_that_a_flush_stops_leaves_nothing_behind_the_blocks() {
    let (mut whole, mut part) = (0, 0);
    for (name, image, parent) in images() {
        let old = content(&image, &parent);
        let new = changed(&old);
        for nth in 0.. {
            let memory = Arc::new(MemoryStorage::holding("image", image.clone()));
            let storage = Arc::new(FaultStorage::new(memory.clone(), Op::Flush, nth));
            let sink = edit(storage.clone()).and_then(|it| it.into_sink(new.len() as u64));
            let done = sink.and_then(|sink| cover(sink, &old, &new));
            if !storage.fired() {
                done.unwrap();
                break;
            }
            assert_eq!(done.unwrap_err().kind(), ErrorKind::Io);
            let after = memory.to_vec();
            let [before, found] = [&image, &after].map(|image| check(image));
            if found.allocated > before.allocated {
                part += 1;
                continue;
            }
            whole += 1;
            let [before_len, len] = [&image, &after].map(|it| it.len().next_multiple_of(512));
            assert_eq!(len, before_len, "{name}: flush {nth}");
            assert_eq!(found.leaks, before.leaks, "{name}: flush {nth}");
        }
    }
    assert!(whole >= 15 && part >= 5, "{whole}, {part}");
}

#[test]
fn first_part_of_a_disk_can_be_written_alone() {
    for (name, image, parent) in images() {
        let old = content(&image, &parent);
        let mut new = changed(&old);
        for len in [0, 512, BLOCK + 512, 3 * BLOCK] {
            let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
            let sink = sink(storage.clone(), len as u64);
            cover(sink, &old, &new[..len]).unwrap();
            new[len..].copy_from_slice(&old[len..]);
            assert!(content(&storage.to_vec(), &parent) == new, "{name} {len}");
            new = changed(&old);
        }
        for (len, text) in [
            (old.len() + 512, "over a disk of"),
            (100, "no multiple of 512"),
        ] {
            let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
            let refused = edit(storage).unwrap().into_sink(len as u64).map(|_| ());
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.report().contains(text), "{}", error.report());
        }
    }
}

/// Each sector is the old or the new one: what an overlay hides may be either.
#[test]
fn cut_at_any_point_leaves_each_sector_old_or_new() {
    for (name, image, parent) in images() {
        let old = content(&image, &parent);
        let new = changed(&old);
        let crash = Arc::new(CrashStorage::new("image", image.clone()));
        cover(sink(crash.clone(), new.len() as u64), &old, &new).unwrap();
        assert_durable(&crash);
        let mut states = 0;
        crash.each_state(|what, state| {
            let bytes = state.to_vec();
            let found = content(&bytes, &parent);
            let sectors = old.chunks(SECTOR).zip(new.chunks(SECTOR));
            for ((was, is), sector) in sectors.zip(found.chunks(SECTOR)) {
                assert!(sector == was || sector == is, "{name}: {what}");
            }
            assert_flawless_but_for_footers(&bytes, what);
            let repair = goldsmith_block::Edit::Repair(goldsmith_block::Repair::All);
            assert!(
                content(&edited(&bytes, &repair), &parent) == found,
                "{name}: {what}"
            );
            if parent.is_empty() && states % JUDGED == 1 {
                takes_a_block_of_qemu(&bytes, what);
            }
            states += 1;
        });
        assert!(states > 30 && crash.to_vec() != image, "{name}: {states}");
    }
}

/// The child goes into its parent, and is emptied when all is there: two files, one power cut.
#[test]
fn commit_is_not_seen_by_the_guest_whenever_it_stops() {
    let base = {
        let mut forge = forge();
        forge.blocks.truncate(2);
        forge.dynamic()
    };
    let top = child().dynamic();
    let show = |top: &[u8], base: &[u8]| {
        let layers = [top, base].map(|bytes| image::open(&VHD, bytes).unwrap());
        let mut bytes = vec![0; layers[0].info().virtual_size as usize];
        Chain::new(layers[0].clone(), [layers[1].clone()])
            .read_at(0, &mut bytes)
            .unwrap();
        bytes
    };
    let disk = show(&top, &base);
    let below = Arc::new(CrashStorage::new("base", base.clone()));
    let above = Arc::new(below.beside("top", top));
    let old = content(&base, &nothing());
    assert!(old != disk);
    cover(sink(below.clone(), disk.len() as u64), &old, &disk).unwrap();
    edit(above.clone()).unwrap().edit(&Edit::Empty).unwrap();
    assert!(content(&below.to_vec(), &nothing()) == disk);
    assert_eq!(super::check(&above.to_vec()).allocated, 0);
    let mut states = 0;
    below.each_states(|what, files| {
        let found = show(&files[1].to_vec(), &files[0].to_vec());
        assert!(found == disk, "{what}");
        states += 1;
    });
    assert!(states > 100, "{states}");
}

#[test]
fn dropped_sink_leaves_an_image_that_only_wastes_space() {
    for (name, image, parent) in images() {
        let old = content(&image, &parent);
        let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
        let sink = sink(storage.clone(), old.len() as u64);
        let range = GuestRange::new(0, 512);
        let packed = None;
        let mut slots = Vec::new();
        sink.reserve(&[Demand { range, packed }], &mut slots)
            .unwrap();
        drop(sink);
        let bytes = storage.to_vec();
        assert_flawless_but_for_footers(&bytes, name);
        assert!(content(&bytes, &parent) == old, "{name}");
        let leaks = goldsmith_block::Edit::Repair(goldsmith_block::Repair::Leaks);
        let mended = edited(&bytes, &leaks);
        assert!(mended.len() <= image.len() + 4096);
        assert!(content(&mended, &parent) == old, "{name}");
    }
}

/// An image as we make it, with blocks of the usual sizes, seen by all judges.
#[test]
fn judges_read_what_was_written_over_our_own_images() {
    let dir = tempfile::tempdir().unwrap();
    let disk = pattern::disk("2M:- 1536:- 64k:c 3M:- 512:0 512:D 1M:e 2M:- 512:F");
    let mut new = disk.bytes().to_vec();
    new[..3 << 20].copy_from_slice(pattern::disk("3M:z").bytes());
    new[6 << 20..(6 << 20) + 4096].fill(0);
    for options in [&[][..], &[("block_size", "512k")], &[("batmap", "on")]] {
        let image = image::write(&VHD, &disk, options, false).unwrap();
        let storage = Arc::new(MemoryStorage::holding("image", image));
        let sink = sink(storage.clone(), new.len() as u64);
        assert_eq!(sink.profile().placement, Placement::Allocated);
        cover(sink, disk.bytes(), &new).unwrap();
        let after = storage.to_vec();
        assert_sound(&after);
        assert!(content(&after, &nothing()) == new);
        assert!(qemu::read("vpc", &after) == new);
        assert!(extract(&dir.path().join("disk.vhd"), &after) == new);
    }
}

/// Four million blocks have a place each only if nothing is lost between them.
#[test]
fn smallest_blocks_of_the_largest_disk_stand_directly_behind_each_other() {
    const SIZE: u64 = 2040 << 30;
    for (block_size, apart) in [("512k", (512 << 10) + 512), ("2M", (2 << 20) + 4096)] {
        let storage = Arc::new(SparseStorage::new());
        let spec = image::spec(&VHD, SIZE, &[("block_size", block_size)], false).unwrap();
        VHD.create(storage.clone(), &spec)
            .unwrap()
            .commit()
            .unwrap();
        let demand = Demand {
            range: GuestRange::new(0, 8 << 20),
            packed: None,
        };
        let mut slots = Vec::new();
        sink(storage, SIZE).reserve(&[demand], &mut slots).unwrap();
        let hosts: Vec<_> = slots.iter().map(|slot| slot.host).collect();
        let steps: Vec<_> = hosts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(
            !steps.is_empty() && steps.iter().all(|step| *step == apart),
            "{hosts:?}"
        );
    }
}
