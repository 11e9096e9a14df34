//! Images that other people's tools wrote, where they are at hand: they are not ours to publish.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use goldsmith_block::{Budget, ExtentKind, Flaw, Format, Layer, Limits, Match, is_zero};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::hostile::{probe, walk};
use goldsmith_testkit::left_out;
use goldsmith_vhd::VHD;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/samples");

/// The unpacked sample, or `None` where the folder is not there.
fn sample(name: &str) -> Option<Vec<u8>> {
    let packed = PathBuf::from(FOLDER).join(name);
    if !PathBuf::from(FOLDER).is_dir() {
        left_out(format_args!("{name} of another program, which is not here"));
        return None;
    }
    let output = Command::new("bzip2")
        .arg("-dc")
        .arg(&packed)
        .output()
        .unwrap_or_else(|error| panic!("bzip2: {error}; install it with: apt-get install bzip2"));
    assert!(output.status.success(), "{}", packed.display());
    Some(output.stdout)
}

fn open(bytes: Vec<u8>) -> Arc<dyn Layer> {
    assert_eq!(probe(&VHD, &bytes), Match::Marked);
    let storage = Arc::new(MemoryStorage::holding("sample", bytes));
    VHD.open(storage, &Budget::new(&Limits::default())).unwrap()
}

/// sha256 1ba076be... is that of this many zeros.
#[test]
fn disk2vhd_image_has_its_size_and_its_zeros() {
    let Some(bytes) = sample("d2v-zerofilled.vhd.bz2") else {
        return;
    };
    let layer = open(bytes);
    assert_eq!(layer.info().virtual_size, 263_454_720);
    let extents = walk(&*layer, 0, 263_454_720, 1000).unwrap();
    assert_eq!(extents.len(), 126, "every block is there");
    assert!(extents.iter().all(|extent| extent.kind.is_data()));
    let mut block = vec![0xaa; 2 << 20];
    for extent in extents {
        let part = &mut block[..extent.range.len() as usize];
        layer.read_at(extent.range.start, part).unwrap();
        assert!(is_zero(part), "{extent:?}");
    }
}

/// It has a sector of zeros before its footer, which is no leak; QEMU shows the footer in its next block.
#[test]
fn virtual_pc_image_wastes_nothing() {
    let Some(bytes) = sample("virtualpc-dynamic.vhd.bz2") else {
        return;
    };
    let storage = Arc::new(MemoryStorage::holding("sample", bytes.clone()));
    let checked = VHD.check(storage, &Budget::new(&Limits::default()));
    let checked = checked.unwrap().unwrap();
    assert_eq!((checked.corruptions, checked.leaks), (0, 0));
    let [Flaw::Note(text)] = &checked.flaws[..] else {
        panic!("{checked:?}");
    };
    assert!(text.contains("0x3fe00..0x40000"), "{text}");
    assert_eq!(open(bytes).symptoms().unwrap(), []);
}

#[test]
fn virtual_pc_image_has_the_size_of_its_geometry() {
    let Some(bytes) = sample("virtualpc-dynamic.vhd.bz2") else {
        return;
    };
    let layer = open(bytes);
    assert_eq!(layer.info().virtual_size, 136_363_130_880);
    let extents = walk(&*layer, 0, 136_363_130_880, 2).unwrap();
    assert_eq!(extents.len(), 1);
    assert_eq!(extents[0].range.end, 136_363_130_880);
    assert!(matches!(
        extents[0].kind,
        ExtentKind::Zero { host: None, .. }
    ));
}
