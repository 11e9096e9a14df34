//! A real disk: a partition table and an ext4 file system with files in it.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use goldsmith_testkit::pattern;

use crate::{Expect, File};

const SIZE: u64 = 12 << 20;
/// The partition, in sectors.
const START: u64 = 2048;
const LEN: u64 = SIZE / 512 - 2 * START;
const RECIPE: &str = "\
make-testdata, with util-linux 2.38.1 and e2fsprogs 1.47.0: \
truncate -s 12M golden.raw; \
sfdisk golden.raw <<< 'label: dos
label-id: 0x676f6c64
start=2048, size=20480, type=83, bootable'; \
E2FSPROGS_FAKE_TIME=1000000000 mkfs.ext4 -F -q -b 1024 -L golden -U 6f6c6473-6d69-7468-8000-000000000001 \
-E hash_seed=6f6c6473-6d69-7468-8000-000000000001,root_owner=0:0,lazy_itable_init=0 \
-d FILES golden.ext4 10240k; debugfs -w: set_inode_field INODE atime and ctime 20010909014640; dd if=golden.ext4 of=golden.raw seek=2048 conv=notrunc,sparse. \
FILES, all from 2001-09-09: LICENSE-MIT, LICENSE-APACHE, README.txt, lines.txt (pattern::fill 'G', 1 MiB), \
noise.bin (pattern::fill 'g', 64 KiB), sparse.bin (the same at 0 and at 3 MiB, a hole between)";

const README: &str = "\
This disk is small, but it is one: a partition table, and in its only
partition an ext4 file system with these files. If a conversion changes a
single bit of it, somebody will notice.
";

pub(crate) fn file() -> File {
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("files");
    fs::create_dir(&files).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for license in ["LICENSE-MIT", "LICENSE-APACHE"] {
        fs::copy(root.join(license), files.join(license)).unwrap();
    }
    fs::write(files.join("README.txt"), README).unwrap();
    fs::write(files.join("lines.txt"), pattern_bytes(b'G', 1 << 20)).unwrap();
    let noise = pattern_bytes(b'g', 64 << 10);
    fs::write(files.join("noise.bin"), &noise).unwrap();
    let mut sparse = fs::File::create(files.join("sparse.bin")).unwrap();
    sparse.write_all(&noise).unwrap();
    sparse.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &noise, 3 << 20).unwrap();
    let epoch = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for entry in fs::read_dir(&files).unwrap() {
        let path = entry.unwrap().path();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(&path, mode).unwrap();
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(epoch)
            .unwrap();
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&files, mode).unwrap();
    fs::File::open(&files).unwrap().set_modified(epoch).unwrap();

    let raw = dir.path().join("golden.raw");
    fs::File::create(&raw).unwrap().set_len(SIZE).unwrap();
    let mut table = Command::new("/sbin/sfdisk")
        .arg("--quiet")
        .arg(&raw)
        .stdin(Stdio::piped())
        .spawn()
        .expect("sfdisk; install it with: apt-get install fdisk");
    let script =
        format!("label: dos\nlabel-id: 0x676f6c64\nstart={START}, size={LEN}, type=83, bootable\n");
    table
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(table.wait().unwrap().success());

    let uuid = goldsmith_testkit::image::UUID;
    let ext4 = dir.path().join("golden.ext4");
    let made = Command::new("/sbin/mkfs.ext4")
        .env("E2FSPROGS_FAKE_TIME", "1000000000")
        .args([
            "-F",
            "-q",
            "-b",
            "1024",
            "-L",
            "golden",
            "-U",
            &uuid.to_string(),
            "-E",
        ])
        .arg(format!(
            "hash_seed={uuid},root_owner=0:0,lazy_itable_init=0"
        ))
        .arg("-d")
        .args([&files, &ext4])
        .arg(format!("{}k", LEN / 2))
        .output()
        .expect("mkfs.ext4; install it with: apt-get install e2fsprogs");
    assert!(made.status.success());
    // mkfs takes the times of access and change from the source, which nobody can set.
    let mut script = String::new();
    for inode in [2, 12, 13, 14, 15, 16, 17] {
        for time in ["atime", "ctime"] {
            script += &format!("set_inode_field <{inode}> {time} 20010909014640\n");
        }
    }
    let commands = dir.path().join("commands");
    fs::write(&commands, script).unwrap();
    let set = Command::new("/sbin/debugfs")
        .env("E2FSPROGS_FAKE_TIME", "1000000000")
        .args(["-w", "-f"])
        .args([&commands, &ext4])
        .output()
        .expect("debugfs; install it with: apt-get install e2fsprogs");
    assert!(set.status.success());

    let mut bytes = fs::read(&raw).unwrap();
    let partition = fs::read(&ext4).unwrap();
    let start = (START * 512) as usize;
    bytes[start..start + partition.len()].copy_from_slice(&partition);
    File {
        name: "golden.raw",
        format: "raw",
        made_by: RECIPE.to_owned(),
        because: "a real disk for the main job: partition table, file system, files, holes",
        expect: Expect::Valid(bytes.clone(), "agrees"),
        bytes,
    }
}

fn pattern_bytes(letter: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pattern::fill(letter, 0, &mut bytes);
    bytes
}
