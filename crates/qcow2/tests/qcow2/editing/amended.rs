//! Other options for an image that stands, as QEMU sees them.

use goldsmith_block::{Edit, ErrorKind};
use goldsmith_testkit::qemu;

use super::{Head, amend, edit};
use crate::bench::{Bench, assert_same};

fn said(path: &std::path::Path) -> serde_json::Value {
    let said = qemu::img_ok(&["info", "--output=json", path.to_str().unwrap()]);
    serde_json::from_str(&said).unwrap()
}

#[test]
fn image_becomes_what_it_was_amended_to() {
    let bench = Bench::new();
    let base = bench.text("base.raw");
    qemu::img_ok(&["create", "-q", "-f", "raw", &base, "1M"]);
    let path = bench.image(
        "image",
        "",
        "1M",
        &["write -P 1 64k 128k", "write -z 512k 128k"],
    );
    let before = assert_same(&path);
    edit(&path, &amend(&[("compat", "0.10")])).unwrap();
    assert_eq!(said(&path)["format-specific"]["data"]["compat"], "0.10");
    qemu::check(&path);
    edit(
        &path,
        &amend(&[
            ("compat", "v3"),
            ("lazy_refcounts", "on"),
            ("refcount_bits", "1"),
        ]),
    )
    .unwrap();
    let data = &said(&path)["format-specific"]["data"];
    assert_eq!(data["lazy-refcounts"], true);
    assert_eq!(data["refcount-bits"], 1);
    qemu::check(&path);
    edit(
        &path,
        &amend(&[("backing_file", "base.raw"), ("backing_fmt", "raw")]),
    )
    .unwrap();
    assert_eq!(said(&path)["backing-filename"], "base.raw");
    assert_eq!(said(&path)["backing-filename-format"], "raw");
    edit(&path, &Edit::SetBacking(None)).unwrap();
    assert!(said(&path).get("backing-filename").is_none());
    let after = assert_same(&path);
    let read = |layer: &dyn goldsmith_block::Layer| goldsmith_testkit::image::read(layer).unwrap();
    assert!(read(&*before) == read(&*after));
}

/// Zeros that hide something must be stored where the version knows no others.
#[test]
fn zeros_over_a_backing_file_survive_the_older_version() {
    let bench = Bench::new();
    let base = bench.image("base", "", "1M", &["write -P 9 0 1M"]);
    let options = format!("backing_file={},backing_fmt=qcow2", base.display());
    let path = bench.image(
        "image",
        &options,
        "1M",
        &["write -z 64k 192k", "write -P 1 0 4k"],
    );
    qemu::img_ok(&["snapshot", "-c", "one", path.to_str().unwrap()]);
    let before = crate::bench::qemu_reads(&path);
    edit(&path, &amend(&[("compat", "0.10")])).unwrap();
    qemu::check(&path);
    assert!(crate::bench::qemu_reads(&path) == before);
    assert_eq!(Head::read(&path).version, 2);
}

#[test]
fn what_an_image_cannot_be_is_refused_and_changes_nothing() {
    let bench = Bench::new();
    for (options, amendment, rule) in [
        ("compat=0.10", ("lazy_refcounts", "on"), "compat=1.1"),
        ("compat=0.10", ("refcount_bits", "8"), "compat=1.1"),
        ("refcount_bits=8", ("compat", "0.10"), "16 bits"),
        ("extended_l2=on", ("compat", "0.10"), "subclusters"),
        ("compression_type=zstd", ("compat", "0.10"), "zstd"),
        ("", ("data_file", "other"), "only where there is one"),
        ("", ("data_file_raw", "on"), "not the disk"),
        ("", ("backing_fmt", "raw"), "needs backing_file"),
        ("", ("backing_file", "base"), "needs backing_fmt"),
    ] {
        let path = bench.image("image", options, "1M", &["write -P 1 0 128k"]);
        let before = std::fs::read(&path).unwrap();
        let error = edit(&path, &amend(&[amendment])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.report().contains(rule), "{}", error.report());
        assert_eq!(std::fs::read(&path).unwrap()[..before.len()], before);
    }
}
