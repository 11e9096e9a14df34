//! Any sequence of changes leaves what it leaves in a `Vec<u8>`.

use std::sync::Arc;

use goldsmith_block::{Edit, Preallocation, Repair};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::{ModelDisk, image, pattern, qemu};
use goldsmith_vhd::VHD;
use proptest::prelude::*;

use super::sink::{cover, sink};
use super::{assert_sound, child, content, edit, nothing, parent, resize_with};

/// One change, in sectors of the disk as far as it goes.
#[derive(Clone, Debug)]
enum Change {
    Resize(u64, Preallocation),
    Write(u64, u64, u8),
    Zero(u64, u64),
    Empty,
    Repair(Repair),
}

fn change() -> impl Strategy<Value = Change> {
    let preallocation = prop_oneof![
        4 => Just(Preallocation::Off),
        1 => Just(Preallocation::Metadata),
        1 => Just(Preallocation::Full),
    ];
    let range = (0u64..1200, 1u64..300);
    prop_oneof![
        3 => (0u64..1500, preallocation).prop_map(|(size, how)| Change::Resize(size, how)),
        4 => (range.clone(), b'A'..=b'z').prop_map(|((at, len), letter)| Change::Write(at, len, letter)),
        2 => range.prop_map(|(at, len)| Change::Zero(at, len)),
        1 => Just(Change::Empty),
        1 => prop_oneof![Just(Repair::Leaks), Just(Repair::All)].prop_map(Change::Repair),
    ]
}

/// What `change` makes of `disk`, which becomes `behind` where it is emptied.
fn on_model(change: &Change, disk: &mut Vec<u8>, behind: &mut Vec<u8>) {
    let sectors = disk.len() as u64 / 512;
    let part = |at: u64, len: u64| {
        let at = at.min(sectors);
        (at * 512) as usize..((at + len).min(sectors) * 512) as usize
    };
    match change {
        Change::Resize(size, _) => disk.resize((size * 512) as usize, 0),
        Change::Write(at, len, letter) => {
            let range = part(*at, *len);
            let letter = if letter.is_ascii_alphabetic() {
                *letter
            } else {
                b'm'
            };
            pattern::fill(letter, range.start as u64, &mut disk[range]);
        }
        Change::Zero(at, len) => disk[part(*at, *len)].fill(0),
        Change::Empty => {
            let len = disk.len();
            disk.clone_from(behind);
            disk.resize(len, 0);
        }
        Change::Repair(_) => {}
    }
}

fn on_image(change: &Change, storage: &Arc<MemoryStorage>, old: &[u8], new: &[u8]) {
    let change = match change {
        Change::Resize(size, how) => resize_with(size * 512, *how),
        Change::Empty => Edit::Empty,
        Change::Repair(how) => Edit::Repair(*how),
        Change::Write(..) | Change::Zero(..) => {
            cover(sink(storage.clone(), new.len() as u64), old, new).unwrap();
            return;
        }
    };
    edit(storage.clone()).unwrap().edit(&change).unwrap();
}

fn runs(start: Vec<u8>, behind: &ModelDisk, changes: &[Change], is_fixed: bool) -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::holding("image", start));
    let mut below = behind.bytes().to_vec();
    let mut disk = content(&storage.to_vec(), behind);
    for change in changes {
        if is_fixed && matches!(change, Change::Empty) {
            continue;
        }
        let old = disk.clone();
        on_model(change, &mut disk, &mut below);
        on_image(change, &storage, &old, &disk);
        let image = storage.to_vec();
        assert_sound(&image);
        assert!(content(&image, behind) == disk, "{change:?}");
    }
    storage.to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn dynamic_and_fixed_images_are_what_a_vec_would_be(
        changes in prop::collection::vec(change(), 1..8),
        options in 0usize..4,
        judged in 0u8..8,
    ) {
        let options = [
            [("subformat", "dynamic"), ("block_size", "512k")],
            [("batmap", "on"), ("block_size", "512k")],
            [("subformat", "dynamic"), ("force_size", "off")],
            [("subformat", "fixed"), ("force_size", "on")],
        ][options];
        let disk = pattern::disk("100k:A 200k:- 100k:b");
        let image = image::write(&VHD, &disk, &options, false).unwrap();
        let after = runs(image, &nothing(), &changes, options[0].1 == "fixed");
        // QEMU takes no disk without bytes.
        if judged == 0 && !content(&after, &nothing()).is_empty() {
            assert!(qemu::read("vpc", &after) == content(&after, &nothing()));
        }
    }

    /// With small blocks, over a parent that is longer and shorter than the child will be.
    #[test]
    fn children_over_their_parents_are_what_a_vec_would_be(
        changes in prop::collection::vec(change(), 1..8),
        kind in 0u8..3,
    ) {
        let mut forge = child();
        match kind {
            0 => {}
            1 => (forge.creator, forge.creator_version) = (*b"tap\0", 1),
            _ => {
                (forge.creator, forge.creator_version) = (*b"tap\0", 0x0001_0003);
                forge.batmap = Some((0x0001_0002, None, vec![0x14]));
            }
        }
        // What is emptied shows all of the parent again, be it behind an old end of the disk.
        runs(forge.dynamic(), &parent(), &changes, false);
    }
}
