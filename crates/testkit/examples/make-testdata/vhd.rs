//! VHD images with the peculiarities of those that other tools made.

use goldsmith_testkit::build::vhd::{Vhd, footer, header};
use goldsmith_testkit::pattern::disk;

use crate::{Expect, File, agrees, built};

const BLOCK: usize = 8 << 10;

pub(crate) fn files() -> Vec<File> {
    let plain = disk("5k:A 11k:- 8k:b 8k:- 2560:C");
    // 2 cylinders of 4 heads of 17 sectors.
    let chs = disk("5k:A 11k:- 8k:b 40k:- 4k:D");
    assert_eq!(chs.len(), 2 * 4 * 17 * 512);
    let past_chs = disk("5k:A 11k:- 8k:b 40k:- 4k:D 3k:E");
    let zeros = disk("8k:A 24k:0 8k:B 16k:0");
    let half = disk("4k:A 4k:- 4k:B 4k:-");
    let swapped = [disk("8k:A 8k:b").bytes()[8192..].to_vec(), vec![0; 8192]].concat();
    let mut files = vec![
        built!(
            "vhd-fixed.vhd",
            "vpc",
            "a fixed image: data, then the footer, nothing else [VHD 1.0, Hard Disk Footer]",
            agrees(&plain),
            Vhd::fixed(plain.bytes())
        ),
        built!(
            "vhd-dynamic.vhd",
            "vpc",
            "a dynamic image whose last block reaches past the disk [VHD 1.0, Dynamic Disk Header]",
            agrees(&plain),
            Vhd::dynamic(plain.bytes(), BLOCK)
        ),
        built!(
            "vhd-vpc-creator-means-chs.vhd",
            "vpc",
            "creator 'vpc ': the size is cylinders * heads * sectors, here less than current_size [qemu block/vpc.c]",
            agrees(&chs),
            Vhd::dynamic(past_chs.bytes(), BLOCK)
                .footer(footer::CREATOR, b"vpc ")
                .footer(footer::CHS, &[0, 2, 4, 17])
        ),
        built!(
            "vhd-win-creator-means-current-size.vhd",
            "vpc",
            "creator 'win ': the size is current_size, whatever the geometry gives [qemu block/vpc.c]",
            agrees(&past_chs),
            Vhd::dynamic(past_chs.bytes(), BLOCK)
                .footer(footer::CREATOR, b"win ")
                .footer(footer::CHS, &[0, 2, 4, 17])
        ),
        built!(
            "vhd-unknown-creator-means-current-size.vhd",
            "vpc",
            "a creator that is in no list: current_size [qemu block/vpc.c]",
            agrees(&past_chs),
            Vhd::fixed(past_chs.bytes())
                .footer(footer::CREATOR, b"caml")
                .footer(footer::CHS, &[0, 2, 4, 17])
        ),
        built!(
            "vhd-d2v-blocks-of-zeros.vhd",
            "vpc",
            "creator 'd2v ' (Disk2vhd) allocates every block, also those of zeros",
            agrees(&zeros),
            Vhd::dynamic_full(zeros.bytes(), BLOCK).footer(footer::CREATOR, b"d2v ")
        ),
        built!(
            "vhd-fixed-footer-511.vhd",
            "vpc",
            "old Virtual PC versions write a footer of 511 bytes [VHD 1.0, Hard Disk Footer]",
            agrees(&plain),
            Vhd::fixed(plain.bytes()).footer_len(511)
        ),
        built!(
            "vhd-dynamic-footer-511.vhd",
            "vpc",
            "old Virtual PC versions write a footer of 511 bytes [VHD 1.0, Hard Disk Footer]",
            agrees(&plain),
            Vhd::dynamic(plain.bytes(), BLOCK).footer_len(511)
        ),
        built!(
            "vhd-clear-bits-over-garbage.vhd",
            "vpc",
            "a clear bit of a dynamic image's bitmap means zeros, whatever the sector holds [VHD 1.0, Block Bitmap]",
            Expect::Valid(half.bytes().to_vec(), "reads sectors whose bit is clear"),
            Vhd::dynamic(disk("4k:A 4k:x 4k:B 4k:y").bytes(), BLOCK)
                .bitmaps(|bits| bits[..2].copy_from_slice(&[0xff, 0]))
        ),
        built!(
            "vhd-tap-bit-order.vhd",
            "vpc",
            "creator 'tap' version 0.1 numbers the bits of a bitmap from the lowest of each byte",
            Expect::Valid(
                disk("2k:A 6k:- 2k:B 6k:-").bytes().to_vec(),
                "reads sectors whose bit is clear"
            ),
            Vhd::dynamic(disk("2k:A 6k:x 2k:B 6k:y").bytes(), BLOCK)
                .footer(footer::CREATOR, b"tap\0")
                .footer(footer::CREATOR_VERSION, &[0, 0, 0, 1])
                .bitmaps(|bits| bits[..2].copy_from_slice(&[0x0f, 0]))
        ),
        built!(
            "vhd-table-longer-than-disk.vhd",
            "vpc",
            "max_table_entries may be more than the disk needs; XenServer allocates ahead",
            agrees(&plain),
            Vhd::dynamic(plain.bytes(), BLOCK).spare_entries(100)
        ),
        built!(
            "vhd-saved-state-and-hidden.vhd",
            "vpc",
            "the saved-state byte and XenServer's hidden byte behind it change nothing for a reader",
            agrees(&plain),
            Vhd::dynamic(plain.bytes(), BLOCK).footer(footer::SAVED_STATE, &[1, 1])
        ),
        built!(
            "vhd-blocks-out-of-order.vhd",
            "vpc",
            "blocks stand in the file in any order; the first one behind the second, that one dropped",
            Expect::Valid(swapped, "agrees"),
            Vhd::dynamic(disk("8k:A 8k:b").bytes(), BLOCK)
                .entry(0, 4 + 17)
                .entry(1, u32::MAX)
        ),
    ];
    let bad = || Expect::Bad("Corrupt");
    let unsupported = || Expect::Bad("Unsupported");
    files.extend([
        built!(
            "vhd-no-checksum.vhd",
            "vpc",
            "the footer's checksum is zero, not that of its bytes",
            bad(),
            Vhd::fixed(plain.bytes()).without_checksums()
        ),
        built!(
            "vhd-table-too-small.vhd",
            "vpc",
            "4 table entries; the disk needs 5",
            bad(),
            Vhd::dynamic(plain.bytes(), BLOCK).header(header::MAX_TABLE_ENTRIES, &[0, 0, 0, 4])
        ),
        built!(
            "vhd-table-outside.vhd",
            "vpc",
            "the table is at 2^40, past the end of the file",
            bad(),
            Vhd::dynamic(plain.bytes(), BLOCK)
                .header(header::TABLE_OFFSET, &(1_u64 << 40).to_be_bytes())
        ),
        built!(
            "vhd-table-of-4-billion-entries.vhd",
            "vpc",
            "a table that would take 16 GiB, in a file of some KiB",
            bad(),
            Vhd::dynamic(plain.bytes(), BLOCK).header(header::MAX_TABLE_ENTRIES, &[0xff; 4])
        ),
        built!(
            "vhd-table-offset-overflows.vhd",
            "vpc",
            "table offset and length add up past 2^64",
            bad(),
            Vhd::dynamic(plain.bytes(), BLOCK)
                .header(header::TABLE_OFFSET, &(u64::MAX - 511).to_be_bytes())
        ),
        built!(
            "vhd-block-outside.vhd",
            "vpc",
            "an entry points past the end of the file: truncated, not zeros",
            bad(),
            Vhd::dynamic(plain.bytes(), BLOCK).entry(0, 1 << 20)
        ),
        built!(
            "vhd-block-on-header.vhd",
            "vpc",
            "an entry points at the dynamic header",
            bad(),
            Vhd::dynamic(plain.bytes(), BLOCK).entry(0, 1)
        ),
        built!(
            "vhd-header-outside.vhd",
            "vpc",
            "the dynamic header is past the end of the file",
            bad(),
            Vhd::dynamic(plain.bytes(), BLOCK)
                .footer(footer::DATA_OFFSET, &(1_u64 << 40).to_be_bytes())
        ),
        built!(
            "vhd-block-size-zero.vhd",
            "vpc",
            "blocks of no bytes",
            bad(),
            Vhd::dynamic(plain.bytes(), BLOCK).header(header::BLOCK_SIZE, &[0; 4])
        ),
        built!(
            "vhd-block-size-odd.vhd",
            "vpc",
            "a block size that is no power of two",
            bad(),
            Vhd::dynamic(plain.bytes(), BLOCK)
                .header(header::BLOCK_SIZE, &(3 * BLOCK as u32).to_be_bytes())
        ),
        built!(
            "vhd-disk-type-7.vhd",
            "vpc",
            "a disk type that does not exist",
            bad(),
            Vhd::fixed(plain.bytes()).footer(footer::DISK_TYPE, &[0, 0, 0, 7])
        ),
        built!(
            "vhd-fixed-cut.vhd",
            "vpc",
            "a fixed image larger than its file",
            bad(),
            Vhd::fixed(plain.bytes()).footer(footer::CURRENT_SIZE, &(1_u64 << 30).to_be_bytes())
        ),
        built!(
            "vhd-dynamic-cut.vhd",
            "vpc",
            "the end is missing; the copy of the footer does not make it whole",
            bad(),
            Cut(Vhd::dynamic(plain.bytes(), BLOCK).bytes(), 20_000)
        ),
        built!(
            "vhd-larger-than-2040-GiB.vhd",
            "vpc",
            "a dynamic disk of 2^62 bytes, more than sectors of 32 bits reach",
            bad(),
            Vhd::dynamic(plain.bytes(), BLOCK)
                .footer(footer::CURRENT_SIZE, &(1_u64 << 62).to_be_bytes())
        ),
        built!(
            "vhd-differencing.vhd",
            "vpc",
            "disk type 4, and no name of a parent",
            bad(),
            Vhd::dynamic(plain.bytes(), BLOCK).footer(footer::DISK_TYPE, &[0, 0, 0, 4])
        ),
        built!(
            "vhd-poisoned.vhd",
            "vpc",
            "XenServer's tools were changing the image and did not finish: no byte of it can be trusted",
            bad(),
            Vhd::dynamic(plain.bytes(), BLOCK).footer(0, b"v_poison")
        ),
        built!(
            "vhd-version-2.vhd",
            "vpc",
            "a major version that nobody knows",
            unsupported(),
            Vhd::fixed(plain.bytes()).footer(footer::VERSION, &[0, 2, 0, 0])
        ),
    ]);
    files
}

/// The first bytes of a file.
struct Cut(Vec<u8>, usize);

impl Cut {
    fn bytes(&self) -> Vec<u8> {
        self.0[..self.1].to_vec()
    }
}
