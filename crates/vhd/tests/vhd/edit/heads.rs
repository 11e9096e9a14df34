//! Images whose footers lead to a head each, as an edit that was cut short may leave them.
//!
//! QEMU goes by the copy at the start, and we go by the footer at the end.

use std::sync::Arc;

use goldsmith_block::{Edit, Flaw, Repair};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::crash::CrashStorage;
use goldsmith_testkit::qemu;

use super::sink::{cover, sink};
use super::{
    BLOCK, assert_flawless_but_for_footers, assert_sound, check, content, edit, edited, forge,
    nothing, resize,
};
use crate::forge::{patch_footer, seal};

/// `image` and a second head before its footer, to which either the footer at the end leads or its copy.
fn with_two_heads(image: &[u8], copy_leads_away: bool) -> Vec<u8> {
    let (body, footer) = image.split_at(image.len() - 512);
    let away = (body.len() as u64).to_be_bytes();
    let mut head = body[512..2048].to_vec();
    let table = body.len() as u64 + 1024;
    head[16..24].copy_from_slice(&table.to_be_bytes());
    seal(&mut head[..1024], 36);
    let with_footer = [body, &head, footer].concat();
    let mut other = patch_footer(with_footer, 16, &away);
    if copy_leads_away {
        let end = other.len() - 512;
        other.copy_within(end.., 0);
        other[end..].copy_from_slice(footer);
    }
    let mut flaws = check(&other).flaws;
    // By the one the other's head belongs to nothing.
    flaws.retain(|flaw| !matches!(flaw, Flaw::Leak(_)));
    assert!(
        matches!(&flaws[..], [Flaw::Note(text)] if text.contains("differs from it in data offset")),
        "{flaws:?}"
    );
    other
}

fn images() -> Vec<Vec<u8>> {
    let image = forge().dynamic();
    let mut hidden = forge();
    // [libvhd] Where the copy alone says that it is hidden.
    (hidden.creator, hidden.creator_version) = (*b"tap\0", 0x0001_0001);
    let mut hidden = with_two_heads(&hidden.dynamic(), true);
    hidden[85] = 1;
    seal(&mut hidden[..512], 64);
    vec![
        with_two_heads(&image, false),
        with_two_heads(&image, true),
        hidden,
    ]
}

fn sectors(disk: &[u8]) -> impl Iterator<Item = &[u8]> {
    disk.chunks(512)
}

#[test]
fn what_is_written_over_the_disk_is_read_by_either_footer() {
    for image in images() {
        let old = content(&image, &nothing());
        assert!(qemu::read("vpc", &image) == old);
        let mut new = old.clone();
        // Into a block that is there, and two that are not.
        new[..3 * BLOCK].fill(b'n');
        let crash = Arc::new(CrashStorage::new("image", image));
        cover(sink(crash.clone(), new.len() as u64), &old, &new).unwrap();
        assert!(qemu::read("vpc", &crash.to_vec()) == new);
        assert_sound(&crash.to_vec());
        let mut states = 0_u32;
        crash.each_state(|what, state| {
            let bytes = state.to_vec();
            assert_flawless_but_for_footers(&bytes, what);
            if states.is_multiple_of(8) {
                let theirs = qemu::read("vpc", &bytes);
                for ((was, is), found) in sectors(&old).zip(sectors(&new)).zip(sectors(&theirs)) {
                    assert!(found == was || found == is, "{what}");
                }
            }
            states += 1;
        });
        assert!(states > 30, "{states}");
    }
}

#[test]
fn changes_keep_the_disk_for_either_footer() {
    let size = forge().current_size;
    for image in images() {
        let old = content(&image, &nothing());
        for change in [
            Edit::Repair(Repair::Leaks),
            Edit::Repair(Repair::All),
            resize(size + 200 * BLOCK as u64),
            resize(size - 2 * BLOCK as u64),
        ] {
            let after = edited(&image, &change);
            let new = content(&after, &nothing());
            let same = new.len().min(old.len());
            assert!(new[..same] == old[..same]);
            assert!(qemu::read("vpc", &after) == new, "{change:?}");
            super::survives_cuts(&image, &nothing(), &change);
        }
    }
}

/// QEMU goes by the copy, and the head to which the other footer leads is free space to it. If that is
/// longer than a block, the footer behind it stays.
#[test]
fn block_that_qemu_put_over_one_of_two_heads_leaves_the_disk_of_the_other() {
    let image = forge().dynamic();
    let old = content(&image, &nothing());
    let crash = Arc::new(CrashStorage::new("image", image));
    // A table of more than a block.
    let change = resize(20_000 * BLOCK as u64);
    edit(crash.clone()).unwrap().edit(&change).unwrap();
    let mut states = 0;
    crash.each_state(|what, state| {
        let bytes = state.to_vec();
        let offset = |footer: &[u8]| u64::from_be_bytes(footer[16..24].try_into().unwrap());
        let [at_start, at_end] = [&bytes[..512], &bytes[bytes.len() - 512..]].map(offset);
        if at_end <= 512 || at_start != 512 || bytes[48..56] != (old.len() as u64).to_be_bytes() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, &bytes).unwrap();
        qemu::io_ok(&path, "vpc", &["write -P 0x77 4096 512"]);
        let written = std::fs::read(&path).unwrap();
        assert_eq!(written.len(), bytes.len(), "{what}");
        // Around it QEMU shows what stood there, for nobody mended the image before.
        let new = qemu::read("vpc", &written);
        assert!(new[4096..4096 + 512] == [0x77; 512], "{what}");
        assert!(new[BLOCK..] == old[BLOCK..], "{what}");
        assert!(content(&written, &nothing()) == new, "{what}");
        let found = check(&written);
        let texts: Vec<_> = found.flaws.iter().map(|flaw| format!("{flaw:?}")).collect();
        let told = |text: &String| text.contains("leads to no dynamic header; the copy was used");
        assert!(texts.iter().any(told), "{what}: {texts:?}");
        let mended = edited(&written, &Edit::Repair(Repair::All));
        assert!(content(&mended, &nothing()) == new, "{what}");
        assert!(qemu::read("vpc", &mended) == new, "{what}");
        states += 1;
    });
    assert!(states > 0);
}

/// Nothing else is under way while the footers differ.
#[test]
fn footers_are_the_same_before_anything_else_is_written() {
    for image in images() {
        let storage = Arc::new(MemoryStorage::holding("image", image));
        let mut editor = edit(storage).unwrap();
        editor.edit(&Edit::Repair(Repair::Leaks)).unwrap();
        let steps: Vec<_> = editor.steps().iter().map(ToString::to_string).collect();
        let start = [
            "write the footer: ",
            "write the copy of the footer: ",
            "wait",
        ];
        for (step, text) in steps.iter().zip(start) {
            assert!(step.starts_with(text), "{steps:?}");
        }
        assert!(steps.len() >= start.len(), "{steps:?}");
    }
}
