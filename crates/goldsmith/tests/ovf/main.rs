//! XenServer's container: a gzip'ed tar of VHDs.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod kept;
mod one_pass;
mod read;
mod strangers;
#[path = "../support/mod.rs"]
mod support;
mod written;

use std::io::Write;
use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use goldsmith::{ErrorKind, Opener, Uuid, format_named};
use goldsmith_testkit::model::ModelDisk;
use goldsmith_testkit::pattern::disk;
use support::{Folder, convert};

const OVF: &str = "xenserver-ovf";

goldsmith_testkit::conformance!(format_named(OVF).unwrap(), format);

/// What the command prints, which must go well.
fn run(command: &mut Command) -> String {
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{command:?}: {error}; run scripts/install-test-tools"),
    };
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn picture() -> ModelDisk {
    disk("1M:A 3M:- 1M:b 5M:0 512:C 6291456:- 1M:D 3584:0 512:e 1M:-")
}

/// A folder with a disk, and the same as a VHD and in a container.
fn made() -> Folder {
    let folder = Folder::new();
    let source = folder.write("disk.raw", &picture());
    for (format, name) in [("vpc", "disk.vhd"), (OVF, "disk.tgz")] {
        convert((&source, "raw"), (&folder.path(name), format))
            .option("batmap", "on")
            .run()
            .unwrap();
    }
    folder
}

/// A folder with a differencing VHD, `0.vhd`, its parent, `1.vhd`, and the disk of both.
fn family() -> Folder {
    let folder = Folder::new();
    let base = folder.write("base.raw", &disk("2M:A 6M:- 2M:b 2M:-"));
    let child = folder.write(
        "child.raw",
        &disk("1M:A 1M:C 3M:- 512:D 3145216:- 2M:b 2M:-"),
    );
    let parent = folder.path("1.vhd");
    convert((&base, "raw"), (&parent, "vpc"))
        .uuid(Uuid::from_u128(1))
        .option("batmap", "on")
        .run()
        .unwrap();
    convert((&child, "raw"), (&folder.path("0.vhd"), "vpc"))
        .option("batmap", "on")
        .backing("1.vhd", "vpc")
        .run()
        .unwrap();
    folder
}

fn tar(folder: &Folder, how: &str) {
    let tar = format!("tar -zcf disk.tgz {how}");
    run(Command::new("sh")
        .current_dir(folder.path(""))
        .args(["-c", &tar]));
}

/// A tar of these members, not yet packed.
fn plain(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn refused(path: &Path, bytes: &[u8]) -> (ErrorKind, String) {
    std::fs::write(path, bytes).unwrap();
    let error = Opener::new().open(path, Some(OVF)).err().unwrap();
    (error.kind(), error.report())
}
