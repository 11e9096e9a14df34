//! Whatever a stranger put into an image: an edit is refused and no byte changes, or the disk is the
//! one that it was.

use std::sync::Arc;

use goldsmith_block::{Budget, Checked, Edit, Format, Limits, Repair, Storage, StorageMut};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::hostile::{Outcome, assert_blames_image, survives};
use goldsmith_testkit::sparse::SparseStorage;
use goldsmith_testkit::trace::TraceStorage;
use goldsmith_vhd::VHD;
use proptest::prelude::*;

use super::{child, content, edit, forge, nothing, resize};
use crate::forge::{Forge, patch_footer, patch_header};

/// What the guest sees of the image alone, if that is all readable and not too much.
fn disk(image: &[u8]) -> Option<Vec<u8>> {
    match survives(&VHD, image.to_vec()) {
        Outcome::Content { bytes, .. } => bytes,
        Outcome::Refused(_) => None,
    }
}

fn tampered(
    forge: &Forge,
    footer: &(usize, Vec<u8>),
    header: &(usize, Vec<u8>),
    table: &[(usize, u32)],
) -> Vec<u8> {
    let mut image = forge.dynamic();
    let start = u64::from_be_bytes(image[512 + 16..512 + 24].try_into().unwrap()) as usize;
    for (index, entry) in table {
        image[start + index * 4..][..4].copy_from_slice(&entry.to_be_bytes());
    }
    patch_footer(
        patch_header(image, header.0, &header.1),
        footer.0,
        &footer.1,
    )
}

/// In a hole of the file, which costs nobody anything: neither us.
#[test]
fn table_of_four_billion_entries_costs_what_the_disk_needs() {
    let small = forge().dynamic();
    let end = small.len() - 512;
    let entries = u64::from(u32::MAX);
    let header = patch_header(small.clone(), 16, &(end as u64).to_be_bytes());
    let header = patch_header(header, 28, &u32::MAX.to_be_bytes());
    let sparse = Arc::new(SparseStorage::new());
    sparse.write_at(0, &header[..end]).unwrap();
    sparse
        .write_at(end as u64, &small[1536..1536 + 24])
        .unwrap();
    sparse
        .write_at(
            (end as u64 + entries * 4).next_multiple_of(512),
            &small[end..],
        )
        .unwrap();
    let old = content(&small, &nothing());

    let traced = Arc::new(TraceStorage::new(sparse.clone()));
    let budget = Budget::new(&Limits::default());
    let checked = VHD.check(traced.clone(), &budget).unwrap().unwrap();
    assert_eq!(
        (checked.corruptions, checked.flaws.len()),
        (0, Checked::FLAWS)
    );
    assert!(traced.reads() < 20, "{}", traced.reads());
    for change in [Edit::Repair(Repair::All), resize(old.len() as u64 + 512)] {
        let mut editor = edit(traced.clone()).unwrap();
        editor.edit(&change).unwrap();
    }
    assert!(sparse.len() < 20 << 20, "{}", sparse.len());
    let mut image = vec![0; sparse.len() as usize];
    sparse.read_at(0, &mut image).unwrap();
    assert_eq!(super::check(&image).flaws, []);
    assert!(content(&image, &nothing())[..old.len()] == old);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn edit_is_refused_untouched_or_keeps_the_disk(
        is_child: bool,
        batmap in prop::option::of(any::<u8>()),
        both_footers: bool,
        footer in (8usize..90, prop::collection::vec(any::<u8>(), 0..3)),
        header in (8usize..800, prop::collection::vec(any::<u8>(), 0..3)),
        table in prop::collection::vec((0usize..6, prop_oneof![0u32..400, any::<u32>()]), 0..3),
        which in 0usize..5,
    ) {
        let mut forge = if is_child { child() } else { forge() };
        if let Some(map) = batmap {
            (forge.creator, forge.creator_version) = (*b"tap\0", 0x0001_0003);
            forge.batmap = Some((0x0001_0002, None, vec![map]));
        }
        let mut image = tampered(&forge, &footer, &header, &table);
        if both_footers {
            let end = image.len() - 512;
            image.copy_within(end.., 0);
        }
        let layer = goldsmith_testkit::image::open(&VHD, &*image);
        let size = match &layer {
            Ok(layer) if layer.info().unit.is_none_or(|unit| unit <= 1 << 20) => layer.info().virtual_size,
            _ => 0,
        };
        // A table for all of 2040 GiB is made elsewhere.
        prop_assume!(layer.is_err() || (1..1 << 30).contains(&size));
        let change = match which {
            0 => resize((size + 4096) / 512 * 512),
            1 => resize(size.saturating_sub(4096) / 512 * 512),
            2 => Edit::SetBacking(None),
            3 => Edit::Repair(Repair::Leaks),
            _ => Edit::Repair(Repair::All),
        };
        let old = disk(&image);
        let storage = Arc::new(MemoryStorage::holding("hostile", image.clone()));
        match edit(storage.clone()).and_then(|mut editor| editor.edit(&change)) {
            Err(error) => {
                assert_blames_image(&error);
                prop_assert!(storage.to_vec() == image, "{}", error.report());
            }
            Ok(()) => if let Some(old) = old {
                let new = disk(&storage.to_vec()).expect("it was readable");
                let same = old.len().min(new.len());
                prop_assert!(old[..same] == new[..same]);
                prop_assert!(new[same..].iter().all(|byte| *byte == 0));
            }
        }
    }
}
