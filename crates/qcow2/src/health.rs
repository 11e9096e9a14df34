//! What shows at a glance: whether the file ends where its refcounts do.
//!
//! The last cluster that is counted must stand in the file, and nothing should stand behind it. That
//! takes the end of the refcount table and one refcount block, however large the disk is.

use byteorder::{BE, ByteOrder};
use goldsmith_block::{Ailment, HostRange, Result, Storage, Symptom};

use crate::geometry::Geometry;
use crate::layer::Head;
use crate::ondisk::{OFFSET_END, REFCOUNT_RESERVED};
use crate::table::read_up_to_end;

/// Bytes of the refcount table that are read together. [ours]
const PIECE: u64 = 64 << 10;
/// Refcount blocks that are looked at. [ours] One that counts nothing is rare, and a table may name
/// a million of them.
const BLOCKS: usize = 4;

/// What ails the image in `storage`.
pub(crate) fn symptoms(storage: &dyn Storage) -> Result<Vec<Symptom>> {
    let head = Head::read(storage)?;
    let table = head.refcount_table();
    let geometry = head.geometry;
    let mut symptoms = Vec::new();
    if geometry.corrupt {
        symptoms.push(Ailment::Corrupt.sign("the image is marked as corrupt"));
    }
    symptoms.extend(end(storage, &geometry, table)?);
    Ok(symptoms)
}

/// What is wrong with where the file ends, if anything is; `table` is the refcount table.
fn end(storage: &dyn Storage, geometry: &Geometry, table: HostRange) -> Result<Option<Symptom>> {
    let (bits, file_len) = (geometry.cluster_bits, geometry.file_len);
    let mut before = table.len / 8;
    for _ in 0..BLOCKS {
        let Some((index, offset)) = last_entry(storage, table.offset, before)? else {
            return Ok(None);
        };
        if offset & REFCOUNT_RESERVED != 0
            || !offset.is_multiple_of(geometry.cluster_size())
            || offset >= OFFSET_END
        {
            let text =
                format!("refcount table entry {index} is {offset:#x}, where no block can be");
            return Ok(Some(Ailment::Corrupt.sign(text)));
        }
        let block = HostRange::new(offset, geometry.cluster_size());
        if offset >= file_len {
            let text = format!(
                "the refcount block at {block} is past the end of the file ({file_len} bytes)"
            );
            return Ok(Some(Ailment::Truncated.sign(text)));
        }
        // A cluster, at most 2 MiB.
        let mut counters = vec![0; geometry.cluster_size() as usize];
        read_up_to_end(storage, offset, &mut counters)?;
        let Some(counter) = last_counter(&counters, geometry.refcount_bits) else {
            before = index;
            continue;
        };
        // At most 2^20 blocks of 2^24 counters.
        let cluster =
            index * (counters.len() as u64 * 8 / u64::from(geometry.refcount_bits)) + counter;
        if cluster >= OFFSET_END >> bits {
            let text = format!("cluster {cluster} is counted, where no cluster can be");
            return Ok(Some(Ailment::Corrupt.sign(text)));
        }
        let last = HostRange::new(cluster << bits, geometry.cluster_size());
        // A file may end inside of its last cluster, as QEMU leaves it.
        if last.offset >= file_len {
            let text = format!(
                "the cluster at {last} is in use and past the end of the file ({file_len} bytes)"
            );
            return Ok(Some(Ailment::Truncated.sign(text)));
        }
        // Refcounts of an image that was not closed may not know all that is in use.
        if last.end() < file_len && !geometry.dirty {
            let text = format!(
                "{} bytes behind the last cluster in use, from {:#x}, belong to nothing",
                file_len - last.end(),
                last.end()
            );
            return Ok(Some(Ailment::Tail.sign(text)));
        }
        return Ok(None);
    }
    Ok(None)
}

/// The last of the first `entries` entries of the refcount table at `offset` that is not empty: its
/// index, and what it says.
fn last_entry(storage: &dyn Storage, offset: u64, entries: u64) -> Result<Option<(u64, u64)>> {
    let mut piece = vec![0; PIECE as usize];
    let mut end = entries;
    while end > 0 {
        let start = end.saturating_sub(PIECE / 8);
        // At most a piece.
        let piece = &mut piece[..(end - start) as usize * 8];
        read_up_to_end(storage, offset + start * 8, piece)?;
        let found = piece.chunks_exact(8).rposition(|entry| entry != [0; 8]);
        if let Some(at) = found {
            return Ok(Some((start + at as u64, BE::read_u64(&piece[at * 8..]))));
        }
        end = start;
    }
    Ok(None)
}

/// The last of `counters`, each of `width` bits, that is not zero.
fn last_counter(counters: &[u8], width: u32) -> Option<u64> {
    let at = counters.iter().rposition(|byte| *byte != 0)?;
    // Several counters in one byte begin at its lowest bit. [spec]
    let bit = at as u64 * 8 + u64::from(7 - counters[at].leading_zeros());
    Some(bit / u64::from(width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_counter_is_found_in_every_width() {
        assert_eq!(last_counter(&[0, 0], 16), None);
        for (counters, width, last) in [
            ([1, 0, 0, 0], 1, 0),
            ([0, 0x80, 0, 0], 1, 15),
            ([0, 0b0001_0000, 0, 0], 2, 6),
            ([0, 0x10, 0, 0], 4, 3),
            ([0, 1, 0, 0], 8, 1),
            ([0, 0, 1, 0], 16, 1),
            ([0, 0, 0, 1], 32, 0),
        ] {
            assert_eq!(last_counter(&counters, width), Some(last), "{width}");
        }
    }
}
