//! What QEMU says of snapshots that we took.

use goldsmith_block::ErrorKind;
use goldsmith_testkit::qemu;

use super::{edit, snapshot};
use crate::bench::Bench;

#[test]
fn list_of_snapshots_is_what_qemu_would_have_made() {
    let bench = Bench::new();
    let path = bench.image("image", "", "1M", &["write -P 1 0 128k"]);
    for name in ["first", "second one"] {
        edit(&path, &snapshot(name)).unwrap();
    }
    let said = qemu::img_ok(&["info", "--output=json", path.to_str().unwrap()]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        said["snapshots"],
        serde_json::json!([
            {"vm-clock-nsec": 0, "name": "first", "date-sec": 1_700_000_000, "date-nsec": 5,
             "vm-clock-sec": 0, "id": "1", "vm-state-size": 0},
            {"vm-clock-nsec": 0, "name": "second one", "date-sec": 1_700_000_000, "date-nsec": 5,
             "vm-clock-sec": 0, "id": "2", "vm-state-size": 0},
        ])
    );
}

#[test]
fn snapshot_that_cannot_be_counted_is_refused_and_changes_nothing() {
    let bench = Bench::new();
    let path = bench.image("image", "refcount_bits=1", "1M", &["write -P 1 0 128k"]);
    let before = std::fs::read(&path).unwrap();
    let error = edit(&path, &snapshot("one too many")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(
        error
            .report()
            .contains("as often as its refcount can count")
    );
    qemu::check(&path);
    let after = std::fs::read(&path).unwrap();
    assert!(after.starts_with(&before[..4096]));
}
