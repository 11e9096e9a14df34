//! VHD images. [VHD 1.0]

/// Length of a footer in bytes.
pub const FOOTER: usize = 512;
const HEADER: usize = 1024;
/// Where [`Vhd::dynamic`] puts the dynamic header.
const HEADER_AT: usize = FOOTER;
/// Where [`Vhd::dynamic`] puts the block allocation table.
const TABLE_AT: usize = HEADER_AT + HEADER;

/// Byte offsets of the footer's fields, for [`Vhd::footer`].
pub mod footer {
    /// u32, `0x2` always set.
    pub const FEATURES: usize = 8;
    /// u32.
    pub const VERSION: usize = 12;
    /// u64, all ones in a fixed image.
    pub const DATA_OFFSET: usize = 16;
    /// Four letters.
    pub const CREATOR: usize = 28;
    /// u32.
    pub const CREATOR_VERSION: usize = 32;
    /// u64, bytes.
    pub const ORIGINAL_SIZE: usize = 40;
    /// u64, bytes.
    pub const CURRENT_SIZE: usize = 48;
    /// u16 cylinders, u8 heads, u8 sectors.
    pub const CHS: usize = 56;
    /// u32: 2 fixed, 3 dynamic, 4 differencing.
    pub const DISK_TYPE: usize = 60;
    pub(super) const CHECKSUM: usize = 64;
    /// 16 bytes.
    pub const UUID: usize = 68;
    /// u8.
    pub const SAVED_STATE: usize = 84;
    /// u8, of those that mean nothing: what [`fix_up`](super::fix_up) leaves [damaged](super::damage).
    pub const DAMAGE: usize = 500;
}

/// Byte offsets of the dynamic header's fields, for [`Vhd::header`].
pub mod header {
    /// u64, byte offset of the table.
    pub const TABLE_OFFSET: usize = 16;
    /// u32.
    pub const VERSION: usize = 24;
    /// u32.
    pub const MAX_TABLE_ENTRIES: usize = 28;
    /// u32, bytes.
    pub const BLOCK_SIZE: usize = 32;
    pub(super) const CHECKSUM: usize = 36;
    /// 16 bytes.
    pub const PARENT_UUID: usize = 40;
    /// u32, seconds since 2000.
    pub const PARENT_TIMESTAMP: usize = 56;
    /// 512 bytes of UTF-16.
    pub const PARENT_NAME: usize = 64;
    /// 8 entries of 24 bytes: code, space, length, four zeros, u64 byte offset.
    pub const PARENT_LOCATORS: usize = 576;
}

/// An image in the making. Checksums are computed in [`bytes`](Self::bytes), unless they were set.
#[derive(Clone, Debug)]
pub struct Vhd {
    footer: Vec<u8>,
    footer_len: usize,
    keep_sums: bool,
    dynamic: Option<Dynamic>,
    data: Vec<u8>,
    /// What stands between the blocks and the footer.
    names: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Dynamic {
    header: Vec<u8>,
    table: Vec<u32>,
    block_size: usize,
    /// Where the first block's bitmap stands.
    blocks_at: usize,
}

impl Vhd {
    /// A fixed image that holds `content`.
    pub fn fixed(content: &[u8]) -> Self {
        Self {
            footer: new_footer(content.len() as u64, 2, u64::MAX),
            footer_len: FOOTER,
            keep_sums: false,
            dynamic: None,
            data: content.to_vec(),
            names: Vec::new(),
        }
    }

    /// A dynamic image that holds `content` in blocks of `block_size` bytes. Blocks of zeros are
    /// not allocated; allocated ones have every bit of their bitmap set.
    pub fn dynamic(content: &[u8], block_size: usize) -> Self {
        Self::with_blocks(content, block_size, |block| {
            block.iter().any(|byte| *byte != 0)
        })
    }

    /// As [`dynamic`](Self::dynamic), but every block is allocated, whatever it holds.
    pub fn dynamic_full(content: &[u8], block_size: usize) -> Self {
        Self::with_blocks(content, block_size, |_| true)
    }

    fn with_blocks(
        content: &[u8],
        block_size: usize,
        is_allocated: impl Fn(&[u8]) -> bool,
    ) -> Self {
        let entries = content.len().div_ceil(block_size);
        let blocks_at = (TABLE_AT + 4 * entries).next_multiple_of(512);
        let mut header = vec![0; HEADER];
        header[..8].copy_from_slice(b"cxsparse");
        header[8..16].fill(0xff);
        header[16..24].copy_from_slice(&(TABLE_AT as u64).to_be_bytes());
        header[24..28].copy_from_slice(&0x0001_0000_u32.to_be_bytes());
        header[28..32].copy_from_slice(&(entries as u32).to_be_bytes());
        header[32..36].copy_from_slice(&(block_size as u32).to_be_bytes());
        let mut image = Self {
            footer: new_footer(content.len() as u64, 3, HEADER_AT as u64),
            footer_len: FOOTER,
            keep_sums: false,
            dynamic: None,
            data: Vec::new(),
            names: Vec::new(),
        };
        let mut table = Vec::new();
        for block in content.chunks(block_size) {
            if !is_allocated(block) {
                table.push(u32::MAX);
                continue;
            }
            table.push(((blocks_at + image.data.len()) / 512) as u32);
            image
                .data
                .resize(image.data.len() + bitmap_len(block_size), 0xff);
            image.data.extend(block);
            image
                .data
                .resize(image.data.len() + block_size - block.len(), 0);
        }
        image.dynamic = Some(Dynamic {
            header,
            table,
            block_size,
            blocks_at,
        });
        image
    }

    /// Makes a dynamic image a differencing one, whose parent has the identity `uuid` (all zeros for
    /// a RAW one) and was last changed `timestamp` seconds after the start of 2000.
    ///
    /// The parent is called `name`, unless that is empty, and each of `locators`, a platform code
    /// and a text that becomes UTF-8 for `MacX` and UTF-16 for all others.
    #[must_use]
    pub fn child_of(
        self,
        uuid: [u8; 16],
        timestamp: u32,
        name: &str,
        locators: &[(&[u8; 4], &str)],
    ) -> Self {
        let name: Vec<_> = name.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let blocks_at = self.dynamic.as_ref().expect("a dynamic image").blocks_at;
        let mut image = self
            .footer(footer::DISK_TYPE, &4_u32.to_be_bytes())
            .header(header::PARENT_UUID, &uuid)
            .header(header::PARENT_TIMESTAMP, &timestamp.to_be_bytes())
            .header(header::PARENT_NAME, &name);
        for (nth, (code, text)) in locators.iter().enumerate() {
            let bytes = match *code {
                b"MacX" => text.as_bytes().to_vec(),
                _ => text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            };
            let at = (blocks_at + image.data.len() + image.names.len()) as u64;
            let locator = [
                &code[..],
                &512_u32.to_be_bytes(),
                &(bytes.len() as u32).to_be_bytes(),
                &[0; 4],
                &at.to_be_bytes(),
            ];
            image.names.extend(&bytes);
            let padded = image.names.len().next_multiple_of(FOOTER);
            image.names.resize(padded, 0);
            image = image.header(header::PARENT_LOCATORS + nth * 24, &locator.concat());
        }
        image
    }

    /// Puts `value` at offset `at` of the footer; see [`footer`].
    #[must_use]
    pub fn footer(mut self, at: usize, value: &[u8]) -> Self {
        self.footer[at..at + value.len()].copy_from_slice(value);
        self
    }

    /// Puts `value` at offset `at` of the dynamic header; see [`header`].
    #[must_use]
    pub fn header(mut self, at: usize, value: &[u8]) -> Self {
        let dynamic = self.dynamic.as_mut().expect("a dynamic image");
        dynamic.header[at..at + value.len()].copy_from_slice(value);
        self
    }

    /// Changes the table entry of block `index`.
    #[must_use]
    pub fn entry(mut self, index: usize, sector: u32) -> Self {
        self.dynamic.as_mut().expect("a dynamic image").table[index] = sector;
        self
    }

    /// Appends unused entries to the table, as long as they fit into its last sector.
    #[must_use]
    pub fn spare_entries(mut self, count: usize) -> Self {
        let dynamic = self.dynamic.as_mut().expect("a dynamic image");
        let entries = dynamic.table.len() + count;
        assert!(
            TABLE_AT + 4 * entries <= dynamic.blocks_at,
            "no room for {count} more entries"
        );
        dynamic.table.resize(entries, u32::MAX);
        self.header(header::MAX_TABLE_ENTRIES, &(entries as u32).to_be_bytes())
    }

    /// Calls `change` with the bitmap of every allocated block.
    #[must_use]
    pub fn bitmaps(mut self, change: impl Fn(&mut [u8])) -> Self {
        let block_size = self.dynamic.as_ref().expect("a dynamic image").block_size;
        let bitmap_len = bitmap_len(block_size);
        for block in self.data.chunks_mut(bitmap_len + block_size) {
            change(&mut block[..bitmap_len]);
        }
        self
    }

    /// Drops all but the first `len` bytes of the footer at the end.
    #[must_use]
    pub fn footer_len(mut self, len: usize) -> Self {
        self.footer_len = len;
        self
    }

    /// Leaves the checksums zero, which is wrong.
    #[must_use]
    pub fn without_checksums(mut self) -> Self {
        self.keep_sums = true;
        self
    }

    /// The image file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut footer = self.footer.clone();
        if !self.keep_sums {
            seal(&mut footer, footer::CHECKSUM);
        }
        let mut file = Vec::new();
        if let Some(dynamic) = &self.dynamic {
            let mut header = dynamic.header.clone();
            if !self.keep_sums {
                seal(&mut header, header::CHECKSUM);
            }
            file.extend(&footer);
            file.extend(&header);
            file.extend(dynamic.table.iter().flat_map(|entry| entry.to_be_bytes()));
            file.resize(dynamic.blocks_at, 0xff);
        }
        file.extend(&self.data);
        file.extend(&self.names);
        file.extend(&footer[..self.footer_len]);
        file
    }
}

/// The bitmap of one block, one bit for each 512 bytes, in whole sectors.
fn bitmap_len(block_size: usize) -> usize {
    (block_size / 512).div_ceil(8).next_multiple_of(512)
}

fn new_footer(size: u64, disk_type: u32, data_offset: u64) -> Vec<u8> {
    let mut footer = vec![0; FOOTER];
    let mut put = |at: usize, value: &[u8]| footer[at..at + value.len()].copy_from_slice(value);
    put(0, b"conectix");
    put(footer::FEATURES, &2_u32.to_be_bytes());
    put(footer::VERSION, &0x0001_0000_u32.to_be_bytes());
    put(footer::DATA_OFFSET, &data_offset.to_be_bytes());
    // An hour after the epoch of 2000-01-01.
    put(24, &3600_u32.to_be_bytes());
    put(footer::CREATOR, b"test");
    put(footer::CREATOR_VERSION, &0x0001_0000_u32.to_be_bytes());
    put(36, b"Wi2k");
    put(footer::ORIGINAL_SIZE, &size.to_be_bytes());
    put(footer::CURRENT_SIZE, &size.to_be_bytes());
    // 4 heads of 17 sectors, the specification's choice for the smallest disks.
    put(footer::CHS, &((size / 512 / 68) as u16).to_be_bytes());
    put(footer::CHS + 2, &[4, 17]);
    put(footer::DISK_TYPE, &disk_type.to_be_bytes());
    put(footer::UUID, crate::image::UUID.as_bytes());
    footer
}

/// Sets the checksum at `at`: the one's complement of the sum of all bytes, the field taken as zero.
fn seal(structure: &mut [u8], at: usize) {
    structure[at..at + 4].fill(0);
    let sum: u32 = structure.iter().map(|byte| u32::from(*byte)).sum();
    structure[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// Makes the metadata plausible, so that a fuzzer reaches what lies behind it: cookies, checksums
/// and versions right, tables inside the file and large enough for the disk. What will do stays as
/// it is.
///
/// The last sector becomes a footer, of 511 bytes if the file ends so. Unless that says fixed, the first
/// one becomes its copy, a dynamic header follows, and most table entries become ones that point into the
/// file. The byte of the footer that is called [`footer::DAMAGE`] has one of them left as it is.
pub fn fix_up(file: &mut [u8]) {
    let len = if file.len() % 512 == 511 { 511 } else { FOOTER };
    let Some(footer_at) = file.len().checked_sub(len) else {
        return;
    };
    let (front, last) = file.split_at_mut(footer_at);
    let footer = &mut last.to_vec()[..];
    footer[..8].copy_from_slice(b"conectix");
    put_u32(footer, footer::VERSION, 0x0001_0000);
    // Four of six are dynamic, where most of the code is.
    let disk_type = match u32_at(footer, footer::DISK_TYPE) % 6 {
        kind @ (2 | 4) => kind,
        _ => 3,
    };
    put_u32(footer, footer::DISK_TYPE, disk_type);
    let damage = footer[footer::DAMAGE];
    if disk_type != 2 && front.len() > TABLE_AT + 512 {
        footer[footer::DATA_OFFSET..][..8].copy_from_slice(&(HEADER_AT as u64).to_be_bytes());
        fix_up_tables(front, footer);
        if damage != damage::HEADER {
            seal(&mut front[HEADER_AT..TABLE_AT], header::CHECKSUM);
        }
        seal(footer, footer::CHECKSUM);
        if damage != damage::COPY {
            front[..len].copy_from_slice(footer);
        }
    }
    seal(footer, footer::CHECKSUM);
    if damage != damage::FOOTER {
        last.copy_from_slice(footer);
    }
}

/// What [`fix_up`] leaves as it is.
pub mod damage {
    /// The footer's copy at the beginning.
    pub const COPY: u8 = 1;
    /// The checksum of the dynamic header.
    pub const HEADER: u8 = 2;
    /// The footer.
    pub const FOOTER: u8 = 3;
}

fn fix_up_tables(front: &mut [u8], footer: &mut [u8]) {
    let end = front.len();
    let header = &mut front[HEADER_AT..TABLE_AT];
    header[..8].copy_from_slice(b"cxsparse");
    put_u32(header, header::VERSION, 0x0001_0000);
    let block_bits = u32_at(header, header::BLOCK_SIZE).trailing_zeros();
    let block_size = 4096 << (block_bits.wrapping_sub(12) % 8);
    put_u32(header, header::BLOCK_SIZE, block_size as u32);
    let table_at = u64_at(header, header::TABLE_OFFSET) as usize;
    let inside = TABLE_AT..end - 3;
    let table_at = if inside.contains(&table_at) {
        table_at
    } else {
        TABLE_AT
    };
    header[header::TABLE_OFFSET..][..8].copy_from_slice(&(table_at as u64).to_be_bytes());

    // Creators that mean cylinders * heads * sectors get a disk of a few blocks or none.
    footer[footer::CHS] = 0;
    let room = (end - table_at) / 4;
    let most = (room * block_size) as u64;
    let size = u64_at(footer, footer::CURRENT_SIZE) % (most + 1) / 512 * 512;
    footer[footer::CURRENT_SIZE..][..8].copy_from_slice(&size.to_be_bytes());
    let need = (size as usize).div_ceil(block_size);
    let entries = u32_at(header, header::MAX_TABLE_ENTRIES) as usize;
    let entries = if (need..=room).contains(&entries) {
        entries
    } else {
        need
    };
    put_u32(header, header::MAX_TABLE_ENTRIES, entries as u32);
    if u32_at(footer, footer::DISK_TYPE) == 4 {
        // A name of a few characters that is most likely one, so that there is a parent.
        let name = &mut header[header::PARENT_NAME..][..16];
        name[8..10].fill(0);
        if name[..2] == [0, 0] {
            name[1] = b'p';
        }
    }
    let first = (table_at + 4 * entries).div_ceil(512);
    let last = (end / 512).saturating_sub((bitmap_len(block_size) + block_size) / 512);
    for nth in 0..entries {
        let at = table_at + 4 * nth;
        let entry = u32_at(front, at) as usize;
        // What is unused stays so, and one in sixteen is left as wrong as it may be.
        let keep = entry == u32::MAX as usize || entry % 16 == 15;
        if !keep && first <= last && !(first..=last).contains(&entry) {
            put_u32(front, at, (first + entry % (last - first + 1)) as u32);
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pattern, qemu};

    #[test]
    fn qemu_reads_what_was_built() {
        let disk = pattern::disk("64k:A 128k:- 64k:0 68k:b");
        for image in [
            Vhd::fixed(disk.bytes()),
            Vhd::dynamic(disk.bytes(), 64 << 10),
            Vhd::dynamic_full(disk.bytes(), 128 << 10),
        ] {
            assert!(
                qemu::read("vpc", &image.bytes()) == disk.bytes(),
                "{image:?}"
            );
        }
    }

    #[test]
    fn fix_up_changes_nothing_that_is_right() {
        let disk = pattern::disk("8k:A 8k:- 8k:b");
        for image in [
            Vhd::fixed(disk.bytes()),
            Vhd::dynamic(disk.bytes(), 8 << 10),
        ] {
            let image = image.bytes();
            let mut fixed = image.clone();
            fix_up(&mut fixed);
            assert!(fixed == image);
        }
        // All but what is to be damaged; the rest is read without it.
        let image = Vhd::dynamic(disk.bytes(), 8 << 10).footer(footer::DAMAGE, &[damage::COPY]);
        let mut file = image.bytes();
        file[100] ^= 1;
        let mut fixed = file.clone();
        fix_up(&mut fixed);
        assert!(fixed == file);
        let image = Vhd::dynamic(disk.bytes(), 8 << 10).footer(footer::DAMAGE, &[damage::HEADER]);
        let mut file = image.bytes();
        file[HEADER_AT + 1000] ^= 1;
        let mut fixed = file.clone();
        fix_up(&mut fixed);
        assert!(fixed == file);
        let image = Vhd::dynamic(disk.bytes(), 8 << 10).footer(footer::DAMAGE, &[damage::FOOTER]);
        let mut file = image.bytes();
        let end = file.len() - FOOTER;
        file[end..][footer::UUID] ^= 1;
        let mut fixed = file.clone();
        fix_up(&mut fixed);
        assert!(fixed[end..] == file[end..]);
        // Old ones are a byte shorter.
        let mut short = Vhd::dynamic(disk.bytes(), 8 << 10).bytes();
        short.pop();
        let mut fixed = short.clone();
        fix_up(&mut fixed);
        assert!(fixed == short);
        let mut any = pattern::disk("4k:a").bytes().to_vec();
        for len in [0, 1, 511, 512, 513, 1600] {
            fix_up(&mut any[..len]);
        }
    }
}
