//! `goldsmith bench`, held against `qemu-img bench`

use goldsmith_testkit::pattern::disk;

use crate::Folder;
use crate::twins::Twins;

/// Lines of the report without the time that it took, which is a time.
fn report(stdout: &str) -> Vec<String> {
    let lines = stdout.lines().map(|line| {
        let time = line.strip_prefix("Run completed in ");
        match time.and_then(|time| time.strip_suffix(" seconds.")) {
            Some(time) => {
                let (whole, rest) = time.split_once('.').unwrap();
                assert!(whole.parse::<u64>().is_ok() && rest.len() == 3, "{line}");
                "Run completed".to_owned()
            }
            None => line.to_owned(),
        }
    });
    lines.collect()
}

/// Both do as `line` says, and report the same.
fn both(twins: &Twins, line: &str) {
    let (ours, theirs) = twins.run(line);
    assert_eq!(theirs.status, 0, "qemu-img {line}: {theirs:?}");
    assert!(
        ours.status == 0 && ours.stderr.is_empty(),
        "{line}: {ours:?}"
    );
    assert_eq!(report(&ours.stdout), report(&theirs.stdout), "{line}");
}

fn images() -> Twins {
    Twins::new(|folder| {
        folder.write("disk.raw", &disk("1M:A 1M:- 2M:B"));
        for line in [
            "convert -f raw -O qcow2 disk.raw plain",
            "convert -f raw -O qcow2 -c disk.raw packed",
            "convert -f raw -O qcow2 -o compat=0.10,cluster_size=4k disk.raw small",
            "create -q -f qcow2 -b plain -F qcow2 over 4M",
            "create -q -f qcow2 -o extended_l2=on -b plain -F qcow2 parts 4M",
            "create -q -f qcow2 -o data_file=data,data_file_raw=on split 4M",
            "create -q -f qcow2 odd 4194816",
            "convert -f raw -O qcow2 disk.raw kept",
            "snapshot -c one kept",
            "convert -f raw -O vpc -o force_size=on disk.raw dynamic",
            "convert -f raw -O vpc -o subformat=fixed,force_size=on disk.raw fixed",
        ] {
            folder.qemu_img_ok(line);
        }
    })
}

const IMAGES: [(&str, &str); 10] = [
    ("raw", "disk.raw"),
    ("qcow2", "plain"),
    ("qcow2", "packed"),
    ("qcow2", "small"),
    ("qcow2", "over"),
    ("qcow2", "parts"),
    ("qcow2", "split"),
    ("qcow2", "kept"),
    ("vpc", "dynamic"),
    ("vpc", "fixed"),
];

#[test]
fn reads_of_any_image_are_reported_as_by_qemu_img() {
    let twins = images();
    for (format, image) in IMAGES {
        both(&twins, &format!("bench -c 50 -f {format} {image}"));
        both(
            &twins,
            &format!("bench -f {format} -c 2000 -d 3 -s 1k -S 4k -o 64k -U {image}"),
        );
    }
    for line in [
        "bench -c 10 -t none plain",
        "bench -c 10 -i threads -S 0 plain",
        "bench --count 10 --depth 2 --buffer-size 8k --step-size 16k --offset 1M --cache \
         writethrough --aio threads -q --format qcow2 plain",
        "bench -c 10 --image-opts driver=qcow2,file.filename=plain",
        "bench -c 10 --no-drain --pattern 7 plain",
        "bench -c 3 -s 4M plain",
    ] {
        both(&twins, line);
    }
}

/// The content that is left, and what QEMU's own check says of the image.
#[test]
fn writes_leave_what_qemu_img_leaves() {
    let twins = images();
    for (format, image) in IMAGES {
        for load in [
            "-c 100 --pattern 65",
            // Parts of units and of sectors, here and there, more than once around.
            "-c 900 --pattern 66 -s 3k -S 5k -o 1k -d 5",
            "-c 40 -d 1 --pattern 0x43 -s 700 -S 100k -o 300",
            // Over and over the same bytes.
            "-c 60 -d 4 --pattern 0 -s 10k -S 1k -o 2M",
            "-c 64 -d 8 --pattern 67 -s 64k --flush-interval 8",
            "-c 64 -d 8 --pattern 68 -S 64k --flush-interval 9 --no-drain",
            "-c 8 -d 2 --pattern 69 -s 512 -t writethrough",
            "-c 1 -s 4M --pattern 70",
            // Backwards, in effect.
            "-c 9 -d 3 --pattern 71 -s 4k -S 3M -o 512",
        ] {
            both(&twins, &format!("bench -w -f {format} {load} {image}"));
        }
        twins.same(image, format);
    }
    // A disk that ends inside of a cluster.
    for load in [
        "-c 1 -o 4194304 -s 512",
        "-c 3 -d 1 -o 4194000 -s 700 -S 50",
    ] {
        both(
            &twins,
            &format!("bench -w -f qcow2 --pattern 72 {load} odd"),
        );
    }
    twins.same("odd", "qcow2");
    // What the snapshot kept, and what stands behind, is as it was.
    for folder in [&twins.ours, &twins.theirs] {
        folder.qemu_img_ok("convert -f qcow2 -O raw -l one kept before");
        folder.qemu_img_ok("check -q -f qcow2 kept");
    }
    assert!(
        std::fs::read(twins.ours.path("before")).unwrap()
            == std::fs::read(twins.theirs.path("before")).unwrap()
    );
}

/// qemu-img's own bench takes no secrets, so QEMU can only judge what came of it.
#[test]
fn encrypted_disk_is_written_in_whole_sectors() {
    let folder = Folder::new();
    let disk = disk("1M:A 1M:-");
    folder.write("disk.raw", &disk);
    folder.qemu_img_ok(
        "convert -f raw -O qcow2 --object secret,id=s,data=x -o \
         encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 disk.raw luks",
    );
    let image = "--object secret,id=s,data=x --image-opts \
                 driver=qcow2,encrypt.key-secret=s,file.filename=luks";
    folder.goldsmith_ok(&format!("bench -c 10 {image}"));
    folder.goldsmith_ok(&format!(
        "bench -w -c 77 --pattern 5 -s 1k -S 3k -o 512 {image}"
    ));
    folder.qemu_img_ok(&format!("convert -O raw {image} out"));
    let mut expected = disk.bytes().to_vec();
    for request in 0..77 {
        expected[512 + request * 3072..][..1024].fill(5);
    }
    assert!(std::fs::read(folder.path("out")).unwrap() == expected);
    let done = folder.goldsmith(&format!("bench -w -c 7 -s 1000 {image}"));
    assert!(
        done.status == 1 && done.stderr.contains("whole sectors"),
        "{done:?}"
    );
}

#[test]
fn loads_that_make_no_sense_are_refused_as_by_qemu_img() {
    let twins = images();
    for (options, hint) in [
        ("-c 0", "must be between 1 and 2147483647"),
        ("-c 5000000000", "must be between 1 and 2147483647"),
        ("-d 0", "must be between 1 and 1024"),
        ("-s 0", "must be between 1 and 2147483647"),
        ("-s 3G", "must be between 1 and 2147483647"),
        ("-S x", "expected a size"),
        ("-o -1", "-1"),
        ("--flush-interval 10", "only available in write tests"),
        ("-w --flush-interval 1", "smaller than depth"),
        ("-w --pattern 256", "must be between 0 and 255"),
        ("-t some", "some"),
        ("-i some", "some"),
        ("-i native", "threads"),
        ("-n", "threads"),
        ("-w -U", "--force-share"),
        ("-f some", "some"),
    ] {
        twins.neither(&format!("bench {options} plain"), hint);
    }
    twins.neither("bench none", "none");
    // Threads are what there is; for qemu-img these are possible.
    for options in ["-d 2000", "-i io_uring", "-t none -n"] {
        let done = twins.ours.goldsmith(&format!("bench -c 1 {options} plain"));
        assert_eq!((done.status, &*done.stdout), (1, ""), "{options}: {done:?}");
    }
}

/// The line that says what is sent comes before what then goes wrong. [qemu]
#[test]
fn request_past_the_end_of_the_disk_fails() {
    let twins = images();
    for options in [
        "-o 20M",
        "-s 5M",
        "-s 3M -c 3",
        "-w -s 3M -c 3 -d 1",
        "-o 4095k -s 2k",
    ] {
        for (format, image) in [("qcow2", "plain"), ("raw", "disk.raw")] {
            let line = format!("bench -c 5 -f {format} {options} {image}");
            let line = match options.contains("-c") {
                true => line.replacen("-c 5 ", "", 1),
                false => line,
            };
            let (ours, theirs) = twins.run(&line);
            if format == "raw" && options.contains("-w") {
                // A raw file grows under qemu-img, and goldsmith refuses.
                assert_eq!(ours.status, 1, "{line}: {ours:?}");
                continue;
            }
            assert_eq!(
                (ours.status, theirs.status),
                (1, 1),
                "{line}: {ours:?} {theirs:?}"
            );
            assert_eq!(report(&ours.stdout), report(&theirs.stdout), "{line}");
            assert!(ours.stderr.contains("past the end of the disk"), "{ours:?}");
        }
    }
    twins.ours.qemu_img_ok("check -q -f qcow2 plain");
}

/// Whether a request goes where the disk has a place already, or not.
#[test]
fn bitmaps_know_what_was_written() {
    let folder = Folder::new();
    folder.qemu_img_ok("create -q -f qcow2 disk.qcow2 4M");
    folder.qemu_img_ok("bitmap --add disk.qcow2 days");
    folder.goldsmith_ok("bench -w -f qcow2 -c 1 -s 64k -o 1M disk.qcow2");
    folder.goldsmith_ok("bench -w -f qcow2 -c 1 -s 64k -o 1M disk.qcow2");
    let info: serde_json::Value =
        serde_json::from_str(&folder.qemu_img_ok("info --output=json disk.qcow2")).unwrap();
    let bitmap = &info["format-specific"]["data"]["bitmaps"][0];
    assert_eq!(bitmap["flags"], serde_json::json!(["auto"]));
    folder.qemu_img_ok("bitmap --disable disk.qcow2 days");
    folder.qemu_img_ok("check -q disk.qcow2");
}

/// As with whatever else writes to it.
#[test]
fn format_that_was_guessed_to_be_raw_is_told() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    let done = folder.goldsmith("bench -w -c 1 disk.raw");
    assert_eq!((done.status, &*done.stderr), (0, ""));
    let warning = "goldsmith: warning: disk.raw: nobody stated its format, and it was taken for raw; \
                   state it with the format option (-f raw)\n";
    assert!(done.stdout.contains(warning), "{done:?}");
    for line in ["bench -w -f raw -c 1 disk.raw", "bench -c 1 disk.raw"] {
        assert!(!folder.goldsmith_ok(line).contains("warning"), "{line}");
    }
}
