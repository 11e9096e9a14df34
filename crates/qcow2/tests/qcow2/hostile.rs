//! Damage: every image gets an answer, and a cut one never a wrong one.

use goldsmith_block::ErrorKind;
use goldsmith_qcow2::QCOW2;
use goldsmith_testkit::hostile::{SECRET, cuts, survives};
use goldsmith_testkit::{ModelDisk, fuzz, image, pattern};
use proptest::prelude::*;

use crate::forge::{COMPRESSED, COPIED, Forge};

/// Images of a few kilobytes with every structure, and the disk in them.
fn small_images() -> Vec<(ModelDisk, Vec<u8>)> {
    let disk = pattern::disk("1k:A 512:- 600:b 900:- 512:C 31k:- 1k:D 300:e");
    let aes = [
        ("cluster_size", "512"),
        ("encrypt.format", "aes"),
        ("encrypt.key-secret", SECRET),
    ];
    let variants: [(&[(&str, &str)], bool); 5] = [
        (&[("cluster_size", "512")], false),
        (&[("cluster_size", "512"), ("compat", "0.10")], true),
        (
            &[("cluster_size", "1k"), ("compression_type", "zstd")],
            true,
        ),
        (&[("cluster_size", "512"), ("refcount_bits", "64")], true),
        (&aes, false),
    ];
    let images = variants.map(|(options, compress)| {
        let image = image::write(&QCOW2, &disk, options, compress).unwrap();
        (disk.clone(), image)
    });
    images.to_vec()
}

#[test]
fn image_cut_anywhere_is_refused_or_reads_the_same() {
    for (disk, image) in small_images() {
        for cut in 0..image.len() {
            let outcome = survives(&QCOW2, image[..cut].to_vec());
            let same = outcome.reads_as(disk.bytes());
            assert!(same || outcome.refused().is_some(), "cut to {cut} bytes");
        }
    }
}

/// Of a sector that is encrypted a part says nothing, though the disk ends in that part.
#[test]
fn encrypted_sector_in_which_the_file_ends_is_truncated() {
    let (disk, image) = small_images().pop().unwrap();
    let number = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let offset = |at: usize| (number(at) & 0x00ff_ffff_ffff_fe00) as usize;
    let last = (disk.len() / 512) as usize;
    let entry = offset(offset(40) + last / 64 * 8) + last % 64 * 8;
    let data = offset(entry);
    let mut image = image.clone();
    // Moved to the end of the file.
    let end = image.len().next_multiple_of(512);
    image.resize(end, 0);
    image.extend_from_within(data..data + 512);
    image[entry..entry + 8].copy_from_slice(&(COPIED | end as u64).to_be_bytes());
    assert!(survives(&QCOW2, image.clone()).reads_as(disk.bytes()));
    for cut in [511, disk.len() as usize % 512, 1, 0] {
        let outcome = survives(&QCOW2, image[..end + cut].to_vec());
        assert_eq!(outcome.refused(), Some(ErrorKind::Corrupt), "{cut} bytes");
    }
}

#[test]
fn image_cut_in_its_tables_is_refused() {
    for (_, image) in small_images() {
        // The refcount table is the last cluster.
        for cut in [
            0,
            3,
            71,
            103,
            511,
            512,
            image.len() - 1025,
            image.len() - 512,
        ] {
            let outcome = survives(&QCOW2, image[..cut].to_vec());
            assert!(outcome.refused().is_some(), "cut to {cut} bytes");
        }
    }
}

#[test]
fn image_with_any_bit_turned_round_gets_an_answer() {
    for (_, image) in small_images() {
        let header = 0..120 * 8;
        // Behind the header, one bit of each byte tells enough.
        let others = (120..image.len()).map(|at| at * 8 + at % 8);
        for bit in header.chain(others) {
            let mut damaged = image.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            survives(&QCOW2, damaged);
        }
    }
}

#[test]
fn image_with_any_header_field_at_its_limits_gets_an_answer() {
    for (_, image) in small_images() {
        for at in (0..112).step_by(4) {
            for value in [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
                let mut damaged = image.clone();
                damaged[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
                survives(&QCOW2, damaged.clone());
                fuzz::open_read(&QCOW2, &damaged);
            }
        }
    }
}

#[test]
fn image_with_any_word_at_its_limits_gets_an_answer() {
    for (_, image) in small_images() {
        for at in (0..image.len() - 7).step_by(8) {
            for value in [1 << 63, u64::MAX - 511, u64::MAX] {
                let mut damaged = image.clone();
                damaged[at..at + 8].copy_from_slice(&u64::to_be_bytes(value));
                survives(&QCOW2, damaged);
            }
        }
    }
}

#[test]
fn damaged_luks_header_gets_an_answer_with_the_passphrase_at_hand() {
    let disk = pattern::disk("1k:A 512:- 600:b 900:-");
    let options = [
        ("cluster_size", "4k"),
        ("encrypt.format", "luks"),
        ("encrypt.key-secret", SECRET),
        ("encrypt.cipher-alg", "aes-128"),
        ("encrypt.cipher-mode", "cbc"),
        ("encrypt.iter-time", "1"),
    ];
    let image = image::write(&QCOW2, &disk, &options, false).unwrap();
    assert!(survives(&QCOW2, image.clone()).reads_as(disk.bytes()));
    let luks = image
        .windows(6)
        .position(|bytes| bytes == b"LUKS\xba\xbe")
        .unwrap();
    for at in luks..luks + 592 {
        for bit in [0, 7, at % 8] {
            let mut damaged = image.clone();
            damaged[at] ^= 1 << bit;
            survives(&QCOW2, damaged);
        }
    }
    for at in (luks + 164..luks + 592).step_by(4) {
        for value in [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            let mut damaged = image.clone();
            damaged[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
            survives(&QCOW2, damaged);
        }
    }
    for cut in cuts(image.len(), &[luks, luks + 592, luks + 4096], 100) {
        let outcome = survives(&QCOW2, image[..cut].to_vec());
        let same = outcome.reads_as(disk.bytes());
        assert!(same || outcome.refused().is_some(), "cut to {cut} bytes");
    }
}

/// Entries that mean something, or nearly.
fn entry() -> impl Strategy<Value = u64> {
    let offset = (0u64..12).prop_map(|cluster| cluster << 9);
    let flags = prop_oneof![
        4 => Just(COPIED),
        2 => Just(0),
        1 => Just(1),
        1 => (0u64..64).prop_map(|bit| 1 << bit),
    ];
    let standard = (offset, flags).prop_map(|(offset, flags)| offset | flags);
    let packed = (0u64..6000, 0u64..2).prop_map(|(at, more)| COMPRESSED | more << 61 | at);
    prop_oneof![
        2 => Just(0),
        4 => standard,
        2 => packed,
        1 => any::<u64>(),
    ]
}

proptest! {
    /// Tables of any content behind a header without fault.
    #[test]
    fn any_tables_get_an_answer(
        version in 2u32..4,
        l1 in prop::collection::vec(entry(), 4),
        l2 in prop::collection::vec(entry(), 64),
        size in 1u64..=4 << 15,
        tail in prop::collection::vec(any::<u8>(), 0..3000),
    ) {
        let mut forge = Forge::new(version, 9, 1 << 15);
        forge.put_u64(24, size);
        forge.put_u32(36, 4);
        let at = forge.l1();
        for (index, entry) in l1.into_iter().enumerate() {
            forge.put_u64(at + 8 * index, entry);
        }
        for (index, entry) in l2.into_iter().enumerate() {
            forge.entry(index, entry);
        }
        forge.append(&tail);
        survives(&QCOW2, forge.bytes.clone());
        fuzz::open_read(&QCOW2, &forge.bytes);
    }

    /// Extended entries of any content.
    #[test]
    fn any_subclusters_get_an_answer(
        l2 in prop::collection::vec((entry(), any::<u64>(), any::<u64>()), 8),
        incompatible in prop_oneof![4 => Just(16u64), 1 => Just(16 | 4)],
    ) {
        let mut forge = Forge::new(3, 14, 8 << 14);
        forge.put_u64(72, incompatible);
        forge.extension(104, 0x4441_5441, b"data");
        for (index, (entry, allocated, mask)) in l2.into_iter().enumerate() {
            // Mostly bitmaps that are allowed.
            forge.entry(2 * index, if entry & COMPRESSED == 0 { entry << 5 } else { entry });
            let zero = (mask >> 3) & !(allocated << 32);
            forge.entry(2 * index + 1, if mask & 7 == 0 { allocated } else { allocated >> 32 | zero });
        }
        survives(&QCOW2, forge.bytes.clone());
        fuzz::open_read(&QCOW2, &forge.bytes);
    }

    /// Header extensions of any content.
    #[test]
    fn any_extensions_get_an_answer(
        kinds in prop::collection::vec(0usize..7, 0..20),
        lens in prop::collection::vec(0u32..100, 20),
        bytes in prop::collection::vec(any::<u8>(), 400),
        features in prop_oneof![Just(0), any::<u64>()],
    ) {
        let known = [
            0xe279_2aca, 0x6803_f857, 0x2385_2875, 0x0537_be77, 0x4441_5441, 0, 0x1234_5678,
        ];
        let mut forge = Forge::new(3, 9, 1 << 15);
        forge.put(104, &bytes);
        forge.put_u64(72, features);
        let mut at = 104;
        for (kind, len) in kinds.into_iter().zip(lens) {
            if at + 8 > 512 {
                break;
            }
            forge.put_u32(at, known[kind]);
            forge.put_u32(at + 4, len);
            at += 8 + (len as usize).next_multiple_of(8);
        }
        survives(&QCOW2, forge.bytes);
    }
}
