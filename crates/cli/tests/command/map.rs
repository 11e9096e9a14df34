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

/// [qemu] Both generations of names, parts of sectors and what lies behind the end.
#[test]
fn part_of_the_disk_is_that_of_qemu_img() {
    let folder = images();
    for part in [
        "--start-offset 100k",
        "--start-offset 1M --max-length 600G",
        "-s 70k -l 70k",
        "--start-offset=100 --max-length=1000",
        "--start-offset 70001 --max-length 1",
        "--max-length 0",
        "--max-length 100T",
        "--start-offset 2M --max-length 0",
        "--start-offset 100T",
        "-s 9223372036854775807 -l 9223372036854775807",
    ] {
        for name in ["big", "top", "tiny", "subtop", "split"] {
            let line = format!("map -f qcow2 {part} {name}.qcow2");
            for line in [line.clone(), format!("{line} --output=json")] {
                assert_eq!(
                    folder.goldsmith_ok(&line),
                    folder.qemu_img_ok(&line),
                    "{line}"
                );
            }
        }
    }
    for part in [
        "-s -1",
        "--start-offset abc",
        "-l 9223372036854775808",
        "--max-length 1z",
    ] {
        let line = format!("map -f qcow2 {part} big.qcow2");
        assert_eq!(folder.goldsmith(&line).status, 1, "{line}");
        assert_eq!(folder.qemu_img(&line).status, 1, "{line}");
    }
}

/// [qemu] There is always an entry, be it empty.
#[test]
fn disk_of_no_bytes_has_one_entry() {
    let folder = Folder::new();
    std::fs::write(folder.path("empty"), "").unwrap();
    folder.qemu_img_ok("create -q -f qcow2 empty.qcow2 0");
    for line in [
        "map -f raw --output=json empty",
        "map -f qcow2 --output=json empty.qcow2",
        "map -f raw empty",
    ] {
        assert_eq!(
            folder.goldsmith_ok(line),
            folder.qemu_img_ok(line),
            "{line}"
        );
    }
}

/// Images whose clusters have places that nobody wrote to.
fn preallocated() -> Folder {
    let folder = Folder::new();
    folder.write("base.raw", &disk("1M:A 3M:- 1M:B 3M:-"));
    for line in [
        "create -q -f qcow2 -o preallocation=metadata pre.qcow2 8M",
        "create -q -f qcow2 -o preallocation=metadata,compat=0.10 old.qcow2 8M",
        "create -q -f qcow2 -o preallocation=metadata,cluster_size=512 tiny.qcow2 1M",
        "create -q -f qcow2 -o preallocation=metadata,extended_l2=on sub.qcow2 8M",
        "create -q -f qcow2 -o preallocation=falloc space.qcow2 8M",
        "create -q -f qcow2 -o preallocation=metadata,data_file=data split.qcow2 8M",
        "create -q -f qcow2 -o preallocation=metadata large.qcow2 4G",
        "create -q -f qcow2 -b pre.qcow2 -F qcow2 top.qcow2 9M",
    ] {
        folder.qemu_img_ok(line);
    }
    for name in ["pre", "old", "sub", "space", "split", "large"] {
        let written = ["write 1M 64k", "write 3M 4k", "write -z 5M 100k"];
        folder.qemu_io(&format!("{name}.qcow2"), &written);
    }
    folder.qemu_io("tiny.qcow2", &["write 10k 512", "write 100k 60k"]);
    folder.qemu_io("top.qcow2", &["write 2M 64k", "write -z 6M 64k"]);
    for line in [
        "convert -f raw -O qcow2 -B empty.raw -F raw -o compat=0.10 base.raw covers.qcow2",
        "convert -f raw -O qcow2 -o data_file=its,data_file_raw=on base.raw same.qcow2",
        "convert -f raw -O qcow2 -o preallocation=metadata base.raw ours.qcow2",
    ] {
        folder.write("empty.raw", &disk("8M:C"));
        folder.goldsmith_ok(line);
    }
    folder
}

const PREALLOCATED: [&str; 11] = [
    "pre", "old", "tiny", "sub", "space", "split", "large", "top", "covers", "same", "ours",
];

#[test]
fn holes_below_clusters_are_told_as_qemu_img_tells_them() {
    let folder = preallocated();
    for name in PREALLOCATED {
        for line in ["--output=json", "--output=human"] {
            let line = format!("map -f qcow2 {line} {name}.qcow2");
            assert_eq!(
                folder.goldsmith_ok(&line),
                folder.qemu_img_ok(&line),
                "{line}"
            );
        }
        for target in ["raw", "qcow2", "qcow2 -o cluster_size=4k"] {
            let line = format!("measure -f qcow2 -O {target} {name}.qcow2");
            assert_eq!(
                folder.goldsmith_ok(&format!("{line} --estimate")),
                folder.qemu_img_ok(&line),
                "{line}"
            );
        }
        folder.goldsmith_ok(&format!("convert -f qcow2 -O raw {name}.qcow2 out.raw"));
        folder.qemu_img_ok(&format!("compare -f qcow2 -F raw {name}.qcow2 out.raw"));
    }
}

/// What decrypts to something else is not zeros.
#[test]
fn holes_of_an_encrypted_image_are_its_data() {
    let folder = Folder::new();
    let secret = "--object secret,id=s,data=sesame";
    let options = "preallocation=metadata,encrypt.format=luks,encrypt.key-secret=s,\
                   encrypt.iter-time=10";
    folder.qemu_img_ok(&format!(
        "create -q -f qcow2 {secret} -o {options} secret.qcow2 8M"
    ));
    let image = "driver=qcow2,encrypt.key-secret=s,file.filename=secret.qcow2";
    let line = format!("map {secret} --output=json --image-opts {image}");
    let map = folder.goldsmith_ok(&line);
    assert_eq!(map, folder.qemu_img_ok(&line));
    assert!(map.contains(r#""zero": false"#), "{map}");
    let line = format!("convert {secret} --image-opts {image} -O raw out.raw");
    folder.goldsmith_ok(&line);
    folder.qemu_img_ok(&line.replace("out.raw", "theirs.raw"));
    let bytes = std::fs::read(folder.path("out.raw")).unwrap();
    assert!(bytes == std::fs::read(folder.path("theirs.raw")).unwrap());
    assert!(bytes.iter().any(|byte| *byte != 0));
}

/// However many clusters name it: what is one run of the file is looked for once.
#[test]
fn each_run_of_the_file_is_looked_for_once() {
    let folder = preallocated();
    for line in [
        "map -f qcow2 large.qcow2",
        // Each of several workers may look.
        "convert -m 1 -f qcow2 -O raw large.qcow2 out.raw",
    ] {
        let looks = folder.calls("lseek", line);
        // Three runs of data and the holes around them, and what it takes to open files.
        assert!(looks.len() < 60, "{line}: {}", looks.len());
        let reads = folder.calls("pread64", line);
        assert!(reads.len() < 60, "{line}: {}", reads.len());
    }
}
