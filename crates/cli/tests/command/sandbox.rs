//! The command locked in: it does all that it does outside.
#![cfg(target_os = "linux")]

use std::process::Command;

use goldsmith_testkit::pattern::disk;

use crate::{Done, Folder};

fn run(folder: &Folder, mode: &str, line: &str) -> Done {
    let mut command = Command::new(env!("CARGO_BIN_EXE_goldsmith"));
    command.env("GOLDSMITH_SANDBOX", mode);
    folder.run(command.args(line.split(' ')))
}

/// What is printed, without the moments and durations in it: they differ in each run.
fn lasting(printed: &str) -> String {
    let is_moment = |word: &str| {
        let is_part = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'-' | b':');
        let has_parts = word.contains(['-', ':']) && word.bytes().all(is_part);
        has_parts && matches!(word.len(), 8 | 10)
    };
    let words = |line: &str| {
        let words = line.split(' ').map(|word| match is_moment(word) {
            true => "...",
            false => word,
        });
        words.collect::<Vec<_>>().join(" ")
    };
    let lines = printed.lines().map(|line| match line {
        line if line.starts_with("Run completed in ") => "Run completed".into(),
        line => words(line),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// One line for each subcommand and for each way it opens files, in an order in which all work.
const LINES: &[&str] = &[
    "create -f qcow2 new.qcow2 3M",
    "create -f qcow2 -b golden.raw -F raw overlay.qcow2",
    "create -f qcow2 -o data_file=apart.data apart.qcow2 1M",
    "create -f xenserver-ovf new.tgz 4M",
    "create -f vpc -b golden.raw -F raw new.vhd",
    "convert -f raw -O qcow2 -c golden.raw packed.qcow2",
    "convert -f raw -O vpc -p golden.raw disk.vhd",
    "convert -f raw -O xenserver-ovf --uuid 6f6c6473-6d69-7468-8000-000000000001 --timestamp 7 \
     golden.raw disk.tgz",
    "convert --verify -f raw -O xenserver-ovf golden.raw proven.tgz",
    "convert -f xenserver-ovf -O raw disk.tgz back.raw",
    "convert -f qcow2 -O qcow2 -B golden.raw -F raw overlay.qcow2 child.qcow2",
    "convert -f qcow2 -O raw packed.qcow2 deeper/packed.raw",
    "convert -f raw -O qcow2 --resume journal golden.raw resumed.qcow2",
    "dd -f raw -O qcow2 bs=64k count=5 skip=3 if=golden.raw of=dd.qcow2",
    "checksum -f qcow2 packed.qcow2",
    "checksum overlay.qcow2",
    "checksum disk.tgz",
    "info packed.qcow2",
    "info --output=json disk.vhd",
    "info disk.tgz",
    "map overlay.qcow2",
    "map --output=json packed.qcow2",
    "info --backing-chain overlay.qcow2",
    "bench -c 20 -f qcow2 overlay.qcow2",
    "bench -c 20 -w -f qcow2 new.qcow2",
    "measure -O qcow2 golden.raw",
    "measure -O vpc -f qcow2 overlay.qcow2",
    "compare -f raw -F qcow2 golden.raw packed.qcow2",
    "lint --for kvm packed.qcow2",
    "check packed.qcow2",
    "check disk.vhd",
    "resize -f qcow2 new.qcow2 5M",
    "resize -f qcow2 --dry-run new.qcow2 7M",
    "resize -f qcow2 apart.qcow2 2M",
    "snapshot -c one new.qcow2",
    "snapshot -l new.qcow2",
    "info new.qcow2",
    "convert -l one -O raw new.qcow2 old.raw",
    "snapshot -a one new.qcow2",
    "snapshot -d one new.qcow2",
    "bitmap --add new.qcow2 since",
    "bitmap --add --merge since -b new.qcow2 -F qcow2 other.qcow2 since",
    "convert --bitmaps -f qcow2 -O qcow2 new.qcow2 with.qcow2",
    "amend -f qcow2 -o lazy_refcounts=on packed.qcow2",
    "rebase -f qcow2 -b packed.qcow2 -F qcow2 child.qcow2",
    "rebase -f qcow2 -u -b golden.raw -F raw overlay.qcow2",
    "commit -f qcow2 child.qcow2",
    "rebase -f qcow2 -b  child.qcow2",
    "check -r all new.qcow2",
    "--version",
];

fn prepared() -> Folder {
    let folder = Folder::new();
    folder.write("golden.raw", &disk("1M:A 1M:- 700k:b 324k:C"));
    std::fs::create_dir(folder.path("deeper")).unwrap();
    folder.qemu_img_ok("create -q -f qcow2 other.qcow2 5M");
    folder
}

#[test]
fn every_subcommand_that_opens_an_image_has_a_line() {
    let help = prepared().goldsmith("--help").stdout;
    let commands = help.split_once("Commands:\n").unwrap().1;
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let commands: Vec<_> = commands
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert!(commands.len() > 15, "{commands:?}");
    for command in commands {
        let opens_none = ["completions", "man", "help"].contains(&command);
        let has_line = LINES
            .iter()
            .any(|line| line.split(' ').next() == Some(command));
        assert!(has_line || opens_none, "{command}");
    }
}

#[test]
fn every_subcommand_does_the_same_inside_and_outside() {
    let (inside, outside) = (prepared(), prepared());
    for line in LINES {
        let [one, other] =
            [(&inside, "require"), (&outside, "off")].map(|(folder, mode)| run(folder, mode, line));
        assert_eq!(one.stderr, "", "{line}");
        assert_eq!(
            (one.status, other.status),
            (0, 0),
            "{line}: {one:?} {other:?}"
        );
        let [one, other] = [one, other].map(|done| lasting(&done.stdout));
        assert_eq!(one, other, "{line}");
    }
    for image in [
        "packed.qcow2",
        "child.qcow2",
        "back.raw",
        "dd.qcow2",
        "deeper/packed.raw",
    ] {
        let [one, other] = [&inside, &outside].map(|it| std::fs::read(it.path(image)).unwrap());
        assert!(one == other, "{image}");
    }
    for image in ["packed.qcow2", "child.qcow2", "new.qcow2", "with.qcow2"] {
        inside.qemu_img_ok(&format!("check -q {image}"));
    }
}

/// By then nothing of an image was read, so nothing in one can make the command open anything else.
#[test]
fn files_are_narrowed_down_before_the_first_image_is_opened() {
    let folder = prepared();
    for line in LINES {
        let mut strace = Command::new("strace");
        strace.env("GOLDSMITH_SANDBOX", "require");
        let calls = "trace=open,openat,openat2,landlock_restrict_self";
        strace.args(["-f", "-qq", "-o", "log", "-e", calls]);
        strace
            .arg(env!("CARGO_BIN_EXE_goldsmith"))
            .args(line.split(' '));
        let done = folder.run(&mut strace);
        assert_eq!((done.status, &*done.stderr), (0, ""), "{line}");
        let log = std::fs::read_to_string(folder.path("log")).unwrap();
        let calls: Vec<_> = log.lines().collect();
        let walls = (0..calls.len()).filter(|at| calls[*at].contains("restrict_self("));
        let walls: Vec<_> = walls.collect();
        // A way to a file is none to what it holds.
        let opened = calls.iter().position(|call| {
            let image = [".raw", ".qcow2", ".vhd", ".tgz", ".data"];
            image.iter().any(|name| call.contains(name)) && !call.contains("O_PATH")
        });
        match opened {
            // The last is behind it.
            Some(opened) => assert!(walls.len() == 3 && walls[1] < opened, "{line}: {log}"),
            None => assert!(line.starts_with("create ") || *line == "--version"),
        }
    }
}

/// Where the format is stated nothing is asked of the file before: whoever only asks what an image is looks at it
/// from within the last wall alone.
#[test]
fn last_wall_stands_before_an_image_that_is_only_asked_is_read() {
    let folder = prepared();
    folder.goldsmith_ok("convert -f raw -O qcow2 golden.raw packed.qcow2");
    folder.goldsmith_ok("convert -f raw -O vpc golden.raw disk.vhd");
    for (line, image) in [
        ("info -f qcow2 packed.qcow2", "packed.qcow2"),
        ("info -f vpc disk.vhd", "disk.vhd"),
        ("lint --for kvm -f qcow2 packed.qcow2", "packed.qcow2"),
        ("snapshot -l -f qcow2 packed.qcow2", "packed.qcow2"),
    ] {
        let mut strace = Command::new("strace");
        strace.env("GOLDSMITH_SANDBOX", "require");
        strace.args(["-f", "-qq", "-y", "-o", "log", "-e"]);
        strace.arg("trace=pread64,landlock_restrict_self");
        strace.arg(env!("CARGO_BIN_EXE_goldsmith"));
        let done = folder.run(strace.args(line.split(' ')));
        assert_eq!((done.status, &*done.stderr), (0, ""), "{line}");
        let log = std::fs::read_to_string(folder.path("log")).unwrap();
        let calls: Vec<_> = log.lines().collect();
        let wall = calls.iter().rposition(|it| it.contains("restrict_self("));
        let name = format!("/{image}>");
        let read = calls.iter().position(|it| it.contains(&name));
        let (wall, read) = wall.zip(read).unwrap_or_else(|| panic!("{line}: {log}"));
        assert!(wall < read, "{line}: {log}");
    }
}

/// As it comes, without a word of the user's about the sandbox; and not where he wants none.
#[test]
fn sandbox_is_on_by_default() {
    let folder = prepared();
    let walls = |line: &str| {
        let mut strace = Command::new("strace");
        strace.env_remove("GOLDSMITH_SANDBOX");
        strace.args(["-f", "-qq", "-o", "log", "-e"]);
        strace.arg("trace=landlock_restrict_self,seccomp,prlimit64");
        strace.arg(env!("CARGO_BIN_EXE_goldsmith"));
        let done = folder.run(strace.args(line.split(' ')));
        assert_eq!((done.status, &*done.stderr), (0, ""), "{line}");
        let log = std::fs::read_to_string(folder.path("log")).unwrap();
        let count = |call: &str| {
            let calls = log.lines().filter(|it| it.contains(call));
            calls.filter(|it| it.ends_with("= 0")).count()
        };
        [
            count("landlock_restrict_self("),
            count("seccomp(SECCOMP_SET_MODE_FILTER"),
            count("RLIMIT_CORE, {rlim_cur=0, rlim_max=0}"),
            count("RLIMIT_NOFILE, {rlim_cur=0, rlim_max=0}"),
        ]
    };
    // A target may be given the rights of what it replaces until the last one.
    assert_eq!(walls("info golden.raw"), [3, 4, 1, 1]);
    assert_eq!(walls("convert -O qcow2 golden.raw out.qcow2"), [3, 3, 1, 1]);
    assert_eq!(walls("info --sandbox=off golden.raw"), [0, 0, 0, 0]);
}

/// Only what the policy lets an image name, and what the user names.
#[test]
fn image_named_by_the_user_may_stand_anywhere() {
    let folder = prepared();
    std::fs::create_dir(folder.path("far")).unwrap();
    std::fs::rename(folder.path("golden.raw"), folder.path("far/golden.raw")).unwrap();
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, folder.path(at)).unwrap();
    link("far/golden.raw", "link.raw");
    link("far/made.qcow2", "made.qcow2");
    link("far", "way");
    link("deeper/pointed.raw", "pointed.raw");
    for line in [
        "info link.raw",
        "info way/golden.raw",
        "convert -f raw -O qcow2 link.raw made.qcow2",
        "convert -f qcow2 -O raw --resume way/journal way/made.qcow2 deeper/back.raw",
        "convert -f raw -O raw --resume way/journal link.raw pointed.raw",
        "convert -f raw -O qcow2 -B ../far/golden.raw -F raw link.raw deeper/over.qcow2",
        "convert --references allow -f qcow2 -O raw deeper/over.qcow2 over.raw",
        "create -f qcow2 -o data_file=far/data apart.qcow2 1M",
        "resize --references allow -f qcow2 apart.qcow2 2M",
        "bitmap --add far/made.qcow2 b",
        "convert -f qcow2 -O qcow2 made.qcow2 deeper/copy.qcow2",
        "bitmap --add --merge b -b far/made.qcow2 -F qcow2 deeper/copy.qcow2 c",
        "rebase --references allow -f qcow2 -b made.qcow2 -F qcow2 deeper/over.qcow2 -u",
        "compare -f raw -F qcow2 link.raw made.qcow2",
        "dd -f raw -O raw if=link.raw of=way/dd.raw",
        "measure -O qcow2 way/golden.raw",
        "convert -n -f raw -O qcow2 link.raw made.qcow2",
    ] {
        let done = run(&folder, "require", line);
        assert_eq!((done.status, &*done.stderr), (0, ""), "{line}: {done:?}");
    }
    let device = "info /dev/stdin";
    let mut command = Command::new(env!("CARGO_BIN_EXE_goldsmith"));
    command.env("GOLDSMITH_SANDBOX", "require");
    command.stdin(std::fs::File::open(folder.path("link.raw")).unwrap());
    let done = folder.run(command.args(device.split(' ')));
    assert_eq!((done.status, &*done.stderr), (0, ""), "{done:?}");
}

#[test]
fn directory_without_a_name_is_none_for_temporary_files() {
    let folder = prepared();
    folder.goldsmith_ok("convert -f raw -O xenserver-ovf golden.raw disk.tgz");
    let mut command = Command::new(env!("CARGO_BIN_EXE_goldsmith"));
    let done = folder.run(command.args(["checksum", "disk.tgz"]).env("TMPDIR", ""));
    assert_eq!((done.status, &*done.stderr), (0, ""), "{done:?}");
}

/// The files that say it are out of reach by then.
#[test]
fn dates_are_told_in_the_local_time() {
    let folder = prepared();
    folder.goldsmith_ok("snapshot -c one other.qcow2");
    for line in ["snapshot -l other.qcow2", "info other.qcow2"] {
        let [inside, outside, far] = [
            ("require", "Asia/Tokyo"),
            ("off", "Asia/Tokyo"),
            ("off", "UTC"),
        ]
        .map(|(mode, zone)| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_goldsmith"));
            command.env("GOLDSMITH_SANDBOX", mode).env("TZ", zone);
            folder.run(command.args(line.split(' '))).stdout
        });
        assert_eq!(inside, outside);
        let known = std::path::Path::new("/usr/share/zoneinfo/Asia/Tokyo").exists();
        assert_eq!(outside == far, !known, "{outside} {far}");
    }
}

#[test]
fn mode_is_an_option_of_every_subcommand_and_a_wrong_one_is_refused() {
    let folder = prepared();
    for line in [
        "info --sandbox=require golden.raw",
        "--sandbox=off info golden.raw",
        "convert --sandbox=try -O qcow2 golden.raw out.qcow2",
    ] {
        folder.goldsmith_ok(line);
    }
    let done = folder.goldsmith("info --sandbox=perhaps golden.raw");
    assert_eq!(done.status, 1);
    assert!(done.stderr.contains("require, try, off"), "{done:?}");
}

/// Nobody is told to look for the fault in the sandbox where it is none.
#[test]
fn what_is_refused_outside_as_well_is_told_without_the_sandbox() {
    let folder = prepared();
    let done = run(&folder, "require", "info nothing.raw");
    assert_eq!(done.status, 1);
    assert!(!done.stderr.contains("sandbox"), "{done:?}");
    // Which everybody may read, and not even root may write to.
    let ostype = "/proc/sys/kernel/ostype";
    for line in [
        "resize -f raw TARGET 1M",
        "convert -f raw golden.raw TARGET",
    ] {
        let done = run(&folder, "require", &line.replace("TARGET", ostype));
        assert_eq!(done.status, 1);
        let why = "cannot open: Permission denied (os error 13)\n";
        assert!(done.stderr.ends_with(why), "{line}: {done:?}");
    }
}
