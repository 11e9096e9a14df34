//! Another parent, none, or nothing of one's own.

use goldsmith_block::{BackingReference, Edit, Format};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::crash::CrashStorage;
use goldsmith_testkit::{image, qemu};
use goldsmith_vhd::VHD;
use uuid::Uuid;

use super::{BLOCK, KIB, child, content, edited, forge, nothing, parent, survives_cuts};
use crate::child::pleases_vhd_util;
use crate::judges::extract;

fn reference(name: &str, uuid: Option<Uuid>) -> BackingReference {
    BackingReference {
        name: name.into(),
        format: Some(if uuid.is_some() { "vpc" } else { "raw" }.into()),
        other_names: vec![format!("/vms/{name}")],
        uuid,
        modified: Some(1_600_000_000),
    }
}

/// A parent of its own name, with names that fill several sectors.
fn other() -> BackingReference {
    let long = format!("{}/other.vhd", "folder".repeat(60));
    BackingReference {
        other_names: vec![format!("/vms/{long}")],
        ..reference(&format!("../{long}"), Some(Uuid::from_bytes([9; 16])))
    }
}

#[test]
fn new_parent_has_all_its_names_and_the_old_one_none() {
    let image = child().dynamic();
    for parent in [other(), reference("base.raw", None)] {
        let after = edited(&image, &Edit::SetBacking(Some(parent.clone())));
        let layer = image::open(&VHD, &*after).unwrap();
        let backing = layer.info().backing.clone().unwrap();
        assert_eq!(
            (&backing.name, &backing.format),
            (&parent.name, &parent.format)
        );
        assert_eq!(
            (backing.uuid, backing.modified),
            (parent.uuid, parent.modified)
        );
        let file = parent.name.rsplit('/').next().unwrap().to_owned();
        let mut others = parent.other_names.clone();
        others.extend((file != parent.name).then_some(file));
        pleases_vhd_util(&after);
        assert_eq!(backing.other_names, others);
        assert!(content(&after, &super::parent()) == content(&image, &super::parent()));
    }
}

#[test]
fn cut_at_any_point_leaves_the_old_or_the_new_parent() {
    let image = child().dynamic();
    let with = |name: &str| {
        let change = Edit::SetBacking(Some(reference(name, Some(Uuid::from_bytes([9; 16])))));
        survives_cuts(&image, &parent(), &change);
        let crash = std::sync::Arc::new(CrashStorage::new("image", image.clone()));
        super::edit(crash.clone()).unwrap().edit(&change).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        crash.each_state(|what, state| {
            let layer = image::open(&VHD, state.to_vec()).unwrap();
            let backing = layer.info().backing.clone().unwrap();
            let (old, new) = ([7; 16], [9; 16]);
            match backing.uuid.unwrap().into_bytes() {
                uuid if uuid == old => assert_eq!(backing.name, "base.vhd", "{what}"),
                uuid if uuid == new => assert_eq!(backing.name, name, "{what}"),
                uuid => panic!("{what}: {uuid:?}"),
            }
            seen.insert(backing.name);
        });
        assert_eq!(seen.len(), 2);
    };
    with("new.vhd");
    // Names of several sectors, which take the place of the first blocks.
    with(&format!("{}.vhd", "n".repeat(250)));
}

#[test]
fn child_without_parent_shows_zeros_there_to_every_reader() {
    let image = child().dynamic();
    let after = edited(&image, &Edit::SetBacking(None));
    let expected = content(&image, &nothing());
    assert!(content(&after, &parent()) == expected);
    assert!(qemu::read("vpc", &after) == expected);
    let dir = tempfile::tempdir().unwrap();
    assert!(extract(&dir.path().join("disk.vhd"), &after) == expected);
    survives_cuts(&image, &parent(), &Edit::SetBacking(None));
    survives_cuts(&image, &nothing(), &Edit::SetBacking(None));
}

#[test]
fn dynamic_image_becomes_a_child_that_shows_its_parent_where_it_has_no_block() {
    // With rubbish in sectors that hold no data, which are zeros and stay so.
    let mut forge = child();
    forge.parent = None;
    let image = forge.dynamic();
    let change = Edit::SetBacking(Some(reference("base.vhd", Some(Uuid::from_bytes([7; 16])))));
    let after = edited(&image, &change);
    let mut expected = content(&image, &nothing());
    for block in [0, 2, 4] {
        let range = block * BLOCK..(block + 1) * BLOCK;
        expected[range.clone()].copy_from_slice(&parent().bytes()[range]);
    }
    assert!(content(&after, &parent()) == expected);
    survives_cuts(&image, &parent(), &change);
}

#[test]
fn emptied_child_shows_its_parent_and_takes_no_space() {
    let image = child().dynamic();
    let after = edited(&image, &Edit::Empty);
    let len = content(&image, &nothing()).len();
    assert!(content(&after, &parent()) == parent().bytes()[..len]);
    assert_eq!(
        (super::check(&after).allocated, after.len()),
        (0, 512 + 1024 + 512 + 512 + 512)
    );
    survives_cuts(&image, &parent(), &Edit::Empty);
    survives_cuts(&forge().dynamic(), &nothing(), &Edit::Empty);
}

/// A snapshot: the child that holds nothing is written without a look at its parent.
#[test]
fn child_that_holds_nothing_is_a_head_and_a_footer() {
    let storage = std::sync::Arc::new(MemoryStorage::new("child"));
    let spec = goldsmith_block::CreateSpec {
        backing: Some(reference("base.vhd", Some(Uuid::from_bytes([7; 16])))),
        ..image::spec(&VHD, 400 * KIB, &[], false).unwrap()
    };
    let sink = VHD.create(storage.clone(), &spec).unwrap();
    let committed = sink.commit().unwrap();
    // Copy, header, table, two names, footer.
    assert_eq!(committed.file_len, 512 + 1024 + 512 + 2 * 512 + 512);
    let child = storage.to_vec();
    super::assert_sound(&child);
    assert!(content(&child, &parent()) == parent().bytes()[..400 << 10]);
}

#[test]
fn parent_that_no_child_could_know_again_is_refused() {
    let image = child().dynamic();
    let storage = std::sync::Arc::new(MemoryStorage::holding("image", image.clone()));
    let mut nameless = reference("base.vhd", None);
    nameless.format = Some("vpc".into());
    let mut foreign = reference("base.qcow2", None);
    foreign.format = Some("qcow2".into());
    for (parent, text) in [(nameless, "null uuid"), (foreign, "not qcow2")] {
        let mut editor = super::edit(storage.clone()).unwrap();
        let error = editor.edit(&Edit::SetBacking(Some(parent))).unwrap_err();
        assert!(error.report().contains(text), "{}", error.report());
        assert!(storage.to_vec() == image);
    }
}
