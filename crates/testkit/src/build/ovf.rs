//! XenServer's containers: VHDs in a gzip'ed tar.

use goldsmith_engine::Crc32;

use super::vhd;

/// Bytes of a tar's header, and of what the bytes of a member are filled up to. [POSIX pax]
const BLOCK: usize = 512;
/// Where the fields of a header stand.
const SIZE: std::ops::Range<usize> = 124..136;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const KIND: usize = 156;
const MAGIC: std::ops::Range<usize> = 257..265;
/// Most bytes of a block that is stored as it is. [RFC 1951]
const STORED: usize = 65535;

/// Makes a tar plausible, so that a fuzzer reaches what lies behind it, and packs it: checksums and marks
/// are right, members end in the file, most of them are files with the names that are expected, and
/// what is in them is [made plausible](vhd::fix_up) as well.
pub fn fix_up(tar: &[u8]) -> Vec<u8> {
    let mut tar = tar.to_vec();
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    let (mut at, mut number) = (0, 0);
    while let Some((header, rest)) = tar[at..].split_first_chunk_mut::<BLOCK>() {
        at += BLOCK;
        if *header == [0; BLOCK] {
            continue;
        }
        if header[0] % 4 != 0 {
            let name = format!("{number}.vhd");
            header[..100].fill(0);
            header[..name.len()].copy_from_slice(name.as_bytes());
            number += 1;
        }
        if header[KIND] % 8 != 1 {
            header[KIND] = b'0';
        }
        header[MAGIC].copy_from_slice(b"ustar\x0000");
        let digits = header[SIZE].iter().map(|byte| usize::from(byte % 8));
        let size = digits.take(11).fold(0, |size, digit| size * 8 + digit);
        let size = size.min(rest.len());
        header[SIZE].copy_from_slice(format!("{size:011o}\0").as_bytes());
        header[CHECKSUM].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        vhd::fix_up(&mut rest[..size]);
        at += size.next_multiple_of(BLOCK);
    }
    gzip(&tar)
}

/// `bytes` in gzip's format, stored as they are. [RFC 1952]
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut blocks = bytes.chunks(STORED).peekable();
    while let Some(block) = blocks.next() {
        // At most 16 bits.
        let len = block.len() as u16;
        packed.push(u8::from(blocks.peek().is_none()));
        packed.extend(len.to_le_bytes());
        packed.extend((!len).to_le_bytes());
        packed.extend(block);
    }
    packed.extend(Crc32::of(bytes).value().to_le_bytes());
    packed.extend((bytes.len() as u32).to_le_bytes());
    packed
}
