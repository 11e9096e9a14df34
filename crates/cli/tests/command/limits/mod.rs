//! What an image may cost, whoever made it.

mod greedy;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use goldsmith_testkit::build::qcow2::Cluster;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::testdata;
use goldsmith_testkit::{build, figure};

use crate::{Done, Folder};

/// Glance's own limits. [glance] 1 GiB of address space and 2 seconds of CPU.
const LIMITS: [&str; 2] = ["--as=1073741824", "--cpu=2"];

/// Runs the subcommand `verb` within `limits`.
fn within(folder: &Folder, limits: [&str; 2], verb: &str, words: &[&str]) -> Done {
    let mut command = Command::new("prlimit");
    command.args(limits).arg("--");
    command.args([env!("CARGO_BIN_EXE_goldsmith"), verb]);
    folder.run(command.args(words))
}

fn info(folder: &Folder, image: &Path, words: &[&str]) -> Done {
    let words = [words, &[image.to_str().unwrap()]].concat();
    within(folder, LIMITS, "info", &words)
}

/// An answer within the limits: no signal ended it (which `Folder::run` makes sure of), and what it
/// says is about the image. Says whether it is one.
fn assert_answered(folder: &Folder, image: &Path, words: &[&str]) -> bool {
    let done = info(folder, image, words);
    let told = format!("{}: {done:?}", image.display());
    assert!(matches!(done.status, 0 | 1), "{told}");
    assert_eq!(done.status == 0, done.stderr.is_empty(), "{told}");
    assert_nothing_gave_way(&done, &told);
    done.status == 0
}

fn assert_nothing_gave_way(done: &Done, told: &str) {
    for word in [
        "memory allocation",
        "panicked",
        "bug in goldsmith",
        "Cannot allocate",
    ] {
        assert!(!done.stderr.contains(word), "{told}");
    }
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        // Several targets share a corpus, and a link leads there.
        match entry.file_type().unwrap() {
            found if found.is_dir() => files.extend(files_in(&entry.path())),
            found if found.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files
}

#[test]
fn info_on_the_samples_stays_within_the_limits_of_glance() {
    let folder = Folder::new();
    let files = files_in(&testdata::folder());
    assert!(files.len() > 40, "{}", files.len());
    let mut images = 0;
    for file in files {
        assert_answered(&folder, &file, &[]);
        let formats = ["raw", "qcow2", "vpc", "xenserver-ovf"];
        let are = formats.map(|format| assert_answered(&folder, &file, &["-f", format]));
        images += u32::from(are[1..].contains(&true));
    }
    assert!(images > 20, "only {images} are images");
}

/// Each table is read once, however often it is named.
#[test]
fn check_of_what_the_fuzzers_found_stays_within_the_same_limits() {
    let folder = Folder::new();
    let corpora = testdata::folder().join("../fuzz/corpus");
    for (target, format, fix_up) in [
        (
            "qcow2_fixed_up",
            "qcow2",
            build::qcow2::fix_up as fn(&mut [u8]),
        ),
        ("vhd_fixed_up", "vpc", build::vhd::fix_up),
    ] {
        let files = files_in(&corpora.join(target));
        assert!(!files.is_empty(), "{target}");
        for file in files {
            let mut bytes = std::fs::read(&file).unwrap();
            fix_up(&mut bytes);
            std::fs::write(folder.path("image"), bytes).unwrap();
            let done = within(&folder, LIMITS, "check", &["-f", format, "image"]);
            let told = format!("{}: {done:?}", file.display());
            assert!(matches!(done.status, 0..=3), "{told}");
            assert_nothing_gave_way(&done, &told);
        }
    }
}

/// An overlay that has every other sector itself, over clusters of 2 MiB that have to be unpacked: if
/// each sector between had its cluster unpacked anew, that were 64 GiB.
#[test]
fn time_does_not_grow_with_the_pieces_that_a_chain_is_cut_into() {
    let folder = Folder::new();
    let behind = disk("32M:A").bytes().to_vec();
    let mut shown = behind.clone();
    for sector in shown.chunks_mut(1024) {
        sector[..512].fill(b'x');
    }
    std::fs::write(folder.path("behind.raw"), behind).unwrap();
    std::fs::write(folder.path("shown.raw"), &shown).unwrap();
    for line in [
        "convert -f raw -O qcow2 -c -o cluster_size=2M behind.raw behind.qcow2",
        "convert -f raw -O qcow2 -o cluster_size=512 -B behind.qcow2 -F qcow2 shown.raw shown.qcow2",
    ] {
        folder.goldsmith_ok(line);
    }
    let limits = ["--as=1073741824", "--cpu=20"];
    let words = ["-f", "qcow2", "-O", "raw", "shown.qcow2", "out.raw"];
    let done = within(&folder, limits, "convert", &words);
    assert_eq!((done.status, &*done.stderr), (0, ""));
    assert!(std::fs::read(folder.path("out.raw")).unwrap() == shown);
}

/// A large table with nothing in it, over a disk that changes with every sector: if each of them had all
/// of the table looked at, that were a thousand million entries.
#[test]
fn time_does_not_grow_with_the_table_for_each_piece_of_what_is_behind() {
    let folder = Folder::new();
    let clusters = (0..64 << 11).map(|index| match index % 2 {
        0 => Cluster::Zero,
        _ => Cluster::Hole,
    });
    let behind = build::qcow2::Qcow2::new(3, 9, 64 << 20, clusters.collect());
    std::fs::write(folder.path("behind.qcow2"), behind.bytes()).unwrap();
    folder.goldsmith_ok(
        "create -q -f qcow2 -o cluster_size=2M -b behind.qcow2 -F qcow2 top.qcow2 16G",
    );
    folder.qemu_io("top.qcow2", &["write -P 1 16382M 64k"]);
    let limits = ["--as=1073741824", "--cpu=5"];
    let done = within(&folder, limits, "map", &["-f", "qcow2", "top.qcow2"]);
    assert_eq!((done.status, &*done.stderr), (0, ""));
    assert_eq!(done.stdout.lines().count(), 2, "{done:?}");
}

/// Two disks side by side, the one all of zeros, the other in the smallest clusters, each unlike the one
/// before it.
#[test]
fn time_does_not_grow_with_the_table_for_each_piece_of_another_disk() {
    let folder = Folder::new();
    let zeros = (0..4 << 10).map(|_| Cluster::Zero).collect();
    let pieces = (0..512 << 10).map(|index| match index % 2 {
        0 => Cluster::Zero,
        _ => Cluster::Hole,
    });
    for (name, bits, clusters) in [("zeros", 16, zeros), ("pieces", 9, pieces.collect())] {
        let image = build::qcow2::Qcow2::new(3, bits, 256 << 20, clusters);
        std::fs::write(folder.path(name), image.bytes()).unwrap();
    }
    let limits = ["--as=1073741824", "--cpu=5"];
    let words = ["-f", "qcow2", "-F", "qcow2", "zeros", "pieces"];
    let done = within(&folder, limits, "compare", &words);
    assert_eq!((done.status, &*done.stderr), (0, ""), "{done:?}");
}

/// Threads take address space, for their stacks and for what they allocate, before they take memory.
/// There are fewer where there is no room for more, which never changes what is made.
#[test]
fn no_more_threads_are_started_than_there_is_room_for() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("4M:A 4M:b"));
    for line in [
        "-O raw",
        "-O qcow2 -c",
        "-O qcow2 -t none -T none",
        "-O vpc --verify",
        "-O xenserver-ovf",
        "-O xenserver-ovf --digest blake3",
    ] {
        let mut made = Vec::new();
        for (space, threads) in [(512, 1), (512, 1024), (2048, 512)] {
            let limits = [&*format!("--as={}", space << 20), "--cpu=60"];
            let line = format!("-q -m {threads} --timestamp 0 -f raw {line} disk.raw out");
            let uuid = "--uuid 00000000-0000-4000-8000-000000000007";
            let words: Vec<_> = uuid.split(' ').chain(line.split(' ')).collect();
            let done = within(&folder, limits, "convert", &words);
            assert_eq!((done.status, &*done.stderr), (0, ""), "{space} {line}");
            made.push(std::fs::read(folder.path("out")).unwrap());
        }
        made.dedup();
        assert_eq!(made.len(), 1, "{line}");
    }
}

/// What it asks of the system is what takes its time: some hundred calls besides starting, whatever the
/// size of the disk.
#[cfg(target_os = "linux")]
#[test]
fn info_on_an_honest_image_asks_little_of_the_system() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("3M:A 5M:- 2M:b"));
    for line in [
        "convert -f raw -O qcow2 -c disk.raw packed.qcow2",
        "convert -f raw -O vpc disk.raw disk.vhd",
        "convert -f raw -O vpc -o subformat=fixed disk.raw fixed.vhd",
        "create -q -f qcow2 large.qcow2 16T",
        "create -q -f vpc large.vhd 2000G",
        "create -q -f qcow2 -b packed.qcow2 -F qcow2 over.qcow2",
    ] {
        folder.goldsmith_ok(line);
    }
    for image in [
        "disk.raw",
        "packed.qcow2",
        "disk.vhd",
        "fixed.vhd",
        "large.qcow2",
        "large.vhd",
        "over.qcow2",
    ] {
        let mut strace = Command::new("strace");
        // Where cargo has the loader look for libraries first.
        strace.env_remove("LD_LIBRARY_PATH");
        strace.args(["-f", "-qq", "-o", "log"]);
        let done = folder.run(strace.args([env!("CARGO_BIN_EXE_goldsmith"), "info", image]));
        assert_eq!((done.status, &*done.stderr), (0, ""), "{image}");
        let calls = std::fs::read_to_string(folder.path("log")).unwrap();
        let calls = calls.lines().count();
        figure(format_args!("{calls} system calls of info on {image}"));
        assert!(calls < 300, "{image}: {calls} calls");
    }
}

#[test]
fn info_on_what_the_fuzzers_found_stays_within_the_limits_of_glance() {
    let folder = Folder::new();
    let corpora = testdata::folder().join("../fuzz/corpus");
    let files = files_in(&corpora);
    assert!(files.len() > 300, "{}", files.len());
    let mut images = BTreeMap::new();
    for file in files {
        let name = file.to_str().unwrap().to_owned();
        let format = match () {
            () if name.contains("/qcow2_") => "qcow2",
            () if name.contains("/vhd_") => "vpc",
            () if name.contains("/ovf_") => "xenserver-ovf",
            () => "raw",
        };
        assert_answered(&folder, &file, &["-f", format]);
        // As the fuzzers make it pass the first checks.
        let mut bytes = std::fs::read(&file).unwrap();
        match format {
            "qcow2" => build::qcow2::fix_up(&mut bytes),
            "vpc" => build::vhd::fix_up(&mut bytes),
            "xenserver-ovf" => bytes = build::ovf::fix_up(&bytes),
            _ => continue,
        }
        let fixed = folder.path("fixed");
        std::fs::write(&fixed, bytes).unwrap();
        let is_image = assert_answered(&folder, &fixed, &["-f", format]);
        *images.entry(format).or_insert(0) += u32::from(is_image);
    }
    for (format, count) in images {
        figure(format_args!(
            "{count} inputs of the fuzzers are images of {format}"
        ));
        assert!(count > 10, "only {count} are images of {format}");
    }
}

/// Packed bytes that unpack to nothing: blocks that end where they begin, each of ten bits. [RFC 1951 3.2.6]
#[test]
fn info_on_what_takes_long_to_unpack_is_a_refusal() {
    let folder = Folder::new();
    let mut bytes = b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec();
    bytes.resize(10 + (512 << 20), 0);
    for blocks in bytes[10..].chunks_mut(5) {
        blocks.copy_from_slice(&b"\x02\x08\x20\x80\0"[..blocks.len()]);
    }
    std::fs::write(folder.path("slow.tgz"), bytes).unwrap();
    let done = info(&folder, Path::new("slow.tgz"), &["-f", "xenserver-ovf"]);
    assert_eq!(done.status, 1, "{done:?}");
    assert!(
        done.stderr.contains("1.5 s of the processor's time"),
        "{done:?}"
    );
}

#[test]
fn memory_that_an_image_wants_is_refused_with_the_figures() {
    let folder = Folder::new();
    folder.qemu_img_ok("create -q -f qcow2 -o cluster_size=64k large.qcow2 8T");
    folder.qemu_img_ok("create -q -f qcow2 -b large.qcow2 -F qcow2 over.qcow2");
    // Its L1 table takes 128 KiB.
    let refused = "of the 65536 allowed are left";
    for line in [
        "info --memory 64k large.qcow2",
        "lint --memory 64k --for kvm large.qcow2",
        "map --memory 64k large.qcow2",
        "bench --memory 64k -c 1 -f qcow2 large.qcow2",
        "check --memory 64k large.qcow2",
        "convert --memory 64k -O qcow2 large.qcow2 out.qcow2",
        "measure --memory 64k -O qcow2 large.qcow2",
        "compare --memory 64k large.qcow2 large.qcow2",
        "resize --memory 64k -f qcow2 large.qcow2 9T",
        "snapshot --memory 64k -c one large.qcow2",
        "snapshot --memory 64k -l large.qcow2",
        "bitmap --memory 64k --add large.qcow2 one",
        "amend --memory 64k -f qcow2 -o lazy_refcounts=on large.qcow2",
        "rebase --memory 64k -f qcow2 -b  over.qcow2",
        "commit --memory 64k -f qcow2 over.qcow2",
        "create --memory 64k -f qcow2 -b large.qcow2 -F qcow2 new.qcow2",
    ] {
        let done = folder.goldsmith(line);
        assert!(matches!(done.status, 1 | 2), "{line}: {done:?}");
        assert!(done.stderr.contains("over a limit"), "{line}: {done:?}");
        assert!(done.stderr.contains(refused), "{line}: {done:?}");
        if line.starts_with("info") || line.starts_with("map") {
            folder.goldsmith_ok(&line.replace("64k", "8M"));
        }
    }
}

#[test]
fn threads_are_no_more_than_a_machine_can_have() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("64k:A"));
    for number in [
        "0",
        "1025",
        "4000000000",
        "18446744073709551616",
        "-1",
        "many",
    ] {
        for line in [
            "convert -f raw -O raw disk.raw out",
            "checksum -f raw disk.raw",
        ] {
            let (command, rest) = line.split_once(' ').unwrap();
            let refused = folder.goldsmith(&format!("{command} --threads={number} {rest}"));
            assert_eq!(refused.status, 1);
            let range = "expected a number from 1 to 1024";
            assert!(refused.stderr.contains(range), "{refused:?}");
        }
    }
    folder.goldsmith_ok("convert -f raw -O raw --threads=1024 disk.raw out");
    assert!(std::fs::read(folder.path("out")).unwrap() == disk("64k:A").bytes());
}
