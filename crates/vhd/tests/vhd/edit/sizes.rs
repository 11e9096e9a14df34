//! Images whose footer gives two sizes: QEMU and we go by the geometry if the creator does, others by the
//! current size, and what stands between them is no waste.

use std::sync::Arc;

use goldsmith_block::{
    Ailment, BackingReference, Budget, Edit, ErrorKind, Flaw, Format, Layer, Limits, Options,
    Repair,
};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::crash::CrashStorage;
use goldsmith_testkit::{image, pattern, qemu};
use goldsmith_vhd::VHD;
use proptest::prelude::*;
use uuid::Uuid;

use super::sink::{cover, sink};
use super::{BLOCK, assert_sound, check, content, edit, forge, nothing, resize};
use crate::forge::{Forge, patch_footer};

/// By the geometry the disk ends in its fifth block, by the current size with the sixth.
const BY_GEOMETRY: u64 = 9 * 68 * 512;
const BY_CURRENT_SIZE: u64 = 6 * BLOCK as u64;

/// Blocks 1, 3 and those in question.
fn two_sizes(creator: [u8; 4]) -> Forge {
    let disk = pattern::disk("64k:l 64k:m");
    let mut forge = forge();
    forge.blocks.truncate(2);
    forge = forge
        .full_block(4, &disk.bytes()[..BLOCK])
        .full_block(5, &disk.bytes()[BLOCK..]);
    (forge.creator, forge.chs) = (creator, (9, 4, 17));
    forge.current_size = BY_CURRENT_SIZE;
    forge
}

fn opened_by(rule: &str, image: &[u8]) -> Arc<dyn Layer> {
    let options = Options::parse(VHD.open_options(), [("force_size_calc", rule)]).unwrap();
    let storage = Arc::new(MemoryStorage::holding("image", image.to_vec()));
    let budget = Budget::new(&Limits::default());
    VHD.open_with(storage, &budget, &options).unwrap()
}

/// The disk of those who go by the current size.
fn by_current_size(bytes: &[u8]) -> Vec<u8> {
    let layer = opened_by("current_size", bytes);
    assert_eq!(layer.info().virtual_size, BY_CURRENT_SIZE);
    image::read(&*layer).unwrap()
}

/// The same by QEMU.
fn theirs_by_current_size(image: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let [path, raw] = ["image", "raw"].map(|name| dir.path().join(name));
    std::fs::write(&path, image).unwrap();
    let path = path.to_str().unwrap();
    let options =
        format!("driver=vpc,force_size_calc=current_size,file.driver=file,file.filename={path}");
    let raw = raw.to_str().unwrap();
    qemu::img_ok(&["convert", "--image-opts", &options, "-O", "raw", raw]);
    std::fs::read(raw).unwrap()
}

/// `image` with entry `index` of the table at 1536 gone.
fn without(mut image: Vec<u8>, index: usize) -> Vec<u8> {
    image[1536 + 4 * index..][..4].fill(0xff);
    image
}

#[track_caller]
fn assert_told_and_sound(image: &[u8], blocks: usize) {
    let flaws = check(image).flaws;
    let text = format!(
        "{blocks} blocks are past the end of the disk at 313344, but not past its other size, 393216 \
         bytes: programs that go by that show them"
    );
    assert_eq!(flaws, [Flaw::Note(text)]);
}

#[test]
fn blocks_between_the_sizes_are_told_and_no_waste() {
    for creator in [*b"vpc ", *b"qemu"] {
        let image = two_sizes(creator).dynamic();
        let layer = image::open(&VHD, &*image).unwrap();
        assert_eq!(layer.info().virtual_size, BY_GEOMETRY);
        assert!(layer.symptoms().unwrap().is_empty());
        assert_told_and_sound(&image, 1);
        let checked = check(&image);
        assert_eq!((checked.units, checked.allocated), (5, 3));
        assert_eq!(checked.end, image.len() as u64);
    }
    // Whoever counts by the current size has nothing behind it.
    assert_sound(&two_sizes(*b"win ").dynamic());
}

/// One that is not in the file is lost for some.
#[test]
fn block_between_the_sizes_that_is_not_there_is_an_error() {
    let image = two_sizes(*b"vpc ").dynamic();
    let mut cut = image.clone();
    cut.drain(image.len() - 1024..image.len() - 512);
    for change in [Repair::Leaks, Repair::All] {
        let storage = Arc::new(MemoryStorage::holding("image", cut.clone()));
        let outcome = edit(storage.clone()).unwrap().edit(&Edit::Repair(change));
        assert_eq!(outcome.is_err(), change == Repair::Leaks);
        assert!(storage.to_vec() == cut);
    }
    let flaws = check(&cut).flaws;
    assert!(
        flaws.iter().any(|flaw| matches!(
            flaw,
            Flaw::Corruption(text) if text.contains("block 5 should fill")
        )),
        "{flaws:?}"
    );
    // What the guest of the smaller disk sees is there.
    assert!(content(&cut, &nothing()) == content(&image, &nothing()));
    let layer = image::open(&VHD, cut).unwrap();
    assert_eq!(layer.symptoms().unwrap()[0].ailment, Ailment::Truncated);
}

#[test]
fn changes_keep_what_stands_between_the_sizes() {
    for creator in [*b"vpc ", *b"qemu"] {
        let image = two_sizes(creator).dynamic();
        let [old, larger] = [content(&image, &nothing()), by_current_size(&image)];
        assert!(theirs_by_current_size(&image) == larger && qemu::read("vpc", &image) == old);
        // With room in the file for the block at its end, too, and with a copy that is broken.
        let mut copy = image.clone();
        copy[50] ^= 1;
        for image in [image.clone(), without(image, 3), copy] {
            let changes = [Edit::Repair(Repair::Leaks), Edit::Repair(Repair::All)];
            let old = content(&image, &nothing());
            let larger = by_current_size(&image);
            for change in &changes {
                if check(&image).corruptions > 0 && *change == changes[0] {
                    continue;
                }
                let crash = Arc::new(CrashStorage::new("image", image.clone()));
                edit(crash.clone()).unwrap().edit(change).unwrap();
                let after = crash.to_vec();
                assert_told_and_sound(&after, 1);
                assert!(qemu::read("vpc", &after) == old);
                assert!(theirs_by_current_size(&after) == larger);
                crash.each_state(|what, state| {
                    let bytes = state.to_vec();
                    assert!(content(&bytes, &nothing()) == old, "{what}");
                    assert!(by_current_size(&bytes) == larger, "{what}");
                });
            }
        }
        let image = two_sizes(creator).dynamic();
        let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
        let mut new = old.clone();
        new[..BLOCK].fill(b'n');
        cover(sink(storage.clone(), BY_GEOMETRY), &old, &new).unwrap();
        assert_told_and_sound(&storage.to_vec(), 1);
        assert!(theirs_by_current_size(&storage.to_vec()) == [&new, &larger[old.len()..]].concat());
    }
}

/// Why `change` of `image` is refused; no byte changes.
#[track_caller]
fn refusal(image: &[u8], change: &Edit) -> String {
    let storage = Arc::new(MemoryStorage::holding("image", image.to_vec()));
    let error = edit(storage.clone()).unwrap().edit(change).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(storage.to_vec() == image);
    error.report()
}

fn fixed(end: &[u8]) -> Vec<u8> {
    let disk = pattern::disk(&format!("{BY_GEOMETRY}:f"));
    let mut forge = two_sizes(*b"vpc ");
    forge.current_size = disk.len() + end.len() as u64;
    forge.fixed(&[disk.bytes(), end].concat())
}

#[test]
fn size_is_not_changed_while_data_stand_between_the_two() {
    let forge = two_sizes(*b"vpc ");
    // In a block of its own, behind the end of the disk in its block.
    let mut behind = forge.clone();
    behind.blocks.truncate(3);
    let parent = BackingReference {
        name: "base.vhd".into(),
        format: Some("vpc".into()),
        uuid: Some(Uuid::from_bytes([7; 16])),
        ..BackingReference::default()
    };
    // With a parent, the disk is the larger one.
    let changes = [
        resize(BLOCK as u64),
        resize(20 * BLOCK as u64),
        Edit::Empty,
        Edit::SetBacking(Some(parent)),
    ];
    for image in [forge.dynamic(), behind.dynamic()] {
        for change in &changes {
            let report = refusal(&image, change);
            let text = "313344 bytes by one of the two sizes in its footer and 393216 by the other";
            assert!(report.contains(text), "{report}");
        }
    }
    let image = fixed(b"the end of the disk of Hyper-V. ".repeat(64).as_slice());
    assert!(
        image::open(&VHD, &*image)
            .unwrap()
            .symptoms()
            .unwrap()
            .is_empty()
    );
    for change in [resize(BLOCK as u64), resize(20 * BLOCK as u64)] {
        let report = refusal(&image, &change);
        assert!(
            report.contains("313344 bytes by one of the two sizes"),
            "{report}"
        );
    }
}

#[test]
fn size_is_changed_if_only_zeros_stand_between_the_two() {
    let mut forge = two_sizes(*b"vpc ");
    forge.blocks.truncate(3);
    let within = BY_GEOMETRY as usize - 4 * BLOCK;
    forge.blocks[2].2[within..].fill(0);
    let mut unused = forge.clone();
    unused.blocks.truncate(2);
    for image in [forge.dynamic(), unused.dynamic(), fixed(&[0; 2048])] {
        let old = content(&image, &nothing());
        for size in [BLOCK, 20 * BLOCK] {
            let after = super::edited(&image, &resize(size as u64));
            let mut expected = old.clone();
            expected.resize(size, 0);
            assert!(qemu::read("vpc", &after) == expected);
            assert!(theirs_by_current_size(&after) == expected);
        }
    }
}

/// Whoever wrote the image: QEMU refuses one with an entry that points past its end.
#[test]
fn block_past_any_size_is_given_back_with_its_entry() {
    let mut forge = two_sizes(*b"win ");
    forge.table_entries = Some(20);
    let image = patch_footer(forge.dynamic(), 48, &(4 * BLOCK as u64 + 512).to_be_bytes());
    let footer = image[image.len() - 512..].to_vec();
    let image = [&footer, &image[512..]].concat();
    assert_eq!(check(&image).leaks, 1);
    let old = content(&image, &nothing());
    let crash = Arc::new(CrashStorage::new("image", image.clone()));
    let leaks = Edit::Repair(Repair::Leaks);
    edit(crash.clone()).unwrap().edit(&leaks).unwrap();
    let after = crash.to_vec();
    assert_sound(&after);
    assert!(after.len() < image.len() - BLOCK / 2);
    let mut states = 0_u32;
    crash.each_state(|what, state| {
        let bytes = state.to_vec();
        assert!(content(&bytes, &nothing()) == old, "{what}");
        if states.is_multiple_of(8) && super::is_for_qemu(&bytes) {
            assert!(qemu::read("vpc", &bytes) == old, "{what}");
        }
        states += 1;
    });
    assert!(qemu::read("vpc", &after) == old && states > 8);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Whatever is in the table, and wherever the two sizes are.
    #[test]
    fn repair_keeps_the_disk_of_either_size(
        cylinders in 1_u16..14,
        sectors in 0_u64..900,
        entries in 7_u32..20,
        table in prop::collection::vec((0_usize..12, prop_oneof![0_u32..700, any::<u32>()]), 0..4),
        cut in prop_oneof![3 => Just(0), 1 => 1_usize..2000],
        repair in prop_oneof![Just(Repair::Leaks), Just(Repair::All)],
    ) {
        let mut forge = two_sizes(*b"vpc ");
        forge.chs.0 = cylinders;
        forge.current_size = BY_CURRENT_SIZE.min(sectors * 512);
        forge.table_entries = Some(entries);
        let mut image = forge.dynamic();
        for (index, entry) in table {
            let end = 1536 + 4 * entries as usize;
            let at = (1536 + 4 * index).min(end - 4);
            image[at..][..4].copy_from_slice(&entry.to_be_bytes());
        }
        image.truncate(image.len() - cut);
        let disks = |image: &[u8]| {
            ["chs", "current_size"].map(|rule| {
                let options = Options::parse(VHD.open_options(), [("force_size_calc", rule)]).unwrap();
                let storage = Arc::new(MemoryStorage::holding("image", image.to_vec()));
                let layer = VHD.open_with(storage, &Budget::new(&Limits::default()), &options);
                image::read(&*layer.ok()?).ok()
            })
        };
        let before = disks(&image);
        let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
        let outcome = edit(storage.clone()).and_then(|mut editor| editor.edit(&Edit::Repair(repair)));
        let after = storage.to_vec();
        prop_assert!(outcome.is_ok() || after == image);
        for (before, after) in before.iter().zip(disks(&after)) {
            // What could not be read is not made up.
            prop_assert!(*before == after);
        }
    }
}
