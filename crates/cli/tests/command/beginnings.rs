//! Long names of options, and beginnings of them.

use crate::Folder;

/// [qemu] Its parser takes them, and so does a misprint in its own help.
#[test]
fn beginnings_of_long_names_are_understood_as_by_qemu_img() {
    let folder = Folder::new();
    folder.qemu_img_ok("create -q -f qcow2 disk.qcow2 1M");
    for line in [
        "info --form qcow2 --backing-c disk.qcow2",
        "map --form qcow2 --start 64k --max 64k --outp json disk.qcow2",
        "amend -f qcow2 --progres -o lazy_refcounts=on disk.qcow2",
        "check --form qcow2 --rep leaks disk.qcow2",
        "compare --image-o driver=qcow2,file.filename=disk.qcow2 \
         driver=qcow2,file.filename=disk.qcow2",
    ] {
        folder.qemu_img_ok(line);
        folder.goldsmith_ok(line);
    }
    folder.goldsmith_ok("compare --a-format qcow2 --b-format qcow2 disk.qcow2 disk.qcow2");
    folder.qemu_img_ok("snapshot -c one disk.qcow2");
    folder.goldsmith_ok("convert --source-snapshot one --oob-writes disk.qcow2 out");
    let line = "convert --source-image-opts driver=qcow2,file.filename=disk.qcow2 out";
    folder.goldsmith_ok(line);
    // More than one option begins like this.
    for line in [
        "compare --form disk.qcow2 disk.qcow2",
        "info --o json disk.qcow2",
    ] {
        assert_eq!(
            folder.qemu_img(line).status,
            folder.goldsmith(line).status,
            "{line}"
        );
    }
}
