//! The files in `testdata/`, and what its manifest says about them.
//!
//! ```toml
//! [[valid]]
//! path = "valid/vhd-fixed.vhd"
//! sha256 = "..."
//! made_by = "what to run, or the code that builds it"
//! because = "the clause or the peculiarity that it is here for"
//! format = "vpc"
//! virtual_size = 4608
//! content_sha256 = "..."
//! qemu = "agrees"
//! ```
//!
//! A `[[bad]]` file has `error`, the kind that must be reported, instead of the last three keys; a
//! `[[regression]]` file has neither and must get an answer of any kind.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// One file.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its path in `testdata/`.
    pub path: String,
    /// Digest of the file, in hexadecimal.
    pub sha256: String,
    /// How to make it again.
    pub made_by: String,
    /// What it is here for.
    pub because: String,
    /// The format to open it as.
    pub format: String,
    /// What must come of it.
    pub expect: Expect,
}

/// What must come of opening and reading a file.
#[derive(Clone, Debug)]
pub enum Expect {
    /// It reads as this disk.
    Valid {
        /// Bytes.
        virtual_size: u64,
        /// Digest of all guest bytes, in hexadecimal.
        content_sha256: String,
        /// Whether QEMU reads the same.
        qemu_agrees: bool,
    },
    /// It is refused with an error whose [`ErrorKind`](goldsmith_block::ErrorKind) prints as this.
    Bad {
        /// For example `Corrupt`.
        error: String,
    },
    /// Any answer will do.
    Regression,
}

impl Entry {
    /// The bytes of the file, which must be those that the manifest means.
    pub fn read(&self) -> Vec<u8> {
        let path = folder().join(&self.path);
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        assert_eq!(
            sha256(&bytes),
            self.sha256,
            "{path:?} is not what the manifest means"
        );
        bytes
    }
}

/// The folder `testdata/` of this checkout.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
}

/// Everything that the manifest lists.
///
/// # Panics
/// If the manifest is missing or wrong.
pub fn manifest() -> Vec<Entry> {
    let text = std::fs::read_to_string(folder().join("manifest.toml")).unwrap();
    let table: toml::Table = text.parse().unwrap();
    let mut entries = Vec::new();
    for (group, list) in &table {
        for item in list.as_array().expect("only lists of files") {
            entries.push(entry(group, item));
        }
    }
    entries
}

fn entry(group: &str, item: &toml::Value) -> Entry {
    let text = |key: &str| match item.get(key).and_then(toml::Value::as_str) {
        Some(text) => text.to_owned(),
        None => panic!("[[{group}]] without {key}: {item:?}"),
    };
    let expect = match group {
        "valid" => Expect::Valid {
            virtual_size: item["virtual_size"].as_integer().unwrap() as u64,
            content_sha256: text("content_sha256"),
            qemu_agrees: text("qemu") == "agrees",
        },
        "bad" => Expect::Bad {
            error: text("error"),
        },
        "regression" => Expect::Regression,
        _ => panic!("the manifest has no place for [[{group}]]"),
    };
    Entry {
        path: text("path"),
        sha256: text("sha256"),
        made_by: text("made_by"),
        because: text("because"),
        format: text("format"),
        expect,
    }
}

/// The digest of `bytes` in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_the_one_everybody_prints() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(b""), empty);
    }
}
