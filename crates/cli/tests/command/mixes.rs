//! Words of `goldsmith convert` that do or do not go together, as in qemu-img.

use goldsmith_testkit::pattern::disk;

use crate::twins::Twins;

fn images() -> Twins {
    Twins::new(|folder| {
        folder.write("disk.raw", &disk("1M:A 1M:- 64k:0 300k:b"));
        folder.qemu_img_ok("create -q -f qcow2 disk.qcow2 4M");
        folder.qemu_io("disk.qcow2", &["write -P 1 64k 2M"]);
    })
}

#[test]
fn what_qemu_img_refuses_is_refused() {
    let twins = images();
    let offload = "Cannot enable copy offloading when";
    for (line, why) in [
        ("-c -C -O qcow2 disk.raw out", offload),
        ("-C -S 4k disk.raw out", offload),
        ("-C -S 0 disk.raw out", offload),
        (
            "-C --salvage disk.raw out",
            "Cannot use copy offloading in salvaging mode",
        ),
        ("-S 513 disk.raw out", "Valid sizes are multiples of 512"),
        ("-S 17M disk.raw out", "Valid sizes are multiples of 512"),
        (
            "-c disk.raw out",
            "Compression not supported for this file format",
        ),
        (
            "-c -O qcow2 -o preallocation=full disk.raw out",
            "preallocat",
        ),
        ("-r fast disk.raw out", "fast"),
        ("-r -1 disk.raw out", "-1"),
        ("-m 0 disk.raw out", "0"),
        ("-m 4000000000 disk.raw out", "1"),
        ("-t warm disk.raw out", "warm"),
        ("-T warm disk.raw out", "warm"),
        ("--skip-broken-bitmaps disk.raw out", "--bitmaps"),
        ("-O qcow2 -o colour=red disk.raw out", "colour"),
        (
            "-f raw --image-opts driver=raw,file.filename=disk.raw out",
            "-f",
        ),
    ] {
        twins.neither(&format!("convert {line}"), why);
        assert!(!twins.ours.path("out").exists(), "{line}");
    }
}

/// Those that make no difference to the target here, and those that do to what it takes to write it.
#[test]
fn what_qemu_img_takes_gives_the_same_image() {
    let twins = images();
    for line in [
        "-C -f raw -O raw disk.raw",
        "-C -f qcow2 -O qcow2 disk.qcow2",
        "-W -m 16 -O qcow2 disk.qcow2",
        "-W -c -O qcow2 disk.qcow2",
        "-r 0 -O qcow2 disk.raw",
        "-r 1G -O qcow2 disk.raw",
        "-r 100M -c -O qcow2 disk.qcow2",
        "-S 64k -O raw disk.raw",
        "-S 0 -O qcow2 disk.raw",
        "-q -U -O raw disk.qcow2",
    ] {
        let format = if line.contains("-O raw") {
            "raw"
        } else {
            "qcow2"
        };
        twins.both(&format!("convert {line} out"));
        twins.same("out", format);
    }
}

/// [qemu] A list is not empty, and no comma begins or ends it.
#[test]
fn option_list_that_says_nothing_is_refused() {
    let twins = images();
    for list in ["", ",", "cluster_size=64k,", ",cluster_size=64k"] {
        for line in [
            format!("convert -O qcow2 -o {list} disk.raw out"),
            format!("convert -O qcow2 -o cluster_size=4k -o {list} disk.raw out"),
            format!("create -f qcow2 -o {list} out 1M"),
            format!("measure -O qcow2 -o {list} disk.raw"),
            format!("amend -o {list} disk.qcow2"),
        ] {
            twins.neither(&line, "Invalid option list: ");
            assert!(!twins.ours.path("out").exists(), "{line}");
        }
    }
    for list in ["cluster_size=64k", "lazy_refcounts"] {
        twins.both(&format!("convert -O qcow2 -o {list} disk.raw out"));
    }
}

/// [qemu] It takes any, and makes a disk of the source's size all the same.
#[test]
fn size_among_the_options_is_that_of_the_source() {
    let twins = images();
    let size = std::fs::metadata(twins.ours.path("disk.raw"))
        .unwrap()
        .len();
    for format in ["raw", "qcow2"] {
        let line = format!("convert -f raw -O {format} -o size={size} disk.raw out");
        twins.both(&line);
        twins.same("out", format);
        let line = format!("measure -f raw -O {format} -o size={size} disk.raw");
        let ours = twins.ours.as_qemu_img_ok(&line);
        assert_eq!(ours, twins.ours.qemu_img_ok(&line));
    }
    let folder = twins.ours;
    folder.goldsmith_ok("measure -O qcow2 -o size=1M --size 1M");
    for (line, found) in [
        ("convert -f raw -O qcow2 -o size=1M disk.raw new", size),
        ("convert -f raw -O qcow2 -o size=5G disk.raw new", size),
        ("measure -f raw -O qcow2 -o size=5G disk.raw", size),
        ("measure -O qcow2 -o size=2M --size 1M", 1 << 20),
    ] {
        let done = folder.goldsmith(line);
        assert_eq!(done.status, 1, "{line}: {done:?}");
        let why = format!("the disk has {found} bytes, and 'size' asks for ");
        assert!(done.stderr.contains(&why), "{line}: {done:?}");
        assert!(!folder.path("new").exists());
    }
    let done = folder.goldsmith("convert -f raw -O qcow2 -o size=much disk.raw new");
    assert_eq!(done.status, 1, "{done:?}");
    assert!(done.stderr.contains("much"), "{done:?}");
    // Rounded up, both are right.
    std::fs::write(folder.path("odd.raw"), vec![7; 1000]).unwrap();
    for size in [1000, 1024] {
        let line = format!("convert --round-up -f raw -O qcow2 -o size={size} odd.raw new");
        folder.goldsmith_ok(&line);
    }
}
