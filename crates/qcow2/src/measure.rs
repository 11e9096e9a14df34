//! How long an image is going to be, reckoned as QEMU does. [qemu]
//!
//! Tables are counted for the whole disk, whatever of it holds data.

use goldsmith_block::{BitmapInfo, Content, CreateSpec, GuestRange, Measured, Result};

use crate::bitmap::table_entries;
use crate::crypt::new_luks;
use crate::layout::preallocated_len;
use crate::ondisk::RawBitmap;
use crate::plan::{Plan, Preallocation, Shape};

/// What a new image of `spec` takes; see [`Format::measure`](goldsmith_block::Format::measure).
pub(crate) fn measure(spec: &CreateSpec, content: Option<Content<'_>>) -> Result<Measured> {
    let shape = Shape::new(&spec.options)?;
    shape.l1_entries(spec.virtual_size)?;
    let cluster_size = 1 << shape.cluster_bits;
    let luks = match spec.options.choice("encrypt.format") {
        "luks" => new_luks(spec)?.header_len(),
        _ => 0,
    };
    // The size passed the check of the L1 table, so none of these sums comes near 2^63.
    let disk = spec.virtual_size.next_multiple_of(cluster_size);
    let all = disk + tables(&shape, disk) + luks.next_multiple_of(cluster_size);
    let preallocated = matches!(spec.options.choice("preallocation"), "falloc" | "full");
    let covers = spec.options.text("backing_file").is_some();
    let (data, bitmaps) = match content {
        None => (0, None),
        // How much shows through cannot be known here.
        Some(content) if covers => (disk, content.bitmaps),
        Some(Content { data, bitmaps }) => {
            let clusters = clusters(data, shape.cluster_bits)?;
            (clusters << shape.cluster_bits, bitmaps)
        }
    };
    let data = if preallocated { disk } else { data };
    let bitmaps = bitmaps.filter(|_| shape.version >= 3);
    Ok(Measured {
        required: all - disk + data,
        fully_allocated: all,
        bitmaps: bitmaps.map(|bitmaps| self::bitmaps(bitmaps, spec.virtual_size, cluster_size)),
    })
}

/// How long a new image of `spec` gets, if that does not hang on what it holds; see
/// [`Format::len_of_any`](goldsmith_block::Format::len_of_any).
pub(crate) fn len_of_any(spec: &CreateSpec) -> Result<Option<u64>> {
    let plan = Plan::new(spec)?;
    if plan.preallocation == Preallocation::Off {
        return Ok(None);
    }
    Ok(Some(preallocated_len(&plan)?))
}

/// Clusters that `data` touches.
fn clusters(data: &mut dyn Iterator<Item = Result<GuestRange>>, cluster_bits: u32) -> Result<u64> {
    let (mut count, mut next) = (0, 0);
    for range in data {
        let range = range?;
        let first = next.max(range.start >> cluster_bits);
        next = next.max(range.end.div_ceil(1 << cluster_bits));
        count += next.saturating_sub(first);
    }
    Ok(count)
}

/// Bytes of the header and all tables of an image with a disk of `disk` bytes, all of them data.
fn tables(shape: &Shape, disk: u64) -> u64 {
    let cluster_size = 1 << shape.cluster_bits;
    let entry_len = if shape.extended_l2 { 16 } else { 8 };
    let l2 = (disk / cluster_size * entry_len).next_multiple_of(cluster_size);
    let l1 = (l2 / cluster_size * 8).next_multiple_of(cluster_size);
    let known = cluster_size + l2 + l1;
    let counted = (disk + known) / cluster_size;
    let in_block = (cluster_size * 8) >> shape.refcount_order;
    // Each counts itself, so it ends when nothing is added any more.
    let (mut blocks, mut table) = (0u64, 0);
    loop {
        let more = (counted + blocks + table).div_ceil(in_block);
        let more_table = (more * 8).div_ceil(cluster_size);
        if (more, more_table) == (blocks, table) {
            return known + (blocks + table) * cluster_size;
        }
        (blocks, table) = (more, more_table);
    }
}

/// Bytes that the bitmaps of a disk of `virtual_size` bytes take, all of their bits stored.
fn bitmaps(bitmaps: &[BitmapInfo], virtual_size: u64, cluster_size: u64) -> u64 {
    let (mut stored, mut directory) = (0, 0);
    for bitmap in bitmaps.iter().filter(|bitmap| !bitmap.inconsistent) {
        let clusters = table_entries(virtual_size, bitmap.granularity, cluster_size);
        stored += clusters * cluster_size + (clusters * 8).next_multiple_of(cluster_size);
        let entry = size_of::<RawBitmap>() + bitmap.name.len();
        directory += entry.next_multiple_of(8) as u64;
    }
    stored + directory.next_multiple_of(cluster_size)
}
