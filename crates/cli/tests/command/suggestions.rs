//! Whoever mistypes a word is told the right one.

use goldsmith_testkit::pattern::disk;

use crate::Folder;

#[test]
fn mistyped_word_of_every_kind_is_answered_with_the_right_one() {
    let folder = Folder::new();
    folder.write("golden.raw", &disk("1M:A"));
    folder.goldsmith_ok("create -q -f qcow2 disk.qcow2 1M");
    for (line, right) in [
        ("conver golden.raw out", "'convert'"),
        ("snapshots disk.qcow2", "'snapshot'"),
        ("convert --bitmpas golden.raw out", "'--bitmaps'"),
        ("convert --refernces deny golden.raw out", "'--references'"),
        (
            "convert --references sam-directory golden.raw out",
            "'same-directory'",
        ),
        ("info --output=jsn golden.raw", "'json'"),
        ("convert -O qcow golden.raw out", "'qcow2'"),
        ("convert -O qcow3 golden.raw out", "'qcow2'"),
        ("info -f rwa golden.raw", "'raw'"),
        ("create -f vdh out 1M", "'vhd'"),
        ("convert --for azur golden.raw out", "'azure'"),
        ("lint --for xenserve golden.raw", "'xenserver'"),
        (
            "convert -O qcow2 -o clustersize=4k golden.raw out",
            "'cluster_size'",
        ),
        (
            "create -f qcow2 -o preallocaton=full out 1M",
            "'preallocation'",
        ),
        (
            "create -f qcow2 -o preallocation=metdata out 1M",
            "'metadata'",
        ),
        ("create -f vpc -o subformat=fixd out 1M", "'fixed'"),
        (
            "amend -f qcow2 -o lazy_refcount=on disk.qcow2",
            "'lazy_refcounts'",
        ),
        ("resize --preallocation metdata disk.qcow2 2M", "'metadata'"),
        (
            "info --image-opts driver=qcow,file.filename=disk.qcow2",
            "'qcow2'",
        ),
    ] {
        let done = folder.goldsmith(line);
        // Of lint, 1 means that it found something.
        let status = if line.starts_with("lint") { 2 } else { 1 };
        assert_eq!(
            (done.status, &*done.stdout),
            (status, ""),
            "{line}: {done:?}"
        );
        let said = &done.stderr;
        assert!(
            said.contains(&format!("did you mean {right}?"))
                || said.contains(&format!("exists: {right}")),
            "{line}: {said}"
        );
        assert!(!folder.path("out").exists());
    }
}

/// vhdx is no slip of the hand for vhd.
#[test]
fn known_word_for_something_else_is_not_taken_for_a_slip() {
    let folder = Folder::new();
    folder.write("golden.raw", &disk("1M:A"));
    for line in [
        "convert -O vhdx golden.raw out",
        "convert -O vmdk golden.raw out",
        "convert -O something golden.raw out",
    ] {
        let said = folder.goldsmith(line).stderr;
        assert!(said.contains("unknown format '"), "{line}: {said}");
        assert!(!said.contains("did you mean"), "{line}: {said}");
    }
}
