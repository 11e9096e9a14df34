//! What goes wrong, and what is said about it.

use std::process::Command;

use goldsmith_testkit::pattern::disk;

use crate::{Done, Folder};

/// The one line on standard error after exit status 1 and nothing on standard output.
fn refused(folder: &Folder, line: &str) -> String {
    let done = folder.goldsmith(line);
    assert_eq!((done.status, &*done.stdout), (1, ""), "{line}: {done:?}");
    let message = done.stderr.strip_suffix('\n').expect("it ends the line");
    assert!(!message.contains('\n'), "one line: {message}");
    message.to_owned()
}

#[test]
fn messages_name_the_file_the_rule_and_the_numbers() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("64M:A"));
    folder.goldsmith_ok("convert -O vpc disk.raw disk.vhd");
    // A block table of 15 entries, and a header that is right otherwise.
    let mut bytes = std::fs::read(folder.path("disk.vhd")).unwrap();
    bytes[512 + 28..512 + 32].copy_from_slice(&15u32.to_be_bytes());
    bytes[512 + 36..512 + 40].fill(0);
    let sum: u32 = bytes[512..1536].iter().map(|byte| u32::from(*byte)).sum();
    bytes[512 + 36..512 + 40].copy_from_slice(&(!sum).to_be_bytes());
    std::fs::write(folder.path("disk.vhd"), bytes).unwrap();
    assert_eq!(
        refused(&folder, "convert -f vpc disk.vhd out.raw"),
        "goldsmith: disk.vhd: corrupt image: block table has 15 entries; the disk size needs 32"
    );
    assert!(!folder.path("out.raw").exists());
}

#[test]
fn missing_file_is_named_with_the_reason_of_the_system() {
    let folder = Folder::new();
    let message = refused(&folder, "info nothing.qcow2");
    assert!(
        message.starts_with("goldsmith: nothing.qcow2: "),
        "{message}"
    );
    assert!(message.contains("No such file or directory"), "{message}");
}

#[test]
fn wrong_words_exit_with_1_and_say_what_is_right() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    for (line, hint) in [
        (
            "convert -O qcow3 disk.raw out",
            "unknown format 'qcow3'; there are: raw, qcow2, vpc, xenserver-ovf",
        ),
        (
            "convert -O qcow2 -o clustersize=4k disk.raw out",
            "Invalid parameter 'clustersize'",
        ),
        (
            "convert -O qcow2 -o cluster_size=5000 disk.raw out",
            "Cluster size",
        ),
        (
            "convert -O qcow2 -o cluster_size disk.raw out",
            "Parameter 'cluster_size' expects a size",
        ),
        ("convert -O vpc -c disk.raw out", "Compression"),
        ("convert -O raw -c disk.raw out", "Compression"),
        ("info -f qcow2 disk.raw", "disk.raw: "),
    ] {
        let message = refused(&folder, line);
        assert!(message.contains(hint), "{line}: {message}");
        assert!(!folder.path("out").exists());
    }
    for line in [
        "frobnicate",
        "convert disk.raw",
        "convert -S lots disk.raw out",
        "",
    ] {
        let done = folder.goldsmith(line);
        assert_eq!((done.status, &*done.stdout), (1, ""), "{line}: {done:?}");
        assert!(
            done.stderr.contains("Usage") || done.stderr.contains("--help"),
            "{done:?}"
        );
    }
    assert_eq!(
        folder.goldsmith("--version").stdout,
        concat!("goldsmith ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn directory_pipe_and_device_are_no_images() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    for line in [
        "info .",
        "info /dev/null",
        "convert disk.raw .",
        "convert disk.raw /dev/null",
        "convert /dev/zero out.raw",
    ] {
        refused(&folder, line);
    }
}

#[test]
fn reader_that_went_away_is_no_panic() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    let line = format!("{} info disk.raw | true", env!("CARGO_BIN_EXE_goldsmith"));
    let done = folder.run(std::process::Command::new("sh").args(["-c", &line]));
    assert!(!done.stderr.contains("panicked"), "{done:?}");
}

/// Converts each file of a folder of test data within Glance's limits for looking at a stranger's
/// image (1 GiB of address space) and 10 seconds of processor time.
fn convert_all(kind: &str) -> Vec<(String, Done)> {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/").to_owned() + kind;
    let mut all = Vec::new();
    for file in std::fs::read_dir(data).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let format = match path.extension().unwrap().to_str().unwrap() {
            "vhd" => "vpc",
            format => format,
        };
        let folder = Folder::new();
        let line = format!(
            "ulimit -v 1048576; ulimit -t 10; exec {} convert -f {format} {} out.raw",
            env!("CARGO_BIN_EXE_goldsmith"),
            path.display(),
        );
        let done = folder.run(std::process::Command::new("sh").args(["-c", &line]));
        let left = std::fs::read_dir(folder.path("")).unwrap().count();
        assert_eq!(
            left,
            usize::from(done.status == 0),
            "{name} leaves something behind"
        );
        all.push((name, done));
    }
    all
}

#[test]
fn bad_images_get_one_line_and_leave_nothing() {
    let all = convert_all("bad");
    assert!(all.len() >= 30);
    for (name, done) in all {
        assert_eq!(done.status, 1, "{name}: {done:?}");
        assert!(
            done.stderr.starts_with("goldsmith: ") && done.stderr.contains(&name),
            "{done:?}"
        );
        assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
        assert!(
            !done.stderr.contains("panicked") && !done.stderr.contains("bug"),
            "{done:?}"
        );
    }
}

#[test]
fn valid_images_convert_in_silence() {
    let all = convert_all("valid");
    assert!(all.len() >= 20);
    for (name, done) in all {
        assert_eq!(
            (done.status, &*done.stdout, &*done.stderr),
            (0, "", ""),
            "{name}"
        );
    }
}

#[test]
fn passphrase_is_not_shown_though_the_words_around_it_are_wrong() {
    let folder = Folder::new();
    for secret in [
        "secret,id=s,data=hunter,foo=hunter",
        "secret,id=s,data=word,hunter",
        "secret,data=hunter",
        "secret,id=s,format=base64,data=hunter!",
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_goldsmith"));
        let done = folder.run(command.args(["info", "--object", secret, "disk.raw"]));
        assert_eq!(done.status, 1);
        assert!(
            done.stderr.contains("'secret,...' for '--object"),
            "{done:?}"
        );
        assert!(!done.stderr.contains("hunter"), "{done:?}");
    }
}

/// A file beside the image may be called so, and then the chain shows it.
#[test]
fn control_characters_in_names_of_files_behind_never_reach_the_terminal() {
    let folder = Folder::new();
    folder.write("a\u{1b}[2Jb.raw", &disk("8k:A"));
    let behind = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        "a\u{1b}[2Jb.raw",
        "top",
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_goldsmith"));
    let done = folder.run(command.args(behind));
    assert_eq!((done.status, &*done.stderr), (0, ""));
    let done = folder.goldsmith("info --backing-chain top");
    assert_eq!((done.status, &*done.stderr), (0, ""));
    assert!(done.stdout.contains("image: a\u{fffd}[2Jb.raw"), "{done:?}");
    assert!(!done.stdout.contains('\u{1b}'), "{done:?}");
}

/// A name that an image gives to its parent may hold what a terminal obeys.
#[test]
fn control_characters_of_an_image_never_reach_the_terminal() {
    use goldsmith_testkit::build::vhd::Vhd;
    let folder = Folder::new();
    let image = Vhd::dynamic(disk("8k:A").bytes(), 4096);
    let image = image.child_of([9; 16], 0, "", &[(b"W2ru", "a\u{1b}[2J\u{9b}31m\nb")]);
    std::fs::write(folder.path("top.vhd"), image.bytes()).unwrap();
    for line in [
        "convert top.vhd out.raw",
        "convert --references deny top.vhd out.raw",
        "info top.vhd",
    ] {
        let done = folder.goldsmith(line);
        let said = format!("{}{}", done.stdout, done.stderr);
        let obeyed = |c: char| c.is_control() && c != '\n';
        assert!(
            said.contains('\u{fffd}') && !said.contains(obeyed),
            "{said:?}"
        );
        assert!(
            done.status == 0 || done.stderr.lines().count() == 1,
            "{done:?}"
        );
    }
}

#[test]
fn word_that_is_no_text_is_told_as_any_other() {
    use std::os::unix::ffi::OsStrExt;
    let folder = Folder::new();
    let word = std::ffi::OsStr::from_bytes(b"inf\xffo");
    let done = folder.run(std::process::Command::new(env!("CARGO_BIN_EXE_goldsmith")).arg(word));
    assert_eq!(done.status, 1, "{done:?}");
    assert!(done.stderr.contains("unrecognized subcommand"), "{done:?}");
}

/// Which of the images of a chain it is that has to be mended.
#[test]
fn damaged_image_is_named_whoever_is_changed() {
    let folder = Folder::new();
    for line in [
        "create -q -f qcow2 base.qcow2 1M",
        "create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2 1M",
    ] {
        folder.qemu_img_ok(line);
    }
    folder.qemu_io("base.qcow2", &["write -P 1 0 128k"]);
    folder.qemu_io("over.qcow2", &["write -P 2 64k 128k"]);
    let sound = std::fs::read(folder.path("base.qcow2")).unwrap();
    let number = |at: usize| u64::from_be_bytes(sound[at..at + 8].try_into().unwrap()) as usize;
    // The first refcount, of the header.
    let mut broken = sound.clone();
    let block = number(number(48));
    broken[block..block + 2].fill(0);
    std::fs::write(folder.path("base.qcow2"), &broken).unwrap();
    std::fs::copy(folder.path("base.qcow2"), folder.path("copy.qcow2")).unwrap();
    for (line, file) in [
        ("commit over.qcow2", "base.qcow2"),
        ("commit -d over.qcow2", "base.qcow2"),
        ("resize copy.qcow2 2M", "copy.qcow2"),
        ("amend -o lazy_refcounts=on copy.qcow2", "copy.qcow2"),
        ("snapshot -c one copy.qcow2", "copy.qcow2"),
        ("bitmap --add copy.qcow2 one", "copy.qcow2"),
        ("rebase -u -b over.qcow2 -F qcow2 copy.qcow2", "copy.qcow2"),
        ("bench -w -c 1 -f qcow2 copy.qcow2", "copy.qcow2"),
    ] {
        let done = folder.goldsmith(line);
        assert_eq!(done.status, 1, "{line}: {done:?}");
        let named = format!(" {file}: corrupt image: ");
        assert!(done.stderr.contains(&named), "{line}: {done:?}");
        assert!(
            done.stderr.contains("the image has 1 errors in its tables"),
            "{line}: {done:?}"
        );
    }
    // Marked, and sound.
    let mut marked = sound;
    marked[79] |= 2;
    std::fs::write(folder.path("marked.qcow2"), &marked).unwrap();
    let message = refused(&folder, "resize -q marked.qcow2 2M");
    assert!(
        message.contains("is marked as corrupt, though its tables are sound"),
        "{message}"
    );
    folder.goldsmith_ok("check -q -r all marked.qcow2");
    folder.goldsmith_ok("resize -q marked.qcow2 2M");
}
