//! What `check -r` mends, and what it leaves alone.

use std::sync::Arc;

use goldsmith_block::{Edit, ErrorKind, Flaw, Repair};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::{image, pattern};
use goldsmith_vhd::VHD;

use super::{
    BLOCK, check, child, content, edit, edited, forge, nothing, resize, survives_cuts,
    takes_a_block_of_qemu,
};
use crate::forge::{Forge, Parent, patch_footer, patch_header};

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

#[test]
fn footers_that_differ_become_the_one_at_the_end() {
    let image = forge().dynamic();
    for (at, bytes) in [
        (24, &[0, 0, 0, 9][..]),
        (85, &[1]),
        (48, &[0, 0, 0, 0, 0, 5, 0x16, 0]),
    ] {
        let broken = patch_footer(image.clone(), at, bytes);
        let after = mends(&broken);
        assert_eq!(after[..512], broken[broken.len() - 512..]);
        assert_eq!(after[512..], broken[512..]);
    }
}

/// `image` with `bytes` at `at` of its header, whose checksum stays what it was.
fn header(mut image: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    image[512 + at..][..bytes.len()].copy_from_slice(bytes);
    image
}

/// What `check -r` makes of a header that no reader takes, wherever it is cut short.
#[track_caller]
fn works_out(image: &[u8], content_of: &[u8]) -> Vec<u8> {
    assert!(image::open(&VHD, image).is_err());
    assert_eq!(check(image).corruptions, 1, "{:?}", check(image).flaws);
    let old = content(content_of, &nothing());
    let crash = Arc::new(goldsmith_testkit::crash::CrashStorage::new(
        "image",
        image.to_vec(),
    ));
    edit(crash.clone()).unwrap().edit(&ALL).unwrap();
    crash.each_state(|what, state| {
        let bytes = state.to_vec();
        let whole = match image::open(&VHD, &*bytes) {
            Ok(_) => bytes,
            Err(_) => edited(&bytes, &ALL),
        };
        assert!(content(&whole, &nothing()) == old, "{what}");
    });
    edited(image, &ALL)
}

#[test]
fn each_field_of_the_header_is_worked_out_from_the_rest() {
    let image = forge().dynamic();
    for (at, bytes) in [
        (0, &b"cxspArse"[..]),
        (8, &[0; 8]),
        (16, &[0, 0, 0, 0, 0, 0, 7, 0]),
        (16, &[0xff; 8]),
        // The bitmap of a full block: the first entries would be unused ones.
        (16, &[0, 0, 0, 0, 0, 0, 8, 0]),
        (28, &[0, 0, 0, 5]),
        (28, &[0xff; 4]),
        (32, &[0, 0, 0, 0]),
        (32, &[0, 1, 0, 1]),
        (32, &[0, 2, 0, 0]),
        (36, &[0, 0, 0, 0]),
        (60, &[0, 0, 0, 1]),
        (1000, &[1]),
        (0, &[0; 1024]),
        (0, &[0xee; 1024]),
    ] {
        let after = works_out(&header(image.clone(), at, bytes), &image);
        assert!(after == image, "{at}: {bytes:?}");
    }
}

/// The checksum vouches for the rest of it.
#[test]
fn header_of_a_child_is_worked_out_if_its_checksum_says_who_the_parent_is() {
    let image = child().dynamic();
    let start = u64::from_be_bytes(image[512 + 16..][..8].try_into().unwrap());
    assert!(start > 1536, "the names stand between");
    for (at, bytes) in [(0, &[0; 8][..]), (32, &[0; 4]), (28, &[0, 0, 0, 1])] {
        let after = works_out(&header(image.clone(), at, bytes), &image);
        assert!(after == image, "{at}");
    }
}

#[test]
fn header_that_the_rest_does_not_show_is_refused_with_the_reason() {
    let empty = Forge::new(5 * BLOCK as u64, BLOCK as u32).dynamic();
    let child = child().dynamic();
    for (image, why) in [
        (
            header(child.clone(), 40, &[1]),
            "who the parent is may be what is wrong",
        ),
        (header(child.clone(), 36, &[0; 4]), "who the parent is"),
        // Names stand where the table mostly does.
        (
            header(child, 16, &[0xf; 8]),
            "no block table that it could have",
        ),
        // Any blocks would do.
        (
            header(empty, 0, &[0; 1024]),
            "no block table that it could have",
        ),
    ] {
        let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
        let budget = goldsmith_block::Budget::new(&goldsmith_block::Limits::default());
        let refused = goldsmith_block::Format::check(&VHD, storage.clone(), &budget);
        for report in [
            refused.unwrap_err().report(),
            edit(storage.clone()).err().unwrap().report(),
        ] {
            assert!(
                report.contains("nor can the header be worked out"),
                "{report}"
            );
            assert!(report.contains(why), "{report}");
        }
        assert!(storage.to_vec() == image);
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

/// A file becomes at most twice as long by places that its blocks get.
#[test]
fn blocks_are_not_parted_without_limit() {
    let blocks = 40;
    let mut forge = forge();
    forge.current_size = (blocks * BLOCK) as u64;
    // Nothing is written before that is known.
    let mut image = forge.dynamic();
    image[50] ^= 1;
    let first = u32::from_be_bytes(image[1536 + 4 * 3..][..4].try_into().unwrap());
    let shared = |named| (6..6 + named).fold(image.clone(), |image, at| entry(image, at, first));
    let most = image.len() / (BLOCK + 512);
    assert_eq!(most, 3);
    mends(&shared(most));
    for named in [most + 1, blocks - 6] {
        let image = shared(named);
        let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
        let error = edit(storage.clone()).unwrap().edit(&ALL).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit);
        let text = format!(
            "{named} blocks stand on others; to part them would take {} bytes, and the whole file has {}",
            named * (BLOCK + 512),
            image.len()
        );
        assert!(error.report().contains(&text), "{}", error.report());
        assert!(storage.to_vec() == image);
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

/// A child whose header has a name, and whose locators have two.
fn named_twice() -> Vec<u8> {
    let mut forge = child();
    let named = forge.parent.unwrap_or_default();
    forge.parent = Some(named.locator(b"W2ku", r"C:\base.vhd"));
    forge.dynamic()
}

#[test]
fn locator_that_points_out_of_the_file_is_dropped() {
    let broken = patch_header(named_twice(), 576 + 16, &u64::MAX.to_be_bytes());
    assert_eq!(
        image::open(&VHD, &*broken).unwrap().info().warnings.len(),
        1
    );
    let after = mends(&broken);
    let layer = image::open(&VHD, after).unwrap();
    assert_eq!(layer.info().backing.as_ref().unwrap().name, "/base.vhd");
}

/// Blocks that get places of their own make the file longer: what then stands where a locator points
/// to is no name.
#[test]
fn locator_that_pointed_out_of_the_file_is_dropped_when_the_file_grows() {
    let image = named_twice();
    let table = u64::from_be_bytes(image[512 + 16..][..8].try_into().unwrap()) as usize;
    let behind = (image.len() as u64 - 512).to_be_bytes();
    for code in [b"W2ru", b"blob"] {
        let broken = patch_header(image.clone(), 576, code);
        let mut broken = patch_header(broken, 576 + 16, &behind);
        // Block 0 where block 3 stands.
        broken.copy_within(table + 12..table + 16, table);
        let after = mends(&broken);
        assert_eq!(check(&after).corruptions, 0, "{:?}", check(&after).flaws);
        assert_eq!(after[512 + 576..][..24], [0; 24]);
        let layer = image::open(&VHD, after).unwrap();
        assert_eq!(layer.info().backing.as_ref().unwrap().name, "/base.vhd");
    }
}

/// Two names in one place, and one that is the name in the header.
#[test]
fn names_that_stand_on_others_get_places_of_their_own() {
    let image = named_twice();
    let other: [u8; 8] = image[512 + 600 + 16..][..8].try_into().unwrap();
    for place in [other, (512_u64 + 64).to_be_bytes()] {
        let broken = patch_header(image.clone(), 576 + 16, &place);
        let after = mends(&broken);
        assert_eq!(check(&after).flaws, []);
        let layers = [broken, after].map(|bytes| image::open(&VHD, bytes).unwrap());
        let [before, after] = layers.map(|layer| layer.info().backing.clone().unwrap());
        assert_eq!(after, before);
    }
}

#[test]
fn entries_behind_the_disk_are_cleared() {
    let mut forge = forge();
    forge.table_entries = Some(20);
    mends(&entry(forge.dynamic(), 12, 4));
}

/// It is the same wherever a reader looks for it, though the footers do not say the same.
#[test]
fn head_in_two_places_is_no_corruption() {
    let mut forge = forge();
    forge.table_entries = Some(20);
    let image = entry(forge.dynamic(), 12, 4);
    let crash = Arc::new(goldsmith_testkit::crash::CrashStorage::new("image", image));
    edit(crash.clone()).unwrap().edit(&ALL).unwrap();
    let mut notes = 0;
    crash.each_state(|what, state| {
        for flaw in check(&state.to_vec()).flaws {
            match flaw {
                Flaw::Corruption(text) => assert!(text.contains("its copy at"), "{what}: {text}"),
                Flaw::Note(text) => notes += u32::from(text.contains("differs from it in data")),
                Flaw::Leak(_) => {}
            }
        }
    });
    assert!(notes > 1, "no state had two heads");
}

/// QEMU shows it in the block that it allocates next.
#[test]
fn less_than_a_block_before_the_footer_is_told_and_given_back() {
    let image = forge().dynamic();
    let (body, footer) = image.split_at(image.len() - 512);
    let mut last = vec![0; 1024];
    last[1023] = 1;
    for (rest, is_alignment) in [
        (vec![0; 512], true),
        (vec![0; 4096], true),
        (vec![0; 4096 + 512], false),
        (vec![7; 512], false),
        (last, false),
        (pattern::disk("65k:A").bytes()[..BLOCK].to_vec(), false),
    ] {
        let longer = [body, &*rest, footer].concat();
        let range = format!("{:#x}..{:#x}", body.len(), body.len() + rest.len());
        let checked = check(&longer);
        assert_eq!(checked.leaks, u64::from(!is_alignment), "{checked:?}");
        match &checked.flaws[..] {
            [Flaw::Note(text)] if is_alignment => assert!(text.contains(&range), "{text}"),
            [Flaw::Leak(text)] if !is_alignment => assert!(text.contains(&range), "{text}"),
            flaws => panic!("{flaws:?}"),
        }
        let symptoms = image::open(&VHD, &*longer).unwrap().symptoms().unwrap();
        assert_eq!(symptoms.len(), usize::from(!is_alignment), "{symptoms:?}");
        takes_a_block_of_qemu(&longer, &range);
        for change in [&LEAKS, &ALL] {
            assert!(edited(&longer, change) == image, "{range}");
        }
        // What else is done to it leaves nothing of that, either.
        let grown = resize(10 * BLOCK as u64);
        assert_eq!(
            edited(&longer, &grown).len(),
            edited(&image, &grown).len(),
            "{range}"
        );
    }
}

/// [libvhd] A name may have more room than it needs, counted in sectors or in bytes.
#[test]
fn room_for_a_longer_name_is_no_leak() {
    for (space, sectors) in [(5_u32, 5), (5 * 512, 5), (24, 1)] {
        let mut forge = Forge::new(4 * BLOCK as u64, BLOCK as u32);
        let mut parent = Parent::nameless([7; 16]).locator(b"W2ru", r".\base.vhd");
        parent.locators[0].1 = space;
        (forge.parent, forge.table_last) = (Some(parent), false);
        let image = forge.dynamic();
        // The table stands behind the name, and the name alone at the end is not what a forge makes.
        let (name, table) = (1536, 2048);
        let mut head = image[..table].to_vec();
        head.extend(&image[name..table]);
        head.resize(table + sectors * 512, 0xee);
        let mut moved = patch_header(
            [&head, &image[image.len() - 512..]].concat(),
            16,
            &(name as u64).to_be_bytes(),
        );
        moved[name..table].fill(0xff);
        let moved = patch_header(moved, 576 + 16, &(table as u64).to_be_bytes());
        assert_eq!(check(&moved).flaws, [], "{space}");
        let longer = [
            &moved[..moved.len() - 512],
            &[1; 512],
            &moved[moved.len() - 512..],
        ];
        assert_eq!(check(&longer.concat()).leaks, 1, "{space}");
    }
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

/// A file that was cut inside a sector is not made up to one: a block that lacks less than that would be
/// whole again, with zeros for what the guest wrote.
#[test]
fn block_that_lost_less_than_a_sector_stays_an_error() {
    let mut forge = forge();
    forge.current_size = 6 * BLOCK as u64;
    let image = forge.dynamic();
    for cut in [513, 612, 1000, 1023, 1024, 1500] {
        let broken = &image[..image.len() - cut];
        let storage = Arc::new(MemoryStorage::holding("image", broken.to_vec()));
        edit(storage.clone()).unwrap().edit(&ALL).unwrap();
        let after = storage.to_vec();
        assert!(after.starts_with(broken), "{cut}");
        let whole = cut % 512 == 0;
        assert_eq!(after.len(), broken.len() + if whole { 512 } else { 0 });
        let flaws = check(&after).flaws;
        assert!(
            matches!(&flaws[0], Flaw::Corruption(text) if text.contains("block 5 should fill")),
            "{flaws:?}"
        );
        assert_eq!(check(&after).corruptions, if whole { 1 } else { 2 });
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
