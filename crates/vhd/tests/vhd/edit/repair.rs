//! What `check -r` mends, and what it leaves alone.

use std::sync::Arc;

use goldsmith_block::{Edit, Flaw, Repair};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::{image, pattern};
use goldsmith_vhd::VHD;

use super::survives_cuts;
use super::{BLOCK, check, child, content, edit, edited, forge, nothing};
use crate::forge::{Parent, patch_header};

const ALL: Edit = Edit::Repair(Repair::All);
const LEAKS: Edit = Edit::Repair(Repair::Leaks);

fn entry(mut image: Vec<u8>, index: usize, sector: u32) -> Vec<u8> {
    image[1536 + 4 * index..][..4].copy_from_slice(&sector.to_be_bytes());
    image
}

/// `image` is mended to one without flaws and with the same disk, whenever the work stops.
#[track_caller]
fn mends(image: &[u8]) -> Vec<u8> {
    assert!(!check(image).flaws.is_empty(), "nothing to mend");
    let old = content(image, &nothing());
    let after = edited(image, &ALL);
    assert!(content(&after, &nothing()) == old);
    let crash = Arc::new(goldsmith_testkit::crash::CrashStorage::new(
        "image",
        image.to_vec(),
    ));
    edit(crash.clone()).unwrap().edit(&ALL).unwrap();
    crash.each_state(|what, state| {
        let bytes = state.to_vec();
        assert!(content(&bytes, &nothing()) == old, "{what}");
        assert!(content(&edited(&bytes, &ALL), &nothing()) == old, "{what}");
    });
    after
}

#[test]
fn each_footer_is_made_from_the_other() {
    let image = forge().dynamic();
    let end = image.len() - 512;
    let mut flipped = image.clone();
    flipped[end + 50] ^= 1;
    let mut copy = image.clone();
    copy[50] ^= 1;
    let longer = [&image[..], &[0; 1000]].concat();
    for broken in [
        image[..end].to_vec(),
        image[..end + 100].to_vec(),
        flipped,
        copy,
        longer,
    ] {
        let after = mends(&broken);
        assert_eq!(after[..512], after[after.len() - 512..]);
        assert_eq!(after[..512], image[end..]);
    }
}

/// Two blocks in one place, and on each other's ends: each gets its own, and the guest sees no
/// difference.
#[test]
fn blocks_that_overlap_are_parted() {
    let image = forge().dynamic();
    let first = 4_u32;
    for broken in [
        entry(image.clone(), 0, first),
        entry(image.clone(), 0, first + 129),
        entry(image.clone(), 4, first + 100),
        entry(entry(image.clone(), 0, first), 2, first),
    ] {
        let after = mends(&broken);
        assert!(check(&after).allocated > 3);
    }
}

#[test]
fn block_on_a_name_of_the_parent_gets_a_place_of_its_own() {
    let mut forge = forge();
    forge.parent = Some(Parent::nameless([7; 16]).locator(b"W2ru", r".\base.vhd"));
    forge.table_last = true;
    let mut image = forge.dynamic();
    let table = image.len() - 1024;
    image[table..][..4].copy_from_slice(&3_u32.to_be_bytes());
    let after = mends(&image);
    let layer = image::open(&VHD, after).unwrap();
    assert_eq!(layer.info().backing.as_ref().unwrap().name, "base.vhd");
}

#[test]
fn batmap_is_made_from_the_bitmaps() {
    let mut forge = forge();
    (forge.creator, forge.creator_version) = (*b"tap\0", 0x0001_0003);
    // A bit of a block that has no place; then a wrong sum; then none at all.
    for batmap in [
        Some((0x0001_0002, None, vec![0x94])),
        Some((0x0001_0002, Some(1), vec![0x14])),
        None,
    ] {
        forge.batmap = batmap;
        let after = mends(&forge.dynamic());
        let map = u64::from_be_bytes(after[2048 + 8..2048 + 16].try_into().unwrap()) as usize;
        assert_eq!(after[map], 0b0001_0100, "blocks 3 and 5 are full");
    }
}

#[test]
fn locator_that_points_out_of_the_file_is_dropped() {
    let mut forge = child();
    let parent = Parent::nameless([7; 16]).locator(b"W2ru", r".\base.vhd");
    forge.parent = Some(parent.locator(b"W2ku", r"C:\base.vhd"));
    let broken = patch_header(forge.dynamic(), 576 + 16, &u64::MAX.to_be_bytes());
    assert_eq!(
        image::open(&VHD, &*broken).unwrap().info().warnings.len(),
        1
    );
    let after = mends(&broken);
    let layer = image::open(&VHD, after).unwrap();
    assert_eq!(layer.info().backing.as_ref().unwrap().name, "/base.vhd");
}

#[test]
fn entries_behind_the_disk_are_cleared() {
    let mut forge = forge();
    forge.table_entries = Some(20);
    mends(&entry(forge.dynamic(), 12, 4));
}

#[test]
fn wasted_space_is_given_back() {
    let image = forge().dynamic();
    // The first block of the file, and then both of the others.
    for broken in [
        entry(image.clone(), 3, u32::MAX),
        entry(entry(image.clone(), 3, u32::MAX), 1, u32::MAX),
        entry(image.clone(), 5, u32::MAX),
    ] {
        let wasted = check(&broken).leaks;
        assert!(wasted > 0);
        for change in [&LEAKS, &ALL] {
            let after = edited(&broken, change);
            assert!(content(&after, &nothing()) == content(&broken, &nothing()));
            let saved = image.len() - after.len();
            // Less what it may cost to align a block.
            assert!(saved as u64 + 4096 >= wasted * BLOCK as u64, "{saved}");
        }
        survives_cuts(&broken, &nothing(), &LEAKS);
    }
}

/// What stood where such an entry points is not known, and zeros would be a guess.
#[test]
fn block_outside_the_file_stays_an_error_and_the_footers_are_mended() {
    for sector in [0x00ff_ffff, 1, 3] {
        let mut image = entry(forge().dynamic(), 0, sector);
        let sound_end = image.len();
        image[50] ^= 1;
        let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
        edit(storage.clone()).unwrap().edit(&ALL).unwrap();
        let after = storage.to_vec();
        assert_eq!(after.len(), sound_end);
        assert!(after[512..] == image[512..]);
        let flaws = check(&after).flaws;
        assert!(
            matches!(&flaws[..], [Flaw::Corruption(text), ..] if text.contains("block 0 should fill")),
            "{flaws:?}"
        );
        assert_eq!(check(&after).corruptions, 1);
    }
}

#[test]
fn sound_image_is_left_as_it_is() {
    let disk = pattern::disk("1M:a 1M:- 1M:b");
    for options in [&[][..], &[("batmap", "on")], &[("subformat", "fixed")]] {
        let image = image::write(&VHD, &disk, options, false).unwrap();
        for change in [&LEAKS, &ALL] {
            assert!(edited(&image, change) == image);
        }
    }
    for image in [forge().dynamic(), child().dynamic()] {
        assert!(edited(&image, &ALL) == image);
    }
}
