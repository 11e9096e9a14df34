//! `goldsmith measure`, held against `qemu-img measure`

use goldsmith_testkit::pattern::disk;
use serde_json::Value;

use crate::Folder;

/// Options of qcow2 that change how long an image is.
const OPTIONS: &[&str] = &[
    "compat=1.1",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=2M",
    "refcount_bits=1",
    "refcount_bits=64,cluster_size=512",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k,refcount_bits=2",
    "preallocation=metadata",
    "preallocation=falloc",
    "preallocation=full,cluster_size=4k",
    "lazy_refcounts=on,compression_type=zstd",
    "backing_file=behind.raw,backing_fmt=raw",
    "data_file=data",
    "data_file=data,data_file_raw=on",
];

const LUKS: &[&str] = &[
    "encrypt.format=luks,encrypt.key-secret=s",
    "encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=aes-128,cluster_size=4k",
    "encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-mode=cbc",
    "encrypt.format=aes,encrypt.key-secret=s",
];

impl Folder {
    /// Both tools say the same of `line` without a look at the data.
    fn measured_alike(&self, line: &str) {
        let line = format!("measure {line}");
        assert_eq!(
            self.goldsmith_ok(&format!("{line} --estimate")),
            self.qemu_img_ok(&line),
            "{line}"
        );
    }
}

#[test]
fn empty_disk_is_measured_as_qemu_img_does() {
    let folder = Folder::new();
    for size in ["0", "1000", "5000001k", "1.5T"] {
        for line in [
            "-O raw",
            "-O qcow2",
            "--output=json",
            "--output=json -O qcow2",
        ] {
            folder.measured_alike(&format!("{line} --size {size}"));
        }
        for options in OPTIONS {
            let line = format!("-O qcow2 -o {options} --size {size}");
            if size == "1.5T" && options.contains("cluster_size=512") {
                for line in [
                    format!("measure --estimate {line}"),
                    format!("measure {line}"),
                ] {
                    assert_eq!(folder.goldsmith(&line).status, 1);
                }
                assert_eq!(folder.qemu_img(&format!("measure {line}")).status, 1);
                continue;
            }
            folder.measured_alike(&line);
        }
    }
    for options in LUKS {
        let secret = "--object secret,id=s,data=sesame";
        folder.measured_alike(&format!("-O qcow2 {secret} -o {options} --size 1000001k"));
    }
}

fn images() -> Folder {
    let folder = Folder::new();
    folder.write("base.raw", &disk("1M:A 3M:- 1M:B 100:C"));
    for line in [
        "convert -f raw -O qcow2 base.raw plain.qcow2",
        "convert -f raw -O qcow2 -c base.raw packed.qcow2",
        "create -q -f qcow2 big.qcow2 1T",
        "create -q -f qcow2 -b plain.qcow2 -F qcow2 top.qcow2 8M",
        "create -q -f qcow2 -o cluster_size=512 tiny.qcow2 1M",
        "create -q -f qcow2 -o extended_l2=on sub.qcow2 3M",
        "create -q -f qcow2 -o compat=0.10 old.qcow2 3M",
        "create -q -f qcow2 marked.qcow2 300M",
        "bitmap --add -g 512 marked.qcow2 fine",
        "bitmap --add -g 1M --disable marked.qcow2 a-coarse-one-with-a-long-name",
    ] {
        folder.qemu_img_ok(line);
    }
    folder.qemu_io(
        "big.qcow2",
        &["write 0 64k", "write 1G 1M", "write -z 2G 1M"],
    );
    folder.qemu_io(
        "top.qcow2",
        &["write 100k 64k", "write -z 4M 64k", "write 7M 1k"],
    );
    folder.qemu_io("tiny.qcow2", &["write 1k 512", "write 100k 100k"]);
    folder.qemu_io(
        "sub.qcow2",
        &["write 4k 4k", "write 1M 70k", "discard 1030k 8k"],
    );
    folder.qemu_io("old.qcow2", &["write 4k 4k"]);
    folder.qemu_io("marked.qcow2", &["write 10M 5M"]);
    folder.qemu_img_ok("snapshot -c before marked.qcow2");
    folder.qemu_io("marked.qcow2", &["write 100M 5M"]);
    folder
}

#[test]
fn image_is_measured_as_qemu_img_does() {
    let folder = images();
    let names = [
        "plain", "packed", "big", "top", "tiny", "sub", "old", "marked",
    ];
    let targets: Vec<_> = std::iter::once("-O raw".to_owned())
        .chain(
            OPTIONS
                .iter()
                .map(|options| format!("-O qcow2 -o {options}")),
        )
        .collect();
    for target in &targets {
        for name in names {
            if name == "big" && target.contains("cluster_size=512") {
                continue;
            }
            folder.measured_alike(&format!("-f qcow2 {target} {name}.qcow2"));
        }
        folder.measured_alike(&format!("-f raw {target} base.raw"));
    }
    for target in ["-O raw", "-O qcow2"] {
        folder.measured_alike(&format!("-f qcow2 -l before {target} marked.qcow2"));
        let options = "driver=qcow2,file.driver=file,file.filename=marked.qcow2";
        folder.measured_alike(&format!("--image-opts {target} {options}"));
        folder.measured_alike(&format!("--output=json -f qcow2 {target} marked.qcow2"));
    }
}

#[test]
fn exact_size_is_one_more_line_and_one_more_key() {
    let folder = images();
    let line = "measure -f qcow2 -O qcow2 marked.qcow2";
    let qemu = folder.qemu_img_ok(line);
    folder.goldsmith_ok("convert -f qcow2 -O qcow2 marked.qcow2 new.qcow2");
    let len = std::fs::metadata(folder.path("new.qcow2")).unwrap().len();
    assert_eq!(
        folder.goldsmith_ok(line),
        format!("{qemu}exact size: {len}\n")
    );
    assert_eq!(folder.as_qemu_img_ok(line), qemu);
    let json = folder.goldsmith_ok(&format!("{line} --output=json"));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["exact"], len);
    let before = "-f qcow2 -l before -O vpc marked.qcow2";
    folder.goldsmith_ok(&format!("convert {before} new.vhd"));
    let len = std::fs::metadata(folder.path("new.vhd")).unwrap().len();
    let said = folder.goldsmith_ok(&format!("measure {before}"));
    // Tables, then blocks of 2 MiB, each behind 4 KiB with its bitmap at the end, and the footer.
    let full = 150 * (4096 + (2 << 20)) + 512;
    assert_eq!(
        said,
        format!("required size: {len}\nfully allocated size: {full}\nexact size: {len}\n")
    );
}

#[test]
fn words_that_make_no_sense_are_refused_as_qemu_img_refuses_them() {
    let folder = images();
    for line in [
        "measure -O qcow2",
        "measure --size 1G plain.qcow2",
        "measure --size 1G -f qcow2",
        "measure --size 1G -l before",
        "measure --size 1G --image-opts",
        "measure plain.qcow2 top.qcow2",
    ] {
        let (ours, theirs) = (folder.goldsmith(line), folder.qemu_img(line));
        assert_eq!((ours.status, theirs.status), (1, 1), "{line}");
        let theirs = theirs.stderr.replace("qemu-img: ", "goldsmith: ");
        assert_eq!(ours.stderr, theirs, "{line}");
    }
    for line in [
        "measure missing",
        "measure -O none --size 1G",
        "measure -O qcow2 -o cluster_size=3 --size 1G",
        "measure -O qcow2 -o extended_l2=on,cluster_size=4k --size 1G",
        "measure -O qcow2 -o compat=0.10,refcount_bits=1 --size 1G",
        "measure -O qcow2 --size 7E",
        "measure -f qcow2 -l after -O qcow2 plain.qcow2",
    ] {
        let (ours, theirs) = (folder.goldsmith(line), folder.qemu_img(line));
        assert_eq!((ours.status, theirs.status), (1, 1), "{line}: {ours:?}");
        assert!(ours.stdout.is_empty(), "{line}: {ours:?}");
    }
}
