//! Images that ask for as much as they can, of memory or of time.

use std::path::{Path, PathBuf};
use std::process::Command;

use goldsmith_testkit::build;
use goldsmith_testkit::pattern::disk;

use super::{LIMITS, assert_answered, info, within};
use crate::Folder;

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
