//! `goldsmith convert --salvage`: what is left of a damaged image.

use std::fs::File;
use std::os::unix::fs::FileExt;

use goldsmith_testkit::pattern::disk;

use crate::Folder;
use crate::twins::Twins;

/// A disk of 16 clusters, packed and not.
fn images() -> Twins {
    Twins::new(|folder| {
        folder.write("disk.raw", &disk("1M:A"));
        folder.qemu_img_ok("convert -O qcow2 disk.raw plain.qcow2");
        folder.qemu_img_ok("convert -c -O qcow2 disk.raw packed.qcow2");
    })
}

/// Where the table of the L2 entries stands in an image made here.
pub(crate) fn l2(folder: &Folder, image: &str) -> u64 {
    let bytes = std::fs::read(folder.path(image)).unwrap();
    let number = |at: u64| {
        let at = at as usize;
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
    };
    number(number(40)) & 0x00ff_ffff_ffff_fe00
}

pub(crate) fn patch(folder: &Folder, image: &str, at: u64, bytes: &[u8]) {
    let file = File::options()
        .write(true)
        .open(folder.path(image))
        .unwrap();
    file.write_all_at(bytes, at).unwrap();
}

/// Both make the same of it and warn of it; goldsmith in one line, and with the sum.
fn salvaged(twins: &Twins, line: &str, lost: u64) {
    let (ours, theirs) = twins.run(line);
    assert_eq!((ours.status, theirs.status), (0, 0), "{ours:?} {theirs:?}");
    assert!(ours.stdout.is_empty() && theirs.stdout.is_empty());
    for said in [&ours.stderr, &theirs.stderr] {
        let warned = "warning: error while reading offset 196608: ";
        assert!(said.contains(warned), "{said}");
    }
    let sum = format!("warning: {lost} bytes could not be read and are zeros in the target");
    assert!(ours.stderr.contains(&sum), "{}", ours.stderr);
    assert_eq!(ours.stderr.lines().count(), 2, "{}", ours.stderr);
}

#[test]
fn broken_packed_cluster_becomes_zeros_and_is_told() {
    let twins = images();
    for folder in [&twins.ours, &twins.theirs] {
        let at = l2(folder, "packed.qcow2") + 3 * 8;
        let bytes = std::fs::read(folder.path("packed.qcow2")).unwrap();
        let entry = u64::from_be_bytes(bytes[at as usize..][..8].try_into().unwrap());
        // A block of a kind that there is none of.
        patch(folder, "packed.qcow2", entry & ((1 << 54) - 1), &[0xff; 16]);
    }
    twins.neither("convert -O raw packed.qcow2 out.raw", "");
    salvaged(
        &twins,
        "convert --salvage -O raw packed.qcow2 out.raw",
        65536,
    );
    twins.same("out.raw", "raw");
    let (whole, mut expected) = (twins.ours.path("out.raw"), disk("1M:A").bytes().to_vec());
    expected[3 << 16..4 << 16].fill(0);
    assert!(std::fs::read(whole).unwrap() == expected);
    // Into any format, from several sources, and into an image that stands.
    salvaged(
        &twins,
        "convert --salvage -c -O qcow2 packed.qcow2 disk.raw out.qcow2",
        65536,
    );
    twins.same("out.qcow2", "qcow2");
    salvaged(
        &twins,
        "convert --salvage -n -O raw packed.qcow2 out.raw",
        65536,
    );
    twins.same("out.raw", "raw");
    let quiet = twins
        .ours
        .goldsmith_ok("convert -q --salvage packed.qcow2 out.raw");
    assert_eq!(quiet, "");
}

/// [qemu] It reads zeros past the end of a file and says nothing. And of an entry that breaks a rule
/// it is so shocked that it reads nothing any more.
#[test]
fn what_stands_past_the_end_or_nowhere_is_lost_alone() {
    let folder = images().ours;
    let table = l2(&folder, "plain.qcow2");
    let past = (1_u64 << 63) | (1 << 40);
    patch(&folder, "plain.qcow2", table + 3 * 8, &past.to_be_bytes());
    let crooked = (1_u64 << 63) | 0x50200;
    patch(
        &folder,
        "plain.qcow2",
        table + 5 * 8,
        &crooked.to_be_bytes(),
    );
    assert_eq!(folder.goldsmith("convert plain.qcow2 out.raw").status, 1);
    let done = folder.goldsmith("convert --salvage -f qcow2 plain.qcow2 out.raw");
    assert_eq!(done.status, 0, "{done:?}");
    for said in [
        "error while reading offset 196608: 65536 bytes",
        "error while reading offset 327680: 65536 bytes",
        "131072 bytes could not be read",
    ] {
        assert!(done.stderr.contains(said), "{done:?}");
    }
    let mut expected = disk("1M:A").bytes().to_vec();
    expected[3 << 16..4 << 16].fill(0);
    expected[5 << 16..6 << 16].fill(0);
    assert!(std::fs::read(folder.path("out.raw")).unwrap() == expected);
    // A program is told in its own words, too.
    let line = "convert --salvage --output=json -f qcow2 plain.qcow2 out.raw";
    let facts: serde_json::Value = serde_json::from_str(&folder.goldsmith(line).stdout).unwrap();
    assert_eq!(facts["lost"], 131_072);
}

/// A whole table, here for all of the disk, which does not take as many steps as it has sectors.
#[test]
fn table_past_the_end_is_one_loss() {
    let folder = Folder::new();
    folder.qemu_img_ok("create -q -f qcow2 disk.qcow2 2G");
    folder.qemu_io("disk.qcow2", &["write -P 1 0 64k", "write -P 2 1G 64k"]);
    let bytes = std::fs::read(folder.path("disk.qcow2")).unwrap();
    let l1 = u64::from_be_bytes(bytes[40..48].try_into().unwrap());
    let past = (1_u64 << 63) | (1 << 40);
    patch(&folder, "disk.qcow2", l1, &past.to_be_bytes());
    let done = folder.goldsmith("convert --salvage -f qcow2 disk.qcow2 out.raw");
    assert_eq!(done.status, 0, "{done:?}");
    let lost = "error while reading offset 0: 536870912 bytes are zeros";
    assert!(done.stderr.contains(lost), "{done:?}");
    let out = std::fs::File::open(folder.path("out.raw")).unwrap();
    let mut byte = [0; 2];
    out.read_exact_at(&mut byte[..1], 0).unwrap();
    out.read_exact_at(&mut byte[1..], 1 << 30).unwrap();
    assert_eq!(byte, [0, 2]);
}

/// Cuts `len` bytes off the end of a file.
fn cut(folder: &Folder, image: &str, len: u64) {
    let file = File::options().write(true).open(folder.path(image));
    let file = file.unwrap();
    file.set_len(file.metadata().unwrap().len() - len).unwrap();
}

/// `line` makes out.raw, in which `lost` of the disk are zeros, which are told; the rest is there.
fn rescued(folder: &Folder, line: &str, whole: &[u8], lost: std::ops::Range<usize>) {
    let done = folder.goldsmith(&format!("convert --salvage {line} out.raw"));
    assert_eq!(done.status, 0, "{line}: {done:?}");
    for said in [
        format!(
            "error while reading offset {}: {} bytes are zeros",
            lost.start,
            lost.len()
        ),
        format!("warning: {} bytes could not be read", lost.len()),
    ] {
        assert!(done.stderr.contains(&said), "{line}: {done:?}");
    }
    let mut expected = whole.to_vec();
    expected[lost].fill(0);
    assert!(
        std::fs::read(folder.path("out.raw")).unwrap() == expected,
        "{line}"
    );
}

/// However large the cluster or block is in which the file ends.
#[test]
fn file_that_was_cut_off_loses_only_the_sectors_that_are_gone() {
    let folder = Folder::new();
    let whole = disk("6M:A").bytes().to_vec();
    folder.write("disk.raw", &disk("6M:A"));
    // What stands behind the disk's data, and which part of the last two MiB is cut off with it.
    let footer = 512;
    let gone = 1_000_000;
    let left = whole.len() - gone;
    for (line, format, behind) in [
        ("-o cluster_size=2M", "qcow2", 0),
        ("-o cluster_size=2M,extended_l2=on", "qcow2", 0),
        ("-o subformat=dynamic,force_size=on", "vpc", footer),
    ] {
        folder.qemu_img_ok(&format!("convert {line} -O {format} disk.raw cut"));
        cut(&folder, "cut", behind + gone as u64);
        assert_eq!(
            folder
                .goldsmith(&format!("convert -f {format} cut out.raw"))
                .status,
            1
        );
        let lost = left / 512 * 512..whole.len();
        rescued(&folder, &format!("-f {format} cut"), &whole, lost);
    }
}

/// Of what shows through as one, each part is lost alone.
#[test]
fn large_cluster_over_small_ones_loses_only_what_a_small_one_held() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("4M:A"));
    folder.qemu_img_ok("convert -O qcow2 disk.raw base.qcow2");
    folder.qemu_img_ok("create -q -f qcow2 -o cluster_size=2M -b base.qcow2 -F qcow2 top.qcow2");
    let crooked = (1_u64 << 63) | 0x50200;
    let at = l2(&folder, "base.qcow2") + 32 * 8;
    patch(&folder, "base.qcow2", at, &crooked.to_be_bytes());
    let lost = 32 << 16..33 << 16;
    rescued(&folder, "-f qcow2 top.qcow2", disk("4M:A").bytes(), lost);
}

/// What a header says of a table: the byte at which it says so, and what.
fn say(folder: &Folder, image: &str, at: u64, number: u64) {
    patch(folder, image, at, &number.to_be_bytes());
}

/// Refcounts, snapshots and bitmaps: the disk can be read without them, and is if that is asked for.
#[test]
fn what_the_disk_does_not_need_is_told_and_left_out() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    folder.qemu_img_ok("convert -O qcow2 disk.raw whole.qcow2");
    folder.qemu_img_ok("snapshot -c one whole.qcow2");
    folder.qemu_img_ok("bitmap --add whole.qcow2 days");
    let whole = std::fs::read(folder.path("whole.qcow2")).unwrap();
    let end = (whole.len() as u64).next_multiple_of(65536);
    let number = |at: usize| u64::from_be_bytes(whole[at..at + 8].try_into().unwrap());
    let extension = whole[..4096]
        .windows(4)
        .position(|it| it == [0x23, 0x85, 0x28, 0x75]);
    let directory = extension.unwrap() as u64 + 8 + 16;
    for (at, is, rule) in [
        (48, end, "refcount table takes 65536 bytes at offset"),
        (48, 512, "refcount table is at offset 0x200"),
        (56, 0, "no refcount"),
        (64, end, "snapshot table takes"),
        // Its first entry has a name that goes on and on.
        (number(64) + 8, u64::MAX, "snapshot table takes"),
        (directory, end, "bitmap directory takes"),
        (
            number(directory as usize) + 16,
            u64::MAX,
            "bitmap directory has",
        ),
    ] {
        std::fs::write(folder.path("broken.qcow2"), &whole).unwrap();
        say(&folder, "broken.qcow2", at, is);
        let refused = folder.goldsmith("convert -f qcow2 broken.qcow2 out.raw");
        assert_eq!(refused.status, 1, "{rule}: {refused:?}");
        assert!(refused.stderr.contains(rule), "{rule}: {refused:?}");
        let said = folder.goldsmith_ok("convert --salvage -f qcow2 broken.qcow2 out.raw");
        assert!(said.contains(rule), "{rule}: {said}");
        let told = "what does not need it is read all the same";
        assert!(said.contains(told) && said.lines().count() == 1, "{said}");
        assert!(std::fs::read(folder.path("out.raw")).unwrap() == disk("1M:A").bytes());
    }
    // Who asks for what is broken is told.
    let line = "convert --salvage --bitmaps -f qcow2 -O qcow2 broken.qcow2 out.qcow2";
    let refused = folder.goldsmith(line);
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.stderr.contains("bitmap directory"), "{refused:?}");
    std::fs::write(folder.path("broken.qcow2"), &whole).unwrap();
    say(&folder, "broken.qcow2", 64, end);
    let refused = folder.goldsmith("convert --salvage -l one broken.qcow2 out.raw");
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("snapshot table takes"),
        "{refused:?}"
    );
}

/// Where the table stands and how long blocks are, the rest of a VHD says, too.
#[test]
fn vhd_whose_header_is_broken_is_read_with_the_one_that_it_must_have_had() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("6M:A"));
    folder.qemu_img_ok("convert -O vpc -o force_size=on disk.raw disk.vhd");
    // Its mark, and the size of a block.
    for (at, bytes) in [(512, &[0; 8][..]), (512 + 32, &[0xff; 4])] {
        patch(&folder, "disk.vhd", at, bytes);
        let refused = folder.goldsmith("convert -f vpc disk.vhd out.raw");
        assert_eq!(refused.status, 1, "{refused:?}");
        let said = folder.goldsmith_ok("convert --salvage -f vpc disk.vhd out.raw");
        let told = "its block table of 3 entries stands at 0x600 and its blocks have 2097152 bytes";
        assert!(said.contains(told) && said.lines().count() == 1, "{said}");
        assert!(std::fs::read(folder.path("out.raw")).unwrap() == disk("6M:A").bytes());
    }
}

/// [qemu] It opens an image that is marked as corrupt to be read, and one that was not closed.
#[test]
fn marks_of_damage_keep_nobody_from_reading() {
    let twins = images();
    for mark in [1, 2, 3] {
        for folder in [&twins.ours, &twins.theirs] {
            say(folder, "plain.qcow2", 72, mark);
        }
        twins.both("convert -O raw plain.qcow2 out.raw");
        twins.both("convert --salvage -O raw plain.qcow2 out.raw");
        assert!(std::fs::read(twins.ours.path("out.raw")).unwrap() == disk("1M:A").bytes());
    }
}

/// All that a `v_poison` says is that somebody was changing the image.
#[test]
fn vhd_that_was_being_changed_is_read_if_that_is_asked_for() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("3M:A"));
    for kind in ["dynamic", "fixed"] {
        let line = format!("convert -O vpc -o force_size=on,subformat={kind} disk.raw disk.vhd");
        folder.qemu_img_ok(&line);
        let mut bytes = std::fs::read(folder.path("disk.vhd")).unwrap();
        let end = bytes.len();
        for at in [0, end - 512] {
            let footer = &mut bytes[at..at + 512];
            if !footer.starts_with(b"conectix") {
                continue;
            }
            footer[..8].copy_from_slice(b"v_poison");
            footer[64..68].fill(0);
            let sum = footer.iter().map(|it| u32::from(*it)).sum::<u32>();
            footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
        }
        std::fs::write(folder.path("disk.vhd"), &bytes).unwrap();
        let refused = folder.goldsmith("convert -f vpc disk.vhd out.raw");
        assert_eq!(refused.status, 1, "{kind}: {refused:?}");
        let said = folder.goldsmith_ok("convert --salvage -f vpc disk.vhd out.raw");
        assert!(said.contains("is marked v_poison"), "{kind}: {said}");
        assert_eq!(said.lines().count(), 1, "{kind}: {said}");
        assert!(std::fs::read(folder.path("out.raw")).unwrap() == disk("3M:A").bytes());
    }
}

/// The entries before the cut are as good as ever.
#[test]
fn table_in_which_the_file_ends_is_used_as_far_as_it_goes() {
    let folder = Folder::new();
    folder.qemu_img_ok("create -q -f qcow2 -o cluster_size=4k disk.qcow2 8M");
    folder.qemu_io("disk.qcow2", &["write -P 1 0 1M", "write -P 2 5M 1M"]);
    let bytes = std::fs::read(folder.path("disk.qcow2")).unwrap();
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let mut whole = vec![0; 8 << 20];
    whole[..1 << 20].fill(1);
    // The tables move to the end of the file, which is cut off in the middle of the L2 table ...
    let (l1, end) = (number(40) as usize, bytes.len().next_multiple_of(4096));
    let table = (number(l1) & 0x00ff_ffff_ffff_fe00) as usize;
    let mut moved = bytes.clone();
    moved.resize(end, 0);
    let table = bytes[table..table + 4096].to_vec();
    moved.extend(&table[..100 * 8 + 3]);
    let entry = (1 << 63) | end as u64;
    moved[l1..l1 + 8].copy_from_slice(&entry.to_be_bytes());
    std::fs::write(folder.path("cut.qcow2"), &moved).unwrap();
    let mut expected = whole.clone();
    expected[5 << 20..6 << 20].fill(2);
    rescued(&folder, "-f qcow2 cut.qcow2", &expected, 100 << 12..2 << 20);
    // ... or of the L1 table, of which each entry maps 2 MiB.
    let mut moved = bytes.clone();
    moved.resize(end, 0);
    moved.extend(&bytes[l1..l1 + 15]);
    moved[40..48].copy_from_slice(&(end as u64).to_be_bytes());
    std::fs::write(folder.path("cut.qcow2"), &moved).unwrap();
    let refused = folder.goldsmith("convert -f qcow2 cut.qcow2 out.raw");
    assert!(refused.stderr.contains("the L1 table takes"), "{refused:?}");
    rescued(&folder, "-f qcow2 cut.qcow2", &whole, 2 << 20..8 << 20);
}

#[test]
fn loss_in_the_second_source_is_told_by_its_place_in_the_target() {
    let folder = images().ours;
    let at = l2(&folder, "plain.qcow2") + 3 * 8;
    let past = (1_u64 << 63) | (1 << 40);
    patch(&folder, "plain.qcow2", at, &past.to_be_bytes());
    let mut whole = disk("1M:A").bytes().to_vec();
    whole.extend(disk("1M:A").bytes());
    let lost = (1 << 20) + (3 << 16)..(1 << 20) + (4 << 16);
    rescued(&folder, "packed.qcow2 plain.qcow2", &whole, lost);
}

#[test]
fn sound_image_is_salvaged_without_a_word() {
    let twins = images();
    for image in ["plain.qcow2", "packed.qcow2", "disk.raw"] {
        twins.both(&format!("convert --salvage -O qcow2 {image} out.qcow2"));
        twins.same("out.qcow2", "qcow2");
    }
}

/// A container of VHDs says first which blocks there are, so its source is looked at and read again.
#[test]
fn losses_are_the_same_whatever_is_made() {
    let folder = images().ours;
    let table = l2(&folder, "plain.qcow2");
    let past = (1_u64 << 63) | (1 << 40);
    for cluster in [0, 5, 11] {
        let at = table + cluster * 8;
        patch(&folder, "plain.qcow2", at, &past.to_be_bytes());
    }
    let mut told = Vec::new();
    for target in [
        "-O raw",
        "-O vpc",
        "-O xenserver-ovf",
        "-O xenserver-ovf --digest crc32",
        "-O xenserver-ovf --verify",
    ] {
        let line = format!("convert --salvage -f qcow2 {target} plain.qcow2 out");
        let done = folder.goldsmith(&line);
        assert_eq!(done.status, 0, "{target}: {done:?}");
        let sum = "warning: 196608 bytes could not be read";
        assert!(done.stderr.contains(sum), "{target}: {done:?}");
        // Why, is told with the range that was read.
        let lines = done.stderr.lines();
        let lines = lines.map(|line| line.split(" are zeros").next().unwrap().to_owned());
        told.push(lines.collect::<Vec<_>>());
    }
    told.dedup();
    assert_eq!(told.len(), 1, "{told:?}");
}
