//! Readers so simple that they are seen to be right: one sector at a time, each from the first byte of the
//! file on, nothing remembered.

use goldsmith_block::Codec;
use goldsmith_codec::Unpacker;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// What an image says of one sector of its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sector {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing: what stands behind the image shows.
    Nothing,
    /// Nothing that makes sense.
    Broken,
    /// Something that this reader does not know.
    Unknown,
}

impl Sector {
    fn at(file: &[u8], offset: u64) -> Self {
        let offset = usize::try_from(offset).ok();
        let bytes = offset.and_then(|at| file.get(at..at.checked_add(SECTOR)?));
        bytes.map_or(Self::Broken, |bytes| Self::Bytes(bytes.to_vec()))
    }

    fn of_zeros() -> Self {
        Self::Bytes(vec![0; SECTOR])
    }
}

fn number(file: &[u8], at: u64, len: usize) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let bytes = file.get(at..at.checked_add(len)?)?;
    Some(
        bytes
            .iter()
            .fold(0, |all, byte| all << 8 | u64::from(*byte)),
    )
}

/// What the qcow2 image `file` says of sector `index`. [spec "Cluster mapping"]
pub fn qcow2(file: &[u8], index: u64) -> Sector {
    qcow2_or_broken(file, index).unwrap_or(Sector::Broken)
}

fn qcow2_or_broken(file: &[u8], index: u64) -> Option<Sector> {
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    let version = number(file, 4, 4)?;
    let bits = number(file, 20, 4)?;
    let features = match version {
        2 => 0,
        _ => number(file, 72, 8)?,
    };
    // Dirty, a compression type, and subclusters.
    if features & !0b11001 != 0 || number(file, 32, 4)? != 0 {
        return Some(Sector::Unknown);
    }
    if !(9..=21).contains(&bits) {
        return None;
    }
    let subclusters = features & 0b10000 != 0;
    let entry_len = if subclusters { 16 } else { 8 };
    let cluster_size = 1 << bits;
    let guest = index * SECTOR as u64;
    let (cluster, inside) = (guest / cluster_size, guest % cluster_size);
    let entries = cluster_size / entry_len;
    let (l1_index, l2_index) = (cluster / entries, cluster % entries);

    let l2 = number(file, number(file, 40, 8)?.checked_add(8 * l1_index)?, 8)? & OFFSET;
    if l2 == 0 {
        return Some(Sector::Nothing);
    }
    let at = l2 + entry_len * l2_index;
    let entry = number(file, at, 8)?;
    if entry >> 62 & 1 == 1 {
        let offset_bits = 62 - (bits - 8);
        let host = entry & ((1 << offset_bits) - 1);
        let sectors = 1 + ((entry & !(3 << 62)) >> offset_bits);
        let end = (host / 512 + sectors) * 512;
        let end = usize::try_from(end).ok()?.min(file.len());
        let packed = file.get(usize::try_from(host).ok()?..end)?;
        let codec = match features & 0b1000 != 0 && number(file, 104, 1)? == 1 {
            true => Codec::Zstd,
            false => Codec::Deflate,
        };
        let mut unpacked = vec![0; cluster_size as usize];
        Unpacker::new().unpack(codec, packed, &mut unpacked).ok()?;
        return Some(Sector::at(&unpacked, inside));
    }
    let host = entry & OFFSET;
    if subclusters {
        let bitmap = number(file, at + 8, 8)?;
        let nth = inside / (cluster_size / 32);
        return Some(match (bitmap >> nth & 1, bitmap >> (32 + nth) & 1) {
            (0, 0) => Sector::Nothing,
            (0, 1) => Sector::of_zeros(),
            _ => Sector::at(file, host + inside),
        });
    }
    Some(match (host, version >= 3 && entry & 1 == 1) {
        (_, true) => Sector::of_zeros(),
        (0, false) => Sector::Nothing,
        _ => Sector::at(file, host + inside),
    })
}

/// What the VHD image `file` says of sector `index`, by its footer or, if that is broken, by the copy.
/// `[spec]`
pub fn vhd(file: &[u8], index: u64) -> Sector {
    vhd_or_broken(file, index).unwrap_or(Sector::Broken)
}

fn vhd_or_broken(file: &[u8], index: u64) -> Option<Sector> {
    const FIXED: u64 = 2;
    const DIFFERENCING: u64 = 4;
    // Old ones are a byte shorter.
    let len = if file.len() % SECTOR == 511 {
        511
    } else {
        SECTOR
    };
    let last = file.get(file.len().checked_sub(len)?..)?;
    let is_sound = |footer: &&[u8]| footer.starts_with(b"conectix") && is_summed(footer, 64);
    let Some(footer) = [last, file.get(..SECTOR)?].into_iter().find(is_sound) else {
        return Some(Sector::Unknown);
    };
    let tapdisk = (footer[28..32] == *b"tap\0").then(|| number(footer, 32, 4));
    let disk_type = number(footer, 60, 4)?;
    if disk_type == FIXED {
        return Some(Sector::at(file, index * SECTOR as u64));
    }
    let nothing = match disk_type {
        DIFFERENCING => Sector::Nothing,
        _ => Sector::of_zeros(),
    };
    let header = number(footer, 16, 8)?;
    let start = usize::try_from(header).ok()?;
    let there = file.get(start..start.checked_add(1024)?)?;
    if !is_summed(there, 36) {
        return Some(Sector::Unknown);
    }
    let bat = number(file, header.checked_add(16)?, 8)?;
    let sectors = number(file, header + 32, 4)? / SECTOR as u64;
    if sectors == 0 {
        return None;
    }
    let (block, inside) = (index / sectors, index % sectors);
    let entry = number(file, bat.checked_add(4 * block)?, 4)?;
    if entry == 0xffff_ffff {
        return Some(nothing);
    }
    let bitmap = entry * SECTOR as u64;
    let place = match tapdisk {
        // [libvhd] Version 0.1 counts from the lowest bit.
        Some(Some(1)) => inside % 8,
        _ => 7 - inside % 8,
    };
    let bit = number(file, bitmap + inside / 8, 1)? >> place & 1;
    if bit == 0 {
        return Some(match tapdisk {
            // There may be a batmap that says otherwise.
            Some(Some(2..)) => Sector::Unknown,
            _ => nothing,
        });
    }
    let data = bitmap + sectors.div_ceil(8).next_multiple_of(SECTOR as u64);
    Some(Sector::at(file, data + inside * SECTOR as u64))
}

/// Whether the four bytes at `at` are the one's complement of the sum of all others. `[spec]`
fn is_summed(structure: &[u8], at: usize) -> bool {
    let (front, rest) = structure.split_at(at);
    let (sum, back) = rest.split_at(4);
    let all: u32 = front.iter().chain(back).map(|byte| u32::from(*byte)).sum();
    sum == (!all).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::{qcow2::Qcow2, vhd::Vhd};
    use crate::pattern::disk;

    fn all(file: &[u8], len: usize, read: fn(&[u8], u64) -> Sector) -> Vec<u8> {
        let sectors = (0..(len / SECTOR) as u64).map(|index| match read(file, index) {
            Sector::Bytes(bytes) => bytes,
            Sector::Nothing => vec![0; SECTOR],
            Sector::Broken | Sector::Unknown => panic!("sector {index} is broken"),
        });
        sectors.flatten().collect()
    }

    #[test]
    fn built_images_read_as_their_disks() {
        let disk = disk("30k:A 20k:- 64k:b 64k:C 1k:- 1k:D");
        let (bytes, len) = (disk.bytes(), disk.bytes().len());
        for bits in [9, 12, 16] {
            assert!(all(&Qcow2::holding(3, bits, bytes).bytes(), len, qcow2) == bytes);
            for codec in [Codec::Deflate, Codec::Zstd] {
                let image = Qcow2::packed(3, bits, bytes, codec).bytes();
                assert!(all(&image, len, qcow2) == bytes);
            }
        }
        assert!(all(&Vhd::fixed(bytes).bytes(), len, vhd) == bytes);
        assert!(all(&Vhd::dynamic(bytes, 64 << 10).bytes(), len, vhd) == bytes);
    }
}
