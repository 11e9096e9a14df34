//! A folder to work in, and what the tests do there again and again.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

use std::path::{Path, PathBuf};

use goldsmith::{Chain, Convert, Opener, References};
use goldsmith_testkit::model::ModelDisk;
use sha2::{Digest, Sha256};

/// A temporary folder whose files are named by short names.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// In a directory of the caller's.
    pub(crate) fn within(directory: &Path) -> Self {
        Self(tempfile::tempdir_in(directory).unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, disk: &ModelDisk) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, disk.bytes()).unwrap();
        path
    }

    /// All names in the folder, hidden ones included.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// A conversion with formats stated, a fixed identity and references allowed.
pub(crate) fn convert<'a>(from: (&Path, &str), to: (&Path, &str)) -> Convert<'a> {
    Convert::new(from.0, to.0)
        .source_format(from.1)
        .target_format(to.1)
        .opener(Opener::new().references(References::Allow))
        .uuid(goldsmith::Uuid::from_u128(7))
        .timestamp(1_000_000_000)
}

pub(crate) fn open(path: &Path, format: &str) -> Chain {
    Opener::new()
        .references(References::Allow)
        .open(path, Some(format))
        .unwrap()
}

/// All guest bytes, as our reader sees them.
pub(crate) fn guest(path: &Path, format: &str) -> Vec<u8> {
    let chain = open(path, format);
    let mut bytes = vec![0; chain.virtual_size() as usize];
    chain.read_at(0, &mut bytes).unwrap();
    bytes
}

pub(crate) fn sha256(path: &Path) -> String {
    let mut hasher = Sha256::new();
    std::io::copy(&mut std::fs::File::open(path).unwrap(), &mut hasher).unwrap();
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
