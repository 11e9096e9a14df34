//! `goldsmith create`

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use goldsmith_testkit::pattern::disk;

use crate::Folder;
use crate::twins::Twins;

fn files() -> Twins {
    Twins::new(|folder| {
        folder.write("base.raw", &disk("1M:B 512k:- 512:b"));
        folder.qemu_img_ok("create -q -f qcow2 base.qcow2 3M");
        folder.qemu_io("base.qcow2", &["write -P 1 1M 512k"]);
    })
}

/// What is said, what is made, and what QEMU finds in it.
#[test]
fn new_image_is_qemu_imgs() {
    let twins = files();
    for (line, format) in [
        ("create new 1M", "raw"),
        ("create -f raw -o preallocation=full new 1M", "raw"),
        ("create -q -f raw new 3M", "raw"),
        ("create -f qcow2 new 1M", "qcow2"),
        ("create -f qcow2 -o size=5M new", "qcow2"),
        ("create -f qcow2 new 1.5G -q", "qcow2"),
        (
            "create -f qcow2 -o cluster_size=4k,lazy_refcounts=on new 6M",
            "qcow2",
        ),
        (
            "create -f qcow2 -o compat=0.10 -o preallocation=metadata new 6M",
            "qcow2",
        ),
        (
            "create -f qcow2 -o extended_l2=yes,refcount_bits=8,compression_type=zstd new 6M",
            "qcow2",
        ),
        ("create -f qcow2 -b base.qcow2 -F qcow2 new", "qcow2"),
        (
            "create -f qcow2 --backing base.raw --backing-format raw new",
            "qcow2",
        ),
        ("create -f qcow2 -b base.raw -F raw new 7M", "qcow2"),
        ("create -f qcow2 -b base.qcow2 -F qcow2 new 1M", "qcow2"),
        (
            "create -f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2 new",
            "qcow2",
        ),
        ("create -f vpc -o force_size=on new 1M", "vpc"),
        ("create -f vpc -o subformat=fixed,force_size new 1M", "vpc"),
        (
            "create -f qcow2 -o compat=v3,lazy_refcounts new 0x600000",
            "qcow2",
        ),
        ("create -f qcow2 -o compat=v2 file:new 6M", "qcow2"),
    ] {
        if line.contains("-o force_size=on") {
            // Our sizes are exact without it, so there is no such option to name.
            let line = line.replace("-o force_size=on ", "");
            twins.ours.goldsmith_ok(&line);
            twins
                .theirs
                .qemu_img_ok("create -q -f vpc -o force_size=on new 1M");
        } else {
            twins.both(line);
        }
        twins.same("new", format);
    }
}

#[test]
fn backing_file_may_be_missing_if_nobody_is_to_look() {
    let twins = files();
    let line = "create -f qcow2 -u -b nothing.qcow2 -F qcow2 new 5M";
    twins.both(line);
    let info = twins.ours.qemu_img_ok("info -f qcow2 new");
    assert!(info.contains("backing file: nothing.qcow2\n"), "{info}");
    let line = "create -f qcow2 -u -b nothing.qcow2 -F qcow2 new";
    twins.neither(line, "Image creation needs a size parameter");
}

#[test]
fn what_makes_no_image_leaves_what_stood_there() {
    let twins = files();
    twins.both("create -f qcow2 -b base.qcow2 -F qcow2 old.qcow2");
    for (line, hint) in [
        (
            "create -f qcow2 new",
            "Image creation needs a size parameter",
        ),
        (
            "create -f qcow2 -o size=1M new 2M",
            "The image size must be specified only once",
        ),
        ("create new 1x", "Invalid image size specified: '1x'"),
        ("create new -- -1", "Invalid image size specified"),
        ("create new 1M 2M", "2M"),
        ("create", "IMAGE"),
        ("create -f qcow3 new 1M", "qcow3"),
        ("create -f qcow2 -o clusters=1 new 1M", "'clusters'"),
        (
            "create -f raw -b base.raw -F raw new 1M",
            "Backing file not supported for file format 'raw'",
        ),
        (
            "create -f qcow2 -b base.qcow2 new",
            "Backing file specified without backing format",
        ),
        (
            "create -f qcow2 -b nothing -F qcow2 new",
            "No such file or directory",
        ),
        (
            "create -f qcow2 -b old.qcow2 -F qcow2 old.qcow2",
            "overwritten",
        ),
    ] {
        twins.neither(line, hint);
        assert!(!twins.ours.path("new").exists(), "{line}");
        twins.same("old.qcow2", "qcow2");
    }
}

/// A child costs what its tables cost, whatever stands behind it.
#[test]
fn child_of_a_huge_parent_is_small() {
    let folder = Folder::new();
    folder.goldsmith_ok("create -f qcow2 -o cluster_size=2M base.qcow2 1P");
    folder.goldsmith_ok("create -f qcow2 -o cluster_size=2M -b base.qcow2 -F qcow2 child.qcow2");
    folder.goldsmith_ok("create -f vpc base.vhd 2000G");
    folder.goldsmith_ok("create -f vpc -b base.vhd -F vpc child.vhd");
    for (name, size) in [("child.qcow2", 1u64 << 50), ("child.vhd", 2000 << 30)] {
        let metadata = fs::metadata(folder.path(name)).unwrap();
        assert!(metadata.blocks() * 512 < 16 << 20, "{name}: {metadata:?}");
        let info = folder.goldsmith_ok(&format!("info --output=json {name}"));
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["virtual-size"], serde_json::json!(size));
    }
}

#[test]
fn size_that_a_format_cannot_hold_is_rounded_up_and_told() {
    let folder = Folder::new();
    let said = folder.goldsmith_ok("create -f qcow2 new 1000001");
    assert!(
        said.ends_with(
            "goldsmith: warning: new: the disk has 1000448 bytes instead of 1000001: qcow2 images \
             hold multiples of 512 bytes\n"
        ),
        "{said}"
    );
    // Not as qemu-img, which makes it 1000448: any file is a RAW disk.
    folder.goldsmith_ok("create -f raw new.raw 1000001");
    assert_eq!(
        fs::metadata(folder.path("new.raw")).unwrap().len(),
        1_000_001
    );
}

#[test]
fn rehearsal_says_what_would_be_made_and_makes_nothing() {
    let twins = files();
    let said = twins.rehearsed("create -f qcow2 new 10M");
    let mut lines = said.lines();
    assert!(
        lines
            .next()
            .unwrap()
            .starts_with("Formatting 'new', fmt=qcow2 ")
    );
    twins.ours.goldsmith_ok("create -f qcow2 new 10M");
    let len = fs::metadata(twins.ours.path("new")).unwrap().len();
    assert_eq!(
        lines.collect::<Vec<_>>(),
        [format!("new: make the file {len} bytes long")]
    );
}

#[test]
fn encrypted_image_opens_with_its_passphrase() {
    let folder = Folder::new();
    let secret = "--object secret,id=s,data=sesame";
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    folder.goldsmith_ok(&format!(
        "create {secret} -f qcow2 -o {options} new.qcow2 4M"
    ));
    let image = "driver=qcow2,file.filename=new.qcow2,encrypt.key-secret=s";
    let line = format!("check {secret} --image-opts {image}");
    folder.qemu_img_ok(&line);
}

/// As `convert` does it.
#[test]
fn same_day_gives_the_same_empty_vhd() {
    let folder = Folder::new();
    let made = |epoch: Option<&str>| {
        let mut create = Command::new(env!("CARGO_BIN_EXE_goldsmith"));
        let words = ["create", "-q", "-f", "vpc", "new.vhd", "1M"];
        create.args(words).current_dir(folder.path(""));
        create.env_remove("SOURCE_DATE_EPOCH");
        create.envs(epoch.map(|epoch| ("SOURCE_DATE_EPOCH", epoch)));
        assert!(create.status().unwrap().success());
        fs::read(folder.path("new.vhd")).unwrap()
    };
    let day = Some("1700000000");
    assert!(made(day) == made(day));
    assert!(made(day) != made(Some("1700000001")) && made(None) != made(None));
}

#[test]
fn help_on_the_backing_file_names_the_option_of_each_command() {
    let folder = Folder::new();
    for line in [
        "create -f qcow2",
        "create -f vpc",
        "convert -O qcow2",
        "convert -O vpc",
    ] {
        let command = line.split(' ').next().unwrap();
        let help = folder.goldsmith_ok(&format!("{command} --help"));
        let mut lines = help.lines().map(str::trim);
        let short = lines.find_map(|it| it.strip_suffix(", --backing <FILE>"));
        let told = folder.goldsmith_ok(&format!("{line} -o help"));
        let told = told.lines().find(|it| it.contains("backing_file"));
        let option = format!("{} of {command}", short.unwrap());
        assert!(told.unwrap().contains(&option), "{option}: {told:?}");
    }
}

/// In a script, an empty variable.
#[test]
fn name_that_is_empty_is_refused() {
    let twins = Twins::new(|folder| folder.write("disk.raw", &disk("1M:A")));
    for line in [
        "create -q -f qcow2 -o data_file= out 1M",
        "convert -f raw -O qcow2 -o data_file= disk.raw out",
        "convert -f raw -O qcow2 -o backing_file= disk.raw out",
        "create -q -f qcow2 -u -b disk.raw -F qcw2 out 1M",
    ] {
        let (ours, theirs) = twins.run(line);
        assert_eq!((ours.status, theirs.status), (1, 1), "{line}: {ours:?}");
        assert!(!twins.ours.path("out").exists(), "{line}");
    }
}

/// A disk that somebody takes for encrypted as he wished must be.
#[test]
fn options_of_another_encryption_are_refused_as_by_qemu_img() {
    let folder = Folder::new();
    let secret = "--object secret,id=s,data=one";
    let (luks, aes) = (
        "encrypt.format=luks,encrypt.key-secret=s",
        "encrypt.format=aes,encrypt.key-secret=s",
    );
    for (options, may_be) in [
        ("encrypt.cipher-alg=aes-256".to_owned(), false),
        ("encrypt.iter-time=10".to_owned(), false),
        (
            format!("{aes},encrypt.cipher-alg=aes-256,encrypt.cipher-mode=xts"),
            false,
        ),
        (format!("{aes},encrypt.iter-time=10"), false),
        (aes.to_owned(), true),
        (
            format!("{luks},encrypt.iter-time=10,encrypt.cipher-mode=cbc"),
            true,
        ),
    ] {
        let line = format!("create -q -f qcow2 {secret} -o {options} new.qcow2 1M");
        for done in [folder.goldsmith(&line), folder.qemu_img(&line)] {
            assert_eq!(done.status, i32::from(!may_be), "{line}: {done:?}");
        }
    }
}
