//! What edits VHDs: qemu-img cannot, so its part here is to read what comes of it.

use goldsmith_testkit::pattern::disk;

use crate::Folder;

/// A parent, a child with data and zeros of its own, and a grandchild.
fn family() -> Folder {
    let folder = Folder::new();
    folder.write("parent.raw", &disk("3M:A 5M:- 1M:B"));
    folder.goldsmith_ok("convert -f raw -O vpc parent.raw parent.vhd");
    folder
}

/// What QEMU reads from a VHD that needs no other one is this disk.
fn reads(folder: &Folder, image: &str, content: &str) {
    let image = format!("driver=vpc,force_size_calc=current_size,file.filename={image}");
    let content = format!("driver=raw,file.filename={content}");
    folder.qemu_img_ok(&format!("compare --image-opts {image} {content}"));
}

#[test]
fn child_comes_and_its_parent_gets_what_it_holds() {
    let folder = family();
    folder.write("child.raw", &disk("1M:A 1M:C 1k:- 1023k:A 5M:- 1M:B"));
    folder.goldsmith_ok("convert -f raw -O vpc -B parent.vhd -F vpc child.raw child.vhd");
    folder.goldsmith_ok("create -f vpc -b child.vhd -F vpc grandchild.vhd");
    let before = std::fs::read(folder.path("parent.vhd")).unwrap();
    let said = folder.goldsmith_ok("commit -f vpc --dry-run child.vhd");
    assert!(
        said.ends_with(" bytes of guest data to be written\n"),
        "{said}"
    );
    assert!(before == std::fs::read(folder.path("parent.vhd")).unwrap());

    assert_eq!(
        folder.goldsmith_ok("commit -f vpc child.vhd"),
        "Image committed.\n"
    );
    reads(&folder, "parent.vhd", "child.raw");
    for name in ["parent.vhd", "child.vhd", "grandchild.vhd"] {
        folder.goldsmith_ok(&format!("check -f vpc {name}"));
        folder.goldsmith_ok(&format!("compare -f vpc -F raw {name} child.raw"));
    }
    let len = |name: &str| std::fs::metadata(folder.path(name)).unwrap().len();
    assert!(len("child.vhd") < 8192, "it is empty");
}

#[test]
fn child_is_the_same_disk_over_any_parent() {
    let folder = family();
    folder.write("child.raw", &disk("1M:A 1M:C 1k:- 1023k:A 5M:- 1M:B"));
    folder.write("other.raw", &disk("9M:o"));
    folder.goldsmith_ok("convert -f raw -O vpc other.raw other.vhd");
    folder.goldsmith_ok("convert -f raw -O vpc -B parent.vhd -F vpc child.raw child.vhd");
    for line in [
        "rebase -f vpc -b other.vhd -F vpc child.vhd",
        "rebase -f vpc -b other.raw -F raw child.vhd",
        "rebase -f vpc -b parent.vhd -F vpc child.vhd",
    ] {
        folder.goldsmith_ok(line);
        folder.goldsmith_ok("check -f vpc child.vhd");
        folder.goldsmith_ok("compare -f vpc -F raw child.vhd child.raw");
    }
    folder.goldsmith_ok("rebase -f vpc -b  child.vhd");
    reads(&folder, "child.vhd", "child.raw");
}

#[test]
fn parent_that_was_moved_is_named_without_a_look_at_its_data() {
    let folder = family();
    folder.goldsmith_ok("create -f vpc -b parent.vhd -F vpc child.vhd");
    std::fs::rename(folder.path("parent.vhd"), folder.path("moved.vhd")).unwrap();
    assert_eq!(folder.goldsmith("map -f vpc child.vhd").status, 1);
    folder.goldsmith_ok("rebase -u -f vpc -b moved.vhd -F vpc child.vhd");
    folder.goldsmith_ok("compare -f vpc -F raw child.vhd parent.raw");
}

#[test]
fn disk_becomes_longer_and_shorter() {
    let folder = family();
    folder.goldsmith_ok("convert -f raw -O vpc -o subformat=fixed parent.raw fixed.vhd");
    for (size, bytes) in [
        ("20M", 20 << 20),
        ("+512", (20 << 20) + 512),
        ("5M", 5 << 20),
    ] {
        folder.qemu_img_ok(&format!("resize -q -f raw --shrink parent.raw {size}"));
        for name in ["parent.vhd", "fixed.vhd"] {
            let said = folder.goldsmith_ok(&format!("resize -f vpc --shrink {name} {size}"));
            assert_eq!(said, "Image resized.\n");
            reads(&folder, name, "parent.raw");
            let info = folder.goldsmith_ok(&format!("info -f vpc {name}"));
            assert!(info.contains(&format!("({bytes} bytes)")), "{info}");
            folder.goldsmith_ok(&format!("check -f vpc {name}"));
        }
    }
}

#[test]
fn snapshot_is_a_child_and_said_to_be() {
    let folder = family();
    let refused = folder.goldsmith("snapshot -c one -f vpc parent.vhd");
    assert_eq!(refused.status, 1);
    assert!(
        refused.stderr.contains("goldsmith create -b"),
        "{refused:?}"
    );
}

/// [qemu block/vpc.c] A copy of a footer at the start wins over the footer at the end.
#[test]
fn fixed_vhd_in_which_qemu_finds_another_disk_is_told_of() {
    let folder = family();
    let said = folder.goldsmith_ok("convert -f raw -O vpc -o subformat=fixed parent.vhd fixed.vhd");
    assert_eq!(
        said,
        "goldsmith: warning: fixed.vhd: the disk begins with the mark of a VHD, and QEMU looks for a \
         footer there first: it finds another disk in this fixed one\n"
    );
    reads(&folder, "fixed.vhd", "parent.raw");
    folder.goldsmith_ok("compare -f vpc -F raw fixed.vhd parent.vhd");
    for line in [
        "convert -f raw -O vpc parent.vhd dynamic.vhd",
        "convert -f raw -O raw parent.vhd copy",
        "convert -f raw -O vpc -o subformat=fixed parent.raw fixed.vhd",
    ] {
        assert_eq!(folder.goldsmith_ok(line), "", "{line}");
    }
}

#[test]
fn fixed_vhd_that_stands_is_told_of_as_a_new_one_is() {
    let folder = family();
    for (subformat, told) in [("fixed", true), ("dynamic", false)] {
        let options = format!("-f vpc -o subformat={subformat}");
        folder.goldsmith_ok(&format!("create -q {options} stands.vhd 64M"));
        let said = folder.goldsmith_ok("convert -n -f raw -O vpc parent.vhd stands.vhd");
        let warning = "warning: stands.vhd: the disk begins with the mark of a VHD, and QEMU";
        assert_eq!(said.contains(warning), told, "{said}");
        assert_eq!(said.lines().count(), usize::from(told));
    }
}

/// Puts the checksum at `at` of a structure that begins at `start` right.
fn seal(image: &mut [u8], start: usize, len: usize, at: usize) {
    let at = start + at;
    image[at..at + 4].fill(0);
    let sum: u32 = image[start..start + len]
        .iter()
        .map(|byte| u32::from(*byte))
        .sum();
    image[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

#[test]
fn footers_that_differ_without_harm_are_no_error_and_are_mended() {
    let folder = family();
    let path = folder.path("parent.vhd");
    let mut image = std::fs::read(&path).unwrap();
    let end = image.len() - 512;
    image[end + 85] = 1;
    seal(&mut image, end, 512, 64);
    std::fs::write(&path, &image).unwrap();
    let note = "Note: the copy of the footer at the start differs from it in hidden (1, copy 0); the \
                footer at the end was used\n";
    let done = folder.goldsmith("check -f vpc parent.vhd");
    assert_eq!((done.status, &*done.stderr), (0, note));
    assert!(done.stdout.starts_with("No errors were found"), "{done:?}");
    let done = folder.goldsmith("check -f vpc -r all --dry-run parent.vhd");
    assert_eq!(done.status, 0, "{done:?}");
    assert!(std::fs::read(&path).unwrap() == image);
    let done = folder.goldsmith("check -f vpc -r all parent.vhd");
    assert_eq!((done.status, &*done.stderr), (0, note));
    assert!(done.stdout.contains("    1 without harm\n"), "{done:?}");
    folder.goldsmith_ok("check -f vpc parent.vhd");
    reads(&folder, "parent.vhd", "parent.raw");
}

#[test]
fn header_that_no_reader_takes_is_worked_out_and_written_if_asked_to() {
    let folder = family();
    let path = folder.path("parent.vhd");
    let whole = std::fs::read(&path).unwrap();
    let mut image = whole.clone();
    // The block size.
    image[512 + 32..512 + 36].fill(0);
    std::fs::write(&path, &image).unwrap();
    assert_eq!(folder.goldsmith("info -f vpc parent.vhd").status, 1);
    for line in ["check -f vpc", "check -f vpc -r all --dry-run"] {
        let done = folder.goldsmith(&format!("{line} parent.vhd"));
        assert_eq!(done.status, 2, "{line}: {done:?}");
        assert!(
            done.stderr
                .contains("table of 5 entries stands at 0x600 and its blocks have 2097152"),
            "{done:?}"
        );
        assert!(std::fs::read(&path).unwrap() == image);
    }
    let done = folder.goldsmith("check -f vpc -r all parent.vhd");
    assert_eq!(done.status, 0, "{done:?}");
    assert!(std::fs::read(&path).unwrap() == whole);
}
