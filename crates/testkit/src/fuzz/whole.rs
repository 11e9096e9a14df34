//! What happens to whole disks: mapped, checked, repaired, converted, put over one another, and compared
//! with what the slow readers see.

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{
    Chain, Checked, Edit, Editor, Error, ErrorKind, ExtentKind, Flaw, Format, Layer, Repair, Result,
};
use goldsmith_engine::{Job, convert as pour};
use goldsmith_storage::MemoryStorage;

use super::METADATA;
use crate::hostile::{
    assert_blames_image, assert_extent, assert_zeros_are_zero, budget, check as look_for_flaws,
    open, options, walk,
};
use crate::image;
use crate::pattern::noise;
use crate::slow::{SECTOR, Sector};

/// Disks up to this size are looked at whole: larger ones take a fuzzer's time.
pub(super) const WHOLE: u64 = 1 << 20;

/// The disk of `data`, if it opens and is small.
fn small(format: &dyn Format, data: &[u8]) -> Option<Arc<dyn Layer>> {
    let layer = open(format, data.to_vec(), METADATA).ok()?;
    (layer.info().virtual_size <= WHOLE).then_some(layer)
}

/// Maps all of the image `data`: from the first byte on, and from the middle of each extent.
///
/// # Panics
/// If the format panics, breaks the contract of [`Layer`], or says different things of one byte.
pub fn map(format: &dyn Format, data: &[u8]) {
    let Some(layer) = small(format, data) else {
        return;
    };
    let size = layer.info().virtual_size;
    let extents = match walk(&*layer, 0, size, usize::MAX) {
        Ok(extents) => extents,
        Err(error) => return assert_blames_image(&error),
    };
    if let Ok(bytes) = image::read(&*layer) {
        assert_zeros_are_zero(&extents, &bytes);
    }
    for extent in &extents {
        let middle = extent.range.start + extent.range.len() / 2;
        let found = layer.extent_at(middle, size);
        let found = found.expect("it was fine from the start on");
        assert_extent(&*layer, &found, middle, size);
        let past = middle - extent.range.start;
        let place = |kind: ExtentKind, past: u64| match kind {
            ExtentKind::Data { host } => (0, host.map(|host| host + past)),
            ExtentKind::Zero { allocated, host } => {
                (1 + u64::from(allocated), host.map(|host| host + past))
            }
            ExtentKind::Compressed { host, .. } => (3, Some(host.offset)),
            ExtentKind::Unallocated => (4, None),
            ExtentKind::Hole { host } => (5, Some(host + past)),
        };
        assert_eq!(place(found.kind, 0), place(extent.kind, past), "{extent:?}");
    }
}

/// Checks the image `data`, with more and with less memory.
///
/// # Panics
/// If the format panics, blames anything but the image, or answers the same question in two ways.
pub fn check(format: &dyn Format, data: &[u8]) {
    let found = look_for_flaws(format, data.to_vec(), METADATA);
    let again = look_for_flaws(format, data.to_vec(), METADATA);
    match (&found, &again) {
        (Ok(found), Ok(again)) => assert_eq!(found, again),
        (Err(found), Err(again)) => {
            assert_blames_image(found);
            assert_eq!(found.report(), again.report());
        }
        _ => panic!("{found:?}, and then {again:?}"),
    }
    // Whatever the memory, the answer is the same or that it does not do.
    for metadata in [0, 600, 5000, 70_000] {
        match (look_for_flaws(format, data.to_vec(), metadata), &found) {
            (Ok(less), Ok(found)) => assert_eq!(less, *found, "with {metadata} bytes"),
            (Ok(less), Err(error)) => panic!("{less:?} with {metadata} bytes, else {error:?}"),
            (Err(error), _) => assert_blames_image(&error),
        }
    }
}

/// What a repair always mends, if nothing that it cannot mend keeps it from that.
const MENDED: &[&str] = &[
    // qcow2
    ": refcount ",
    "marked as copied, but its refcount",
    "does not say how large the disk was",
    // VHD
    "is full by the batmap, but has no place",
    "; its copy at the start is intact and was used",
    "which was used, are only zeros",
    "; the footer at the end was used",
];

/// What a repair leaves of what no repair can know: which of two is right.
const UNDECIDED: &str = "which cannot share it";

/// Whether `checked` shows something that `repair`, which went well, should have mended.
fn is_left(checked: &Checked, repair: Repair) -> bool {
    let is_mended = |flaw: &Flaw| match flaw {
        Flaw::Corruption(text) => {
            !text.contains(UNDECIDED) && MENDED.iter().any(|part| text.contains(part))
        }
        Flaw::Leak(_) | Flaw::Note(_) => true,
    };
    let all_is_mended = checked.errors == 0
        && checked.flaws.len() < Checked::FLAWS
        && checked.flaws.iter().all(is_mended);
    match repair {
        Repair::Leaks => checked.corruptions + checked.errors == 0 && checked.leaks > 0,
        Repair::All => all_is_mended && checked.corruptions + checked.leaks > 0,
    }
}

/// How a check begins to say that something stands on the header of a qcow2, whose refcount is too small for that.
const ON_HEADER: &str = "cluster 0 at 0x0: ";

/// Whether `checked` shows something that uses what it cannot share.
fn is_undecided(checked: &Checked) -> bool {
    let is = |text: &String| text.contains(UNDECIDED) || text.starts_with(ON_HEADER);
    let mut flaws = checked.flaws.iter();
    flaws.any(|flaw| matches!(flaw, Flaw::Corruption(text) if is(text)))
}

/// Repairs the image `data`, all that can be and leaks only.
///
/// # Panics
/// If the format panics, blames anything but the image, changes the disk of one that could be read, or
/// leaves anything that it could have mended.
pub fn repair(format: &dyn Format, data: &[u8]) {
    let Some(layer) = small(format, data) else {
        return;
    };
    let before = image::read(&*layer).ok();
    for repair in [Repair::Leaks, Repair::All] {
        let storage = Arc::new(MemoryStorage::holding("image", data.to_vec()));
        let (options, budget) = (options(format), budget(METADATA));
        let mended = format
            .edit(Arc::clone(&storage) as _, &budget, &options)
            .and_then(|mut editor| editor.edit(&Edit::Repair(repair)));
        if let Err(error) = &mended
            && error.kind() != ErrorKind::Usage
        {
            assert_blames_image(error);
        }
        let image = storage.to_vec();
        let after = open(format, image.clone(), METADATA);
        let after = after.unwrap_or_else(|error| panic!("{repair:?} leaves no image: {error:?}"));
        if let Some(before) = &before {
            let after = image::read(&*after).expect("it could be read before");
            assert!(after == *before, "{repair:?} changes the disk");
        }
        if mended.is_err() {
            continue;
        }
        let left = look_for_flaws(format, image.clone(), METADATA).expect("it opens");
        if let Some(left) = &left {
            assert!(!is_left(left, repair), "{repair:?} leaves {left:?}");
        }
        if left.is_some_and(|left| is_undecided(&left)) {
            // A table that stands on the header names whatever the header does, so what is moved there is
            // used twice again.
            continue;
        }
        let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
        let mut editor: Box<dyn Editor> = format
            .edit(Arc::clone(&storage) as _, &budget.afresh(), &options)
            .expect("it was edited before");
        editor
            .edit(&Edit::Repair(repair))
            .expect("it was mended before");
        if storage.to_vec() != image {
            let [found, again] = [image, storage.to_vec()]
                .map(|image| look_for_flaws(format, image, METADATA).expect("it opens"));
            panic!("{repair:?} leaves {found:?}, and a second time {again:?}");
        }
    }
}

/// Converts the image `data` into new ones in memory: RAW, and `targets`, as the first byte of its
/// disk's size says.
///
/// # Panics
/// If anything panics, a new image holds anything but the disk, or an image that cannot be read is
/// converted all the same.
pub fn convert(format: &dyn Format, data: &[u8], targets: &[&dyn Format]) {
    let Some(layer) = small(format, data) else {
        return;
    };
    let expected = image::read(&*layer);
    let size = layer.info().virtual_size;
    let pick = noise(data.len() as u64 ^ size) as usize;
    let target = targets[pick % targets.len()];
    let mut options = target.options().iter();
    let packs = options.any(|option| option.name == "compression_type");
    let compress = packs && pick / 7 % 2 == 1;
    let size = size.next_multiple_of(target.size_unit());
    let spec = image::spec(target, size, &[], compress).expect("no option is wrong");
    let storage = Arc::new(MemoryStorage::new("target"));
    let sink = target.create(Arc::clone(&storage) as _, &spec);
    let sink = sink.expect("every format holds a small disk");
    let whole = sink.profile().virtual_size;
    let job = Job {
        threads: std::num::NonZeroUsize::new(1 + pick / 14 % 2),
        ..Job::default()
    };
    let outcome = pour(&Chain::new(layer, []), sink, &job);
    match (expected, outcome) {
        (Ok(mut expected), outcome) => {
            outcome.expect("a disk that can be read can be converted");
            expected.resize(whole as usize, 0);
            let back = image::open(target, storage.to_vec()).expect("our own image opens");
            let back = image::read(&*back).expect("our own image can be read");
            assert!(back == expected, "it became another disk");
        }
        (Err(error), outcome) => {
            assert_blames_image(&error);
            assert_blames_image(&outcome.expect_err("it cannot be read"));
        }
    }
}

/// Has `convert` make a RAW file of the container in `data`, as it can while it unpacks that, and unpacks
/// all of it first with `format`.
///
/// # Panics
/// If anything panics, or the two ways lead to different disks or refusals.
pub fn in_one_pass(format: &dyn Format, data: &[u8], convert: impl Fn(&Path, &Path) -> Result<()>) {
    let expected =
        image::open(format, data).and_then(|layer| match layer.info().virtual_size <= WHOLE {
            true => image::read(&*layer).map(Some),
            false => Ok(None),
        });
    if let Ok(None) = expected {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    std::fs::write(&source, data).expect("the source can be written");
    match (expected, convert(&source, &target)) {
        (Ok(expected), Ok(())) => {
            let found = std::fs::read(&target).expect("the target is there");
            assert!(expected == Some(found), "it became another disk");
        }
        (Err(expected), Err(found)) => {
            assert!(!target.exists(), "half a target appears");
            assert_blames_image(&found);
            assert_eq!(
                found.kind(),
                expected.kind(),
                "{found:?}, else {expected:?}"
            );
        }
        (expected, found) => panic!("{found:?}, else {:?}", expected.map(|_| ())),
    }
}

/// Takes `data` as two images, the length of the first in front of both, and looks at one over the
/// other. Says whether both are images.
///
/// # Panics
/// If anything panics, or the two together show anything but what each shows by itself.
pub fn chain(format: &dyn Format, data: &[u8], fix_up: fn(&mut [u8])) -> bool {
    let Some((len, rest)) = data.split_first_chunk::<2>() else {
        return false;
    };
    let len = usize::from(u16::from_le_bytes(*len)).min(rest.len());
    let (top, bottom) = rest.split_at(len);
    let layer = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        fix_up(&mut bytes);
        small(format, &bytes)
    };
    let (Some(top), Some(bottom)) = (layer(top), layer(bottom)) else {
        return false;
    };
    let chain = Chain::new(Arc::clone(&top), [Arc::clone(&bottom)]);
    let size = chain.virtual_size();
    let mut whole = vec![0; size as usize];
    let all = chain.read_at(0, &mut whole);
    let mut at = 0;
    let mut all_fine = true;
    while at < size {
        let end = size.min(at + SECTOR as u64);
        let expected = sector_of_both(&*top, &*bottom, at, end);
        let mut found = vec![0xaa; (end - at) as usize];
        match (chain.read_at(at, &mut found), expected) {
            (Ok(()), Ok(expected)) => {
                assert!(found == expected, "byte {at:#x} is another one");
                if all.is_ok() {
                    assert!(whole[at as usize..end as usize] == expected);
                }
            }
            (Err(error), Err(_)) => {
                assert_blames_image(&error);
                all_fine = false;
            }
            (found, expected) => panic!("byte {at:#x}: {found:?}, alone {expected:?}"),
        }
        at = end;
    }
    assert_eq!(all.is_ok(), all_fine);
    let mut at = 0;
    while at < size
        && let Ok(found) = chain.extent_at(at, size)
    {
        assert_ne!(found.extent.kind, ExtentKind::Unallocated);
        assert!(found.extent.range.start == at && found.extent.range.end > at);
        at = found.extent.range.end;
    }
    true
}

/// The obvious way: byte by byte, the first image that says something.
fn sector_of_both(top: &dyn Layer, bottom: &dyn Layer, start: u64, end: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut at = start;
    while at < end {
        let extent = top.extent_at(at, end)?;
        let mut part = vec![0; extent.range.len() as usize];
        if extent.kind == ExtentKind::Unallocated {
            let there = bottom.info().virtual_size.clamp(at, extent.range.end) - at;
            if there > 0 {
                bottom.read_at(at, &mut part[..there as usize])?;
            }
        } else {
            top.read_at(at, &mut part)?;
        }
        bytes.extend(part);
        at = extent.range.end;
    }
    Ok(bytes)
}

/// Reads the image `data` twice: by `format`, and by the slow reader `slow`, sector by sector.
///
/// # Panics
/// If both read a sector, but not as the same bytes; if the format reads one that makes no sense; or if it
/// refuses one that does, of an image in which it finds nothing wrong.
pub fn differential(format: &dyn Format, data: &[u8], slow: fn(&[u8], u64) -> Sector) {
    let Some(layer) = small(format, data) else {
        return;
    };
    let sectors = layer.info().virtual_size / SECTOR as u64;
    let mut refused = None;
    for index in 0..sectors {
        let at = index * SECTOR as u64;
        let mut found = [0xaa; SECTOR];
        let read: Result<(), Error> = layer.read_at(at, &mut found);
        match (read, slow(data, index)) {
            (Ok(()), Sector::Bytes(bytes)) => assert!(found == *bytes, "sector {index} differs"),
            (Ok(()), Sector::Nothing) => assert!(found == [0; SECTOR], "sector {index} is nothing"),
            (Ok(()), Sector::Broken) => panic!("sector {index} makes no sense, but was read"),
            (Ok(()), Sector::Unknown) => {}
            (Err(error), expected) => {
                assert_blames_image(&error);
                if matches!(expected, Sector::Bytes(_) | Sector::Nothing) {
                    refused = Some((index, error));
                }
            }
        }
    }
    if let Some((index, error)) = refused {
        let found = look_for_flaws(format, data.to_vec(), METADATA);
        let is_sound = matches!(&found, Ok(Some(it)) if it.corruptions + it.errors == 0);
        assert!(!is_sound, "sector {index}: {error:?}, but {found:?}");
    }
}
