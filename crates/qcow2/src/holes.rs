//! Holes of the file below clusters of data, as they are where clusters got their places in advance.

use std::fs::File;
use std::sync::{Arc, OnceLock};

use byteorder::{BE, ByteOrder};
use goldsmith_block::{ExtentKind, Flat, HostRange, Result, Storage};

use crate::geometry::Geometry;
use crate::ondisk::{OFFSET_END, REFCOUNT_RESERVED, REFCOUNT_TABLE_BYTES};
use crate::refcount::Block;
use crate::table::read_up_to_end;

/// Bytes of the refcount table that are read together. [ours]
const PIECE: u64 = 64 << 10;
/// Refcounts that are looked at, at most. [ours] A refcount table may name a million blocks, each of them
/// the same. With clusters of 64 KiB these count 2 TiB, and a disk that is all preallocated is known as such
/// after the first few.
const COUNTERS: u64 = 1 << 25;

/// What is known of the holes of the file that holds the clusters.
pub(crate) struct Holes {
    /// Where the refcount table stands.
    refcounts: HostRange,
    /// Whether it is worth while to look for holes.
    likely: OnceLock<bool>,
    file: Flat,
}

impl Holes {
    /// Those of `data`, where guest data stands; `refcounts` is the table of the image.
    pub(crate) fn new(refcounts: HostRange, data: &Arc<dyn Storage>) -> Self {
        Self {
            refcounts,
            likely: OnceLock::new(),
            file: Flat::new(Arc::clone(data), data.len()),
        }
    }

    /// The same of other data.
    pub(crate) fn in_data(&self, data: &Arc<dyn Storage>) -> Self {
        Self::new(self.refcounts, data)
    }

    /// How many of the bytes at `host`, all of them in the file, are a hole like the first one, or are none
    /// like it, and whether it is one; `image` is the image file.
    ///
    /// [qemu] Most images have no holes below their data, and many file systems take their time to say so.
    /// So nobody looks unless the image uses more clusters than its file has.
    pub(crate) fn span(
        &self,
        image: &dyn Storage,
        geometry: &Geometry,
        host: HostRange,
    ) -> (u64, bool) {
        let none = (host.len, false);
        let is_likely = || self.is_likely(image, geometry).unwrap_or_default();
        if !*self.likely.get_or_init(is_likely) {
            return none;
        }
        // Who cannot say where holes are may be able to read all the same.
        let found = self.file.extent_at(host.offset, host.end());
        found.map_or(none, |found| {
            let hole = matches!(found.kind, ExtentKind::Zero { .. });
            (found.range.len(), hole)
        })
    }

    /// Whether a tenth of the clusters that are counted, and two at least, take no space. [qemu]
    fn is_likely(&self, image: &dyn Storage, geometry: &Geometry) -> Result<bool> {
        let Some(taken) = image.file().and_then(bytes_on_disk) else {
            return Ok(false);
        };
        let taken = taken >> geometry.cluster_bits;
        let enough = (taken.saturating_mul(10) / 9).max(taken.saturating_add(2));
        let clusters = geometry.file_len.div_ceil(geometry.cluster_size());
        if clusters < enough {
            return Ok(false);
        }
        Ok(self.count(image, geometry, clusters, enough)? >= enough)
    }

    /// How many of the first `clusters` clusters are counted at all; no more are looked at than it takes to
    /// find `enough`.
    fn count(
        &self,
        image: &dyn Storage,
        geometry: &Geometry,
        clusters: u64,
        enough: u64,
    ) -> Result<u64> {
        let order = geometry.refcount_bits.trailing_zeros();
        let mut block = Block::new(geometry.cluster_bits, order);
        let in_block = block.len();
        // Whoever salvages an image does so whatever its header says of them.
        let len = self.refcounts.len.min(REFCOUNT_TABLE_BYTES);
        let entries = clusters.div_ceil(in_block).min(len / 8);
        let mut left = COUNTERS;
        let (mut counted, mut piece) = (0, Vec::new());
        for index in 0..entries {
            let at = index % (PIECE / 8);
            if at == 0 {
                piece.resize(PIECE as usize, 0);
                let offset = self.refcounts.offset.saturating_add(index * 8);
                read_up_to_end(image, offset, &mut piece)?;
            }
            // Less than a piece.
            let place = BE::read_u64(&piece[at as usize * 8..]) & !REFCOUNT_RESERVED;
            if place == 0 || place >= OFFSET_END {
                continue;
            }
            if left < in_block {
                break;
            }
            left -= in_block;
            read_up_to_end(image, place, &mut block.bytes)?;
            let inside = in_block.min(clusters - index * in_block);
            let used = (0..inside).filter(|cluster| block.get(*cluster) != 0);
            counted += used.take((enough - counted) as usize).count() as u64;
            if counted == enough {
                break;
            }
        }
        Ok(counted)
    }
}

#[cfg(unix)]
fn bytes_on_disk(file: &File) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    // POSIX counts blocks of 512 bytes here, whatever the file system's own are.
    Some(file.metadata().ok()?.blocks().saturating_mul(512))
}

#[cfg(not(unix))]
fn bytes_on_disk(_file: &File) -> Option<u64> {
    None
}
