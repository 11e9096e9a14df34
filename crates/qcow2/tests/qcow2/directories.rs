//! The tables of what an image keeps beside its disk: what is read of them, and what is refused.

use std::sync::Arc;

use goldsmith_block::{Budget, ErrorKind, Format, Limits};
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::image;

use crate::forge::Forge;
use crate::reading::{open, refused};

/// An image with a snapshot table of these bytes, which claims to have `count` entries.
fn with_snapshots(count: u32, table: &[u8]) -> Forge {
    let mut forge = Forge::new(3, 12, 1 << 20);
    forge.put_u32(60, count);
    forge.put_u64(64, 4 << 12);
    forge.append(table);
    forge
}

/// A snapshot table entry with its padding.
fn snapshot(l1: (u64, u32), extra: &[u8], id: &[u8], name: &[u8]) -> Vec<u8> {
    let mut entry = l1.0.to_be_bytes().to_vec();
    entry.extend(l1.1.to_be_bytes());
    entry.extend((id.len() as u16).to_be_bytes());
    entry.extend((name.len() as u16).to_be_bytes());
    for number in [7_u32, 8, 0, 9, 10, extra.len() as u32] {
        entry.extend(number.to_be_bytes());
    }
    for part in [extra, id, name] {
        entry.extend(part);
    }
    entry.resize(entry.len().next_multiple_of(8), 0);
    entry
}

#[test]
fn snapshots_must_be_there() {
    let forge = with_snapshots(3, &[]);
    assert!(
        refused(&forge)
            .1
            .contains("snapshot table takes 120 bytes at offset 0x4000")
    );
    let whole = [
        snapshot((0, 0), &[0; 16], b"1", b"one"),
        snapshot((0, 0), &[], b"2", b""),
    ];
    let whole = whole.concat();
    assert_eq!(open(&with_snapshots(2, &whole)).info().snapshots.len(), 2);
    // The padding of the last entry is nothing that anybody needs.
    for len in 80..whole.len() - 7 {
        let (kind, report) = refused(&with_snapshots(2, &whole[..len]));
        assert_eq!(kind, ErrorKind::Corrupt);
        assert!(report.contains("the snapshot table takes"), "{report}");
    }
}

#[test]
fn snapshots_of_any_age_say_what_they_know() {
    let numbers = |numbers: &[u64]| -> Vec<u8> {
        numbers
            .iter()
            .flat_map(|number| number.to_be_bytes())
            .collect()
    };
    let of = |extra: &[u8]| {
        let layer = open(&with_snapshots(
            1,
            &snapshot((0, 0), extra, b"1", b"one\0two"),
        ));
        layer.info().snapshots[0].clone()
    };
    let bare = of(&[]);
    assert_eq!((&*bare.id, &*bare.name), ("1", "one"));
    assert_eq!((bare.taken_seconds, bare.taken_nanoseconds), (7, 8));
    assert_eq!((bare.vm_clock_nanoseconds, bare.vm_state_len), (9, 10));
    assert_eq!((bare.virtual_size, bare.vm_instructions), (1 << 20, None));
    assert_eq!(of(&numbers(&[1 << 40])).vm_state_len, 1 << 40);
    assert_eq!(of(&numbers(&[5, 4096])).virtual_size, 4096);
    assert_eq!(of(&numbers(&[5, 4096, 77])).vm_instructions, Some(77));
    assert_eq!(
        of(&numbers(&[5, 4096, u64::MAX, 1, 2])).vm_instructions,
        None
    );

    let (kind, report) = refused(&with_snapshots(1, &snapshot((0, 0), &[0; 1025], b"1", b"")));
    assert_eq!(kind, ErrorKind::Limit);
    assert!(
        report.contains("snapshot 0 has 1025 bytes of extra data"),
        "{report}"
    );
}

#[test]
fn snapshot_with_a_broken_table_is_refused_and_the_disk_is_not() {
    let size = |size: u64| [5_u64.to_be_bytes(), size.to_be_bytes()].concat();
    for (l1, extra, rule) in [
        (
            (512, 1),
            size(4096),
            "offset 0x200, which is no multiple of 4096",
        ),
        (
            (0, 1),
            size(4096),
            "offset 0x0, which is no multiple of 4096",
        ),
        (
            (1 << 40, 1),
            size(4096),
            "offset 0x10000000000; the file ends",
        ),
        (
            (2 << 12, u32::MAX),
            size(4096),
            "34359738360 bytes; at most 33554432",
        ),
        (
            (2 << 12, 0),
            size(4096),
            "L1 table has 0 entries; the disk size needs 1",
        ),
        (
            (2 << 12, 1),
            size(1 << 63),
            "virtual size is 9223372036854775808",
        ),
    ] {
        let layer = open(&with_snapshots(1, &snapshot(l1, &extra, b"1", b"one")));
        image::read(&*layer).unwrap();
        let budget = Budget::new(&Limits::default());
        let report = layer.snapshot(0, &budget).err().unwrap().report();
        assert!(report.contains(rule), "{report}");
    }
}

#[test]
fn many_snapshots_are_paid_for() {
    let entry = snapshot((0, 0), &[0; 24], b"1", b"one");
    let forge = with_snapshots(65536, &entry.repeat(65536));
    assert_eq!(open(&forge).info().snapshots.len(), 65536);
    let mut limits = Limits::default();
    limits.metadata_bytes = 4 << 20;
    let storage = goldsmith_storage::MemoryStorage::holding("image", forge.bytes.clone());
    let error = QCOW2.open(Arc::new(storage), &Budget::new(&limits));
    assert!(
        error
            .err()
            .unwrap()
            .report()
            .contains("the snapshot table takes")
    );
    // Names of the greatest length, until the table is too long.
    let entry = snapshot((0, 0), &[0; 1024], &[b'i'; 65535], &[b'n'; 65535]);
    let (kind, report) = refused(&with_snapshots(600, &entry.repeat(600)));
    assert_eq!(kind, ErrorKind::Limit);
    assert!(report.contains("the snapshot table takes"), "{report}");
}

#[test]
fn bitmap_directories_that_break_a_rule_are_refused() {
    let bitmap = |granularity: u8, name_len: u16, extra: u32| {
        let mut entry = vec![0; 16];
        entry.extend([1, granularity]);
        entry.extend(name_len.to_be_bytes());
        entry.extend(extra.to_be_bytes());
        entry
    };
    let with = |count: u32, len: u64, offset: u64, directory: &[u8]| {
        let mut forge = Forge::new(3, 12, 1 << 20);
        let mut data = count.to_be_bytes().to_vec();
        data.extend([0; 4]);
        data.extend(len.to_be_bytes());
        data.extend(offset.to_be_bytes());
        forge.extension(104, 0x2385_2875, &data);
        forge.put_u64(88, 1);
        forge.append(directory);
        forge
    };
    let at = 4 << 12;
    let two = [bitmap(16, 0, 0), bitmap(9, 0, 0)].concat();
    // Their names differ.
    let named = [
        bitmap(16, 0, 0),
        bitmap(9, 1, 0),
        b"b\0\0\0\0\0\0\0".to_vec(),
    ]
    .concat();
    let layer = open(&with(2, 56, at, &named));
    assert!(
        layer
            .info()
            .details
            .iter()
            .any(|(name, _)| *name == "bitmaps")
    );
    for (forge, rule) in [
        (with(0, 0, 1 << 38, &[]), "their number is 0"),
        (with(1, 48, at, &two), "48 bytes; its 1 entries take 24"),
        (with(2, 48, at, &two), "two bitmaps have the name ''"),
        (with(3, 56, at, &named), "56 bytes; its 3 entries take 80"),
        (
            with(1, 24, at, &bitmap(16, 1, 0)),
            "24 bytes; its 1 entries take 32",
        ),
        (
            with(1, 24, at, &bitmap(16, 0, u32::MAX)),
            "entries take 4294967320",
        ),
        (
            with(1, 24, at, &bitmap(8, 0, 0)),
            "bitmap 0 has a granularity of 2^8",
        ),
        (
            with(1, 24, at, &bitmap(255, 0, 0)),
            "bitmap 0 has a granularity of 2^255",
        ),
        (
            with(65536, 48, at, &two),
            "there are 65536 bitmaps; at most 65535",
        ),
        (with(2, 48, at + 512, &two), "no multiple of 4096"),
        (with(2, 48, u64::MAX << 12, &two), "it is truncated"),
        (with(2, 49, at, &two), "it is truncated"),
        (
            with(2, u64::MAX, at, &two),
            "bitmap directory takes 18446744073709551615 bytes",
        ),
    ] {
        let (_, report) = refused(&forge);
        assert!(report.contains(rule), "{report}");
        // Bitmaps that are out of date are nobody's business.
        let mut stale = forge;
        stale.put_u64(88, 0);
        open(&stale);
    }
    let none = MemoryStorage::holding("image", with(0, 0, 1 << 38, &[]).bytes);
    let budget = Budget::new(&Limits::default());
    QCOW2.check(Arc::new(none), &budget).unwrap_err();
    let mut forge = Forge::new(3, 12, 1 << 20);
    forge.extension(104, 0x2385_2875, &[0; 16]);
    assert!(
        refused(&forge)
            .1
            .contains("header extension 0x23852875 has 16 bytes; it must have 24")
    );
}
