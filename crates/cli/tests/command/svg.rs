//! `goldsmith map --output svg`: a picture that every reader of XML can read.

use goldsmith_testkit::pattern::disk;
use roxmltree::{Document, Node};
use serde_json::Value;

use crate::Folder;

/// The bytes of each kind of rectangle that stands in the lane called something with `name`.
fn drawn(picture: &str, name: &str) -> Vec<(String, u64)> {
    let document = Document::parse(picture).unwrap();
    let text = document.descendants().find(|node| {
        node.has_tag_name("text")
            && node
                .text()
                .is_some_and(|text| text.contains(name) && text.ends_with(' '))
    });
    let lane = text.unwrap_or_else(|| panic!("no lane {name} in {picture}"));
    let mut bytes = Vec::new();
    for node in lane.next_siblings().skip(1).filter(Node::is_element) {
        let title = node.children().find(|child| child.has_tag_name("title"));
        match title.and_then(|title| title.text()) {
            // "0x0..0x10000: 65536 bytes of data"
            Some(title) => {
                let (_, said) = title.split_once(": ").unwrap();
                let count = said.split(' ').next().unwrap().parse().unwrap();
                bytes.push((node.attribute("class").unwrap().to_owned(), count));
            }
            None if node.attribute("class") == Some("b") => {}
            None => break,
        }
    }
    bytes
}

fn total(drawn: &[(String, u64)], class: &str) -> u64 {
    let of_class = drawn.iter().filter(|(found, _)| found == class);
    of_class.map(|(_, bytes)| bytes).sum()
}

#[test]
fn picture_shows_what_each_layer_holds() {
    let folder = Folder::new();
    folder.write("base.raw", &disk("1M:A 1M:- 2M:B"));
    folder.qemu_img_ok("convert -f raw -O qcow2 -c base.raw middle.qcow2");
    folder.qemu_img_ok("create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2 8M");
    folder.qemu_io(
        "top.qcow2",
        &["write 512k 64k", "write -z 2M 1M", "write 6M 1M"],
    );
    let picture = folder.goldsmith_ok("map --output svg top.qcow2");

    let top = drawn(&picture, "top.qcow2 (qcow2)");
    let held = |class| total(&top, class);
    assert_eq!(
        (held("d"), held("c"), held("z")),
        ((1 << 20) + (64 << 10), 0, 1 << 20)
    );
    // Hidden or not.
    let middle = drawn(&picture, "middle.qcow2 (qcow2)");
    let held = |class| total(&middle, class);
    assert_eq!((held("d"), held("c"), held("z")), (0, 3 << 20, 0));
    let disk = drawn(&picture, "the disk");
    let map = folder.goldsmith_ok("map --output json top.qcow2");
    let map: Value = serde_json::from_str(&map).unwrap();
    let bytes = |what: &dyn Fn(&Value) -> bool| -> u64 {
        let entries = map.as_array().unwrap().iter().filter(|entry| what(entry));
        entries.map(|entry| entry["length"].as_u64().unwrap()).sum()
    };
    let packed = bytes(&|entry| entry["compressed"] == true);
    let plain = bytes(&|entry| entry["data"] == true && entry["compressed"] == false);
    let zero = bytes(&|entry| entry["present"] == true && entry["zero"] == true);
    // No column has two kinds here: all ends are at multiples of one.
    assert_eq!(
        (total(&disk, "d"), total(&disk, "c"), total(&disk, "z")),
        (plain, packed, zero)
    );
}

#[test]
fn part_of_a_disk_is_drawn_alone() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A 1M:- 2M:B"));
    folder.qemu_img_ok("convert -f raw -O qcow2 disk.raw disk");
    let line = "map -f qcow2 --output svg -s 512k -l 2M disk";
    let picture = folder.goldsmith_ok(line);
    assert_eq!(total(&drawn(&picture, "disk (qcow2)"), "d"), 1 << 20);
    assert!(picture.contains("0x80000..0x280000 of a disk of 4 MiB (4194304 bytes)"));
    for nothing in ["-s 9M", "-l 0", "-s 4M -l 1"] {
        let picture = folder.goldsmith_ok(&format!("map -f qcow2 --output svg {nothing} disk"));
        assert_eq!(drawn(&picture, "disk (qcow2)"), []);
    }
}

/// However an image is called, and whatever its backing file.
#[test]
fn names_cannot_break_out_of_the_picture() {
    let folder = Folder::new();
    folder.write("base.raw", &disk("1M:A"));
    let name = "</text><script>alert(\"1\")</script>&amp;'\u{1b}[2J\u{ffff}]]>--";
    std::fs::rename(folder.path("base.raw"), folder.path("base")).unwrap();
    // A slash is no part of a name.
    let name = name.replace('/', "");
    std::fs::copy(folder.path("base"), folder.path(&name)).unwrap();
    let picture = folder.goldsmith_ok(&format!("map -f raw --output svg {name}"));
    let document = Document::parse(&picture).unwrap();
    let tags: Vec<_> = document
        .descendants()
        .map(|node| node.tag_name().name())
        .collect();
    assert!(!tags.contains(&"script"), "{picture}");
    assert!(document.descendants().any(|node| {
        node.text()
            .is_some_and(|text| text.starts_with("<text><script>alert(\"1\")"))
    }));
    assert!(!picture.contains('\u{1b}') && !picture.contains('\u{ffff}'));
}

#[test]
fn picture_of_the_most_scattered_disk_stays_small() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk(&"512:A 512:- ".repeat(1 << 15)));
    folder.goldsmith_ok("convert -f raw -O qcow2 -o cluster_size=512 -S 512 disk.raw disk.qcow2");
    let extents = folder
        .goldsmith_ok("map --output json disk.qcow2")
        .lines()
        .count();
    assert!(extents > 60_000, "{extents}");
    let mut over = "disk.qcow2".to_owned();
    for nth in 0..20 {
        let top = format!("{nth}.qcow2");
        folder.qemu_img_ok(&format!(
            "create -q -f qcow2 -o cluster_size=4k -b {over} -F qcow2 {top}"
        ));
        over = top;
    }
    let picture = folder.goldsmith_ok(&format!("map --output svg {over}"));
    let document = Document::parse(&picture).unwrap();
    let rectangles = document
        .descendants()
        .filter(|node| node.has_tag_name("rect"));
    assert!(rectangles.count() < 4200);
    assert_eq!(total(&drawn(&picture, "disk.qcow2 (qcow2)"), "d"), 16 << 20);
}
