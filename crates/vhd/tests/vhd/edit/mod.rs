//! Images changed where they stand: the right disk afterwards, and at any moment the old or the new.

mod backing;
mod fixed;
mod heads;
mod history;
mod hostile;
mod lost;
mod refusals;
mod repair;
mod resize;
mod sink;
mod sizes;

use std::sync::Arc;

use goldsmith_block::{
    Budget, Chain, Checked, Edit, Editor, Flaw, Format, Layer, Limits, Match, Options,
    Preallocation, Repair, Result, StorageMut, is_zero,
};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::crash::CrashStorage;
use goldsmith_testkit::hostile::probe;
use goldsmith_testkit::{ModelDisk, ModelLayer, image, pattern, qemu};
use goldsmith_vhd::VHD;

use crate::forge::{Forge, Parent};

const KIB: u64 = 1 << 10;
/// Bytes per block of the forged images: small, so that there are many states to look at.
const BLOCK: usize = 64 << 10;
/// One in so many states of an image without parent is also read by QEMU.
const JUDGED: usize = 40;

fn edit(storage: Arc<dyn StorageMut>) -> Result<Box<dyn Editor>> {
    let options = Options::defaults(VHD.open_options());
    VHD.edit(storage, &Budget::new(&Limits::default()), &options)
}

/// `image` after `change`, which must go well and leave nothing to complain of.
#[track_caller]
fn edited(image: &[u8], change: &Edit) -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::holding("image", image.to_vec()));
    let mut editor = edit(storage.clone()).unwrap();
    editor.edit(change).unwrap();
    let after = storage.to_vec();
    assert_sound(&after);
    // What the editor shows now is what a reader finds.
    let again = image::open(&VHD, &*after).unwrap();
    assert_eq!(editor.layer().info(), again.info());
    if again.info().virtual_size < 64 << 20 {
        assert!(image::read(&*editor.layer()).unwrap() == image::read(&*again).unwrap());
    }
    after
}

fn check(image: &[u8]) -> Checked {
    let storage = Arc::new(MemoryStorage::holding("image", image.to_vec()));
    let checked = VHD.check(storage, &Budget::new(&Limits::default()));
    checked.unwrap().unwrap()
}

#[track_caller]
fn assert_sound(image: &[u8]) {
    let checked = check(image);
    assert_eq!(checked.flaws, [], "{checked:?}");
}

/// What the guest sees of `image` over `parent`, whatever that is.
fn content(image: &[u8], parent: &ModelDisk) -> Vec<u8> {
    let layer = image::open(&VHD, image).unwrap();
    let behind: Arc<dyn Layer> = Arc::new(ModelLayer::new(parent.clone()));
    let mut bytes = vec![0; layer.info().virtual_size as usize];
    Chain::new(layer, [behind]).read_at(0, &mut bytes).unwrap();
    bytes
}

fn resize(virtual_size: u64) -> Edit {
    resize_with(virtual_size, Preallocation::Off)
}

fn resize_with(virtual_size: u64, preallocation: Preallocation) -> Edit {
    Edit::Resize {
        virtual_size,
        preallocation,
        behind: parent().len(),
    }
}

/// What `change` makes of `image` is cut at any point: each state opens, is the disk of before or
/// the one of after, has no flaw but leaks and a footer that its copy makes up for, and is mended
/// to one without any flaw and the same disk.
#[track_caller]
fn survives_cuts(image: &[u8], parent: &ModelDisk, change: &Edit) {
    let crash = Arc::new(CrashStorage::new("image", image.to_vec()));
    edit(crash.clone()).unwrap().edit(change).unwrap();
    let (old, new) = (content(image, parent), content(&crash.to_vec(), parent));
    assert_durable(&crash);
    let stands_alone = !is_differencing(image) && !is_differencing(&crash.to_vec());
    let mut states = 0;
    crash.each_state(|what, state| {
        let what = &format!("{change:?}: {what}");
        let bytes = state.to_vec();
        let found = content(&bytes, parent);
        assert!(found == old || found == new, "{what}");
        assert_flawless_but_for_footers(&bytes, what);
        if stands_alone && states % JUDGED == 0 && is_for_qemu(&bytes) {
            let theirs = qemu::read("vpc", &bytes);
            assert!(theirs == old || theirs == new, "{what}");
        }
        let mended = edited(&bytes, &Edit::Repair(Repair::All));
        assert!(content(&mended, parent) == found, "{what}");
        if stands_alone && states % JUDGED == 1 && !has_batmap(&bytes) {
            takes_a_block_of_qemu(&bytes, what);
        }
        states += 1;
    });
    assert!(states > 4, "{states} states");
}

/// What is left of a cut does not show in a block of which QEMU writes no more than a sector, once it is
/// given back: `image` is mended if a check has anything to tell.
#[track_caller]
fn takes_a_block_of_qemu(image: &[u8], what: &str) {
    let found = check(image);
    let repair = match found.corruptions {
        0 => Repair::Leaks,
        _ => Repair::All,
    };
    let storage = Arc::new(MemoryStorage::holding("image", image.to_vec()));
    if !found.is_flawless() {
        let mut editor = edit(storage.clone()).unwrap();
        editor.edit(&Edit::Repair(repair)).unwrap();
    }
    let mended = storage.to_vec();
    let Some(block) = first_unused(&mended) else {
        return;
    };
    let at = block + BLOCK as u64 / 2;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, &mended).unwrap();
    qemu::io_ok(&path, "vpc", &[&format!("write -P 0x77 {at} 512")]);
    let written = std::fs::read(&path).unwrap();
    assert_sound(&written);
    // Of sectors without data, which it does not tell from others, QEMU may see more.
    let by_qemu: fn(&[u8]) -> Vec<u8> = |image| qemu::read("vpc", image);
    for read in [by_qemu, |image| content(image, &nothing())] {
        let mut expected = read(&mended);
        expected[at as usize..][..512].fill(0x77);
        assert!(read(&written) == expected, "{repair:?}: {what}");
    }
}

/// [qemu] It knows of none, and puts its next block there if the batmap stands behind all others.
fn has_batmap(image: &[u8]) -> bool {
    image[28..32] == *b"tap\0"
}

/// Where the first block of the disk of `image` begins that has no place in the file.
fn first_unused(image: &[u8]) -> Option<u64> {
    let layer = image::open(&VHD, image).unwrap();
    let len = layer.info().virtual_size;
    let mut blocks = (0..len / BLOCK as u64).map(|index| index * BLOCK as u64);
    blocks.find(|start| {
        let extent = layer.extent_at(*start, len).unwrap();
        !extent.kind.is_data() && extent.range.end - start >= BLOCK as u64
    })
}

/// Whatever was changed would survive a power cut by now.
#[track_caller]
fn assert_durable(crash: &CrashStorage) {
    assert!(
        crash.durable().to_vec() == crash.to_vec(),
        "the last changes were not flushed"
    );
}

#[track_caller]
fn assert_flawless_but_for_footers(image: &[u8], what: &str) {
    // Whatever a guest wrote could be taken for a footer if it stood at the end of the file.
    let tail = &image[image.len() - 512..];
    let footers = [&tail[..8], &tail[1..9]];
    assert!(
        footers.contains(&&b"conectix"[..]) || is_zero(tail),
        "{what}"
    );
    assert_ne!(probe(&VHD, image), Match::No, "{what}");
    for flaw in check(image).flaws {
        match &flaw {
            Flaw::Corruption(text)
                if text.contains("its copy at the start is intact and was used")
                    || text.contains("which was used, are only zeros") => {}
            // Readers that go by the copy see the old disk, and the others the new one.
            Flaw::Corruption(text) if text.contains("differs from it in") => {}
            Flaw::Leak(_) => {}
            Flaw::Note(text)
                if text.contains("differs from it in")
                    || text.contains("the footer behind it shows in the next block") => {}
            Flaw::Note(text) => panic!("{what}: {text}"),
            Flaw::Corruption(text) => panic!("{what}: {text}"),
        }
    }
}

/// QEMU takes a file without a footer at either end for none; that state is ours to mend.
fn is_for_qemu(image: &[u8]) -> bool {
    image.starts_with(b"conectix") || image[image.len() - 512..].starts_with(b"conectix")
}

fn is_differencing(image: &[u8]) -> bool {
    let layer = image::open(&VHD, image).unwrap();
    layer.info().backing.is_some()
}

/// Five blocks and a bit; of blocks that are there some sectors hold no data.
fn forge() -> Forge {
    let disk = pattern::disk("64k:q 64k:Q 64k:r");
    let mut bitmap = [0xff; 16];
    (bitmap[3], bitmap[7]) = (0x0f, 0);
    // QEMU does not look at bitmaps.
    let mut mixed = disk.bytes()[BLOCK..2 * BLOCK].to_vec();
    mixed[24 * 512..28 * 512].fill(0);
    mixed[56 * 512..64 * 512].fill(0);
    let mut forge = Forge::new(5 * BLOCK as u64 + 5 * KIB, BLOCK as u32)
        .full_block(3, &disk.bytes()[..BLOCK])
        .block(1, &bitmap, &mixed)
        .full_block(5, &disk.bytes()[2 * BLOCK..]);
    forge.creator = *b"win ";
    forge
}

/// The same as the child of another disk, with rubbish in sectors that hold no data.
fn child() -> Forge {
    let mut forge = forge();
    // What stands there was never the guest's.
    let (_, _, mixed) = &mut forge.blocks[1];
    pattern::fill(b'x', 0, &mut mixed[56 * 512..64 * 512]);
    forge.parent = Some(
        Parent::nameless([7; 16])
            .name("base.vhd")
            .locator(b"W2ru", r".\base.vhd"),
    );
    forge
}

fn parent() -> ModelDisk {
    pattern::disk("500k:p")
}

fn nothing() -> ModelDisk {
    pattern::disk("0:-")
}
