//! The programs in `examples/` do what they say.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

use goldsmith::{Cancel, Comparison, Create, ErrorKind, ImageInfo, Opener, Snapshots};

#[path = "../examples/azure.rs"]
#[allow(dead_code, reason = "its main is for people")]
mod azure;
#[path = "../examples/convert.rs"]
#[allow(dead_code, reason = "its main is for people")]
mod convert;
#[path = "../examples/grow.rs"]
#[allow(dead_code, reason = "its main is for people")]
mod grow;
#[path = "../examples/inspect.rs"]
#[allow(dead_code, reason = "its main is for people")]
mod inspect;

/// A folder with a RAW disk of 3 MiB and its path.
fn folder() -> (tempfile::TempDir, impl Fn(&str) -> String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let at = move |name: &str| path.join(name).to_str().unwrap().to_owned();
    let disk = goldsmith_testkit::pattern::disk("1M:A 1M:- 1M:b");
    std::fs::write(at("golden.raw"), disk.bytes()).unwrap();
    (folder, at)
}

#[test]
fn converting_gives_the_same_disk_or_stops_without_a_trace() {
    let (_folder, at) = folder();
    let (golden, disk) = (at("golden.raw"), at("disk.qcow2"));
    let cancel = Cancel::new();
    convert::convert([&golden, "raw"], [&disk, "qcow2"], &cancel).unwrap();
    let open = |path: &str, format| Opener::new().open(path, Some(format)).unwrap();
    let (a, b) = (open(&golden, "raw"), open(&disk, "qcow2"));
    let found = goldsmith::Compare::new(&a, &b).run().unwrap();
    assert_eq!(found, Comparison::Identical);

    cancel.cancel();
    let stopped = convert::convert([&golden, "raw"], [&at("other"), "qcow2"], &cancel);
    let error = stopped.unwrap_err().downcast::<goldsmith::Error>().unwrap();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(!std::path::Path::new(&at("other")).exists());
}

#[test]
fn inspecting_tells_what_stands_in_which_file() {
    let (_folder, at) = folder();
    let disk = at("disk.qcow2");
    let create = Create::new(&disk).format("qcow2");
    create.backing("golden.raw", "raw").run().unwrap();
    let mut told = Vec::new();
    inspect::inspect(&disk, &mut told).unwrap();
    let golden = at("golden.raw");
    let expected = format!(
        "qcow2, 3145728 bytes\nover {golden}\n0 errors, 0 wasted units\n0 bytes in {disk}\n\
         3145728 bytes in {golden}\n"
    );
    assert_eq!(String::from_utf8(told).unwrap(), expected);
}

#[test]
fn azure_takes_what_was_made_for_it() {
    let (_folder, at) = folder();
    let mut told = Vec::new();
    let vhd = at("azure.vhd");
    azure::azure(&at("golden.raw"), "raw", &vhd, &mut told).unwrap();
    let told = String::from_utf8(told).unwrap();
    assert!(told.contains("Azure takes VHD alone"), "{told}");
    let len = std::fs::metadata(&vhd).unwrap().len();
    assert!(
        told.contains(&format!("{len} bytes to be written")),
        "{told}"
    );
}

#[test]
fn growing_leaves_a_snapshot_and_says_what_it_wrote() {
    let (_folder, at) = folder();
    let disk = at("disk.qcow2");
    Create::new(&disk)
        .format("qcow2")
        .size(1 << 20)
        .run()
        .unwrap();
    let mut told = Vec::new();
    grow::grow(&disk, 1 << 20, &mut told).unwrap();
    let told = String::from_utf8(told).unwrap();
    let (first, steps) = told.split_once('\n').unwrap();
    assert_eq!(first, "snapshot before-growing: 1048576 bytes");
    assert!(steps.lines().all(|line| line.starts_with(&disk)) && !steps.is_empty());
    let info = ImageInfo::read(&Opener::new(), &disk, Some("qcow2")).unwrap();
    assert_eq!(info.layer.virtual_size, 2 << 20);
    assert_eq!(Snapshots::new(&disk).list().unwrap().len(), 1);
}
