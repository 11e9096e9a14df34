//! What a reader must make of images, and what it must not.

use std::error::Error as _;
use std::sync::Arc;

use goldsmith_block::{
    Budget, Codec, Detail, Error, ErrorKind, Extent, ExtentKind, Format, GuestRange, HostRange,
    Layer, Limits, Match, Options,
};
use goldsmith_codec::Packer;
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::fault::FaultStorage;
use goldsmith_testkit::hostile::{probe, walk};
use goldsmith_testkit::{image, pattern};

use crate::forge::{COMPRESSED, COPIED, Forge};

pub(crate) fn open(forge: &Forge) -> Arc<dyn Layer> {
    image::open(&QCOW2, forge.bytes.clone()).unwrap()
}

/// Why the image is refused, when it is opened or when it is read.
pub(crate) fn refused(forge: &Forge) -> (ErrorKind, String) {
    let error = match image::open(&QCOW2, forge.bytes.clone()) {
        Ok(layer) => {
            let reading = image::read(&*layer).unwrap_err();
            // What the extents say is the same, save that they do not unpack, and of how much it is.
            let size = layer.info().virtual_size;
            if let Err(walking) = walk(&*layer, 0, size, usize::MAX) {
                assert_eq!(walking.kind(), reading.kind());
                let why = |error: &Error| error.source().map(ToString::to_string);
                assert_eq!(why(&walking), why(&reading));
            }
            reading
        }
        Err(error) => error,
    };
    (error.kind(), error.report())
}

fn pack(codec: Codec, unit: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    Packer::new(codec).pack(unit, &mut packed).unwrap().unwrap();
    packed
}

/// Four guest clusters' bytes.
fn four(cluster_size: usize) -> Vec<u8> {
    let disk = pattern::disk(&format!("{}:A", 4 * cluster_size));
    disk.bytes().to_vec()
}

#[test]
fn packed_clusters_may_start_anywhere_share_sectors_and_stand_in_any_order() {
    for (codec, compression_type) in [(Codec::Deflate, 0), (Codec::Zstd, 1)] {
        let bytes = four(4096);
        let mut forge = Forge::new(3, 12, 4 * 4096);
        forge.put_u32(76, compression_type << 3);
        forge.put_u32(100, 112);
        forge.put_u32(104, compression_type << 24);
        forge.append(b"seven..");
        for index in [2, 0, 1, 3] {
            forge.packed(index, &pack(codec, &bytes[index * 4096..][..4096]));
        }
        let layer = open(&forge);
        assert!(image::read(&*layer).unwrap() == bytes);
        let mut part = [0; 5000];
        layer.read_at(3000, &mut part).unwrap();
        assert!(part == bytes[3000..8000]);

        let extent = layer.extent_at(9000, 16384).unwrap();
        assert_eq!(extent.range, GuestRange::new(9000, 12288));
        let ExtentKind::Compressed { unit, host, .. } = extent.kind else {
            panic!("{extent:?}");
        };
        assert_eq!(unit, GuestRange::new(8192, 12288));
        assert_eq!(host.offset, 4 * 4096 + 7);
        assert!(host.end().is_multiple_of(512) || host.end() == forge.bytes.len() as u64);
    }
}

#[test]
fn zstd_cluster_may_be_several_frames() {
    let bytes = four(4096);
    let mut forge = Forge::new(3, 12, 4 * 4096);
    forge.put_u32(76, 1 << 3);
    forge.put_u32(100, 112);
    forge.put_u32(104, 1 << 24);
    let frames = bytes[..4096].chunks(1024);
    let frames: Vec<_> = frames.flat_map(|part| pack(Codec::Zstd, part)).collect();
    forge.packed(0, &frames);
    let mut found = vec![0; 4096];
    open(&forge).read_at(0, &mut found).unwrap();
    assert!(found == bytes[..4096]);
}

#[test]
fn last_clusters_may_be_as_short_as_the_disk() {
    let bytes = four(4096);
    let mut forge = Forge::new(3, 12, 3 * 4096 + 1000);
    forge.data(3, &bytes[3 * 4096..][..1000]);
    let layer = open(&forge);
    assert!(image::read(&*layer).unwrap()[3 * 4096..] == bytes[3 * 4096..][..1000]);
    forge.bytes.pop();
    assert_eq!(
        refused(&forge),
        (
            ErrorKind::Corrupt,
            "corrupt image: guest range 0x33e7..0x33e8: data at host range 0x43e7..0x43e8 is \
             missing: the file is truncated at 0x43e7"
                .into()
        )
    );
}

#[test]
fn packed_data_may_end_before_its_last_sector_but_not_before_its_end() {
    let bytes = four(4096);
    let packed = pack(Codec::Deflate, &bytes[..4096]);
    let mut forge = Forge::new(2, 12, 4096);
    forge.packed(0, &packed);
    assert!(!forge.bytes.len().is_multiple_of(512));
    assert!(image::read(&*open(&forge)).unwrap() == bytes[..4096]);
    // The last bytes may be no more than the mark of the end, which nobody needs.
    for len in (packed.len() - 3..packed.len()).rev() {
        forge.bytes.truncate(4 * 4096 + len);
        if let Ok(found) = image::read(&*open(&forge)) {
            assert!(found == bytes[..4096], "{len}");
        }
    }
    for len in (1..packed.len() - 3).rev() {
        forge.bytes.truncate(4 * 4096 + len);
        let (kind, report) = refused(&forge);
        assert_eq!(kind, ErrorKind::Corrupt);
        let place = format!(
            "does not unpack: the file ends in it, at {:#x}",
            4 * 4096 + len
        );
        assert!(report.contains(&place), "{len}: {report}");
    }
    forge.bytes.pop();
    let (_, report) = refused(&forge);
    assert!(
        report.contains("the file is truncated at 0x4000"),
        "{report}"
    );
}

#[test]
fn missing_table_is_truncation() {
    let mut forge = Forge::new(3, 12, 1 << 20);
    // Of the L2 table, only 256 entries are needed.
    forge.bytes.truncate(3 * 4096 + 2048);
    assert!(
        image::read(&*open(&forge))
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
    forge.bytes.pop();
    let layer = open(&forge);
    // All entries but the last are good.
    let mut found = vec![0xee; 255 * 4096];
    layer.read_at(0, &mut found).unwrap();
    assert!(found.iter().all(|byte| *byte == 0));
    let extent = layer.extent_at(0, 1 << 20).unwrap();
    assert_eq!(extent.range.end, 255 * 4096);
    let error = layer.extent_at(255 * 4096, 1 << 20).unwrap_err();
    assert_eq!(
        error.report(),
        "corrupt image: guest range 0xff000..0x100000: the L2 table takes 2048 bytes at offset \
         0x3000; the file ends at 0x37ff, it is truncated"
    );
    assert_eq!(refused(&forge).0, ErrorKind::Corrupt);
    forge.bytes.truncate(2 * 4096);
    let (kind, report) = refused(&forge);
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(
        report.contains("L1 table takes 8 bytes at offset 0x2000"),
        "{report}"
    );
}

/// A sector of a disk that fails holds 64 entries; those around them are read together otherwise.
#[test]
fn sector_of_a_table_that_cannot_be_read_costs_what_it_maps() {
    let forge = Forge::new(3, 12, 1 << 20);
    let whole = Arc::new(MemoryStorage::holding("image", forge.bytes.clone()));
    let storage = Arc::new(FaultStorage::shrunk(whole, 3 * 4096 + 600));
    let layer = QCOW2.open(Arc::clone(&storage) as _, &Budget::new(&Limits::default()));
    let layer = layer.unwrap();
    let piece = 64 * 4096;
    let extent = layer.extent_at(4096, 1 << 20).unwrap();
    assert_eq!(extent.range, GuestRange::new(4096, piece));
    let error = layer.extent_at(piece + 1, 1 << 20).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(error.guest(), Some(GuestRange::new(piece + 1, 2 * piece)));
    // As soon as it can be read, it is.
    storage.shrink(u64::MAX);
    let extent = layer.extent_at(piece, 1 << 20).unwrap();
    assert_eq!(extent.range, GuestRange::new(piece, 1 << 20));
}

#[test]
fn entries_that_break_a_rule_are_corrupt_with_their_numbers() {
    let with = |entry| {
        let mut forge = Forge::new(3, 12, 1 << 20);
        forge.entry(5, entry);
        let (kind, report) = refused(&forge);
        assert_eq!(kind, ErrorKind::Corrupt);
        report
    };
    assert!(with(0x3000 | 1 << 57).contains("0x0200000000003000 has reserved bits set"));
    assert!(with(0x3000 | 0x40).contains("reserved bits set: 0x40"));
    assert!(with(0x3200).contains("names offset 0x3200, no multiple of 4096"));
    assert!(with(COPIED).contains("names a used cluster, but its offset is 0"));
    assert!(with(COMPRESSED).contains("names a used cluster, but its offset is 0"));
    assert!(with(1 << 55).contains("0x80000000000000..0x80000000001000 is missing"));
    assert!(with(1 << 55 | 1).contains("0x80000000000000..0x80000000001000 is missing"));
    assert!(with(COMPRESSED | 1 << 50).contains("0x4000000000000..0x4000000000200 is missing"));

    let mut forge = Forge::new(2, 12, 1 << 20);
    forge.entry(5, 0x3001);
    assert!(
        refused(&forge)
            .1
            .contains("has the zero flag, which version 2 does not know")
    );
    for (entry, rule) in [
        (
            3 << 12 | 1,
            "L1 entry 0x0000000000003001 has reserved bits set: 0x1",
        ),
        (
            3 << 12 | COMPRESSED,
            "reserved bits set: 0x4000000000000000",
        ),
        (3 << 12 | 512, "names offset 0x3200"),
        (COPIED, "L1 entry 0x8000000000000000 names a used cluster"),
        (
            1 << 40,
            "the L2 table takes 2048 bytes at offset 0x10000000000",
        ),
    ] {
        let mut forge = Forge::new(3, 12, 1 << 20);
        forge.put_u64(forge.l1(), entry);
        let (kind, report) = refused(&forge);
        assert_eq!(kind, ErrorKind::Corrupt);
        assert!(report.contains(rule), "{report}");
    }
}

#[test]
fn faulty_entry_leaves_its_neighbours_readable() {
    let bytes = four(4096);
    let mut forge = Forge::new(3, 12, 4 * 4096);
    for index in [0, 1, 3] {
        forge.data(index, &bytes[index * 4096..][..4096]);
    }
    forge.entry(2, 0x3200);
    let layer = open(&forge);
    let extent = layer.extent_at(0, 4 * 4096).unwrap();
    assert_eq!(extent.range.end, 8192);
    let mut found = vec![0; 8192];
    layer.read_at(0, &mut found).unwrap();
    assert!(found == bytes[..8192]);
    layer.read_at(3 * 4096, &mut found[..4096]).unwrap();
    assert!(found[..4096] == bytes[3 * 4096..]);
    assert!(layer.read_at(8000, &mut found[..1000]).is_err());
    // And says which bytes are lost, however many are asked for.
    let error = layer.extent_at(9000, 4 * 4096).unwrap_err();
    assert_eq!(error.guest(), Some(GuestRange::new(9000, 3 * 4096)));
}

#[test]
fn neighbours_in_the_file_are_one_extent() {
    let bytes = four(4096);
    let mut forge = Forge::new(3, 12, 1 << 20);
    for index in 0..3 {
        forge.data(index, &bytes[index * 4096..][..4096]);
    }
    let place = 9u64 << 12;
    forge.bytes.resize(11 << 12, 0xee);
    forge.entry(4, 1);
    forge.entry(5, 1);
    forge.entry(6, place | 1);
    forge.entry(7, COPIED | (place + 4096) | 1);
    let layer = open(&forge);
    let data = |host| ExtentKind::Data { host: Some(host) };
    let allocated = true;
    let zero = |host| ExtentKind::Zero { allocated, host };
    let expected = [
        (3 << 12, data(4 << 12)),
        (4 << 12, ExtentKind::Unallocated),
        (6 << 12, zero(None)),
        (8 << 12, zero(Some(place))),
        (1 << 20, ExtentKind::Unallocated),
    ];
    let found = walk(&*layer, 0, 1 << 20, 100).unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|found| (found.range.end, found.kind))
        .collect();
    assert_eq!(found, expected);
    let inside = layer.extent_at(5000, 9000).unwrap();
    let range = GuestRange::new(5000, 9000);
    let kind = data((4 << 12) + 5000);
    assert_eq!(inside, Extent { range, kind });
}

#[test]
fn unknown_features_are_refused_by_the_name_that_the_image_gives_them() {
    let mut forge = Forge::new(3, 12, 1 << 20);
    // Rules may be others with a feature nobody knows.
    forge.put_u32(96, 99);
    forge.put_u64(72, 1 << 63 | 1 << 40 | 1 << 7 | 1);
    let mut names = Vec::new();
    for (set, bit, name) in [
        (0u8, 40u8, "time travel"),
        (1, 7, "wrong set"),
        (0, 63, "bell\x07"),
    ] {
        let mut entry = vec![set, bit];
        entry.extend(name.as_bytes());
        entry.resize(48, 0);
        names.extend(entry);
    }
    let end = forge.extension(104, 0x1234_5678, b"unknown");
    forge.extension(end, 0x6803_f857, &names);
    assert_eq!(
        refused(&forge),
        (
            ErrorKind::Unsupported,
            "not supported: the image uses features that goldsmith does not know: \
             incompatible feature bit 7, 'time travel' (bit 40), incompatible feature bit 63"
                .into()
        )
    );
}

#[test]
fn unknown_features_that_may_be_ignored_are() {
    let mut forge = Forge::new(3, 12, 1 << 20);
    forge.put_u64(80, u64::MAX);
    forge.put_u64(88, !2);
    forge.extension(104, 0x1234_5678, b"unknown");
    let layer = open(&forge);
    assert!(
        layer
            .info()
            .details
            .contains(&("lazy-refcounts", Detail::Flag(true)))
    );
}

#[test]
fn dirty_and_corrupt_images_can_be_read_and_say_so() {
    let mut forge = Forge::new(3, 12, 1 << 20);
    assert!(!open(&forge).info().dirty);
    forge.put_u64(72, 3);
    let layer = open(&forge);
    assert!(layer.info().dirty);
    assert!(
        layer
            .info()
            .details
            .contains(&("corrupt", Detail::Flag(true)))
    );
    assert!(image::read(&*layer).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn backing_file_is_reported_as_it_stands_there() {
    let forge = |name: &[u8], format: &[u8]| {
        let mut forge = Forge::new(3, 12, 1 << 20);
        forge.extension(104, 0xe279_2aca, format);
        forge.put(1000, name);
        forge.put_u64(8, 1000);
        forge.put_u32(16, name.len() as u32);
        forge
    };
    let backing = |name, format| open(&forge(name, format)).info().backing.clone();
    let found = backing(b"json:{\"driver\":\"nbd\"}", b"raw").unwrap();
    assert_eq!(found.name, "json:{\"driver\":\"nbd\"}");
    assert_eq!(found.format.as_deref(), Some("raw"));
    let found = backing("b\u{e4}se".as_bytes(), b"").unwrap();
    assert_eq!((&*found.name, found.format), ("b\u{e4}se", None));
    assert_eq!(backing(b"", b"raw"), None);

    for (name, format, rule) in [
        (
            &b"a\0b"[..],
            &b"raw"[..],
            "backing file name is no text: it holds a NUL byte",
        ),
        (
            b"\xff",
            b"raw",
            "backing file name is no text: it is no UTF-8",
        ),
        (
            b"a",
            b"r\0",
            "backing format is no text: it holds a NUL byte",
        ),
    ] {
        let (kind, report) = refused(&forge(name, format));
        assert_eq!(kind, ErrorKind::Corrupt);
        assert!(report.contains(rule), "{report}");
    }
}

#[test]
fn extensions_that_break_a_rule_are_refused() {
    let mut forge = Forge::new(3, 12, 1 << 20);
    forge.put_u32(104, 0x1234_5678);
    forge.put_u32(108, 4096 - 112 + 1);
    assert!(refused(&forge).1.contains(
        "header extension 0x12345678 takes 3985 bytes at offset 0x70; the area ends at 0x1000"
    ));
    forge.put_u32(108, 4096 - 112);
    open(&forge);

    // QEMU refuses this and what follows, too.
    forge.put_u32(104, 0);
    forge.put_u32(108, 4096 - 112 + 1);
    let text = "header extension 0x0 takes 3985 bytes at offset 0x70; the area ends at 0x1000";
    assert!(refused(&forge).1.contains(text));

    // The name of a backing file ends the area.
    for (name_at, rest) in [(104, 0), (105, 1), (111, 7), (112, 0)] {
        let mut forge = Forge::new(3, 12, 1 << 20);
        forge.put_u64(8, name_at);
        forge.put_u32(16, 1);
        forge.bytes[name_at as usize] = b'a';
        if rest == 0 {
            open(&forge);
            continue;
        }
        let text = format!("goes on for {rest} bytes at offset 0x68; each has at least 8");
        assert!(refused(&forge).1.contains(&text));
    }

    let mut forge = Forge::new(3, 12, 1 << 20);
    let end = forge.extension(104, 0xe279_2aca, b"raw");
    forge.extension(end, 0xe279_2aca, b"qcow2");
    assert!(refused(&forge).1.contains("0xe2792aca appears twice"));

    let mut forge = Forge::new(3, 12, 1 << 20);
    forge.extension(104, 0x0537_be77, &[0; 16]);
    assert!(
        refused(&forge)
            .1
            .contains("encryption header, but the encryption method is 0")
    );

    let mut forge = Forge::new(3, 16, 1 << 20);
    let mut end = 104;
    while end < 65536 - 8 {
        end = forge.extension(end, 0x1234_5678, &[]);
    }
    assert_eq!(refused(&forge).0, ErrorKind::Limit);
}

#[test]
fn every_version_is_recognised_and_only_two_are_read() {
    for version in [0, 1, 4, u32::MAX] {
        let mut forge = Forge::new(3, 12, 1 << 20);
        forge.put_u32(4, version);
        assert_eq!(probe(&QCOW2, &forge.bytes), Match::Marked);
        assert_eq!(refused(&forge).0, ErrorKind::Unsupported);
    }
    assert_eq!(probe(&QCOW2, b"QFI"), Match::No);
}

#[test]
fn data_file_without_a_name_is_refused() {
    let mut forge = Forge::new(3, 12, 1 << 20);
    forge.put_u64(72, 4);
    assert!(refused(&forge).1.contains("does not say the name"));
    let end = forge.extension(104, 0x4441_5441, b"data");
    assert_eq!(open(&forge).info().data_file.as_deref(), Some("data"));
    forge.extension(end, 0x4441_5441, b"data");
    assert!(refused(&forge).1.contains("0x44415441 appears twice"));
}

#[test]
fn tables_over_the_budget_are_refused() {
    let mut limits = Limits::default();
    limits.metadata_bytes = 4096;
    let image = image::write(&QCOW2, &pattern::disk("1T:-"), &[], false).unwrap();
    let storage = goldsmith_storage::MemoryStorage::holding("image", image);
    let error: Error = QCOW2
        .open(Arc::new(storage), &Budget::new(&limits))
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(
        error.report().contains("the L1 table takes 16384 bytes"),
        "{error:?}"
    );
}

#[test]
fn empty_disk_of_64_tib_is_one_extent() {
    let image = image::write(&QCOW2, &pattern::disk("64T:-"), &[], false).unwrap();
    let layer = image::open(&QCOW2, image).unwrap();
    let extent = layer.extent_at(12345, 1 << 46).unwrap();
    assert_eq!(extent.range, GuestRange::new(12345, 1 << 46));
    assert_eq!(extent.kind, ExtentKind::Unallocated);
}

/// As a chain walks it where the image behind it changes with each of its units. If each answer looked
/// at the rest of the L1 table, of half a million entries, nobody would wait for the end of this test.
#[test]
fn walk_past_tables_that_are_not_there_looks_at_each_once() {
    let len = 16 << 30;
    let small = [("cluster_size", "512")];
    let image = image::write(&QCOW2, &pattern::disk("16G:-"), &small, false).unwrap();
    let layer = image::open(&QCOW2, image).unwrap();
    for start in (0..len).step_by(32 << 10) {
        let extent = layer.extent_at(start, len).unwrap();
        assert_eq!(extent.range, GuestRange::new(start, len));
    }
}

#[test]
fn packed_neighbours_are_read_at_once() {
    let disk = pattern::disk("2M:A");
    let image = image::write(&QCOW2, &disk, &[], true).unwrap();
    let storage = Arc::new(goldsmith_storage::MemoryStorage::holding("image", image));
    let traced = Arc::new(goldsmith_testkit::trace::TraceStorage::new(storage));
    let layer = QCOW2
        .open(traced.clone(), &Budget::new(&Limits::default()))
        .unwrap();
    let mut bytes = vec![0; 2 << 20];
    layer.read_at(0, &mut bytes[..65536]).unwrap();
    let before = traced.reads();
    layer.read_at(65536, &mut bytes[65536..]).unwrap();
    assert_eq!(traced.reads() - before, 1);
    assert!(bytes == disk.bytes());
}

/// Otherwise an overlay of a few megabytes with clusters of 512 bytes, every other one its own, had the
/// 2 MiB of each cluster behind it unpacked two thousand times.
#[test]
fn pieces_of_a_packed_cluster_unpack_it_once() {
    let disk = pattern::disk("2M:A 2M:C");
    let image = image::write(&QCOW2, &disk, &[("cluster_size", "2M")], true).unwrap();
    let storage = Arc::new(goldsmith_storage::MemoryStorage::holding("image", image));
    let traced = Arc::new(goldsmith_testkit::trace::TraceStorage::new(storage));
    let layer = QCOW2
        .open(traced.clone(), &Budget::new(&Limits::default()))
        .unwrap();
    let before = traced.reads();
    for at in (0..4 << 20).step_by(1024) {
        let mut bytes = [0; 512];
        layer.read_at(at as u64, &mut bytes).unwrap();
        assert!(bytes == disk.bytes()[at..at + 512], "{at:#x}");
    }
    // The table, and both clusters.
    let reads = traced.reads() - before;
    assert!(reads <= 3, "{reads} reads");
    // Across both, from the middle of one on.
    let mut bytes = vec![0; 2 << 20];
    layer.read_at(1 << 20, &mut bytes).unwrap();
    assert!(bytes == disk.bytes()[1 << 20..3 << 20]);
}

#[test]
fn host_of_a_packed_cluster_holds_it_all() {
    let image = image::write(&QCOW2, &pattern::disk("1M:A"), &[], true).unwrap();
    let layer = image::open(&QCOW2, image.clone()).unwrap();
    for extent in walk(&*layer, 0, 1 << 20, 100).unwrap() {
        let ExtentKind::Compressed { host, codec, .. } = extent.kind else {
            panic!("{extent:?}");
        };
        let HostRange { offset, len } = host;
        let packed = &image[offset as usize..][..len as usize];
        let mut unit = vec![0; 65536];
        goldsmith_codec::Unpacker::new()
            .unpack(codec, packed, &mut unit)
            .unwrap();
        let mut direct = vec![0; 65536];
        layer.read_at(extent.range.start, &mut direct).unwrap();
        assert!(unit == direct);
    }
}

/// A sector of the L1 table maps 2 MiB in clusters of 512 bytes.
#[test]
fn sector_of_the_l1_table_that_cannot_be_read_costs_whoever_salvages_what_it_maps() {
    let disk = pattern::disk("4M:a 2M:- 1M:b");
    let image = image::write(&QCOW2, &disk, &[("cluster_size", "512")], false).unwrap();
    let table = u64::from_be_bytes(image[40..48].try_into().unwrap());
    let memory = Arc::new(MemoryStorage::holding("image", image));
    let (budget, options) = (
        Budget::new(&Limits::default()),
        Options::defaults(QCOW2.open_options()),
    );
    for lost in 0..4 {
        let bad = HostRange::new(table + 512 * lost, 512);
        let storage = Arc::new(FaultStorage::without(Arc::clone(&memory), bad));
        let refused = QCOW2.open(storage.clone(), &budget);
        assert_eq!(refused.err().unwrap().kind(), ErrorKind::Io);
        let layer = QCOW2.salvage(storage, &budget, &options).unwrap();
        let warnings = &layer.info().warnings;
        // The table has 224 entries.
        let lost_end = bad.end().min(table + 224 * 8);
        let told = format!(
            "L1 table: the bytes {:#x}..{lost_end:#x} of the file cannot be read: image: bad sectors",
            bad.offset
        );
        assert!(warnings[0].starts_with(&told), "{warnings:?}");
        for part in 0..4 {
            let whole = GuestRange::new(part << 21, ((part + 1) << 21).min(disk.len()));
            let mut buf = vec![0; whole.len() as usize];
            match layer.read_at(whole.start, &mut buf) {
                Ok(()) => {
                    assert_ne!(part, lost);
                    assert!(buf == disk.bytes()[whole.start as usize..whole.end as usize]);
                }
                Err(error) => {
                    assert_eq!((part, error.kind()), (lost, ErrorKind::Io));
                    assert!(error.report().contains("bad sectors"), "{error:?}");
                }
            }
            // Not even where the table would have had nothing to say.
            let extent = layer.extent_at(whole.start, whole.end);
            assert_eq!(extent.is_err(), part == lost, "{extent:?}");
        }
        // What has no table ends where it may have one.
        let before = layer.extent_at(4 << 20, disk.len());
        assert!(lost < 2 || before.is_err() || before.unwrap().range.end == 6 << 20);
    }
}
