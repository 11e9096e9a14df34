//! What one wrong bit or a cut hides is not thrown away, nor is another disk made of it.

use std::sync::Arc;

use goldsmith_block::{Budget, Edit, ErrorKind, Format, Limits, Options, Repair, StorageMut};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::sparse::SparseStorage;
use goldsmith_testkit::trace::TraceStorage;
use goldsmith_testkit::{image, pattern};
use goldsmith_vhd::VHD;

use super::{BLOCK, content, edit, forge, nothing, resize};
use crate::forge::{Forge, patch_footer, seal};

const CHANGES: [Edit; 2] = [Edit::Repair(Repair::Leaks), Edit::Repair(Repair::All)];

/// `image` after `change`, whether or not that was refused.
fn tried(image: &[u8], change: &Edit) -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::holding("image", image.to_vec()));
    let _ = edit(storage.clone()).and_then(|mut editor| editor.edit(change));
    storage.to_vec()
}

/// The data of blocks, which are noise, that are nowhere in `after`.
fn gone(image: &[u8], after: &[u8]) -> usize {
    let sectors = image.chunks_exact(512);
    let worth = sectors.filter(|it| it.iter().filter(|byte| **byte == 0).count() < 64);
    let kept: std::collections::HashSet<_> = after.chunks_exact(512).collect();
    worth.filter(|sector| !kept.contains(sector)).count()
}

fn noisy() -> Forge {
    let data = pattern::disk("192k:n");
    let part = |index: usize| &data.bytes()[index * BLOCK..][..BLOCK];
    Forge::new(5 * BLOCK as u64, BLOCK as u32)
        .full_block(0, part(0))
        .full_block(1, part(1))
        .full_block(3, part(2))
}

#[test]
fn no_bit_of_the_block_table_costs_a_block() {
    let image = noisy().dynamic();
    let table = u64::from_be_bytes(image[512 + 16..][..8].try_into().unwrap()) as usize;
    for bit in 0..5 * 32 {
        let mut broken = image.clone();
        broken[table + bit / 8] ^= 0x80 >> (bit % 8);
        for change in CHANGES {
            let after = tried(&broken, &change);
            assert_eq!(gone(&broken, &after), 0, "bit {bit}, {change:?}");
        }
    }
}

/// Blocks with nothing in front of them, and their table behind them: what stands in its usual place is a
/// bitmap, which looks like a table of unused entries.
#[test]
fn no_bit_of_the_place_of_the_table_costs_the_disk() {
    let mut forge = noisy();
    forge.table_last = true;
    let image = forge.dynamic();
    let disk = content(&image, &nothing());
    let mut mended = 0;
    for bit in 0..64 {
        let mut broken = image.clone();
        broken[512 + 16 + bit / 8] ^= 0x80 >> (bit % 8);
        for change in CHANGES {
            let after = tried(&broken, &change);
            assert_eq!(gone(&broken, &after), 0, "bit {bit}, {change:?}");
            if let Ok(layer) = image::open(&VHD, &*after) {
                let is_same = image::read(&*layer).unwrap() == disk;
                assert!(is_same, "bit {bit}, {change:?}: another disk");
                mended += 1;
            }
        }
    }
    assert_eq!(mended, 64, "all by -r all, and no more");
}

/// By a table whose place was worked out, blocks belong to nothing that the true one has.
#[test]
fn header_is_not_written_anew_while_something_belongs_to_nothing() {
    let image = noisy().dynamic();
    let table = u64::from_be_bytes(image[512 + 16..][..8].try_into().unwrap()) as usize;
    let mut broken = image.clone();
    broken[512] = b'X';
    broken[table + 4..table + 16].fill(0xff);
    assert!(image::open(&VHD, &*broken).is_err());
    for change in CHANGES {
        assert!(tried(&broken, &change) == broken, "{change:?}");
    }
    // But for that it would be.
    let mut broken = image.clone();
    broken[512] = b'X';
    assert!(tried(&broken, &CHANGES[1]) == image);
}

/// Blocks that all stand in one place, in front of a hole as long as they are.
#[test]
fn what_is_behind_all_places_is_looked_at_where_there_is_something() {
    let block = 256 << 20;
    let mut image = Forge::new(8 * u64::from(block), block).dynamic();
    let footer = image.split_off(image.len() - 512);
    let table = u64::from_be_bytes(image[512 + 16..][..8].try_into().unwrap()) as usize;
    for entry in image[table..][..8 * 4].chunks_exact_mut(4) {
        entry.copy_from_slice(&8_u32.to_be_bytes());
    }
    let storage = Arc::new(SparseStorage::new());
    storage.write_at(0, &image).unwrap();
    storage.write_at(4 << 30, &footer).unwrap();
    let trace = Arc::new(TraceStorage::new(Arc::clone(&storage) as _));
    let mut editor = edit(Arc::clone(&trace) as _).unwrap();
    let _ = editor.edit(&CHANGES[1]);
    let reads = trace.reads();
    assert!(reads < 10_000, "{reads} reads");
}

/// The header is whole, and its table not there.
#[test]
fn image_that_was_cut_before_its_table_is_refused() {
    let mut forge = noisy();
    forge.table_last = true;
    let mut image = forge.dynamic();
    let table = u64::from_be_bytes(image[512 + 16..][..8].try_into().unwrap()) as usize;
    image.truncate(table);
    for change in CHANGES {
        let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
        let error = edit(storage.clone()).err().expect("it has no table");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{change:?}");
        assert!(storage.to_vec() == image);
    }
}

/// A guest wrote a footer to its disk, and the file ends right behind that.
#[test]
fn footer_of_a_guest_at_the_end_of_a_file_that_was_cut_is_none() {
    let outer = noisy().dynamic();
    let mut fixed = Forge::new(1024, 0);
    fixed.uuid = [9; 16];
    let fixed = fixed.fixed(&[0; 1024]);
    let mut dynamic = Forge::new(2 * BLOCK as u64, BLOCK as u32);
    dynamic.uuid = [8; 16];
    let dynamic = dynamic.dynamic();
    for inner in [&fixed[1024..], &dynamic[dynamic.len() - 512..]] {
        let mut broken = outer[..outer.len() - BLOCK / 2].to_vec();
        broken.extend(inner);
        let error = image::open(&VHD, &*broken).err().expect("of whom it is?");
        let report = error.report();
        assert!(report.contains("are of two images"), "{report}");
        for change in [CHANGES[0].clone(), CHANGES[1].clone(), resize(1 << 20)] {
            assert!(tried(&broken, &change) == broken, "{change:?}");
        }
        // What the file begins with is what is left of it.
        let storage = Arc::new(MemoryStorage::holding("image", broken));
        let (budget, options) = (
            Budget::new(&Limits::default()),
            Options::defaults(VHD.open_options()),
        );
        let layer = VHD.salvage(storage, &budget, &options).unwrap();
        let mut bytes = vec![0; 2 * BLOCK];
        layer.read_at(0, &mut bytes).unwrap();
        assert!(bytes == content(&outer, &nothing())[..2 * BLOCK]);
    }
    // Another identity alone is what tools leave that forget the copy.
    let renamed = patch_footer(outer.clone(), 68, &[7; 16]);
    assert!(content(&renamed, &nothing()) == content(&outer, &nothing()));
}

/// A block may be full by the batmap alone.
#[test]
fn image_with_a_broken_batmap_is_not_edited_until_it_is_mended() {
    let mut forge = forge();
    (forge.creator, forge.creator_version) = (*b"tap\0", 0x0001_0003);
    forge.batmap = Some((0x0001_0002, Some(1), vec![0x14]));
    let image = forge.dynamic();
    for change in [Edit::Repair(Repair::Leaks), resize(1 << 20), resize(512)] {
        assert!(tried(&image, &change) == image, "{change:?}");
    }
    let mended = tried(&image, &CHANGES[1]);
    assert!(content(&mended, &nothing()) == content(&image, &nothing()));
    assert!(tried(&mended, &resize(1 << 20)) != mended);
}

/// [libvhd] `vhd_keyhash`, behind the marker: its cookie, a nonce, a hash.
#[test]
fn disk_that_xenserver_encrypted_is_refused() {
    let mut forge = forge();
    (forge.creator, forge.creator_version) = (*b"tap\0", 0x0001_0003);
    forge.batmap = Some((0x0001_0002, None, vec![0x14]));
    let mut image = forge.dynamic();
    let at = image.windows(8).position(|it| it == b"tdbatmap").unwrap();
    image[at + 29] = 1;
    image[at + 30..at + 94].fill(0x5a);
    let mut marked = image.clone();
    marked[at + 29] = 2;
    let layer = image::open(&VHD, &*marked).unwrap();
    assert!(layer.info().warnings[0].contains("whether there is a key"));
    let error = image::open(&VHD, &*image).err().expect("encrypted");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert!(error.report().contains("encrypted"), "{error:?}");
    for change in CHANGES {
        assert!(tried(&image, &change) == image);
    }
}

/// The entry of a block and the header are one bit away from others that the sum allows.
#[test]
fn header_that_its_sum_vouches_for_is_not_worked_out() {
    let mut image = noisy().dynamic();
    image[512 + 28..512 + 32].copy_from_slice(&[0, 0, 0, 1]);
    seal(&mut image[512..1536], 36);
    let error = image::open(&VHD, &*image).err().expect("one entry");
    assert!(!error.report().contains("worked out"), "{error:?}");
    for change in CHANGES {
        assert!(tried(&image, &change) == image);
    }
}

/// Each of them can be read, and one is not the guest's.
#[test]
fn places_that_cannot_all_be_right_are_told_to_whoever_reads() {
    let image = noisy().dynamic();
    let table = u64::from_be_bytes(image[512 + 16..][..8].try_into().unwrap()) as usize;
    assert_eq!(image::open(&VHD, &*image).unwrap().info().warnings, [""; 0]);
    let mut shared = image.clone();
    shared.copy_within(table..table + 4, table + 4);
    // The last block holds a sector of the disk, and more than that is behind it, but no whole block.
    let mut short = Forge::new(4 * BLOCK as u64 + 512, BLOCK as u32);
    short = short.full_block(0, &vec![1; BLOCK]);
    let mut short = short.full_block(4, &vec![2; BLOCK]).dynamic();
    let last = u32::from_be_bytes(short[table + 16..][..4].try_into().unwrap());
    short[table + 16..][..4].copy_from_slice(&(last + 64).to_be_bytes());
    for (image, why) in [(shared, "two blocks share"), (short, "block 4 should fill")] {
        let layer = image::open(&VHD, &*image).unwrap();
        let [warning] = &layer.info().warnings[..] else {
            panic!("{:?}", layer.info().warnings);
        };
        assert!(warning.contains(why), "{warning}");
        let found = super::check(&image);
        assert_eq!(found.corruptions, 1, "{found:?}");
    }
    // One that ends with the disk, as the file does.
    let whole = Forge::new(4 * BLOCK as u64 + 512, BLOCK as u32);
    let mut whole = whole.full_block(4, &vec![2; BLOCK]).dynamic();
    let end = whole.len() - 512;
    whole.drain(end - BLOCK + 512..end);
    assert_eq!(image::open(&VHD, &*whole).unwrap().info().warnings, [""; 0]);
    assert_eq!(super::check(&whole).corruptions, 0);
}
