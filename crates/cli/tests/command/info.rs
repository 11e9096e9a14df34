//! `goldsmith info`, held against `qemu-img info`

use goldsmith_testkit::pattern::disk;
use serde_json::Value;

use crate::Folder;

/// Images of every kind, by name and format.
pub(crate) fn images() -> (Folder, Vec<(&'static str, &'static str)>) {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A 3M:- 512:C"));
    for line in [
        "convert -f raw -O qcow2 disk.raw v3.qcow2",
        "convert -f raw -O qcow2 -c -o compression_type=zstd,refcount_bits=1,cluster_size=4k \
         disk.raw zstd.qcow2",
        "convert -f raw -O qcow2 -o compat=0.10 disk.raw v2.qcow2",
        "create -q -f qcow2 -b disk.raw -F raw top.qcow2 8M",
        "create -q -f qcow2 -o lazy_refcounts=on lazy.qcow2 1G",
        "create -q -f qcow2 -o extended_l2=on subclusters.qcow2 1G",
        "create -q -f qcow2 -o data_file=data,data_file_raw=on split.qcow2 1M",
        "create -q -f qcow2 -b disk.raw -F raw busy.qcow2 8M",
        "snapshot -c one busy.qcow2",
        "snapshot -c a-rather-long-name-of-a-snapshot busy.qcow2",
        "bitmap --add --disable -g 1M busy.qcow2 first",
        "bitmap --add busy.qcow2 second",
        "create -q -f qcow2 --object secret,id=s,data=x -o \
         encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 luks.qcow2 1M",
        "create -q -f qcow2 --object secret,id=s,data=x -o encrypt.format=aes,encrypt.key-secret=s \
         -b disk.raw -F raw aes.qcow2 4M",
        "convert -f raw -O vpc -o force_size=on disk.raw dynamic.vhd",
        "convert -f raw -O vpc -o subformat=fixed,force_size=on disk.raw fixed.vhd",
    ] {
        folder.qemu_img_ok(line);
    }
    let images = vec![
        ("disk.raw", "raw"),
        ("v3.qcow2", "qcow2"),
        ("zstd.qcow2", "qcow2"),
        ("v2.qcow2", "qcow2"),
        ("top.qcow2", "qcow2"),
        ("lazy.qcow2", "qcow2"),
        ("subclusters.qcow2", "qcow2"),
        ("split.qcow2", "qcow2"),
        ("busy.qcow2", "qcow2"),
        ("luks.qcow2", "qcow2"),
        ("aes.qcow2", "qcow2"),
        ("dynamic.vhd", "vpc"),
        ("fixed.vhd", "vpc"),
    ];
    (folder, images)
}

/// `json` on one line with its keys in order; lengths of files rounded up as QEMU rounds them.
fn normal(json: &str) -> String {
    let mut info: Value = serde_json::from_str(json).unwrap();
    let file_len = &mut info["children"][0]["info"]["virtual-size"];
    *file_len = file_len.as_u64().unwrap().next_multiple_of(512).into();
    info.to_string()
}

#[test]
fn json_is_that_of_qemu_img() {
    let (folder, images) = images();
    for (name, format) in images {
        let line = format!("info -f {format} --output=json {name}");
        let (ours, theirs) = (folder.as_qemu_img_ok(&line), folder.qemu_img_ok(&line));
        assert_eq!(normal(&ours), normal(&theirs), "{name}");
        assert_eq!(ours.lines().next(), theirs.lines().next());
    }
}

#[test]
fn text_is_that_of_qemu_img() {
    let (folder, images) = images();
    for (name, format) in images {
        let line = format!("info -f {format} {name}");
        let (ours, theirs) = (folder.as_qemu_img_ok(&line), folder.qemu_img_ok(&line));
        // QEMU rounds the length of the file up to a sector.
        let is_exact = |line: &&str| !line.contains("file length: ");
        let ours_alike: Vec<_> = ours.lines().filter(is_exact).collect();
        let theirs_alike: Vec<_> = theirs.lines().filter(is_exact).collect();
        assert_eq!(ours_alike, theirs_alike, "{name}");
        let len = std::fs::metadata(folder.path(name)).unwrap().len();
        assert!(
            ours.contains(&format!(" ({len} bytes)\n    disk size")),
            "{name}: {ours}"
        );
    }
}

#[test]
fn backing_file_is_shown_and_not_opened() {
    let (folder, _) = images();
    std::fs::remove_file(folder.path("disk.raw")).unwrap();
    let json = folder.goldsmith_ok("info --output=json top.qcow2");
    let info: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(info["backing-filename"], "disk.raw");
    let plain = folder.goldsmith_ok("info --output=json v3.qcow2");
    let plain: Value = serde_json::from_str(&plain).unwrap();
    assert!(plain.get("backing-filename").is_none(), "absent, not null");
}

#[test]
fn raw_size_is_exact() {
    let folder = Folder::new();
    folder.write("odd.raw", &disk("1000:A 1:B"));
    let json = folder.goldsmith_ok("info -f raw --output=json odd.raw");
    let info: Value = serde_json::from_str(&json).unwrap();
    // qemu-img says 1024: it rounds up to a sector.
    assert_eq!(info["virtual-size"], 1001);
}

#[test]
fn empty_raw_file_is_a_disk() {
    let folder = Folder::new();
    std::fs::write(folder.path("empty"), "").unwrap();
    let line = "info -f raw --output=json empty";
    assert_eq!(
        normal(&folder.goldsmith_ok(line)),
        normal(&folder.qemu_img_ok(line))
    );
}

/// [qemu] "-o force_size_calc" of a source is spelled like this there.
#[test]
fn options_of_the_source_are_spelled_as_for_qemu_img() {
    let folder = Folder::new();
    folder.qemu_img_ok("create -q -f vpc a,b.vhd 10M");
    // The creator "qemu" means the geometry, which is made another one here.
    let mut image = std::fs::read(folder.path("a,b.vhd")).unwrap();
    let end = image.len();
    for footer in [0, end - 512] {
        let footer = &mut image[footer..footer + 512];
        footer[56..60].copy_from_slice(&[0, 100, 4, 17]);
        footer[64..68].fill(0);
        let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
        footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    }
    std::fs::write(folder.path("a,b.vhd"), image).unwrap();
    for (value, size) in [("chs", 100 * 4 * 17 * 512), ("current_size", 10_514_432)] {
        let opts =
            format!("driver=vpc,force_size_calc={value},file.driver=file,file.filename=a,,b.vhd");
        let line = format!("info --output=json --image-opts {opts}");
        for json in [folder.goldsmith_ok(&line), folder.qemu_img_ok(&line)] {
            let info: Value = serde_json::from_str(&json).unwrap();
            assert_eq!(info["virtual-size"], size, "{value}");
        }
        let line = format!("convert --image-opts -O raw {opts} out.raw");
        assert_eq!(folder.goldsmith_ok(&line), "");
        assert_eq!(
            std::fs::metadata(folder.path("out.raw")).unwrap().len(),
            size
        );
        folder.goldsmith_ok(&format!("compare --image-opts {opts} {opts}"));
        folder.goldsmith_ok(&format!("map --image-opts {opts}"));
    }
    for (opts, text) in [
        (
            "driver=vpc,force_size_calc=big,file.filename=a,,b.vhd",
            "only auto, chs, current_size",
        ),
        (
            "driver=vpc,cluster=1,file.filename=a,,b.vhd",
            "force_size_calc",
        ),
        ("driver=vpc", "it names no file ('file.filename')"),
        (
            "file.driver=nbd,file.filename=x",
            "the driver 'nbd' is not supported for 'file.driver'",
        ),
        ("a,,b.vhd", "it takes pairs such as driver=vpc"),
    ] {
        let done = folder.goldsmith(&format!("info --image-opts {opts}"));
        assert_eq!(done.status, 1, "{opts}");
        assert!(done.stderr.contains(text), "{opts}: {done:?}");
    }
    assert_eq!(
        folder
            .goldsmith("info -f vpc --image-opts file.filename=x")
            .status,
        1
    );
}
