//! Makes `testdata/` and the seeds of `fuzz/corpus/` again, from code and QEMU's tools.
//!
//! ```text
//! cargo run -p goldsmith-testkit --example make-testdata
//! ```
//!
//! Files in `testdata/regression/` are findings; they are listed and never made here.
#![allow(clippy::unwrap_used)]

mod golden;
mod qcow2;
mod seeds;
mod vhd;

use std::fmt::Write as _;
use std::fs;

use goldsmith_testkit::ModelDisk;
use goldsmith_testkit::testdata::{self, sha256};

/// A file to be.
struct File {
    name: &'static str,
    format: &'static str,
    bytes: Vec<u8>,
    made_by: String,
    because: &'static str,
    expect: Expect,
}

enum Expect {
    /// The content, and why QEMU reads something else, if it does.
    Valid(Vec<u8>, &'static str),
    /// The kind of the error.
    Bad(&'static str),
}

/// A file whose recipe is the very expression that makes it.
macro_rules! built {
    ($name:literal, $format:literal, $because:literal, $expect:expr, $image:expr) => {
        $crate::File {
            name: $name,
            format: $format,
            bytes: $image.bytes(),
            made_by: $crate::one_line(stringify!($image)),
            because: $because,
            expect: $expect,
        }
    };
}
pub(crate) use built;

fn one_line(code: &str) -> String {
    let words: Vec<_> = code.split_whitespace().collect();
    let line = words.join(" ").replace(" .", ".").replace("( ", "(");
    format!("make-testdata: {line}.bytes()")
}

fn agrees(disk: &ModelDisk) -> Expect {
    Expect::Valid(disk.bytes().to_vec(), "agrees")
}

fn main() {
    let mut files = vhd::files();
    files.extend(qcow2::files());
    files.push(golden::file());
    let folder = testdata::folder();
    for part in ["valid", "bad", "regression"] {
        fs::create_dir_all(folder.join(part)).unwrap();
    }
    let mut manifest = String::from(
        "# What each file is, how it was made, and what must come of it.\n\
         # Written by: cargo run -p goldsmith-testkit --example make-testdata\n",
    );
    for file in &files {
        let group = match &file.expect {
            Expect::Valid(..) => "valid",
            Expect::Bad(_) => "bad",
        };
        let path = format!("{group}/{}", file.name);
        fs::write(folder.join(&path), &file.bytes).unwrap();
        let File {
            format, because, ..
        } = file;
        write!(
            manifest,
            "\n[[{group}]]\npath = \"{path}\"\nsha256 = \"{}\"\nmade_by = '''{}'''\n\
             because = '''{because}'''\nformat = \"{format}\"\n",
            sha256(&file.bytes),
            file.made_by,
        )
        .unwrap();
        match &file.expect {
            Expect::Valid(content, qemu) => write!(
                manifest,
                "virtual_size = {}\ncontent_sha256 = \"{}\"\nqemu = \"{qemu}\"\n",
                content.len(),
                sha256(content)
            ),
            Expect::Bad(error) => writeln!(manifest, "error = \"{error}\""),
        }
        .unwrap();
    }
    manifest += &regressions();
    fs::write(folder.join("manifest.toml"), manifest).unwrap();
    seeds::write(&files);
}

/// The part of the old manifest about findings, as it stands.
fn regressions() -> String {
    let old = fs::read_to_string(testdata::folder().join("manifest.toml")).unwrap_or_default();
    match old.find("\n[[regression]]") {
        Some(start) => old[start..].to_owned(),
        None => String::new(),
    }
}
