//! What an image may cost, whoever made it.

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

/// Where in a header a number stands, the number, and its bytes.
type Word = (usize, u64, usize);

/// A header of qcow2 with these numbers, in a file of `len` bytes without more.
fn qcow2(folder: &Folder, len: u64, words: &[Word]) -> PathBuf {
    let mut header = vec![0; 112];
    header[..4].copy_from_slice(b"QFI\xfb");
    let refcounts = [(48, 8 << 20, 8), (56, 1, 4)];
    let sound = [(4, 3, 4), (20, 16, 4), (96, 4, 4), (100, 104, 4)];
    let sound = [&sound[..], &refcounts].concat();
    for (at, value, bytes) in sound.iter().chain(words) {
        let value: [u8; 8] = value.to_be_bytes();
        header[*at..at + bytes].copy_from_slice(&value[8 - bytes..]);
    }
    sparse(folder, "hostile.qcow2", len, &[(0, &header)])
}

fn sparse(folder: &Folder, name: &str, len: u64, parts: &[(u64, &[u8])]) -> PathBuf {
    use std::os::unix::fs::FileExt;
    let path = folder.path(name);
    let file = std::fs::File::create(&path).unwrap();
    for (at, bytes) in parts {
        file.write_all_at(bytes, *at).unwrap();
    }
    file.set_len(len).unwrap();
    path
}

/// An image whose tables of snapshots and of bitmaps have some `table_len` bytes each and are all names: of `byte`,
/// but for a number that makes each another one.
fn named(folder: &Folder, byte: u8, table_len: u32) -> PathBuf {
    const AT: [u64; 2] = [1 << 30, 2 << 30];
    let mut snapshot = vec![0; 40];
    snapshot[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
    let mut bitmap = vec![0; 24];
    bitmap[16..18].copy_from_slice(&[1, 16]);
    bitmap[18..20].copy_from_slice(&1023_u16.to_be_bytes());
    let longest = [usize::from(u16::MAX), 1023];
    let mut tables = Vec::new();
    for (mut entry, longest) in [snapshot, bitmap].into_iter().zip(longest) {
        let name = entry.len();
        entry.resize((name + longest).next_multiple_of(8), byte);
        let count = table_len / entry.len() as u32;
        let mut table = Vec::new();
        for index in 0..count {
            entry[name..name + 6].copy_from_slice(format!("{index:06}").as_bytes());
            table.extend_from_slice(&entry);
        }
        tables.push((count, table));
    }
    let [(snapshots, table), (bitmaps, directory)] = &tables[..] else {
        unreachable!("two were made");
    };
    let words = [
        (24, 1 << 30, 8),
        (36, 2, 4),
        (40, 1 << 20, 8),
        (60, u64::from(*snapshots), 4),
        (64, AT[0], 8),
        (88, 1, 8),
    ];
    let mut extension = Vec::new();
    for word in [0x2385_2875, 24, *bitmaps, 0] {
        extension.extend(word.to_be_bytes());
    }
    for word in [directory.len() as u64, AT[1]] {
        extension.extend(word.to_be_bytes());
    }
    let path = qcow2(folder, 4 << 30, &words);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for (at, bytes) in [(104, &extension), (AT[0], table), (AT[1], directory)] {
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).unwrap();
    }
    path
}

/// Tables as large as they may be, all of them in their file, which takes no space.
#[test]
fn info_on_the_greediest_images_stays_within_the_limits_of_glance() {
    let folder = Folder::new();
    const TIB: u64 = 1 << 40;
    let qcow2_cases: [(&[Word], bool); 6] = [
        // The longest L1 table, for the largest disk.
        (
            &[(24, 1 << 51, 8), (36, 4 << 20, 4), (40, 1 << 20, 8)],
            true,
        ),
        // A longer one.
        (
            &[(24, 1 << 60, 8), (36, u32::MAX.into(), 4), (40, 1 << 20, 8)],
            false,
        ),
        // The longest refcount table.
        (
            &[
                (24, 1 << 30, 8),
                (36, 2, 4),
                (40, 1 << 20, 8),
                (48, 2 << 20, 8),
                (56, 128, 4),
            ],
            true,
        ),
        // As many snapshots as there may be.
        (
            &[
                (24, 1 << 30, 8),
                (36, 2, 4),
                (40, 1 << 20, 8),
                (60, 65536, 4),
                (64, 1 << 30, 8),
            ],
            true,
        ),
        // More.
        (
            &[
                (24, 1 << 30, 8),
                (36, 2, 4),
                (40, 1 << 20, 8),
                (60, u32::MAX.into(), 4),
                (64, 1 << 30, 8),
            ],
            false,
        ),
        // A header of 2 MiB, full of extensions without length.
        (
            &[
                (20, 21, 4),
                (24, 1 << 30, 8),
                (36, 1, 4),
                (40, 4 << 20, 8),
                (100, 1 << 21, 4),
            ],
            true,
        ),
    ];
    for (words, may_be) in &qcow2_cases {
        let path = qcow2(&folder, TIB, words);
        for format in [&["-f", "qcow2"][..], &[]] {
            let is_image = assert_answered(&folder, &path, format);
            assert_eq!(is_image, *may_be, "{words:?}");
        }
    }

    // A snapshot table in which each entry says that it has as much to say as fits.
    let mut entries = Vec::new();
    for _ in 0..1000 {
        let mut entry = vec![0; 40];
        entry[12..14].copy_from_slice(&u16::MAX.to_be_bytes());
        entry[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        entry[36..40].copy_from_slice(&1024u32.to_be_bytes());
        entry.resize(40 + 1024 + 2 * 65535 + 6, b'x');
        entry.truncate(entry.len().next_multiple_of(8) - 8);
        entries.extend(entry);
    }
    let words = [
        (24, 1 << 30, 8),
        (36, 2, 4),
        (40, 1 << 20, 8),
        (60, 1000, 4),
        (64, 1 << 30, 8),
    ];
    let path = qcow2(&folder, TIB, &words);
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::OpenOptions::new().write(true).open(&path).unwrap(),
        &entries,
        1 << 30,
    )
    .unwrap();
    assert_answered(&folder, &path, &[]);

    // The longest names, of bytes that are no text, or that JSON has to escape.
    for byte in [0xff, 1] {
        // As many as there is memory for, and as there may be. Builds for tests take long to tell of millions of marks.
        for (len, refusal) in [
            (7 << 20, ""),
            ((64 << 20) - 65536, "over a limit: the snapshot table takes"),
        ] {
            let path = named(&folder, byte, len);
            for output in ["human", "json"] {
                let words = ["-f", "qcow2", "--output", output, path.to_str().unwrap()];
                let done = within(&folder, [LIMITS[0], "--cpu=10"], "info", &words);
                assert_eq!(
                    done.status,
                    i32::from(!refusal.is_empty()),
                    "{}",
                    done.stderr
                );
                assert!(done.stderr.contains(refusal), "{}", done.stderr);
            }
        }
    }

    // VHDs whose block tables have as many entries as a number can say.
    for (block_size, entries) in [(512u32, u32::MAX), (4096, 1 << 29), (2 << 20, u32::MAX)] {
        let vhd = build::vhd::Vhd::dynamic(disk("1M:A").bytes(), 2 << 20);
        let vhd = vhd
            .header(28, &entries.to_be_bytes())
            .header(32, &block_size.to_be_bytes());
        let vhd = vhd.footer(48, &(2040u64 << 30).to_be_bytes());
        let path = sparse(&folder, "hostile.vhd", 64 << 30, &[(0, &vhd.bytes())]);
        assert_answered(&folder, &path, &["-f", "vpc"]);
        assert_answered(&folder, &path, &[]);
    }
    // And a RAW disk as long as a file can be.
    let path = sparse(&folder, "long.raw", 15 << 40, &[]);
    assert_answered(&folder, &path, &["-f", "raw"]);
    assert_answered(&folder, &path, &[]);
}

/// Packed clusters of 2 MiB whose streams are 4 MiB of blocks that say how the next ones are packed, and hold
/// nothing: each takes longer than a thousand honest ones.
#[test]
fn info_does_not_wait_for_clusters_that_take_long_to_unpack() {
    let folder = Folder::new();
    const CLUSTER: u64 = 2 << 20;
    // [RFC 1951 3.2.7] A dynamic block: 255 literals and the end of the block have codes of 8 bits, and the
    // lengths of those are told with 2, 42 times "the same, six times more".
    let mut block = Bits::default();
    block.put(&[(0, 1), (2, 2), (0, 5), (0, 5), (1, 4)]);
    // Those of 16, 17, 18, 0 and 8: three are used.
    block.put(&[(1, 3), (0, 3), (0, 3), (2, 3), (2, 3)]);
    let (same, none, eight) = ([(0, 1)], [(1, 1), (0, 1)], [(1, 1), (1, 1)]);
    block.put(&none);
    block.put(&eight);
    for _ in 0..42 {
        block.put(&same);
        block.put(&[(3, 2)]);
    }
    block.put(&same);
    block.put(&[(0, 2)]);
    block.put(&none);
    // The code of the end of the block, the last of 256.
    block.put(&[(0xff, 8)]);
    assert_eq!(block.0.len(), 175, "bits of a block");
    let eight_blocks = Bits(block.0.repeat(8)).bytes();
    let times = (4 << 20) / eight_blocks.len() - 1;
    let stream = eight_blocks.repeat(times);
    // An entry that tells of 8191 sectors more than the first.
    let entry = |at: u64| 1 << 62 | 8191 << 49 | at;
    let words = [
        (20, 21, 4),
        (24, 2 * CLUSTER, 8),
        (48, CLUSTER, 8),
        (36, 1, 4),
        (40, 2 * CLUSTER, 8),
    ];
    let path = qcow2(&folder, 8 * CLUSTER, &words);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let entries = [
        (3 * CLUSTER) | (1 << 63),
        entry(4 * CLUSTER),
        entry(4 * CLUSTER + eight_blocks.len() as u64),
    ];
    for (at, entry) in [2 * CLUSTER, 3 * CLUSTER, 3 * CLUSTER + 8]
        .into_iter()
        .zip(entries)
    {
        std::os::unix::fs::FileExt::write_all_at(&file, &entry.to_be_bytes(), at).unwrap();
    }
    std::os::unix::fs::FileExt::write_all_at(&file, &stream, 4 * CLUSTER).unwrap();
    let done = info(&folder, &path, &["-f", "qcow2"]);
    assert_eq!((done.status, &*done.stderr), (0, ""));
    assert!(
        done.stdout.contains("The disk looks like: unknown"),
        "{done:?}"
    );
    // As many that end behind the file as a table has, from which nobody takes what one of them is.
    let words = ["-f", "qcow2", path.to_str().unwrap()];
    let many = (2..400).map(|index| entry(4 * CLUSTER + index * eight_blocks.len() as u64));
    let many: Vec<u8> = many.flat_map(u64::to_be_bytes).collect();
    std::os::unix::fs::FileExt::write_all_at(&file, &many, 3 * CLUSTER + 16).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &(800_u64 << 20).to_be_bytes(), 24).unwrap();
    file.set_len(6 * CLUSTER - 4096).unwrap();
    let done = within(&folder, [LIMITS[0], "--cpu=10"], "check", &words);
    assert_eq!(done.status, 2, "{done:?}");
    assert!(done.stderr.contains("end behind the file"), "{done:?}");
}

/// Bits, the first of which is the lowest one of the first byte.
#[derive(Default)]
struct Bits(Vec<bool>);

impl Bits {
    /// Appends numbers of so many bits each, the lowest first.
    fn put(&mut self, numbers: &[(u32, u32)]) {
        for (number, bits) in numbers {
            self.0.extend((0..*bits).map(|bit| number >> bit & 1 == 1));
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let byte = |bits: &[bool]| {
            bits.iter()
                .rev()
                .fold(0, |byte, bit| byte << 1 | u8::from(*bit))
        };
        self.0.chunks(8).map(byte).collect()
    }
}

/// A few megabytes that unpack to many gigabytes.
#[test]
fn info_on_a_bomb_is_a_refusal_with_the_figures() {
    let folder = Folder::new();
    let script = "for member in 0 1; do truncate -s 20G $member.vhd; done; \
                  tar -c 0.vhd 1.vhd | gzip -1 | head -c 4000000 > bomb.tgz";
    let made = folder.run(Command::new("sh").args(["-c", script]));
    assert_eq!(made.status, 0, "{made:?}");
    for words in [&["-f", "xenserver-ovf"][..], &[]] {
        let done = info(&folder, Path::new("bomb.tgz"), words);
        assert_eq!(done.status, 1);
        assert!(
            done.stderr.contains(
                "the VHD in the tar takes 21474836480 bytes of temporary files; 268435456 of the \
                 268435456 allowed are left"
            ),
            "{done:?}"
        );
    }
    // As much as is allowed, of what packs best.
    let made = folder.run(Command::new("sh").args([
        "-c",
        "truncate -s 255M 0.vhd && tar -c 0.vhd | gzip > allowed.tgz",
    ]));
    assert_eq!(made.status, 0, "{made:?}");
    assert_answered(&folder, Path::new("allowed.tgz"), &["-f", "xenserver-ovf"]);
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
