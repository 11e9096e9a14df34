//! Damage, and what may come of it: an answer, within bounds, and never a panic.

use std::ops::Range;
use std::sync::Arc;

use goldsmith_block::{
    Budget, Checked, Error, ErrorKind, Extent, ExtentKind, Flaw, Format, GuestRange, Layer, Limits,
    Match, OptionKind, Options, Probe, Result, is_zero,
};
use goldsmith_storage::MemoryStorage;

/// What an image turned out to be.
#[derive(Debug)]
pub enum Outcome {
    /// It was refused when it was opened, or while it was read.
    Refused(Error),
    /// It reads to the end.
    Content {
        /// Size of the disk in bytes.
        virtual_size: u64,
        /// All guest bytes of a disk of at most [`READ_ALL`] bytes.
        bytes: Option<Vec<u8>>,
    },
}

/// The passphrase that is given for every image; those that are not encrypted have no use for it.
pub const SECRET: &str = "sesame";
/// Disks up to this size are read whole.
pub const READ_ALL: u64 = 16 << 20;
/// Larger disks are walked over this many extents.
const EXTENTS: usize = 2000;
/// As many snapshots are looked at.
const SNAPSHOTS: usize = 3;
/// As many bitmaps are looked at.
const BITMAPS: usize = 3;
/// Memory for metadata that no small image needs.
const METADATA: u64 = 64 << 20;
/// Rounds of hashing that try [`SECRET`] on a key slot that was made in a millisecond.
const HASH_ROUNDS: u64 = 50_000;

impl Outcome {
    /// The kind of the error, if the image was refused.
    pub fn refused(&self) -> Option<ErrorKind> {
        match self {
            Self::Refused(error) => Some(error.kind()),
            Self::Content { .. } => None,
        }
    }

    /// Whether the image reads whole, and as exactly these bytes.
    pub fn reads_as(&self, expected: &[u8]) -> bool {
        matches!(self, Self::Content { bytes: Some(bytes), .. } if bytes == expected)
    }
}

/// Opens `bytes`, walks over the extents and reads all of a small disk, the ends of a large one.
///
/// # Panics
/// If the format panics, breaks the contract of [`Layer`], or blames anything but the image.
pub fn survives(format: &dyn Format, bytes: Vec<u8>) -> Outcome {
    match inspect(format, bytes) {
        Ok((virtual_size, bytes)) => Outcome::Content {
            virtual_size,
            bytes,
        },
        Err(error) => {
            assert_blames_image(&error);
            Outcome::Refused(error)
        }
    }
}

fn inspect(format: &dyn Format, bytes: Vec<u8>) -> Result<(u64, Option<Vec<u8>>)> {
    let layer = open(format, bytes, METADATA)?;
    look_at_snapshots(&*layer);
    look_at_bitmaps(&*layer);
    layer.symptoms()?;
    let size = layer.info().virtual_size;
    if size <= READ_ALL {
        let extents = walk(&*layer, 0, size, usize::MAX)?;
        let bytes = crate::image::read(&*layer)?;
        assert_zeros_are_zero(&extents, &bytes);
        return Ok((size, Some(bytes)));
    }
    walk(&*layer, 0, size, EXTENTS)?;
    walk(&*layer, size - (1 << 20), size, EXTENTS)?;
    let mut ends = vec![0; 1 << 20];
    layer.read_at(0, &mut ends)?;
    layer.read_at(size - (1 << 20), &mut ends)?;
    Ok((size, None))
}

/// Opens `bytes` with `metadata` bytes to spend. An image that wants a data file gets itself.
pub fn open(format: &dyn Format, bytes: Vec<u8>, metadata: u64) -> Result<Arc<dyn Layer>> {
    let storage = Arc::new(MemoryStorage::holding("hostile", bytes));
    let layer = format.open_with(storage.clone(), &budget(metadata), &options(format))?;
    match layer.info().data_file {
        Some(_) => layer.with_data(storage),
        None => Ok(layer),
    }
}

/// What a damaged image may cost that gets `metadata` bytes of memory.
pub(crate) fn budget(metadata: u64) -> Budget {
    let mut limits = Limits::default();
    limits.metadata_bytes = metadata;
    limits.hash_rounds = HASH_ROUNDS;
    Budget::new(&limits)
}

/// What images of `format` are opened with: [`SECRET`] for whatever takes one.
pub(crate) fn options(format: &dyn Format) -> Options {
    let known = format.open_options();
    let secrets = known
        .iter()
        .filter(|option| option.kind == OptionKind::Secret);
    Options::parse(known, secrets.map(|option| (option.name, SECRET))).expect("these are its own")
}

/// What a check of `bytes` finds, with `metadata` bytes to spend.
///
/// # Errors
/// Those of the format.
///
/// # Panics
/// If numbers and flaws contradict each other.
pub fn check(format: &dyn Format, bytes: Vec<u8>, metadata: u64) -> Result<Option<Checked>> {
    let storage = Arc::new(MemoryStorage::holding("hostile", bytes));
    let checked = format.check(storage, &budget(metadata))?;
    if let Some(checked) = &checked {
        assert!(checked.flaws.len() <= Checked::FLAWS);
        let corrupt = |flaw: &Flaw| matches!(flaw, Flaw::Corruption(_));
        let told = checked.flaws.iter().any(corrupt);
        // The first flaws may all be leaks.
        let full = checked.flaws.len() == Checked::FLAWS;
        assert!(told == (checked.corruptions > 0) || full, "{checked:?}");
    }
    Ok(checked)
}

/// Looks into the first snapshots of `layer`, none of which keeps the others from being read.
fn look_at_snapshots(layer: &dyn Layer) {
    for index in 0..layer.info().snapshots.len().min(SNAPSHOTS) {
        let looked = layer
            .snapshot(index, &budget(METADATA))
            .and_then(|snapshot| {
                let size = snapshot.info().virtual_size;
                walk(&*snapshot, 0, size, EXTENTS)?;
                let mut start = vec![0; size.min(1 << 16) as usize];
                snapshot.read_at(0, &mut start)
            });
        if let Err(error) = looked {
            assert_blames_image(&error);
        }
    }
}

/// Looks at the first bitmaps of `layer`, none of which keeps the disk from being read.
///
/// # Panics
/// If ranges touch, are empty, do not ascend or are behind the disk.
fn look_at_bitmaps(layer: &dyn Layer) {
    for index in 0..layer.info().bitmaps.len().min(BITMAPS) {
        match layer.dirty_ranges(index, &budget(METADATA)) {
            Ok(ranges) => {
                assert!(ranges.iter().all(|range| !range.is_empty()));
                assert!(ranges.is_sorted_by(|a, b| a.end < b.start));
                let end = ranges.last().map_or(0, |range| range.end);
                assert!(end <= layer.info().virtual_size);
            }
            Err(error) => assert_blames_image(&error),
        }
    }
}

/// How well `bytes` fit `format`.
pub fn probe(format: &dyn Format, bytes: &[u8]) -> Match {
    let tail = &bytes[bytes.len().saturating_sub(Probe::TAIL)..];
    let last = bytes.iter().rposition(|byte| *byte != 0);
    let last = last.filter(|_| is_zero(tail)).map(|last| last / 512 * 512);
    format.probe(&Probe {
        head: &bytes[..bytes.len().min(Probe::HEAD)],
        tail,
        before_zeros: last.map(|at| (at as u64, &bytes[at..at + 512])),
    })
}

/// Up to `most` extents of `layer` from `start` to `end`, each of them checked.
///
/// # Errors
/// Those of the layer.
///
/// # Panics
/// If an extent breaks the contract of [`Layer::extent_at`].
pub fn walk(layer: &dyn Layer, start: u64, end: u64, most: usize) -> Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut at = start;
    while at < end && extents.len() < most {
        let extent = layer.extent_at(at, end)?;
        assert_extent(layer, &extent, at, end);
        at = extent.range.end;
        extents.push(extent);
    }
    Ok(extents)
}

/// Asserts that `extent` is an answer to `extent_at(offset, limit)`.
pub fn assert_extent(layer: &dyn Layer, extent: &Extent, offset: u64, limit: u64) {
    let range = extent.range;
    assert_eq!(
        range.start, offset,
        "{extent:?} does not start where it was asked to"
    );
    assert!(!range.is_empty(), "{extent:?} is empty");
    assert!(
        range.end <= limit,
        "{extent:?} goes past the limit {limit:#x}"
    );
    let file_len = layer.data_storage().len();
    match extent.kind {
        ExtentKind::Data { host: Some(host) }
        | ExtentKind::Hole { host }
        | ExtentKind::Zero {
            host: Some(host), ..
        } => {
            let end = host.checked_add(range.len());
            assert!(
                end.is_some_and(|end| end <= file_len),
                "{extent:?} is past the end of the file ({file_len} bytes)"
            );
        }
        ExtentKind::Compressed { unit, host, .. } => {
            assert!(
                unit.start <= range.start && range.end <= unit.end,
                "{extent:?} is not inside its unit"
            );
            assert!(
                host.offset < file_len,
                "{extent:?} is past the end of the file ({file_len} bytes)"
            );
        }
        ExtentKind::Data { host: None } | ExtentKind::Zero { host: None, .. } => {}
        ExtentKind::Unallocated => {}
    }
}

/// Asserts that `extents` claim no zeros where the bytes of the disk are none.
pub(crate) fn assert_zeros_are_zero(extents: &[Extent], bytes: &[u8]) {
    for extent in extents.iter().filter(|extent| !extent.kind.is_data()) {
        let GuestRange { start, end } = extent.range;
        let claimed = &bytes[start as usize..end as usize];
        assert!(is_zero(claimed), "{extent:?} reads as something else");
    }
}

/// Asserts that an error about bytes in memory blames the image.
///
/// `Io` would mean that the format read past the end of the file instead of noticing that the
/// image says something impossible.
pub fn assert_blames_image(error: &Error) {
    use ErrorKind::{Corrupt, Denied, Limit, Unsupported};
    assert!(
        // Denied: it is encrypted, or says so.
        matches!(error.kind(), Corrupt | Limit | Unsupported | Denied),
        "a bad image is no {error:?}"
    );
}

/// Lengths to cut a file of `len` bytes to: around each of `boundaries`, each multiple of 512 where
/// these are few, and about `more` others spread evenly. Ascending, each less than `len`.
pub fn cuts(len: usize, boundaries: &[usize], more: usize) -> Vec<usize> {
    let around = boundaries
        .iter()
        .flat_map(|at| [at.saturating_sub(1), *at, at + 1]);
    let sectors = (0..len).step_by(512.max(len / 256));
    let spread = (0..len).step_by((len / more.max(1)).max(1));
    let mut cuts: Vec<_> = around.chain(sectors).chain(spread).collect();
    cuts.retain(|cut| *cut < len);
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

/// Copies of `bytes` with one bit turned round, one for each byte of `range` that is a multiple of
/// `step` from its start; which bit depends on the place.
pub fn flips(bytes: &[u8], range: Range<usize>, step: usize) -> impl Iterator<Item = Vec<u8>> {
    range.step_by(step).map(|at| {
        let mut copy = bytes.to_vec();
        copy[at] ^= 1 << (crate::pattern::noise(at as u64) % 8);
        copy
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_stay_inside_and_include_the_boundaries() {
        let cuts = cuts(2000, &[0, 100, 2000], 10);
        assert!(cuts.is_sorted() && cuts.iter().all(|cut| *cut < 2000));
        for at in [0, 99, 100, 101, 512, 1024, 1999] {
            assert!(cuts.contains(&at), "{at}");
        }
    }

    #[test]
    fn flip_changes_one_bit() {
        for (at, copy) in flips(&[0; 64], 8..16, 2).enumerate() {
            let changed: Vec<_> = (0..64).filter(|at| copy[*at] != 0).collect();
            assert_eq!(changed, [8 + 2 * at]);
            assert_eq!(copy[changed[0]].count_ones(), 1);
        }
    }
}
