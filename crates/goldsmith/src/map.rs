//! Where each part of a disk lies, with neighbours of one kind joined.

use goldsmith_block::{Chain, ChainExtent, ExtentKind, GuestRange, Result};

/// A run of guest bytes of one kind, in the words of `qemu-img map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MapEntry {
    /// The guest bytes.
    pub range: GuestRange,
    /// The layer that decides: 0 is the topmost.
    pub depth: usize,
    /// Whether any layer says something of these bytes.
    pub present: bool,
    /// Whether they read as zeros without being stored.
    pub zero: bool,
    /// Whether they are stored.
    pub data: bool,
    /// Whether they are stored packed.
    pub compressed: bool,
    /// Where they stand in that layer's file, unless they are packed or stand nowhere.
    pub offset: Option<u64>,
}

/// The entries of the whole disk, in order.
///
/// ```
/// use goldsmith::{Convert, Opener, map};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let (golden, disk) = (folder.path().join("golden.raw"), folder.path().join("disk.qcow2"));
/// let mut bytes = vec![7; 1 << 16];
/// bytes.resize(1 << 20, 0);
/// std::fs::write(&golden, bytes)?;
/// Convert::new(&golden, &disk).source_format("raw").target_format("qcow2").run()?;
///
/// let disk = Opener::new().open(&disk, Some("qcow2"))?;
/// let entries = map(&disk).collect::<Result<Vec<_>, _>>()?;
/// assert_eq!(entries.len(), 2);
/// assert!(entries[0].data && entries[0].range.len() == 1 << 16);
/// assert!(entries[1].zero && entries[1].offset.is_none());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Each item may be an error of [`Chain::extent_at`]; it is the last one.
pub fn map(chain: &Chain) -> impl Iterator<Item = Result<MapEntry>> {
    map_range(chain, GuestRange::new(0, chain.virtual_size()))
}

/// The entries of a part of the disk, in order; `range` may go on behind its end.
///
/// # Errors
/// As [`map`].
pub fn map_range(chain: &Chain, range: GuestRange) -> impl Iterator<Item = Result<MapEntry>> {
    let mut extents = chain.extents_in(range).peekable();
    std::iter::from_fn(move || {
        let mut entry = match extents.next()? {
            Ok(extent) => MapEntry::from(extent),
            Err(error) => return Some(Err(error)),
        };
        while let Some(Ok(next)) = extents.peek() {
            let next = MapEntry::from(*next);
            if !entry.continues_in(&next) {
                break;
            }
            entry.range.end = next.range.end;
            extents.next();
        }
        Some(Ok(entry))
    })
}

impl From<ChainExtent> for MapEntry {
    fn from(found: ChainExtent) -> Self {
        let none = Self {
            range: found.extent.range,
            depth: found.depth,
            present: true,
            zero: false,
            data: false,
            compressed: false,
            offset: None,
        };
        match found.extent.kind {
            ExtentKind::Data { host } => Self {
                data: true,
                offset: host,
                ..none
            },
            ExtentKind::Compressed { .. } => Self {
                data: true,
                compressed: true,
                ..none
            },
            // [qemu] Both, and so they are for a disk whose clusters have their places in advance.
            ExtentKind::Hole { host } => Self {
                data: true,
                zero: true,
                offset: Some(host),
                ..none
            },
            ExtentKind::Zero { allocated, host } => Self {
                zero: true,
                present: allocated,
                offset: host,
                ..none
            },
            ExtentKind::Unallocated => Self {
                zero: true,
                present: false,
                ..none
            },
        }
    }
}

impl MapEntry {
    fn continues_in(&self, next: &Self) -> bool {
        let nature = |entry: &Self| {
            (
                entry.depth,
                entry.present,
                entry.zero,
                entry.data,
                entry.compressed,
            )
        };
        let offset = self.offset.map(|offset| offset + self.range.len());
        nature(self) == nature(next) && offset == next.offset
    }
}
