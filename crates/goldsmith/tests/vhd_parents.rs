//! Differencing VHDs: which file becomes the parent, and what then shows through.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use goldsmith::{Chain, Commit, ErrorKind, Limits, Opener, References, Result};
use goldsmith_testkit::build::vhd::{Vhd, footer};
use goldsmith_testkit::model::any_disk;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;
use proptest::prelude::*;
use support::{Folder, convert, guest};

const BLOCK: usize = 8 << 10;
/// 2020-09-13, in seconds since 1970 and since 2000.
const CHANGED: (u64, u32) = (1_600_000_000, 653_315_200);
const BASE: [u8; 16] = *b"the base of them";

/// Four blocks, of which the parent has the first, the second and the fourth.
const PARENT: &str = "8k:A 8k:B 8k:- 8k:D";
/// Of the child's blocks the second and the third are there, their sectors by halves.
const CHILD: &str = "8k:- 4k:b 4k:x 4k:c 4k:y 8k:-";
/// The first half of each child's block shows, then the parent, or nothing.
const SHOWN: &str = "8k:A 4k:b 4k:Q 4k:c 4k:- 8k:D";

fn base() -> Vhd {
    Vhd::dynamic(disk(PARENT).bytes(), BLOCK).footer(footer::UUID, &BASE)
}

/// Platform codes and names.
type Locators<'a> = &'a [(&'a [u8; 4], &'a str)];

/// A child with these names for its parent.
fn child(name: &str, locators: Locators<'_>) -> Vhd {
    Vhd::dynamic(disk(CHILD).bytes(), BLOCK)
        .bitmaps(|bits| bits[..2].copy_from_slice(&[0xff, 0]))
        .child_of(BASE, CHANGED.1, name, locators)
}

/// What the guest sees of [`CHILD`] over [`PARENT`].
fn shown() -> Vec<u8> {
    let mut bytes = disk(SHOWN).bytes().to_vec();
    bytes[12 << 10..16 << 10].copy_from_slice(&disk(PARENT).bytes()[12 << 10..16 << 10]);
    // Patterns depend on the place, so the others are those of the child and of the parent.
    bytes
}

fn put(folder: &Folder, name: &str, image: &Vhd) -> PathBuf {
    let path = folder.path(name);
    std::fs::write(&path, image.bytes()).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(CHANGED.0);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(time).unwrap();
    path
}

fn open(path: &Path, references: References) -> Result<Chain> {
    Opener::new().references(references).open(path, Some("vpc"))
}

fn read(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0xaa; chain.virtual_size() as usize];
    chain.read_at(0, &mut bytes).unwrap();
    bytes
}

#[track_caller]
fn refused(path: &Path, references: References) -> (ErrorKind, String) {
    let error = open(path, references).expect_err("it was opened");
    (error.kind(), error.report())
}

/// QEMU opens such an image as if it were a dynamic one, ignores the bitmaps too, and ends with 0.
#[test]
fn each_sector_shows_the_child_or_the_parent_as_its_bit_says() {
    let folder = Folder::new();
    put(&folder, "base.vhd", &base());
    let top = put(
        &folder,
        "top.vhd",
        &child("base.vhd", &[(b"W2ru", r".\base.vhd")]),
    );
    let chain = open(&top, References::SameDirectory).unwrap();
    assert_eq!(chain.warnings(), [""; 0]);
    assert!(read(&chain) == shown());
    let map: Vec<_> = goldsmith::map(&chain)
        .map(|entry| entry.map(|it| (it.range.start >> 10, it.range.end >> 10, it.depth, it.data)))
        .collect::<Result<_>>()
        .unwrap();
    assert_eq!(
        map,
        [
            (0, 8, 1, true),
            (8, 12, 0, true),
            (12, 16, 1, true),
            (16, 20, 0, true),
            (20, 24, 1, false),
            (24, 32, 1, true),
        ]
    );
    let theirs = qemu::read("vpc", &std::fs::read(&top).unwrap());
    assert!(theirs == disk(CHILD).bytes(), "QEMU has learnt it");
}

/// [spec "Parent Locator Entry"] and the habits of Virtual PC, Hyper-V and XenServer.
#[test]
fn parent_is_found_by_any_of_its_names() {
    let folder = Folder::new();
    let path = put(&folder, "base.vhd", &base());
    let absolute = path.to_str().unwrap().to_owned();
    let windows = format!(r"C:{}", absolute.replace('/', r"\"));
    let url = format!("file://localhost{}", absolute.replace('.', "%2E"));
    let names: [(&str, Locators<'_>); 11] = [
        ("", &[(b"W2ru", r".\base.vhd")]),
        ("", &[(b"W2ru", "base.vhd")]),
        ("", &[(b"W2ku", &windows)]),
        ("", &[(b"W2ku", r".\base.vhd")]),
        ("", &[(b"MacX", &url)]),
        ("", &[(b"MacX", "file://./base.vhd")]),
        ("", &[(b"Wi2r", r".\base.vhd")]),
        ("", &[(b"Wi2k", &windows)]),
        ("base.vhd", &[]),
        (r"D:\vms\base.vhd", &[]),
        (
            r"base.vhd",
            &[(b"W2ru", r".\gone.vhd"), (b"W2ku", r"Z:\gone\gone.vhd")],
        ),
    ];
    for (name, locators) in names {
        let top = put(&folder, "top.vhd", &child(name, locators));
        let chain = open(&top, References::SameDirectory)
            .unwrap_or_else(|error| panic!("{name:?} {locators:?}: {error:?}"));
        assert!(read(&chain) == shown(), "{name:?} {locators:?}");
    }
}

#[test]
fn relative_name_wins_over_the_absolute_one_and_that_over_the_plain_one() {
    let folder = Folder::new();
    let content = |letter: &str| disk(&format!("32k:{letter}"));
    for letter in ["r", "k", "n"] {
        let image = Vhd::dynamic(content(letter).bytes(), BLOCK).footer(footer::UUID, &BASE);
        put(&folder, &format!("{letter}.vhd"), &image);
    }
    let absolute = format!(r"C:{}", folder.text("k.vhd").replace('/', r"\"));
    let empty = disk("32k:-");
    let top = Vhd::dynamic(empty.bytes(), BLOCK).child_of(
        BASE,
        0,
        "n.vhd",
        &[(b"W2ku", &absolute), (b"W2ru", r".\r.vhd")],
    );
    let path = put(&folder, "top.vhd", &top);
    for letter in ["r", "k", "n"] {
        let chain = open(&path, References::SameDirectory).unwrap();
        assert!(read(&chain) == content(letter).bytes(), "{letter}");
        std::fs::remove_file(folder.path(&format!("{letter}.vhd"))).unwrap();
    }
    let (kind, report) = refused(&path, References::SameDirectory);
    assert_eq!(kind, ErrorKind::Io);
    assert!(
        report.contains("r.vhd: cannot open: No such file") && report.contains("k.vhd', 'n.vhd'"),
        "{report}"
    );
}

#[test]
fn names_are_followed_only_as_far_as_the_policy_goes() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("inner")).unwrap();
    let outside = put(&folder, "base.vhd", &base());
    let absolute = format!(r"C:{}", outside.to_str().unwrap().replace('/', r"\"));
    let names: [(&[u8; 4], &str); 4] = [
        (b"W2ru", r"..\base.vhd"),
        (b"W2ku", &absolute),
        (b"MacX", "file:///etc/passwd"),
        (b"W2ku", r"\\server\share\base.vhd"),
    ];
    for locator in names {
        let top = put(&folder, "inner/top.vhd", &child("", &[locator]));
        let (kind, report) = refused(&top, References::SameDirectory);
        assert_eq!(kind, ErrorKind::Denied, "{report}");
        assert_eq!(report.matches("not allowed").count(), 1, "{report}");
        let (kind, report) = refused(&top, References::Deny);
        assert_eq!(kind, ErrorKind::Denied);
        assert!(report.contains("policy is 'deny'"), "{report}");
    }
    for locator in &names[..2] {
        let top = put(&folder, "inner/top.vhd", &child("", &[*locator]));
        assert!(read(&open(&top, References::Allow).unwrap()) == shown());
    }
    std::os::unix::fs::symlink("../base.vhd", folder.path("inner/link.vhd")).unwrap();
    let top = put(
        &folder,
        "inner/top.vhd",
        &child("", &[(b"W2ru", r".\link.vhd")]),
    );
    assert_eq!(
        refused(&top, References::SameDirectory).0,
        ErrorKind::Denied
    );
    // A name that may not be followed does not spoil one that may.
    put(&folder, "inner/base.vhd", &base());
    let top = put(&folder, "inner/top.vhd", &child("base.vhd", &names));
    assert!(read(&open(&top, References::SameDirectory).unwrap()) == shown());
}

#[test]
fn info_opens_nothing_and_lists_every_name() {
    let folder = Folder::new();
    let image = child(
        "base.vhd",
        &[
            (b"W2ru", r".\gone\base.vhd"),
            (b"MacX", "file:///x/base.vhd"),
        ],
    );
    let top = put(&folder, "top.vhd", &image);
    let info = goldsmith::ImageInfo::read(&Opener::new(), &top, None).unwrap();
    let backing = info.layer.backing.clone().unwrap();
    assert_eq!(backing.name, "gone/base.vhd");
    assert_eq!(backing.other_names, ["/x/base.vhd", "base.vhd"]);
    assert_eq!(backing.format.as_deref(), Some("vpc"));
    assert_eq!(backing.uuid, Some(goldsmith::Uuid::from_bytes(BASE)));
    assert_eq!(backing.modified, Some(CHANGED.0));
    let names: Vec<_> = info.layer.details.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        [
            "subformat",
            "parent-locator-W2ru",
            "parent-locator-MacX",
            "parent-name"
        ]
    );
}

#[test]
fn parent_with_another_identity_is_no_parent() {
    let folder = Folder::new();
    put(
        &folder,
        "base.vhd",
        &base().footer(footer::UUID, b"some other image"),
    );
    let top = put(&folder, "top.vhd", &child("", &[(b"W2ru", r".\base.vhd")]));
    let (kind, report) = refused(&top, References::SameDirectory);
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(
        report
            .contains("is based on the one with the identity 74686520-6261-7365-206f-66207468656d")
            && report.contains("is 736f6d65-206f-7468-6572-20696d616765"),
        "{report}"
    );
    // Where it may be, and may not be looked for.
    let names: Locators<'_> = &[(b"W2ru", r".\base.vhd"), (b"W2ku", r"C:\else\base.vhd")];
    let top = put(&folder, "top.vhd", &child("", names));
    let (kind, report) = refused(&top, References::SameDirectory);
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(
        report.contains("is based on the one")
            && report.contains("not in the directory of the image"),
        "{report}"
    );
    // Another file under another name is looked for, too.
    put(&folder, "right.vhd", &base());
    let top = put(
        &folder,
        "top.vhd",
        &child("right.vhd", &[(b"W2ru", r".\base.vhd")]),
    );
    assert!(read(&open(&top, References::SameDirectory).unwrap()) == shown());
}

/// Hyper-V refuses (0xC03A000F), XenServer's tools do not look. A copy of the file has another time
/// and the same bytes, so it is worth a word and no more.
#[test]
fn parent_changed_since_is_a_warning() {
    let folder = Folder::new();
    let path = put(&folder, "base.vhd", &base());
    let top = put(&folder, "top.vhd", &child("base.vhd", &[]));
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    for (offset, warns) in [
        (-100, "100 seconds earlier"),
        (2, ""),
        (3600, "3600 seconds later"),
    ] {
        let time = Duration::from_secs(CHANGED.0.checked_add_signed(offset).unwrap());
        file.set_modified(SystemTime::UNIX_EPOCH + time).unwrap();
        let chain = open(&top, References::SameDirectory).unwrap();
        match chain.warnings() {
            [] => assert_eq!(warns, ""),
            [only] => assert!(!warns.is_empty() && only.contains(warns), "{only}"),
            more => panic!("{more:?}"),
        }
        assert!(read(&chain) == shown());
    }
}

/// [libvhd] XenServer puts differencing images on RAW disks: the parent has no identity.
#[test]
fn parent_without_identity_is_a_raw_disk() {
    let folder = Folder::new();
    folder.write("base.raw", &disk(PARENT));
    let image = Vhd::dynamic(disk(CHILD).bytes(), BLOCK)
        .bitmaps(|bits| bits[..2].copy_from_slice(&[0xff, 0]))
        .child_of([0; 16], 0, "base.raw", &[(b"MacX", "file://./base.raw")]);
    let top = put(&folder, "top.vhd", &image);
    let chain = open(&top, References::SameDirectory).unwrap();
    assert!(read(&chain) == shown());
    // Even if it looks like a VHD.
    std::fs::write(folder.path("base.raw"), base().bytes()).unwrap();
    let chain = open(&top, References::SameDirectory).unwrap();
    assert!(read(&chain)[..8] == *b"conectix");
}

/// Any file would do, so none is taken but the one that the image names, in the order in which it
/// does: the next name counts only where there is no file of this one.
#[test]
fn parent_without_identity_is_no_other_file_of_its_name() {
    let folder = Folder::new();
    for inner in ["base", "a"] {
        std::fs::create_dir(folder.path(inner)).unwrap();
    }
    let (parent, other) = (disk("32k:P"), disk("32k:O"));
    folder.write("base/disk.raw", &parent);
    folder.write("a/disk.raw", &other);
    let top = folder.path("a/top.vhd");
    let name_it = |name: &str, locators: Locators<'_>| {
        let image = Vhd::dynamic(disk("32k:-").bytes(), BLOCK);
        let image = image.child_of([0; 16], 0, name, locators);
        std::fs::write(&top, image.bytes()).unwrap();
    };
    let other_name = folder.text("a/disk.raw").replace('/', r"\");
    let (relative, url) = (r"..\base\disk.raw", "file://./disk.raw");
    let absolute = folder.text("base/disk.raw").replace('/', r"\");
    let shown = |references| read(&open(&top, references).unwrap());
    let by_name = |name: &str| format!("'{name}' is not in the directory of the image");

    name_it("disk.raw", &[(b"W2ru", relative), (b"W2ku", &absolute)]);
    let (kind, report) = refused(&top, References::SameDirectory);
    assert_eq!(kind, ErrorKind::Denied);
    assert!(report.contains(&by_name("../base/disk.raw")), "{report}");
    assert!(shown(References::Allow) == parent.bytes());

    name_it("", &[(b"W2ku", &absolute), (b"MacX", url)]);
    let (kind, report) = refused(&top, References::SameDirectory);
    assert_eq!(kind, ErrorKind::Denied);
    let absolute_name = folder.text("base/disk.raw");
    assert!(report.contains(&by_name(&absolute_name)), "{report}");
    std::fs::rename(folder.path("base"), folder.path("gone")).unwrap();
    assert!(shown(References::Allow) == other.bytes(), "its other name");

    for locator in [(b"W2ru", relative), (b"W2ku", &*absolute)] {
        name_it("disk.raw", &[locator]);
        let (kind, report) = refused(&top, References::Allow);
        assert_eq!(kind, ErrorKind::Io);
        assert!(report.contains("No such file"), "{report}");
    }
    // What cannot be read may have said that it is another one.
    for broken in [(b"W2ru", ""), (b"Mac ", "alias"), (b"XXXX", "name")] {
        name_it("disk.raw", &[broken]);
        let (kind, report) = refused(&top, References::Allow);
        assert_eq!(kind, ErrorKind::Corrupt);
        assert!(report.contains("no locator of its RAW parent"), "{report}");
        name_it("disk.raw", &[broken, (b"W2ku", &other_name)]);
        assert!(shown(References::Allow) == other.bytes(), "{broken:?}");
    }
    name_it(r"D:\base\disk.raw", &[]);
    assert_eq!(refused(&top, References::Allow).0, ErrorKind::Io);

    // What the image itself calls it is there, whatever the rest leads to.
    for (name, locators) in [
        ("disk.raw", &[][..]),
        ("", &[(b"W2ru", r".\disk.raw"), (b"W2ku", &*absolute)]),
    ] {
        name_it(name, locators);
        assert!(shown(References::SameDirectory) == other.bytes(), "{name}");
    }
}

#[test]
fn parent_of_another_size_is_cut_or_filled_with_zeros() {
    let folder = Folder::new();
    let empty = Vhd::dynamic(disk("32k:-").bytes(), BLOCK);
    let top = put(
        &folder,
        "top.vhd",
        &empty.child_of(BASE, 0, "base.vhd", &[]),
    );
    for picture in ["20k:A", "32k:A", "64k:A"] {
        let content = disk(picture);
        put(
            &folder,
            "base.vhd",
            &Vhd::fixed(content.bytes()).footer(footer::UUID, &BASE),
        );
        let mut expected = content.bytes().to_vec();
        expected.resize(32 << 10, 0);
        assert!(
            read(&open(&top, References::SameDirectory).unwrap()) == expected,
            "{picture}"
        );
    }
}

#[test]
fn chain_of_files_ends_at_the_limit_and_never_in_a_circle() {
    let folder = Folder::new();
    let blank = disk("32k:-");
    let link = |own: u8, parent: u8| {
        Vhd::dynamic(blank.bytes(), BLOCK)
            .footer(footer::UUID, &[own; 16])
            .child_of([parent; 16], 0, &format!("{parent}.vhd"), &[])
    };
    put(
        &folder,
        "1.vhd",
        &Vhd::dynamic(disk("32k:A").bytes(), BLOCK).footer(footer::UUID, &[1; 16]),
    );
    for depth in 2..=20 {
        put(&folder, &format!("{depth}.vhd"), &link(depth, depth - 1));
    }
    let top = folder.path("20.vhd");
    let chain = open(&top, References::SameDirectory).unwrap();
    assert_eq!(chain.layers().len(), 20);
    assert!(read(&chain) == disk("32k:A").bytes());

    let mut limits = Limits::default();
    limits.chain_depth = 19;
    let opener = Opener::new()
        .references(References::SameDirectory)
        .limits(limits);
    let error = opener.open(&top, Some("vpc")).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Limit);

    for (last, next) in [(1, 20), (1, 1), (1, 7)] {
        put(&folder, "1.vhd", &link(last, next));
        let (kind, report) = refused(&top, References::SameDirectory);
        assert_eq!(kind, ErrorKind::Corrupt);
        assert!(report.contains("is already part of the chain"), "{report}");
    }
}

/// A child of a VHD, a child of that one, and a child of a RAW disk; in other folders, too.
#[test]
fn children_are_written_over_parents_of_both_kinds() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("inner")).unwrap();
    let below = disk("2M:A 2M:B 3M:- 1M:D 512:E");
    let above = disk("2M:A 4k:c 2044k:B 3M:- 4k:- 1020k:- 512:e");
    folder.write("below.raw", &below);
    folder.write("above.raw", &above);
    let (raw, raw_above) = (folder.path("below.raw"), folder.path("above.raw"));
    convert((&raw, "raw"), (&folder.path("base.vhd"), "vpc"))
        .run()
        .unwrap();
    let absolute = folder.text("base.vhd");
    for (target, backing, format) in [
        ("beside.vhd", "base.vhd", "vpc"),
        ("inner/below.vhd", "../base.vhd", "vhd"),
        ("absolute.vhd", &*absolute, "vpc"),
        ("over-raw.vhd", "below.raw", "raw"),
        ("second.vhd", "beside.vhd", "vpc"),
    ] {
        let path = folder.path(target);
        let done = convert((&raw_above, "raw"), (&path, "vpc"))
            .uuid_from_name()
            .backing(backing, format)
            .run();
        assert_eq!(done.unwrap().warnings, [""; 0]);
        // The block with the letter and the one that became zeros, in part; not the parent's.
        let len = std::fs::metadata(&path).unwrap().len();
        let most = if target == "second.vhd" {
            4096
        } else {
            3 * (2 << 20) + 16384
        };
        assert!(len < most, "{target}: {len}");
        let chain = open(&path, References::Allow).unwrap();
        assert_eq!(chain.warnings(), [""; 0]);
        assert!(read(&chain) == above.bytes(), "{target}");
        let depth = if target == "second.vhd" { 3 } else { 2 };
        assert_eq!(chain.layers().len(), depth);
    }
    let info = goldsmith::ImageInfo::read(&Opener::new(), folder.path("absolute.vhd"), None);
    let backing = info.unwrap().layer.backing.unwrap();
    assert_eq!(backing.name, "base.vhd");
    assert_eq!(backing.other_names, [absolute]);

    // Both moved together, the relative name leads; one moved, the absolute one.
    let moved = Folder::new();
    for name in ["base.vhd", "beside.vhd"] {
        std::fs::copy(folder.path(name), moved.path(name)).unwrap();
    }
    std::fs::remove_file(folder.path("base.vhd")).unwrap();
    let chain = open(&moved.path("beside.vhd"), References::SameDirectory).unwrap();
    assert!(read(&chain) == above.bytes());
}

#[test]
fn parent_that_no_vhd_can_have_is_refused_and_nothing_is_left() {
    let folder = Folder::new();
    let raw = folder.write("disk.raw", &disk("1M:A"));
    convert((&raw, "raw"), (&folder.path("base.qcow2"), "qcow2"))
        .run()
        .unwrap();
    let target = folder.path("child.vhd");
    let child = convert((&raw, "raw"), (&target, "vpc"));
    let error = child
        .clone()
        .backing("base.qcow2", "qcow2")
        .run()
        .unwrap_err();
    assert!(
        error.report().contains("is a VHD or a RAW disk, not qcow2"),
        "{}",
        error.report()
    );
    let error = child.backing("gone.vhd", "vpc").run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(folder.names(), ["base.qcow2", "disk.raw"]);
}

/// What a child holds for those who go by the other of its sizes is not thrown away, so it stays as it
/// is; and so must its parent.
#[test]
fn parent_gets_nothing_if_the_child_could_not_be_emptied_then() {
    let folder = Folder::new();
    let base = put(&folder, "base.vhd", &base());
    // By the geometry the disk ends in its third block, in which there is more.
    let two_sizes =
        child("base.vhd", &[(b"W2ru", r".\base.vhd")]).footer(footer::CHS, &[0, 1, 2, 17]);
    let top = put(&folder, "top.vhd", &two_sizes);
    let before = [&base, &top].map(|path| std::fs::read(path).unwrap());
    let opener = Opener::new()
        .references(References::SameDirectory)
        .option("force_size_calc", "chs");
    let commit = Commit::new(&top).format("vpc").opener(opener);
    for dry_run in [true, false] {
        let error = commit.clone().dry_run(dry_run).run().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let text = "17408 bytes by one of the two sizes in its footer and 32768 by the other";
        assert!(error.report().contains(text), "{}", error.report());
    }
    let after = [&base, &top].map(|path| std::fs::read(path).unwrap());
    assert!(after == before);

    // It may be deleted, so it need not be emptied.
    commit.keep(true).run().unwrap();
    assert!(std::fs::read(&base).unwrap() != before[0]);
    assert!(std::fs::read(&top).unwrap() == before[1]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    /// Any disk over any other, VHD or RAW, in blocks of either size; the same bytes for any number
    /// of threads.
    #[test]
    fn any_disk_over_any_other_reads_as_itself(
        below in any_disk(5 << 20, 512),
        above in any_disk(5 << 20, 512),
        over_raw: bool,
        small_blocks: bool,
        batmap: bool,
    ) {
        let folder = Folder::new();
        let (raw, raw_above) = (folder.write("base.raw", &below), folder.write("above.raw", &above));
        convert((&raw, "raw"), (&folder.path("base.vhd"), "vpc")).run().unwrap();
        let (parent, format) = if over_raw { ("base.raw", "raw") } else { ("base.vhd", "vpc") };
        let mut files = Vec::new();
        for threads in [1, 3] {
            let path = folder.path("child.vhd");
            convert((&raw_above, "raw"), (&path, "vpc"))
                .uuid_from_name()
                .backing(parent, format)
                .option("block_size", if small_blocks { "512k" } else { "2M" })
                .option("batmap", if batmap { "on" } else { "off" })
                .threads(NonZeroUsize::new(threads).unwrap())
                .run()
                .unwrap();
            let chain = open(&path, References::SameDirectory).unwrap();
            prop_assert!(read(&chain) == above.bytes());
            let (_, checked) = goldsmith::check(&Opener::new(), &path, Some("vpc")).unwrap().unwrap();
            prop_assert!(checked.flaws.is_empty(), "{:?}", checked.flaws);
            files.push(std::fs::read(&path).unwrap());
        }
        prop_assert!(files[0] == files[1]);
    }
}

/// A name in a VHD is a path, whatever there is before its colon.
#[test]
fn colon_in_the_name_of_a_parent_is_a_part_of_it() {
    let folder = Folder::new();
    folder.write("x.raw", &disk("1M:b"));
    for name in ["file:x.raw", "golden-12:30.raw", "json:x", "nbd:x"] {
        let base = folder.write(name, &disk("1M:A"));
        let child = folder.path("child.vhd");
        goldsmith::Create::new(&child)
            .format("vpc")
            .option("backing_file", format!("./{name}"))
            .option("backing_fmt", "raw")
            .run()
            .unwrap();
        assert!(guest(&child, "vpc") == disk("1M:A").bytes(), "{name}");
        std::fs::remove_file(base).unwrap();
    }
}
