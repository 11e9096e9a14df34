//! `goldsmith info --backing-chain`, held against `qemu-img info --backing-chain`

use goldsmith_testkit::pattern::disk;
use serde_json::Value;

use crate::Folder;

/// Chains of images of many kinds, and their topmost ones.
fn chains() -> (Folder, [&'static str; 5]) {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("sub")).unwrap();
    folder.write("disk.raw", &disk("1M:A 3M:-"));
    for line in [
        "create -q -f qcow2 -b disk.raw -F raw middle.qcow2 8M",
        "snapshot -c one middle.qcow2",
        "bitmap --add middle.qcow2 first",
        "create -q -f qcow2 -o compat=0.10,cluster_size=4k -b middle.qcow2 -F qcow2 top.qcow2",
        "create -q -f qcow2 -o data_file=sub/data -b ../middle.qcow2 -F qcow2 sub/split.qcow2 -u 8M",
        "create -q -f qcow2 --object secret,id=s,data=x -o encrypt.format=aes,encrypt.key-secret=s \
         -b ../top.qcow2 -F qcow2 sub/aes.qcow2 8M",
        "convert -f raw -O vpc -o force_size=on disk.raw dynamic.vhd",
        "create -q -f qcow2 -o extended_l2=on -b dynamic.vhd -F vpc over.qcow2 8M",
    ] {
        folder.qemu_img_ok(line);
    }
    let tops = [
        "top.qcow2",
        "sub/split.qcow2",
        "sub/aes.qcow2",
        "over.qcow2",
        "middle.qcow2",
    ];
    (folder, tops)
}

/// Lengths of files rounded up as QEMU rounds them.
fn normal(json: &str) -> String {
    let mut infos: Value = serde_json::from_str(json).unwrap();
    for info in infos.as_array_mut().unwrap() {
        let file_len = &mut info["children"][0]["info"]["virtual-size"];
        *file_len = file_len.as_u64().unwrap().next_multiple_of(512).into();
    }
    infos.to_string()
}

#[test]
fn json_is_the_list_of_qemu_img() {
    let (folder, tops) = chains();
    for top in tops {
        for flag in ["--backing-chain", "-b"] {
            let line = format!("info -f qcow2 {flag} --output=json {top}");
            let (ours, theirs) = (folder.as_qemu_img_ok(&line), folder.qemu_img_ok(&line));
            assert_eq!(normal(&ours), normal(&theirs), "{line}");
            assert_eq!(ours.lines().next(), Some("["));
        }
    }
    // One image alone is a list, too.
    let line = "info --backing-chain -f raw --output=json disk.raw";
    let (ours, theirs) = (folder.as_qemu_img_ok(line), folder.qemu_img_ok(line));
    assert_eq!(normal(&ours), normal(&theirs));
}

#[test]
fn text_is_that_of_qemu_img_blank_lines_between() {
    let (folder, tops) = chains();
    for top in tops {
        let line = format!("info -f qcow2 --backing-chain {top}");
        let (ours, theirs) = (folder.as_qemu_img_ok(&line), folder.qemu_img_ok(&line));
        // QEMU rounds the length of the file up to a sector.
        let alike = |text: &str| {
            let lines = text.lines().filter(|line| !line.contains("file length: "));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(alike(&ours), alike(&theirs), "{line}");
    }
}

/// Nobody reads guest data here, so its file need not be there.
#[test]
fn data_files_are_not_opened() {
    let (folder, _) = chains();
    let line = "info --backing-chain --output=json sub/split.qcow2";
    let before = folder.as_qemu_img_ok(line);
    std::fs::remove_file(folder.path("sub/sub/data"))
        .or_else(|_| std::fs::remove_file(folder.path("sub/data")))
        .unwrap();
    assert_eq!(folder.as_qemu_img_ok(line), before);
    folder.qemu_img_ok(line);
}

#[test]
fn circle_is_refused_as_by_qemu_img() {
    let folder = Folder::new();
    folder.qemu_img_ok("create -q -f qcow2 a.qcow2 1M");
    folder.qemu_img_ok("create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2");
    folder.qemu_img_ok("rebase -u -f qcow2 -b b.qcow2 -F qcow2 a.qcow2");
    for image in ["a.qcow2", "b.qcow2"] {
        let line = format!("info -f qcow2 --backing-chain {image}");
        let (ours, theirs) = (folder.goldsmith(&line), folder.qemu_img(&line));
        assert_eq!((ours.status, &*ours.stdout), (1, ""), "{ours:?}");
        assert_eq!((theirs.status, &*theirs.stdout), (1, ""), "{theirs:?}");
        assert!(
            ours.stderr.contains("already part of the chain"),
            "{ours:?}"
        );
        // Without the chain there is nothing wrong with it.
        folder.goldsmith_ok(&format!("info -f qcow2 {image}"));
    }
}

#[test]
fn chain_goes_no_further_than_the_reference_policy() {
    let (folder, _) = chains();
    let line = "info --backing-chain sub/aes.qcow2";
    let done = folder.goldsmith(line);
    assert_eq!(done.status, 1);
    assert!(done.stderr.contains("'same-directory'"), "{done:?}");
    folder.goldsmith_ok(&format!("{line} --references allow"));
    let done = folder.goldsmith("info --backing-chain top.qcow2 --references deny");
    assert!(done.status == 1 && done.stderr.contains("'deny'"));
}

/// 201 images, each a copy of the one before it but for the name of its backing file.
#[test]
fn chain_longer_than_the_limit_is_refused() {
    let folder = Folder::new();
    folder.qemu_img_ok("create -q -u -f qcow2 -b 001.qcow2 -F qcow2 000.qcow2 1M");
    let first = std::fs::read(folder.path("000.qcow2")).unwrap();
    let name = first.windows(9).position(|it| it == b"001.qcow2").unwrap();
    for nth in 1..=200 {
        let mut image = first.clone();
        image[name..name + 3].copy_from_slice(format!("{:03}", nth + 1).as_bytes());
        std::fs::write(folder.path(&format!("{nth:03}.qcow2")), image).unwrap();
    }
    let done = folder.goldsmith("info --backing-chain 000.qcow2");
    assert_eq!((done.status, &*done.stdout), (1, ""));
    assert!(done.stderr.contains("longer than 200 images"), "{done:?}");
}
