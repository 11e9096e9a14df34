//! Bitmaps: read as QEMU reads them, and refused where they break a rule.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use goldsmith_block::{Budget, ErrorKind, Format, GuestRange, Limits};
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::{FileStorage, MemoryStorage};
use goldsmith_testkit::hostile::survives;
use goldsmith_testkit::qemu;
use serde_json::Value;

use crate::bench::{Bench, budget, open};
use crate::check::patch;
use crate::damage::Places;
use crate::forge::Forge;

/// The start and end of each part of the disk that QEMU finds dirty in bitmap `name` of the qcow2
/// image at `path`.
fn qemu_dirty(path: &Path, name: &str) -> Vec<(u64, u64)> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let (path, socket) = (path.to_str().unwrap(), socket.to_str().unwrap());
    // It ends when its one client does.
    let mut server = Command::new("qemu-nbd");
    let server = server.args(["-r", "-f", "qcow2", "-B", name, "-k", socket, path]);
    let mut server = match server.spawn() {
        Ok(server) => server,
        Err(error) => panic!("qemu-nbd: {error}; run scripts/install-test-tools"),
    };
    while !Path::new(socket).exists() {
        let ended = server.try_wait().unwrap();
        assert!(ended.is_none(), "qemu-nbd -B {name} {path}: {ended:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let options = format!(
        "driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:{name}"
    );
    let map = qemu::img_ok(&["map", "--output=json", "--image-opts", &options]);
    server.wait().unwrap();
    // Dirty parts are shown as holes.
    let map: Vec<Value> = serde_json::from_str(&map).unwrap();
    let dirty = map.iter().filter(|entry| entry["data"] == false);
    let range = |entry: &Value| {
        let number = |key| entry[key].as_u64().unwrap();
        (number("start"), number("start") + number("length"))
    };
    dirty.map(range).collect()
}

fn pairs(ranges: Vec<GuestRange>) -> Vec<(u64, u64)> {
    let pair = |range: GuestRange| (range.start, range.end);
    ranges.into_iter().map(pair).collect()
}

#[test]
fn dirty_parts_are_those_that_qemu_finds() {
    let bench = Bench::new();
    let everything = "write -z 0 307212288";
    for (nth, (options, size, writes)) in [
        (
            "",
            "100M",
            &["write 10M 5k", "write 20M 1M", "discard 50M 64k"][..],
        ),
        (
            "cluster_size=512",
            "3M",
            &["write 513 1", "write 1M 1M", "write 3145727 1"],
        ),
        (
            "cluster_size=4k",
            "307212288",
            &["write 0 1", "write 307212287 1"],
        ),
        ("cluster_size=4k", "307212288", &[everything]),
        (
            "extended_l2=on",
            "300M",
            &["write 1M 100k", "write 299M 1M"],
        ),
        (
            "cluster_size=2M",
            "40G",
            &["write 39G 1M", "write -z 1G 1G"],
        ),
        ("", "64M", &[]),
    ]
    .into_iter()
    .enumerate()
    {
        let path = bench.image(&format!("image{nth}"), options, size, &[]);
        let text = path.to_str().unwrap();
        let names = ["512", "4k", "1M", "2G"];
        for name in names {
            qemu::img_ok(&["bitmap", "--add", "-g", name, text, name]);
        }
        if !writes.is_empty() {
            qemu::io_ok(&path, "qcow2", writes);
        }
        let layer = open(&path);
        let known: Vec<_> = layer.info().bitmaps.iter().map(|it| &*it.name).collect();
        assert_eq!(known, names);
        for (index, name) in names.iter().enumerate() {
            let ours = layer.dirty_ranges(index, &budget()).unwrap();
            let theirs = qemu_dirty(&path, name);
            assert_eq!(pairs(ours), theirs, "{options} {size} {name}");
        }
    }
}

#[test]
fn bitmap_knows_whether_it_records() {
    let bench = Bench::new();
    let path = bench.image("image", "", "1M", &[]);
    let text = path.to_str().unwrap();
    qemu::img_ok(&["bitmap", "--add", "-g", "4k", text, "on"]);
    qemu::img_ok(&["bitmap", "--add", "-g", "1M", "--disable", text, "off"]);
    qemu::io_ok(&path, "qcow2", &["write 8k 1k"]);
    let layer = open(&path);
    let [on, off] = &layer.info().bitmaps[..] else {
        panic!("{:?}", layer.info().bitmaps);
    };
    assert_eq!(
        (&*on.name, on.granularity, on.enabled, on.inconsistent),
        ("on", 4096, true, false)
    );
    assert_eq!(
        (&*off.name, off.granularity, off.enabled),
        ("off", 1 << 20, false)
    );
    assert_eq!(
        pairs(layer.dirty_ranges(0, &budget()).unwrap()),
        [(8192, 12288)]
    );
    assert_eq!(pairs(layer.dirty_ranges(1, &budget()).unwrap()), []);
    let error = layer.dirty_ranges(2, &budget()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);

    // Somebody who had it open did not close it.
    let flags = Places::of(&path).bitmaps() + 15;
    patch(&path, flags, &[3]);
    let layer = open(&path);
    assert!(
        layer
            .info()
            .bitmaps
            .iter()
            .any(|bitmap| bitmap.inconsistent)
    );
    let broken = layer.info().bitmaps.iter().position(|it| it.inconsistent);
    let error = layer.dirty_ranges(broken.unwrap(), &budget()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.report().contains("was not saved properly"));
}

#[test]
fn name_of_a_bitmap_is_refused_where_qemu_refuses_it() {
    let bench = Bench::new();
    let longest = "x".repeat(1023);
    // (first name, second name, offset in the entry of the second, what is put there, rule)
    let second = 24 + 8;
    for (a, b, at, bytes, rule) in [
        (
            "one",
            "two",
            24,
            &b"two"[..],
            "two bitmaps have the name 'two'",
        ),
        ("one", "two", 24, b"t\0o", ""),
        // The later one is in use, and so no bitmap that anybody has; or the earlier one.
        (
            "one",
            "two",
            second + 12,
            b"\0\0\0\x03\x01\x10\0\x03\0\0\0\0one",
            "",
        ),
        (
            "one",
            "two",
            12,
            b"\0\0\0\x03\x01\x10\0\x03\0\0\0\0two",
            "two bitmaps have the name 'two'",
        ),
        (
            "t",
            "t-o",
            second + 25,
            b"\0",
            "two bitmaps have the name 't'",
        ),
        ("one", "two", 24, b"\xff\xfeo", ""),
        (
            &longest,
            "two",
            18,
            &[4, 0],
            "has 1024 bytes, over the 1023 allowed",
        ),
    ] {
        let path = bench.image("image", "", "1M", &[]);
        let text = path.to_str().unwrap();
        for name in [a, b] {
            qemu::img_ok(&["bitmap", "--add", text, name]);
        }
        patch(&path, Places::of(&path).bitmaps() + at, bytes);
        let file = FileStorage::open(&path).unwrap();
        let opened = QCOW2.open(Arc::new(file), &budget());
        let judged = qemu::img(&["check", text]);
        assert_eq!(judged.status.success(), rule.is_empty(), "{judged:?}");
        match opened {
            Ok(_) => assert_eq!(rule, "", "{b}"),
            Err(error) => assert!(
                !rule.is_empty() && error.report().contains(rule),
                "{}",
                error.report()
            ),
        }
    }
}

/// A bitmap of one bit per 512 bytes for a disk of 20 MiB in clusters of 4 KiB: two clusters of
/// bits.
struct Marked {
    table_len: u32,
    table: Vec<u64>,
    flags: u32,
    kind: u8,
    extra: Vec<u8>,
    bits: Vec<u8>,
}

const DISK: u64 = (20 << 20) - 100;
/// Where the bits stand: behind the forge's clusters, the directory and the table.
const BITS: u64 = 6 << 12;

impl Default for Marked {
    fn default() -> Self {
        let mut bits = vec![0; 8192];
        bits[0] = 0b1000_0110;
        bits[1] = 1;
        bits[5119] = 0xff;
        bits[5120] = 0xff;
        Self {
            table_len: 2,
            table: vec![BITS, BITS + 4096],
            flags: 2,
            kind: 1,
            extra: Vec::new(),
            bits,
        }
    }
}

impl Marked {
    fn bytes(&self) -> Vec<u8> {
        let mut forge = Forge::new(3, 12, 1 << 20);
        // Twenty tables of 2 MiB each, none of which there is.
        forge.put_u64(24, DISK);
        forge.put_u32(36, 10);
        let mut entry = (5u64 << 12).to_be_bytes().to_vec();
        entry.extend(self.table_len.to_be_bytes());
        entry.extend(self.flags.to_be_bytes());
        entry.extend([self.kind, 9, 0, 1]);
        entry.extend((self.extra.len() as u32).to_be_bytes());
        entry.extend(&self.extra);
        entry.push(b'b');
        entry.resize(entry.len().next_multiple_of(8), 0);
        let mut data = 1u32.to_be_bytes().to_vec();
        data.extend([0; 4]);
        data.extend((entry.len() as u64).to_be_bytes());
        data.extend((4u64 << 12).to_be_bytes());
        forge.extension(104, 0x2385_2875, &data);
        forge.put_u64(88, 1);
        forge.append(&entry);
        forge.bytes.resize(5 << 12, 0);
        let table: Vec<_> = self.table.iter().flat_map(|it| it.to_be_bytes()).collect();
        forge.append(&table);
        forge.bytes.resize(6 << 12, 0);
        forge.append(&self.bits);
        forge.bytes
    }

    fn dirty_within(&self, bytes: u64) -> goldsmith_block::Result<Vec<(u64, u64)>> {
        let storage = Arc::new(MemoryStorage::holding("image", self.bytes()));
        let layer = QCOW2.open(storage, &budget()).unwrap();
        let mut limits = Limits::default();
        limits.metadata_bytes = bytes;
        layer.dirty_ranges(0, &Budget::new(&limits)).map(pairs)
    }

    fn dirty(&self) -> goldsmith_block::Result<Vec<(u64, u64)>> {
        self.dirty_within(1 << 20)
    }

    fn refused(&self) -> (ErrorKind, String) {
        let error = self.dirty().unwrap_err();
        (error.kind(), error.report())
    }
}

#[test]
fn bits_are_counted_from_the_lowest_of_each_byte_and_end_with_the_disk() {
    let ranges = [(512, 1536), (3584, 4608), (DISK - 3996, DISK)];
    assert_eq!(Marked::default().dirty().unwrap(), ranges);
    let ones = Marked {
        table: vec![1, 0],
        ..Marked::default()
    };
    assert_eq!(ones.dirty().unwrap(), [(0, 16 << 20)]);
    let all = Marked {
        table: vec![1, 1],
        ..Marked::default()
    };
    assert_eq!(all.dirty().unwrap(), [(0, DISK)]);
    let harmless = Marked {
        flags: 6,
        extra: vec![7; 100],
        ..Marked::default()
    };
    assert_eq!(harmless.dirty().unwrap(), ranges);
}

#[test]
fn bitmap_that_breaks_a_rule_is_refused() {
    let bitmap = Marked::default;
    for (bitmap, kind, rule) in [
        (
            Marked {
                flags: 1,
                ..bitmap()
            },
            ErrorKind::Corrupt,
            "'b' was in use",
        ),
        (
            Marked {
                flags: 8,
                ..bitmap()
            },
            ErrorKind::Unsupported,
            "flags 0x8",
        ),
        (
            Marked {
                kind: 2,
                ..bitmap()
            },
            ErrorKind::Unsupported,
            "kind 2",
        ),
        (
            Marked {
                extra: vec![0; 8],
                ..bitmap()
            },
            ErrorKind::Unsupported,
            "8 bytes of extra",
        ),
        (
            Marked {
                table_len: 1,
                ..bitmap()
            },
            ErrorKind::Corrupt,
            "has 1 entries; the disk size needs 2",
        ),
        (
            Marked {
                table_len: u32::MAX,
                ..bitmap()
            },
            ErrorKind::Corrupt,
            "has 4294967295 entries",
        ),
        (
            Marked {
                table: vec![BITS + 512, 0],
                ..bitmap()
            },
            ErrorKind::Corrupt,
            "entry 0 of the bitmap table",
        ),
        (
            Marked {
                table: vec![0, BITS | 1],
                ..bitmap()
            },
            ErrorKind::Corrupt,
            "entry 1 of the bitmap table",
        ),
        (
            Marked {
                table: vec![0, 2],
                ..bitmap()
            },
            ErrorKind::Corrupt,
            "0x0000000000000002",
        ),
        (
            Marked {
                table: vec![1 << 63, 0],
                ..bitmap()
            },
            ErrorKind::Corrupt,
            "0x8000000000000000",
        ),
        (
            Marked {
                table: vec![0, 1 << 40],
                ..bitmap()
            },
            ErrorKind::Corrupt,
            "the file is truncated",
        ),
        (
            Marked {
                table: vec![0, (1 << 56) - 4096],
                ..bitmap()
            },
            ErrorKind::Corrupt,
            "the file is truncated",
        ),
        (
            Marked {
                bits: vec![],
                ..bitmap()
            },
            ErrorKind::Corrupt,
            "the file is truncated",
        ),
    ] {
        let (found, report) = bitmap.refused();
        assert_eq!(found, kind, "{report}");
        assert!(report.contains(rule), "{report}");
    }
}

#[test]
fn scattered_bits_are_paid_for() {
    // Each second bit is a range of its own: 16 bytes for each two bits.
    let scattered = Marked {
        bits: vec![0x55; 8192],
        ..Marked::default()
    };
    assert_eq!(scattered.dirty().unwrap().len(), 20480);
    let error = scattered.dirty_within(20480 * 16).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    // And so are the bytes that the bits take.
    let error = Marked::default().dirty_within(4200).unwrap_err();
    assert!(
        error.report().contains("the bitmap takes 1024 bytes"),
        "{error:?}"
    );
}

#[test]
fn bitmap_with_any_bit_turned_round_gets_an_answer() {
    let image = Marked {
        extra: vec![0; 8],
        flags: 6,
        ..Marked::default()
    };
    let image = image.bytes();
    // Header extension, directory, table, and the first bits.
    let parts = [
        104..136,
        4 << 12..(4 << 12) + 40,
        5 << 12..(5 << 12) + 16,
        6 << 12..(6 << 12) + 2,
    ];
    for at in parts.into_iter().flatten() {
        for bit in 0..8 {
            let mut damaged = image.clone();
            damaged[at] ^= 1 << bit;
            survives(&QCOW2, damaged);
        }
    }
}
