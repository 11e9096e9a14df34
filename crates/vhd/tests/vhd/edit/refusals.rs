//! Images that are damaged, and wishes that cannot be had: refused with the rule, and not touched.

use std::sync::Arc;

use goldsmith_block::{Edit, Error, ErrorKind, Format, Repair, Storage};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::trace::TraceStorage;
use goldsmith_vhd::VHD;

use super::{BLOCK, KIB, check, child, edit, edited, forge, resize};
use crate::forge::{Forge, Parent, patch_footer, patch_header};

/// All changes that a damaged image must be safe from.
fn changes() -> Vec<Edit> {
    vec![
        resize(9 * BLOCK as u64),
        resize(BLOCK as u64),
        Edit::SetBacking(None),
        Edit::Empty,
        Edit::Repair(Repair::Leaks),
    ]
}

/// What comes of `change`, or of writing over the disk if that is `None`; no byte has changed.
#[track_caller]
fn refusal(image: &[u8], change: Option<&Edit>) -> Error {
    let storage = Arc::new(MemoryStorage::holding("image", image.to_vec()));
    let traced = Arc::new(TraceStorage::new(storage.clone()));
    let outcome = edit(traced.clone()).and_then(|mut editor| match change {
        Some(change) => editor.edit(change),
        None => editor.into_sink(512).map(|_| ()),
    });
    assert_eq!(traced.writes() + traced.flushes(), 0, "{change:?}");
    assert!(storage.to_vec() == image, "{change:?}");
    outcome.unwrap_err()
}

/// Every change of `image` is refused because of what `text` says.
#[track_caller]
fn untouched(image: &[u8], text: &str) {
    for change in changes().iter().map(Some).chain([None]) {
        let error = refusal(image, change);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.report());
        assert!(error.report().contains(text), "{}", error.report());
    }
}

/// `image` with entry `index` of the table at 1536 changed.
fn entry(mut image: Vec<u8>, index: usize, sector: u32) -> Vec<u8> {
    image[1536 + 4 * index..][..4].copy_from_slice(&sector.to_be_bytes());
    image
}

/// A longer file would have something where the locator points to.
#[test]
fn image_with_a_locator_that_points_out_of_it_is_not_made_longer() {
    let image = child().dynamic();
    let behind = (image.len() as u64 - 512).to_be_bytes();
    let broken = patch_header(image, 576 + 16, &behind);
    untouched(&broken, "locator W2ru of 20 bytes");
    // Without a parent it means nothing.
    let image = patch_header(forge().dynamic(), 576, b"W2ru");
    let image = patch_header(image, 576 + 8, &[0, 0, 2, 0]);
    let image = patch_header(image, 576 + 16, &behind);
    let after = edited(&image, &resize(20 * BLOCK as u64));
    assert_eq!(check(&after).flaws, []);
}

#[test]
fn damaged_tables_are_not_written_to() {
    let image = forge().dynamic();
    let first = 4_u32;
    untouched(
        &entry(image.clone(), 0, 0x00ff_ffff),
        "block 0 should fill 0x1fffffe00..",
    );
    untouched(
        &entry(image.clone(), 0, u32::MAX - 1),
        "block 0 should fill 0x1fffffffc00..",
    );
    untouched(
        &entry(image.clone(), 0, 1),
        "where the dynamic header stands",
    );
    untouched(&entry(image.clone(), 0, 3), "where the block table stands");
    untouched(
        &entry(image.clone(), 0, first),
        "block 0 and block 3 overlap",
    );
    untouched(
        &entry(image.clone(), 4, first + 5),
        "block 3 and block 4 overlap",
    );
    let most = patch_header(image.clone(), 28, &u32::MAX.to_be_bytes());
    untouched(
        &most,
        "block table of 4294967295 entries at 0x600 runs past",
    );
    untouched(
        &patch_header(image.clone(), 28, &5_u32.to_be_bytes()),
        "the disk size needs 6",
    );
    let mut header = image.clone();
    header[512 + 900] ^= 4;
    untouched(&header, "dynamic header checksum");
    untouched(
        &patch_footer(image.clone(), 60, &[0, 0, 0, 7]),
        "disk type is 7",
    );
    untouched(
        &image[..image.len() - 512],
        "its copy at the start is intact and was used",
    );
    let mut copy = image.clone();
    copy[100] ^= 1;
    untouched(&copy, "the copy of the footer at the start is broken");
    let poisoned = patch_footer(image.clone(), 0, b"v_poison");
    untouched(&poisoned, "marked v_poison");
    untouched(&image[..3000], "no VHD footer");
    untouched(&[], "no VHD footer");
}

#[test]
fn fixed_image_that_is_damaged_is_not_written_to() {
    let image = Forge::new(8192, 0).fixed(&[1; 8192]);
    let with_zeros = [&image[..], &[0; 4096]].concat();
    for (image, text) in [
        (with_zeros, "which was used, are only zeros"),
        (
            patch_footer(image.clone(), 0, b"v_poison"),
            "marked v_poison",
        ),
        (Forge::new(9000, 0).fixed(&[1; 8192]), "the file holds 8192"),
    ] {
        for change in [Some(&resize(512)), Some(&resize(1 << 20)), None] {
            let error = refusal(&image, change);
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.report().contains(text), "{}", error.report());
        }
    }
}

/// A full block of the batmap needs no bitmap; one that has no place would get one without.
#[test]
fn batmap_that_calls_absent_blocks_full_is_not_relied_on() {
    let mut forge = child();
    (forge.creator, forge.creator_version) = (*b"tap\0", 0x0001_0003);
    forge.batmap = Some((0x0001_0002, None, vec![0x94]));
    untouched(
        &forge.dynamic(),
        "block 0 is full by the batmap, but has no place",
    );
}

#[test]
fn block_on_a_name_of_the_parent_is_not_written_to() {
    let mut forge = forge();
    forge.parent = Some(Parent::nameless([7; 16]).locator(b"W2ru", r".\base.vhd"));
    forge.table_last = true;
    let mut image = forge.dynamic();
    let table = image.len() - 1024;
    image[table + 4 * 3..][..4].copy_from_slice(&3_u32.to_be_bytes());
    untouched(&image, "overlap at 0x600");
}

/// Structures that a cut could leave half written.
#[test]
fn structures_off_the_sectors_are_read_but_not_changed() {
    let mut forge = forge();
    forge.header_at = 1000;
    let image = forge.dynamic();
    for change in changes().iter().map(Some).chain([None]) {
        if let Some(Edit::SetBacking(None)) = change {
            // Nothing to do, so whatever is said about it.
            continue;
        }
        let error = refusal(&image, change);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", error.report());
        let text = "the dynamic header stands at 0x3e8, which is no multiple of 512";
        assert!(error.report().contains(text), "{}", error.report());
    }
}

#[test]
fn wishes_that_vhd_has_nothing_for_are_not_supported() {
    let fixed = Forge::new(8192, 0).fixed(&[1; 8192]);
    let snapshot = Edit::TakeSnapshot {
        name: "one".into(),
        seconds: 0,
        nanoseconds: 0,
    };
    for (image, change, text) in [
        (
            &forge().dynamic(),
            &snapshot,
            "its children are its snapshots",
        ),
        (&fixed, &snapshot, "its children are its snapshots"),
        (
            &fixed,
            &Edit::Empty,
            "blocks that could be given up if they are fixed",
        ),
    ] {
        let error = refusal(image, Some(change));
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.report().contains(text), "{}", error.report());
    }
}

/// With a size that the caller chose nothing can be said of the size that the image shall have.
#[test]
fn size_is_not_changed_by_whoever_overrides_it() {
    let image = forge().dynamic();
    let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
    let options = [("force_size_calc", "current_size")];
    let options = goldsmith_block::Options::parse(VHD.open_options(), options).unwrap();
    let budget = goldsmith_block::Budget::new(&goldsmith_block::Limits::default());
    let mut editor = VHD.edit(storage.clone(), &budget, &options).unwrap();
    let error = editor.edit(&resize(400 * KIB)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.report().contains("force_size_calc"));
    assert_eq!(storage.len(), image.len() as u64);
}

#[test]
fn tables_over_the_budget_are_not_loaded() {
    let image = forge().dynamic();
    let mut limits = goldsmith_block::Limits::default();
    limits.metadata_bytes = 40;
    let budget = goldsmith_block::Budget::new(&limits);
    let options = goldsmith_block::Options::defaults(VHD.open_options());
    let storage = Arc::new(MemoryStorage::holding("image", image));
    let refused = VHD.edit(storage, &budget, &options).map(|_| ());
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Limit);
}
