//! File systems of a test's own: that share blocks between files, that are full, that lose what they
//! were given.
//!
//! # Panics
//! Everything here panics when a tool or a right is missing, because a test that skips itself
//! proves nothing. Whoever cannot be root says so with `GOLDSMITH_WITHOUT_MOUNTS=1`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::left_out;

/// Large enough for any file system to be made in it, in bytes; the file is sparse.
const LEN: u64 = 1 << 30;

/// What to do about a mount, or whatever else takes root, that is refused.
pub const ROOT: &str = "it takes root; GOLDSMITH_WITHOUT_MOUNTS=1 leaves these tests out";

/// A mounted file system, empty at first; unmounted and gone when dropped.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
    // Removed after it is unmounted: fields are dropped after `drop` has run.
    _dir: TempDir,
    /// The one that its bytes are in, if that is no ordinary one.
    _below: Option<Box<Mount>>,
}

/// One mount of each file system that can share blocks: XFS and btrfs. None where mounts were
/// ruled out.
pub fn sharing() -> Vec<Mount> {
    if !are_allowed("file systems that share blocks") {
        return Vec::new();
    }
    vec![
        Mount::new("mkfs.xfs", "xfsprogs"),
        Mount::new("mkfs.btrfs", "btrfs-progs"),
    ]
}

/// Whether a test may mount something, make devices and give files away: all that takes root. Says so if
/// `what` is left out.
pub fn are_allowed(what: &str) -> bool {
    let allowed = std::env::var_os("GOLDSMITH_WITHOUT_MOUNTS").is_none();
    if !allowed {
        left_out(format_args!("{what}, as GOLDSMITH_WITHOUT_MOUNTS is set"));
    }
    allowed
}

/// A file system in memory that holds `len` bytes, and not one more. `None` where mounts were ruled
/// out.
pub fn small(len: u64) -> Option<Mount> {
    are_allowed("a full disk").then(|| Mount::in_memory(len))
}

/// A file system that takes what it is given and loses it: the disk below has no space left, which
/// shows when it is told to store all. `None` where mounts were ruled out.
pub fn lossy() -> Option<Mount> {
    if !are_allowed("a disk that fails when it is to store") {
        return None;
    }
    let below = Mount::in_memory(16 << 20);
    let mount = Mount::within(below, |image| {
        let hint = "install it with: apt-get install e2fsprogs";
        let mut mkfs = Command::new("mkfs.ext4");
        run(mkfs.args(["-q", "-O", "^has_journal"]).arg(image), hint);
    });
    let below = mount._below.as_ref().expect("it stands in memory");
    below.fill();
    Some(mount)
}

impl Mount {
    fn new(mkfs: &str, package: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hint = format!("install it with: apt-get install {package}");
        let image = dir.path().join("image");
        Self::of(dir, None, &image, |image| {
            run(Command::new(mkfs).arg("-q").arg(image), &hint);
        })
    }

    /// In a file that stands in `below`.
    fn within(below: Self, make: impl FnOnce(&Path)) -> Self {
        let (dir, image) = (tempfile::tempdir().unwrap(), below.path().join("image"));
        Self::of(dir, Some(Box::new(below)), &image, make)
    }

    fn of(dir: TempDir, below: Option<Box<Self>>, image: &Path, make: impl FnOnce(&Path)) -> Self {
        let file = std::fs::File::create_new(image).unwrap();
        file.set_len(LEN).unwrap();
        make(image);
        Self::at(dir, below, &["-o", "loop", image.to_str().unwrap()])
    }

    fn in_memory(len: u64) -> Self {
        let (dir, size) = (tempfile::tempdir().unwrap(), format!("size={len}"));
        Self::at(dir, None, &["-t", "tmpfs", "-o", &size, "tmpfs"])
    }

    fn at(dir: TempDir, below: Option<Box<Self>>, args: &[&str]) -> Self {
        let path = dir.path().join("mount");
        std::fs::create_dir(&path).unwrap();
        run(Command::new("mount").args(args).arg(&path), ROOT);
        Self {
            path,
            _dir: dir,
            _below: below,
        }
    }

    /// Takes all the space that is left.
    pub fn fill(&self) {
        let mut file = std::fs::File::create_new(self.path.join("filler")).unwrap();
        let mut len = 1 << 20;
        while len > 0 {
            // Ever smaller, until there is not a block left.
            if file.write_all(&vec![0xf1; len]).is_err() {
                len /= 2;
            }
        }
    }

    /// Lets nobody write here any more, not even root.
    pub fn make_read_only(&self) {
        let args = ["-o", "remount,ro"];
        run(Command::new("mount").args(args).arg(&self.path), ROOT);
    }

    /// Shows `directory` under another path, too.
    pub fn bind(directory: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::at(dir, None, &["--bind", directory.to_str().unwrap()])
    }

    /// Its topmost directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many bytes can still be written.
    pub fn free(&self) -> u64 {
        run(Command::new("sync").arg("-f").arg(&self.path), "");
        let args = ["--file-system", "--format=%f %S"];
        let said = run(Command::new("stat").args(args).arg(&self.path), "");
        let numbers: Vec<u64> = said
            .split_whitespace()
            .map(|number| number.parse().unwrap())
            .collect();
        numbers[0] * numbers[1]
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A tool that another test is starting may hold our files for a moment: the name goes now,
        // the rest when it lets go. The directory cannot be removed if this fails, and shows it.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn run(command: &mut Command, hint: &str) -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = format!("{}:/usr/sbin:/sbin", path.to_string_lossy());
    let output = match command.env("PATH", path).output() {
        Ok(output) => output,
        Err(error) => panic!("{command:?}: {error}; {hint}"),
    };
    assert!(output.status.success(), "{command:?}: {output:?}; {hint}");
    String::from_utf8(output.stdout).unwrap()
}
