//! Differencing images that we write: what differs from the parent, and how they name it.

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{
    BackingReference, Budget, Chain, CreateSpec, Demand, Edit, ErrorKind, Format, GuestRange,
    Limits, Options, ZeroPolicy, is_zero,
};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::{ModelDisk, image, pattern};
use goldsmith_vhd::VHD;
use uuid::Uuid;

use crate::forge::patch_header;
use crate::judges::extract;

const GRAIN: u64 = 512;
const BASE: Uuid = Uuid::from_bytes(*b"the base of them");
/// 2020-09-13.
const CHANGED: u64 = 1_600_000_000;

/// What the caller knows of the parent at `../base.vhd`.
fn base() -> BackingReference {
    BackingReference {
        name: "../base.vhd".into(),
        format: Some("vpc".into()),
        other_names: vec!["/vms/base.vhd".into()],
        uuid: Some(BASE),
        modified: Some(CHANGED),
    }
}

/// Creation options and their values.
type Pairs<'a> = &'a [(&'a str, &'a str)];

fn spec(virtual_size: u64, options: Pairs<'_>, backing: BackingReference) -> CreateSpec {
    CreateSpec {
        backing: Some(backing),
        ..image::spec(&VHD, virtual_size, options, false).unwrap()
    }
}

/// The child that holds what differs between `disk` and `below`, in runs of `run` grains.
fn write(disk: &[u8], below: &[u8], spec: &CreateSpec, run: u64) -> Vec<u8> {
    let len = disk.len() as u64;
    let storage = Arc::new(MemoryStorage::new("child"));
    let sink = VHD.create(storage.clone(), spec).unwrap();
    assert_eq!(sink.profile().zeroes, ZeroPolicy::Covering);
    assert_eq!(sink.profile().grain, GRAIN);
    let mut behind = below.to_vec();
    behind.resize(disk.len(), 0);
    let mut start = 0;
    while start < len {
        let differs = |at: u64| {
            let range = at as usize..len.min(at + GRAIN) as usize;
            let (new, old) = (&disk[range.clone()], &behind[range]);
            (new != old).then(|| is_zero(new))
        };
        let kind = differs(start);
        let mut end = start;
        while end < len && differs(end) == kind && end - start < run * GRAIN {
            end += GRAIN;
        }
        let range = GuestRange::new(start, end.min(len));
        match kind {
            None => {}
            Some(true) => sink.reserve_zeroes(range).unwrap(),
            Some(false) => {
                let mut slots = Vec::new();
                sink.reserve(
                    &[Demand {
                        range,
                        packed: None,
                    }],
                    &mut slots,
                )
                .unwrap();
                for slot in slots {
                    let bytes = slot.range.start as usize..slot.range.end as usize;
                    sink.write(slot, &disk[bytes]).unwrap();
                }
            }
        }
        start = range.end;
    }
    sink.commit().unwrap();
    storage.to_vec()
}

/// A parent and a child: data over data, over zeros, and zeros over data; blocks that differ in
/// part, as a whole and not at all; an end inside a page.
const DISKS: [(&str, &str); 6] = [
    (
        "2M:A 2M:B 2M:- 1M:C 512:D",
        "2M:A 4k:b 2040k:- 4k:c 1M:- 4k:e 1020k:- 1M:C 512:d",
    ),
    ("4M:A", "4M:-"),
    ("4M:-", "4M:A"),
    ("4M:A", "4M:A"),
    ("1M:A", "6M:b 512:c"),
    ("6M:A", "3584:-"),
];

fn base_image(below: &ModelDisk) -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::new("base"));
    let spec = CreateSpec {
        uuid: BASE,
        ..image::spec(&VHD, below.len(), &[], false).unwrap()
    };
    image::drive(VHD.create(storage.clone(), &spec).unwrap(), below).unwrap();
    storage.to_vec()
}

#[test]
fn child_over_its_parent_is_the_disk_for_us_and_for_7_zip() {
    let folder = tempfile::tempdir().unwrap();
    for (below, above) in DISKS {
        let (below, above) = (pattern::disk(below), pattern::disk(above));
        let base_bytes = base_image(&below);
        std::fs::write(folder.path().join("base.vhd"), &base_bytes).unwrap();
        for options in [&[][..], &[("block_size", "512k")], &[("batmap", "on")]] {
            // 7-Zip looks for parents in the child's folder alone.
            let beside = BackingReference {
                name: "base.vhd".into(),
                ..base()
            };
            let spec = spec(above.len(), options, beside);
            let child = write(above.bytes(), below.bytes(), &spec, 256);
            // It does not matter in what pieces the disk comes.
            assert!(!options.is_empty() || write(above.bytes(), below.bytes(), &spec, 1) == child);
            let layers = [&child, &base_bytes].map(|bytes| image::open(&VHD, &**bytes).unwrap());
            let [top, behind] = layers;
            assert_eq!(top.info().warnings, [""; 0]);
            let mut bytes = vec![0xaa; above.len() as usize];
            Chain::new(top, [behind]).read_at(0, &mut bytes).unwrap();
            assert!(
                bytes == above.bytes(),
                "{above:?} over {below:?} {options:?}"
            );
            // It refuses parents of another size, and takes its time.
            if below.len() == above.len() && options.is_empty() {
                let theirs = extract(&folder.path().join("top.vhd"), &child);
                assert!(
                    theirs == above.bytes(),
                    "{above:?} over {below:?} {options:?}"
                );
            }
            pleases_vhd_util(&child);
        }
    }
}

#[test]
fn only_sectors_that_differ_are_stored() {
    let below = pattern::disk("2M:A 2M:B 2M:-");
    let above = pattern::disk("2M:A 8k:B 512:- 1k:c 2087424:B 2M:-");
    let mut expected = above.bytes().to_vec();
    expected[2 << 20..][..8 << 10].copy_from_slice(&below.bytes()[2 << 20..][..8 << 10]);
    let from = (2 << 20) + (8 << 10) + 1536;
    expected[from..4 << 20].copy_from_slice(&below.bytes()[from..4 << 20]);
    let child = write(
        &expected,
        below.bytes(),
        &spec(above.len(), &[], base()),
        256,
    );
    assert_eq!(child[1536..1540], [0xff; 4]);
    assert_eq!(child[1544..1548], [0xff; 4]);
    let sector = u32::from_be_bytes(child[1540..1544].try_into().unwrap()) as usize;
    // Sector 16 is zeros, 17 and 18 are data, and all others the parent's.
    let mut bitmap = [0; 512];
    bitmap[2] = 0b1110_0000;
    assert_eq!(child[sector * 512..][..512], bitmap);
    let data = &child[(sector + 1) * 512..][..2 << 20];
    assert!(is_zero(&data[..8704]) && is_zero(&data[9728..]));
    assert!(!is_zero(&data[8704..9216]) && !is_zero(&data[9216..9728]));
}

/// The header and the names of the parent, to the byte.
#[test]
fn child_names_its_parent_in_every_way_that_it_can() {
    let disk = pattern::disk("4M:-");
    let child = write(
        disk.bytes(),
        disk.bytes(),
        &spec(disk.len(), &[], base()),
        256,
    );
    assert_eq!(child[60..64], [0, 0, 0, 4]);
    let header = &child[512..1536];
    assert_eq!(header[40..56], *b"the base of them");
    assert_eq!(
        header[56..60],
        ((CHANGED - 946_684_800) as u32).to_be_bytes()
    );
    let name: Vec<_> = "base.vhd"
        .encode_utf16()
        .flat_map(u16::to_be_bytes)
        .collect();
    assert_eq!(header[64..80], name);
    assert!(is_zero(&header[80..576]));
    let mut locators = Vec::new();
    for (code, len, offset) in [(b"W2ru", 22_u32, 2048_u64), (b"W2ku", 26, 2560)] {
        locators.extend(code);
        locators.extend(512_u32.to_be_bytes());
        locators.extend(len.to_be_bytes());
        locators.extend([0; 4]);
        locators.extend(offset.to_be_bytes());
    }
    assert_eq!(header[576..624], locators);
    assert!(is_zero(&header[624..]));
    for (at, text) in [(2048, r"..\base.vhd"), (2560, r"\vms\base.vhd")] {
        let mut bytes: Vec<_> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        bytes.resize(512, 0);
        assert_eq!(child[at..at + 512], bytes);
    }
    // Head, table, two names, footer.
    assert_eq!(child.len(), 1536 + 512 + 1024 + 512);

    let info = image::open(&VHD, child).unwrap().info().clone();
    let backing = info.backing.unwrap();
    assert_eq!(backing.name, "../base.vhd");
    assert_eq!(backing.other_names, ["/vms/base.vhd", "base.vhd"]);
    assert_eq!(
        (backing.uuid, backing.modified),
        (Some(BASE), Some(CHANGED))
    );
}

#[test]
fn raw_parent_has_no_identity() {
    let disk = pattern::disk("64k:A");
    let raw = BackingReference {
        name: "base.raw".into(),
        format: Some("raw".into()),
        uuid: None,
        ..base()
    };
    let child = write(
        disk.bytes(),
        pattern::disk("64k:B").bytes(),
        &spec(disk.len(), &[], raw),
        256,
    );
    assert!(is_zero(&child[552..568]));
    let backing = image::open(&VHD, child)
        .unwrap()
        .info()
        .backing
        .clone()
        .unwrap();
    assert_eq!(
        (backing.format.as_deref(), backing.uuid),
        (Some("raw"), None)
    );
    assert_eq!(backing.name, "base.raw");
}

#[test]
fn parents_that_no_child_could_find_are_refused() {
    let long = "x".repeat(256);
    let cases: [(_, Pairs<'_>, _); 6] = [
        (
            BackingReference {
                format: Some("qcow2".into()),
                ..base()
            },
            &[],
            "the parent of a VHD is a VHD or a RAW disk, not qcow2",
        ),
        (
            BackingReference {
                uuid: None,
                ..base()
            },
            &[],
            "the parent has a null uuid",
        ),
        (
            BackingReference {
                name: r"a\b.vhd".into(),
                ..base()
            },
            &[],
            r#"name "a\\b.vhd" cannot"#,
        ),
        (
            BackingReference {
                name: long,
                ..base()
            },
            &[],
            "longer than 255 characters",
        ),
        (
            BackingReference {
                name: "folder/".into(),
                ..base()
            },
            &[],
            "it is empty",
        ),
        (
            base(),
            &[("subformat", "fixed")],
            "so it can have no backing file",
        ),
    ];
    for (backing, options, text) in cases {
        let storage = Arc::new(MemoryStorage::new("child"));
        let error = VHD
            .create(storage, &spec(4096, options, backing))
            .err()
            .unwrap();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.report().contains(text), "{}", error.report());
    }
    let options = [("backing_file", "base.vhd"), ("backing_fmt", "vpc")];
    let spec = image::spec(&VHD, 4096, &options, false).unwrap();
    let error = VHD
        .create(Arc::new(MemoryStorage::new("child")), &spec)
        .err()
        .unwrap();
    assert!(error.report().contains("neither does alone"));
}

/// The machine stops before any write of the last two, the head and the tail.
#[test]
fn unfinished_child_is_no_image() {
    let (below, above) = (pattern::disk("3M:A"), pattern::disk("1M:A 1M:b 1M:A"));
    let child = write(
        above.bytes(),
        below.bytes(),
        &spec(above.len(), &[], base()),
        16,
    );
    let footer = child.len() - 512;
    // Neither; then the head alone, which is enough: all the rest was flushed before it.
    let mut without = child.clone();
    without[..1536].fill(0);
    without.truncate(footer);
    assert!(image::open(&VHD, without.clone()).is_err());
    without[..1536].copy_from_slice(&child[..1536]);
    let layer = image::open(&VHD, without).unwrap();
    assert_eq!(layer.info().warnings.len(), 1);
    let ours = image::read(&*layer).unwrap();
    assert!(ours == image::read(&*image::open(&VHD, child).unwrap()).unwrap());
}

/// What `vhd-util check` demands of a differencing image beyond what it demands of all. [blktap
/// vhd-util-check.c]
pub(crate) fn pleases_vhd_util(image: &[u8]) {
    let be32 = |at: usize| u32::from_be_bytes(image[at..at + 4].try_into().unwrap());
    let be64 = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let footer = image.len() - 512;
    assert_eq!(image[..512], image[footer..]);
    assert_eq!(be32(footer + 60), 4);
    let utf16 = |bytes: &[u8], get: fn([u8; 2]) -> u16| {
        let units: Vec<_> = bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|unit| get(*unit))
            .collect();
        String::from_utf16(&units)
            .unwrap()
            .trim_end_matches('\0')
            .to_owned()
    };
    let name = utf16(&image[576..1088], u16::from_be_bytes);
    assert!(be32(568) <= 1_000_000_000, "parent creation time in future");
    let mut end_of_headers = 2048;
    for at in (1088..1280).step_by(24) {
        if image[at..at + 4] == [0; 4] {
            assert!(is_zero(&image[at..at + 24]), "non-zero locator");
            continue;
        }
        // Bytes from 512 on, sectors below: vhd_parent_locator_size.
        let (space, len, offset) = (be32(at + 4) as usize, be32(at + 8) as usize, be64(at + 16));
        assert!(space >= 512 && space.is_multiple_of(512) && len > 0 && len <= space);
        assert!(
            offset > 0 && offset as usize + space <= footer,
            "invalid size"
        );
        assert_eq!(be32(at + 12), 0, "invalid reserved bits");
        let offset = offset as usize;
        let path = utf16(&image[offset..offset + len], u16::from_le_bytes).replace('\\', "/");
        let file = Path::new(&path).file_name().unwrap().to_str().unwrap();
        assert_eq!(file, name, "locator name does not match header name");
        end_of_headers = end_of_headers.max(offset + space);
    }
    let table = be64(512 + 16) as usize;
    for block in 0..be32(512 + 28) as usize {
        let entry = be32(table + 4 * block);
        let clear = entry as usize * 512 >= end_of_headers;
        assert!(entry == u32::MAX || clear, "block clobbers headers");
    }
}

/// Whoever looks for it would find the child itself.
#[test]
fn child_and_parent_have_an_identity_each() {
    let mut own = spec(1 << 20, &[], base());
    own.uuid = BASE;
    let refused = VHD.create(Arc::new(MemoryStorage::new("child")), &own);
    let error = refused.err().expect("it was begun");
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.report().contains("the identity of the image itself"));

    let image = write(&[1; 4096], &[0; 4096], &spec(4096, &[], base()), 1);
    assert_eq!(image::open(&VHD, &*image).unwrap().info().warnings, [""; 0]);
    let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
    let uuid = Uuid::from_slice(&image[68..84]).ok();
    let itself = Edit::SetBacking(Some(BackingReference { uuid, ..base() }));
    let mut editor = VHD
        .edit(
            storage.clone(),
            &Budget::new(&Limits::default()),
            &Options::defaults(VHD.open_options()),
        )
        .unwrap();
    assert_eq!(editor.edit(&itself).unwrap_err().kind(), ErrorKind::Usage);
    assert!(storage.to_vec() == image);

    // As others wrote it.
    let own = patch_header(image, 40, uuid.unwrap().as_bytes());
    let layer = image::open(&VHD, own.clone()).unwrap();
    let [warning] = &layer.info().warnings[..] else {
        panic!("{:?}", layer.info().warnings);
    };
    assert!(warning.contains("has its own identity"), "{warning}");
    // It reads as it should, and no repair could make it another one.
    let storage = Arc::new(MemoryStorage::holding("own", own));
    let checked = VHD.check(storage, &Budget::new(&Limits::default()));
    let checked = checked.unwrap().unwrap();
    assert_eq!(checked.corruptions, 0, "{checked:?}");
}
