//! `goldsmith commit`

use goldsmith_testkit::pattern::disk;

use crate::Folder;
use crate::twins::Twins;

/// A chain of three: data, zeros and holes in each, that hide each other in every way.
fn chain(base: &str) -> Twins {
    Twins::new(|folder| {
        folder.write("content", &disk("512k:B 256k:- 232k:b"));
        folder.qemu_img_ok(&format!("convert -f raw -O {base} content base"));
        folder.qemu_img_ok(&format!("create -q -f qcow2 -b base -F {base} middle"));
        folder.qemu_io(
            "middle",
            &[
                "write -P 2 128k 128k",
                "write -z 64k 64k",
                "write -P 2 600k 9k",
            ],
        );
        folder.qemu_img_ok("create -q -f qcow2 -b middle -F qcow2 top");
        folder.qemu_io("top", &["write -P 3 200k 128k", "write -z 600k 64k"]);
    })
}

#[test]
fn backing_file_gets_what_the_image_holds() {
    for base in ["raw", "qcow2"] {
        for line in [
            "commit middle",
            "commit -f qcow2 -q middle",
            "commit -t none -d middle",
            "commit -b base middle",
            "commit -r 1G middle",
        ] {
            let twins = chain(base);
            twins.both(line);
            twins.same("base", base);
            twins.same("middle", "qcow2");
            let map = |folder: &Folder| folder.qemu_img_ok("map -f qcow2 middle").lines().count();
            let emptied = !line.contains("-d") && !line.contains("-b");
            let alone = twins.ours.qemu_img_ok("map --output=json -f qcow2 middle");
            assert_eq!(
                !alone.contains("\"depth\": 0, \"present\": true"),
                emptied,
                "{alone}"
            );
            assert!(map(&twins.ours) > 0);
        }
    }
}

#[test]
fn image_between_gets_it_when_it_is_the_next() {
    let twins = chain("qcow2");
    assert_eq!(twins.both("commit top"), "Image committed.\n");
    twins.same("top", "qcow2");
    twins.same("middle", "qcow2");
    twins.same("base", "qcow2");
}

#[test]
fn deeper_image_gets_it_all_and_those_between_are_told_to_be_of_no_use() {
    for base in ["raw", "qcow2"] {
        let twins = chain(base);
        twins.theirs.qemu_img_ok("commit -b base top");
        assert_eq!(
            twins.ours.goldsmith_ok("commit -b base top"),
            "Image committed.\n\
             goldsmith: warning: middle: shows another disk than before, for what is behind it has \
             changed\n"
        );
        for name in ["top", "middle"] {
            twins.same(name, "qcow2");
        }
        twins.same("base", base);
    }
}

#[test]
fn base_grows_to_the_size_of_the_image() {
    for base in ["raw", "qcow2"] {
        let twins = chain(base);
        for folder in [&twins.ours, &twins.theirs] {
            folder.qemu_img_ok("resize -q -f qcow2 middle 3M");
            folder.qemu_io("middle", &["write -P 9 2M 100k"]);
        }
        twins.both("commit middle");
        twins.same("base", base);
        twins.same("middle", "qcow2");
    }
}

/// An image that is shorter than its base says nothing about the rest, not even where it ends
/// inside a cluster of the base that shows another image.
#[test]
fn longer_base_keeps_what_the_image_does_not_reach() {
    let twins = Twins::new(|folder| {
        folder.write("base", &disk("1M:B"));
        folder.qemu_img_ok("create -q -f qcow2 -b base -F raw middle");
        folder.qemu_io("middle", &["write -P 2 128k 128k"]);
        folder.qemu_img_ok("create -q -f qcow2 -b middle -F qcow2 top 614912");
        folder.qemu_io("top", &["write -P 3 100k 64k", "write -P 4 600k 512"]);
    });
    twins.both("commit top");
    twins.same("top", "qcow2");
    twins.same("middle", "qcow2");
}

#[test]
fn what_has_nothing_behind_it_stays_as_it_is() {
    let twins = chain("raw");
    twins.neither("commit -f raw base", "Image does not have a backing file");
    twins.neither(
        "commit -b nothing top",
        "Did not find 'nothing' in the backing chain of 'top'",
    );
    twins.neither("commit nothing", "No such file or directory");
    twins.neither("commit -t lazily top", "lazily");
    for (name, format) in [("base", "raw"), ("middle", "qcow2"), ("top", "qcow2")] {
        twins.same(name, format);
    }
}

#[test]
fn rehearsal_counts_what_would_be_written() {
    let twins = chain("raw");
    let said = twins.rehearsed("commit -f qcow2 middle");
    // 128 KiB and a part of the zeros' cluster stand in the image; 9 KiB of it lie in holes.
    let last = said.lines().last().unwrap();
    assert_eq!(last, "143360 bytes of guest data to be written");
    assert!(said.contains("middle: write the header: "), "{said}");
    let said = twins.rehearsed("commit -d -f qcow2 middle");
    assert_eq!(said, format!("{last}\n"));
}

#[test]
fn progress_ends_with_all_of_it() {
    let twins = chain("raw");
    let said = twins.ours.goldsmith_ok("commit -p middle");
    assert!(
        said.ends_with("(100.00/100%)\r\nImage committed.\n"),
        "{said:?}"
    );
}

/// [qemu] It is looked for beside each image of the chain, from the first on, and must be the next one there.
#[test]
fn name_of_two_images_of_the_chain_means_the_first_that_is_called_so_by_the_one_before() {
    let cases: [(&[&str], _, _, _); 3] = [
        (
            &[
                "sub/b.qcow2 1M",
                "-b b.qcow2 -F qcow2 sub/m.qcow2",
                "-b sub/m.qcow2 -F qcow2 b.qcow2",
                "-b ../b.qcow2 -F qcow2 sub/t.qcow2",
            ],
            ("b.qcow2", "sub/t.qcow2"),
            "sub/b.qcow2",
            "b.qcow2",
        ),
        // The working directory, which is that of the image, has one of the name as well.
        (
            &[
                "b.qcow2 1M",
                "-b ../b.qcow2 -F qcow2 sub/b.qcow2",
                "-b b.qcow2 -F qcow2 sub/m.qcow2",
                "-b sub/m.qcow2 -F qcow2 t.qcow2",
            ],
            ("b.qcow2", "t.qcow2"),
            "sub/b.qcow2",
            "b.qcow2",
        ),
        (
            &[
                "sub/b.qcow2 1M",
                "-b file:sub/b.qcow2 -F qcow2 m.qcow2",
                "-b m.qcow2 -F qcow2 t.qcow2",
            ],
            ("file:sub/b.qcow2", "t.qcow2"),
            "sub/b.qcow2",
            "m.qcow2",
        ),
    ];
    for (images, (name, image), filled, spared) in cases {
        let made = || {
            let folder = Folder::new();
            std::fs::create_dir(folder.path("sub")).unwrap();
            for image in images {
                folder.qemu_img_ok(&format!("create -q -f qcow2 {image}"));
            }
            folder.qemu_io(image, &["write -P 7 0 64k"]);
            folder
        };
        let (ours, theirs) = (made(), made());
        ours.goldsmith_ok(&format!("commit -q --references allow -b {name} {image}"));
        theirs.qemu_img_ok(&format!("commit -q -b {name} {image}"));
        for folder in [ours, theirs] {
            for (name, has) in [(filled, true), (spared, false)] {
                let map = folder.qemu_img_ok(&format!("map --output=json -f qcow2 {name}"));
                let own = "\"length\": 65536, \"depth\": 0, \"present\": true";
                assert_eq!(map.contains(own), has, "{name}: {map}");
            }
        }
    }
}

/// What went to the backing file before it failed shows in no image but through the overlay.
#[test]
fn commit_that_fails_names_the_backing_file_and_leaves_nothing_in_its_end() {
    let folder = Folder::new();
    folder.qemu_img_ok("create -q -f vpc -o force_size=on base.vhd 16M");
    folder.qemu_img_ok("create -q -f qcow2 -b base.vhd -F vpc top.qcow2");
    folder.qemu_io(
        "top.qcow2",
        &[
            "write -c -P 0x44 9M 64k",
            "write -P 0x41 64k 64k",
            "write -P 0x42 2112k 64k",
        ],
    );
    let sound = std::fs::read(folder.path("top.qcow2")).unwrap();
    folder.qemu_img_ok("convert -O raw top.qcow2 whole.raw");
    let before = std::fs::read(folder.path("base.vhd")).unwrap();
    let packed = sound
        .windows(2)
        .enumerate()
        .skip(0x50000)
        .find(|(_, it)| **it != [0; 2]);
    let at = packed.unwrap().0;
    let mut broken = sound.clone();
    broken[at..at + 8].fill(0xff);
    std::fs::write(folder.path("top.qcow2"), &broken).unwrap();
    let failed = folder.goldsmith("commit top.qcow2");
    assert_eq!(failed.status, 1, "{failed:?}");
    let told = "'base.vhd' may have a part of it by now";
    assert!(failed.stderr.contains(told), "{failed:?}");
    assert!(std::fs::read(folder.path("base.vhd")).unwrap() == before);
    std::fs::write(folder.path("top.qcow2"), &sound).unwrap();
    folder.qemu_img_ok("commit -q top.qcow2");
    folder.qemu_img_ok("compare -f vpc -F raw base.vhd whole.raw");
}
