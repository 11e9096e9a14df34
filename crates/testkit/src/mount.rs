//! File systems that share blocks between files, each in a file of its own.
//!
//! # Panics
//! Everything here panics when a tool or a right is missing, because a test that skips itself
//! proves nothing. Whoever cannot be root says so with `GOLDSMITH_WITHOUT_MOUNTS=1`.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Large enough for any file system to be made in it, in bytes; the file is sparse.
const LEN: u64 = 1 << 30;

/// A mounted file system, empty at first; unmounted and gone when dropped.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
    // Removed after it is unmounted: fields are dropped after `drop` has run.
    _dir: TempDir,
}

/// One mount of each file system that can share blocks: XFS and btrfs. None where mounts were
/// ruled out.
pub fn sharing() -> Vec<Mount> {
    if std::env::var_os("GOLDSMITH_WITHOUT_MOUNTS").is_some() {
        return Vec::new();
    }
    vec![
        Mount::new("mkfs.xfs", "xfsprogs"),
        Mount::new("mkfs.btrfs", "btrfs-progs"),
    ]
}

impl Mount {
    fn new(mkfs: &str, package: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (image, path) = (dir.path().join("image"), dir.path().join("mount"));
        std::fs::File::create_new(&image)
            .unwrap()
            .set_len(LEN)
            .unwrap();
        std::fs::create_dir(&path).unwrap();
        let hint = format!("install it with: apt-get install {package}");
        run(Command::new(mkfs).arg("-q").arg(&image), &hint);
        let hint = "it takes root; GOLDSMITH_WITHOUT_MOUNTS=1 leaves these tests out";
        run(
            Command::new("mount")
                .args(["-o", "loop"])
                .arg(&image)
                .arg(&path),
            hint,
        );
        Self { path, _dir: dir }
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
