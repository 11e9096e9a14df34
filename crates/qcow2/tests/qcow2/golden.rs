//! What we write, to the byte.

use goldsmith_qcow2::QCOW2;
use goldsmith_testkit::{image, pattern, qemu};

/// Bytes from digits, blanks between them ignored.
fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<_> = digits.chars().filter_map(|c| c.to_digit(16)).collect();
    let (pairs, []) = digits.as_chunks::<2>() else {
        panic!("an odd number of digits");
    };
    pairs
        .iter()
        .map(|[high, low]| (high << 4 | low) as u8)
        .collect()
}

/// `bytes`, filled up with zeros to one cluster.
fn cluster(bytes: &[u8]) -> Vec<u8> {
    let mut cluster = bytes.to_vec();
    assert!(cluster.len() <= 512);
    cluster.resize(512, 0);
    cluster
}

fn assert_clusters(image: &[u8], expected: &[Vec<u8>]) {
    for (number, (found, expected)) in image.chunks(512).zip(expected).enumerate() {
        assert!(
            found == expected,
            "cluster {number}:\n{found:02x?}\n{expected:02x?}"
        );
    }
    assert_eq!(image.len(), expected.len() * 512);
}

#[test]
fn plain_image_is_this_to_the_byte() {
    // 32 KiB is what one L2 table of 64 entries maps.
    let disk = pattern::disk("512:A 512:- 512:b 31232:- 512:C 100:d");
    let image = image::write(&QCOW2, &disk, &[("cluster_size", "512")], false).unwrap();
    let header = hex("
        514649fb 00000003  0000000000000000 00000000 00000009  0000000000008264
        00000000 00000002  0000000000000e00  0000000000001200 00000001 00000000
        0000000000000000  0000000000000000 0000000000000000 0000000000000000
        00000004 00000070  00 00000000000000");
    assert_eq!(header.len(), 112);
    let data = |range: std::ops::Range<usize>| cluster(&disk.bytes()[range]);
    let expected = [
        cluster(&header),
        data(0..512),
        data(1024..1536),
        cluster(&hex("8000000000000200 0000000000000000 8000000000000400")),
        data(32768..33280),
        data(33280..33380),
        cluster(&hex("8000000000000800 8000000000000a00")),
        cluster(&hex("8000000000000600 8000000000000c00")),
        cluster(&hex("0001 0001 0001 0001 0001 0001 0001 0001 0001 0001")),
        cluster(&hex("0000000000001000")),
    ];
    assert_clusters(&image, &expected);
}

#[test]
fn version_2_image_is_this_to_the_byte() {
    let disk = pattern::disk("512:- 512:A");
    let options = [("cluster_size", "512"), ("compat", "0.10")];
    let image = image::write(&QCOW2, &disk, &options, false).unwrap();
    let header = hex("
        514649fb 00000002  0000000000000000 00000000 00000009  0000000000000400
        00000000 00000001  0000000000000600  0000000000000a00 00000001 00000000
        0000000000000000");
    assert_eq!(header.len(), 72);
    let expected = [
        cluster(&header),
        cluster(&disk.bytes()[512..]),
        cluster(&hex("0000000000000000 8000000000000200")),
        cluster(&hex("8000000000000400")),
        cluster(&hex("0001 0001 0001 0001 0001 0001")),
        cluster(&hex("0000000000000800")),
    ];
    assert_clusters(&image, &expected);
}

#[test]
fn empty_disk_is_a_header_and_refcounts() {
    let options = [("cluster_size", "512"), ("refcount_bits", "1")];
    let image = image::write(&QCOW2, &pattern::disk("0:-"), &options, false).unwrap();
    let header = hex("
        514649fb 00000003  0000000000000000 00000000 00000009  0000000000000000
        00000000 00000000  0000000000000000  0000000000000400 00000001 00000000
        0000000000000000  0000000000000000 0000000000000000 0000000000000000
        00000000 00000070  00 00000000000000");
    let expected = [
        cluster(&header),
        cluster(&[0b111]),
        cluster(&hex("0000000000000200")),
    ];
    assert_clusters(&image, &expected);
}

#[test]
fn header_is_qemus_to_the_byte_save_for_the_places_of_tables() {
    for options in [
        [
            "compression_type=zstd",
            "cluster_size=8k",
            "refcount_bits=1",
        ],
        [
            "compression_type=zlib",
            "cluster_size=4k",
            "refcount_bits=64",
        ],
        ["compat=0.10", "cluster_size=2M", "refcount_bits=16"],
        ["compat=1.1", "cluster_size=512", "refcount_bits=16"],
    ] {
        let disk = pattern::disk("1536:-");
        let theirs = qemu::write("qcow2", &disk, &["-o", &options.join(",")]);
        let options = options.map(|option| option.split_once('=').unwrap());
        let ours = image::write(&QCOW2, &disk, &options, true).unwrap();
        let cluster_size = 1 << ours[23];
        for same in [0..40, 56..cluster_size] {
            assert!(ours[same.clone()] == theirs[same], "{options:?}");
        }
    }
}
