//! What we write, to the byte.

use goldsmith_testkit::{image, pattern};
use goldsmith_vhd::VHD;

const MIB: usize = 1 << 20;

/// The footer of a disk of 5 MiB, made in 2001, by the field.
fn footer(data_offset: u64, disk_type: u8, checksum: u32) -> Vec<u8> {
    let fields: [&[u8]; 17] = [
        b"conectix",
        &[0, 0, 0, 2],
        &[0, 1, 0, 0],
        &data_offset.to_be_bytes(),
        &[0x03, 0x2d, 0x86, 0x80],
        b"qem2",
        &[0, 1, 0, 0],
        b"Wi2k",
        &[0, 0, 0, 0, 0, 0x50, 0, 0],
        &[0, 0, 0, 0, 0, 0x50, 0, 0],
        &[0, 150, 4, 17],
        &[0, 0, 0, disk_type],
        &checksum.to_be_bytes(),
        b"olds\x6d\x69\x74\x68\x80\0\0\0\0\0\0\x01",
        &[0],
        &[0; 211],
        &[0; 216],
    ];
    fields.concat()
}

#[test]
fn dynamic_image_is_this_to_the_byte() {
    let disk = pattern::disk("3M:- 8k:A 4k:- 512:b 3584:- 1M:- 1008k:-");
    assert_eq!(disk.len(), 5 << 20);
    let image = image::write(&VHD, &disk, &[], false).unwrap();

    let footer = footer(512, 3, 0xffff_f361);
    assert_eq!(footer.len(), 512);
    let mut header = b"cxsparse".to_vec();
    header.extend([0xff; 8]);
    header.extend([0, 0, 0, 0, 0, 0, 6, 0]);
    header.extend([0, 1, 0, 0, 0, 0, 0, 3, 0, 0x20, 0, 0]);
    header.extend([0xff, 0xff, 0xf4, 0x74]);
    header.resize(1024, 0);
    let mut table = vec![0xff; 512];
    // Block 1: bitmap in sector 7, so that its data begins at 4096.
    table[4..8].copy_from_slice(&[0, 0, 0, 7]);

    let mut expected = [footer.clone(), header, table].concat();
    expected.resize(3584, 0);
    expected.extend([0xff; 512]);
    expected.extend(&disk.bytes()[2 * MIB..4 * MIB]);
    expected.extend(footer);
    assert_eq!(image.len(), expected.len());
    let wrong = image.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(wrong, None, "first byte that differs");
}

#[test]
fn fixed_image_is_the_disk_and_a_footer() {
    let disk = pattern::disk("3M:- 8k:A 1M:0 512:b 1015k:- 512:c");
    assert_eq!(disk.len(), 5 << 20);
    let image = image::write(&VHD, &disk, &[("subformat", "fixed")], false).unwrap();
    assert!(image[..5 * MIB] == *disk.bytes());
    assert_eq!(&image[5 * MIB..], footer(u64::MAX, 2, 0xffff_eb6c));
}

#[test]
fn blocks_stand_in_the_order_of_the_disk_with_their_data_on_pages() {
    let disk = pattern::disk("1M:- 4k:A 1M:- 512k:- 8k:b 508k:- 512k:C 512:D");
    let image = image::write(&VHD, &disk, &[("block_size", "512k")], false).unwrap();
    let entries: Vec<_> = image[1536..2048]
        .as_chunks::<4>()
        .0
        .iter()
        .map(|entry| u32::from_be_bytes(*entry))
        .collect();
    let unused = u32::MAX;
    // Each block takes 1024 sectors of data and, with its bitmap, one page more.
    let first = [unused, unused, 7, unused, unused, 1039, 2071, 3103, unused];
    assert_eq!(&entries[..9], first);
    assert!(entries[9..].iter().all(|entry| *entry == unused));
    for sector in [7, 1039, 2071, 3103] {
        assert_eq!(image[sector * 512..][..512], [0xff; 512]);
    }
    assert_eq!(image.len(), 3104 * 512 + 512 * 1024 + 512);
    assert_eq!(image[image.len() - 512..], image[..512]);
}

#[test]
fn empty_disk_is_tables_and_footers() {
    for (size, table) in [
        ("0:-", 0),
        ("512:-", 512),
        ("256M:-", 512),
        ("258M:-", 1024),
    ] {
        let image = image::write(&VHD, &pattern::disk(size), &[], false).unwrap();
        assert_eq!(image.len(), 1536 + table + 512, "{size}");
    }
}

#[test]
fn batmap_stands_between_the_table_and_the_blocks() {
    let disk = pattern::disk("2M:- 4k:A 2044k:- 16M:- 4k:b");
    let image = image::write(&VHD, &disk, &[("batmap", "on")], false).unwrap();
    // XenServer looks for it in images of this creator alone.
    assert_eq!(image[28..36], *b"tap\0\0\x01\0\x03");
    let mut header = b"tdbatmap".to_vec();
    header.extend(2560_u64.to_be_bytes());
    header.extend([0, 0, 0, 1, 0, 1, 0, 2]);
    header.extend((!(0x40_u32 + 0x20)).to_be_bytes());
    header.resize(512, 0);
    assert_eq!(image[2048..2560], header);
    let mut map = vec![0; 512];
    // Blocks 1 and 10.
    (map[0], map[1]) = (0x40, 0x20);
    assert_eq!(image[2560..3072], map);
    assert_eq!(image[1540..1544], [0, 0, 0, 7]);
    assert_eq!(image.len(), 2 * (4096 + 2 * MIB) + 512);
}
