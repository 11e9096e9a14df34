//! `convert --dry-run`: what would be made, and nothing made.

use goldsmith_testkit::pattern::disk;

use crate::Folder;

/// The names in the folder, and how long each file is.
fn files(folder: &Folder) -> Vec<(String, u64)> {
    let entries = std::fs::read_dir(folder.path(".")).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, entry.metadata().unwrap().len())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn length_that_is_told_is_the_one_that_is_made() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A 3M:- 64k:0 300k:b 716k:-"));
    folder.write("base.raw", &disk("1M:A 3M:C 64k:0 300k:b 716k:-"));
    for options in [
        "raw",
        "qcow2",
        "qcow2 -c",
        "qcow2 -o preallocation=metadata",
        "qcow2 -o data_file=data",
        "qcow2 -B base.raw -F raw",
        "vpc",
        "vpc -o subformat=fixed",
        "xenserver-ovf --timestamp 1",
    ] {
        let line = format!("--uuid 6ba7b810-9dad-11d1-80b4-00c04fd430c8 -O {options} disk.raw out");
        let before = files(&folder);
        let told = folder.goldsmith_ok(&format!("convert --dry-run --digest md5 {line}"));
        assert_eq!(files(&folder), before, "{options}");
        let made = folder.goldsmith_ok(&format!("convert --digest md5 --reflink never {line}"));
        let len = std::fs::metadata(folder.path("out")).unwrap().len();
        assert_eq!(told, format!("out: make the file {len} bytes long\n{made}"));
        for name in ["out", "data"] {
            let _ = std::fs::remove_file(folder.path(name));
        }
    }
}

#[test]
fn what_is_not_written_waits_for_no_rate() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    folder.write("there.raw", &disk("1M:-"));
    let sleeps = |line: &str| {
        let line = format!("convert -r 1M -f raw -O raw --reflink never disk.raw {line}");
        let calls = folder.calls("nanosleep,clock_nanosleep", &line);
        calls.iter().filter(|it| it.contains("sleep(")).count()
    };
    for target in ["out", "there.raw -n"] {
        assert_eq!(sleeps(&format!("{target} --dry-run")), 0, "{target}");
        assert!(sleeps(target) > 0, "{target}");
    }
}

#[test]
fn what_would_be_refused_is_refused_and_nothing_is_touched() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A 3M:-"));
    folder.write("odd.raw", &disk("1M:A 100:b"));
    folder.write("small.raw", &disk("1M:A"));
    folder.goldsmith_ok("convert -O qcow2 disk.raw whole.qcow2");
    let whole = std::fs::read(folder.path("whole.qcow2")).unwrap();
    std::fs::write(folder.path("cut.qcow2"), &whole[..whole.len() - 70_000]).unwrap();
    std::os::unix::fs::symlink("out", folder.path("link")).unwrap();
    let before = files(&folder);
    for (line, why) in [
        (
            "-f raw -O qcow2 -o data_file=disk.raw disk.raw out",
            "would be overwritten",
        ),
        (
            "-f raw -O qcow2 -o data_file=link disk.raw out",
            "cannot be the image itself",
        ),
        ("-f raw -O vpc odd.raw out", "--round-up"),
        ("-f qcow2 -O raw cut.qcow2 out", "cut.qcow2"),
        ("-f raw -O raw disk.raw disk.raw", "would be overwritten"),
        ("-f raw -O raw --verify disk.raw out", "--verify"),
        ("-f raw -O raw --resume j disk.raw out", "--resume"),
        (
            "-n -f raw -O raw disk.raw small.raw",
            "is smaller than input file",
        ),
        (
            "-n -f raw -O qcow2 --verify disk.raw whole.qcow2",
            "--verify",
        ),
    ] {
        let done = folder.goldsmith(&format!("convert --dry-run {line}"));
        assert_eq!(done.status, 1, "{line}: {done:?}");
        assert!(done.stderr.contains(why), "{line}: {done:?}");
        assert_eq!(files(&folder), before, "{line}");
    }
}

#[test]
fn new_image_that_would_be_refused_is_refused_and_nothing_is_touched() {
    let folder = Folder::new();
    folder.write("base.raw", &disk("1M:A"));
    std::os::unix::fs::symlink("out", folder.path("link")).unwrap();
    let before = files(&folder);
    for (line, why) in [
        ("-o data_file=link out 1M", "cannot be the image itself"),
        ("-o data_file=./out out 1M", "cannot be the image itself"),
        ("-b base.raw -F raw base.raw", "would be overwritten"),
        (
            "-b base.raw -F raw -o data_file=base.raw out",
            "would be overwritten",
        ),
    ] {
        for rehearsal in ["--dry-run ", ""] {
            let done = folder.goldsmith(&format!("create {rehearsal}-f qcow2 {line}"));
            assert_eq!(done.status, 1, "{line}: {done:?}");
            assert!(done.stderr.contains(why), "{line}: {done:?}");
            assert_eq!(files(&folder), before, "{line}");
        }
    }
}
