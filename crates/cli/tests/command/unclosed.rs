//! Images that somebody did not close: the first change of one mends it, and its tables move.

use goldsmith_testkit::pattern::disk;

use crate::Folder;
use crate::salvage::patch;

/// "top.qcow2" over "base.raw" with a snapshot that the header forgot, so that all copied flags are wrong,
/// marked as not closed; "want.raw" is its disk. QEMU leaves such a one if it is killed while it deletes the
/// last snapshot.
fn unclosed(size: &str) -> Folder {
    let folder = Folder::new();
    folder.write("base.raw", &disk("1M:- 3M:A"));
    folder.write("other.raw", &disk("4M:b"));
    folder.qemu_img_ok(&format!(
        "create -q -f qcow2 -o lazy_refcounts=on -b base.raw -F raw top.qcow2 {size}"
    ));
    folder.qemu_io("top.qcow2", &["write -P 17 0 960k"]);
    folder.qemu_img_ok("snapshot -c one top.qcow2");
    patch(&folder, "top.qcow2", 60, &[0; 12]);
    // [spec] incompatible features, bit 0
    folder.qemu_io("top.qcow2", &["write -P 19 900k 64k"]);
    patch(&folder, "top.qcow2", 79, &[1]);
    folder.qemu_img_ok("convert -U -O raw top.qcow2 want.raw");
    folder
}

fn assert_is(folder: &Folder, image: &str, disk: &str) {
    folder.qemu_img_ok(&format!("compare -q -f qcow2 -F raw {image} {disk}"));
    folder.qemu_img_ok(&format!("check -q {image}"));
}

#[test]
fn image_that_was_not_closed_is_rebased() {
    let folder = unclosed("4M");
    folder.goldsmith_ok("rebase -f qcow2 -b other.raw -F raw top.qcow2");
    assert_is(&folder, "top.qcow2", "want.raw");
}

#[test]
fn image_that_was_not_closed_grows_over_what_is_behind_it() {
    let folder = unclosed("1000k");
    folder.goldsmith_ok("resize -f qcow2 top.qcow2 2M");
    folder.qemu_img_ok("resize -q -f raw want.raw 2M");
    assert_is(&folder, "top.qcow2", "want.raw");
}

#[test]
fn image_that_was_not_closed_takes_a_commit() {
    let folder = unclosed("4M");
    folder.qemu_img_ok("create -q -f qcow2 -u -b top.qcow2 -F qcow2 over.qcow2 4M");
    folder.qemu_io("over.qcow2", &["write -z 64k 128k", "write -P 5 2M 64k"]);
    folder.qemu_img_ok("convert -U -O raw over.qcow2 want.raw");
    folder.goldsmith_ok("commit -f qcow2 over.qcow2");
    assert_is(&folder, "over.qcow2", "want.raw");
    assert_is(&folder, "top.qcow2", "want.raw");
}

#[test]
fn image_that_was_not_closed_is_written_over() {
    let folder = unclosed("4M");
    folder.write("front.raw", &disk("99840:-"));
    let mut want = std::fs::read(folder.path("want.raw")).unwrap();
    want[..99_840].fill(0);
    std::fs::write(folder.path("want.raw"), want).unwrap();
    folder.goldsmith_ok("convert -n -f raw -O qcow2 front.raw top.qcow2");
    assert_is(&folder, "top.qcow2", "want.raw");
}

#[test]
fn rehearsal_tells_of_what_mends_the_image() {
    let folder = unclosed("4M");
    let before = std::fs::read(folder.path("top.qcow2")).unwrap();
    let said = folder.goldsmith_ok("rebase --dry-run -f qcow2 -b other.raw -F raw top.qcow2");
    assert!(said.contains("clear the freed clusters"), "{said}");
    assert!(std::fs::read(folder.path("top.qcow2")).unwrap() == before);
}
