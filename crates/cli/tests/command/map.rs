//! `goldsmith map`, held against `qemu-img map`

use goldsmith_testkit::pattern::disk;

use crate::Folder;

fn images() -> Folder {
    let folder = Folder::new();
    folder.write("base.raw", &disk("1M:A 1M:B 512:C"));
    for line in [
        "convert -f raw -O qcow2 base.raw plain.qcow2",
        "convert -f raw -O qcow2 -c base.raw packed.qcow2",
        "create -q -f qcow2 big.qcow2 1T",
        "create -q -f qcow2 -b plain.qcow2 -F qcow2 top.qcow2 4M",
        "create -q -f qcow2 -o cluster_size=512 tiny.qcow2 1M",
        "create -q -f qcow2 -o extended_l2=on sub.qcow2 3M",
        "create -q -f qcow2 -o extended_l2=on -b plain.qcow2 -F qcow2 subtop.qcow2 3M",
        "create -q -f qcow2 -o data_file=data split.qcow2 3M",
        "create -q -f qcow2 -o data_file=raw,data_file_raw=on same.qcow2 3M",
    ] {
        folder.qemu_img_ok(line);
    }
    let scattered = [
        "write 0 64k",
        "write 1G 1M",
        "write -z 2G 1M",
        "write 600G 192k",
    ];
    folder.qemu_io("big.qcow2", &scattered);
    folder.qemu_io(
        "top.qcow2",
        &["write 64k 64k", "write -z 256k 64k", "write 3M 64k"],
    );
    let parts = [
        "write 4k 4k",
        "write -z 100k 10k",
        "write 1M 70k",
        "discard 1030k 8k",
        "write -z 2M 2k",
    ];
    for image in ["sub.qcow2", "subtop.qcow2", "split.qcow2", "same.qcow2"] {
        folder.qemu_io(image, &parts);
    }
    folder.qemu_io("sub.qcow2", &["write -c 2560k 64k"]);
    folder.qemu_io(
        "tiny.qcow2",
        &["write 1k 512", "write 100k 100k", "write -z 300k 2k"],
    );
    folder
}

#[test]
fn json_is_that_of_qemu_img() {
    let folder = images();
    for name in [
        "plain", "packed", "big", "top", "tiny", "sub", "subtop", "split", "same",
    ] {
        let line = format!("map -f qcow2 --output=json {name}.qcow2");
        assert_eq!(
            folder.goldsmith_ok(&line),
            folder.qemu_img_ok(&line),
            "{name}"
        );
    }
    let line = "map -f raw --output=json base.raw";
    assert_eq!(folder.goldsmith_ok(line), folder.qemu_img_ok(line));
}

#[test]
fn text_is_that_of_qemu_img() {
    let folder = images();
    for name in ["plain", "big", "top", "tiny", "subtop", "split", "same"] {
        let line = format!("map -f qcow2 {name}.qcow2");
        assert_eq!(
            folder.goldsmith_ok(&line),
            folder.qemu_img_ok(&line),
            "{name}"
        );
    }
}

#[test]
fn text_cannot_show_compressed_clusters() {
    let folder = images();
    let done = folder.goldsmith("map packed.qcow2");
    assert_eq!(done.status, 1);
    assert!(done.stderr.contains("--output=json"), "{done:?}");
}

/// qemu-img shows a VHD's holes as data in allocated blocks; offsets and gaps agree.
#[test]
fn vhd_blocks_are_where_qemu_img_finds_them() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A 5M:- 2M:B"));
    folder.qemu_img_ok("convert -f raw -O vpc -o force_size=on disk.raw disk.vhd");
    let line = "map -f vpc --output=json disk.vhd";
    assert_eq!(folder.goldsmith_ok(line), folder.qemu_img_ok(line));
}
