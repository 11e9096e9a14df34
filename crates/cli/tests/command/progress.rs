//! Progress: for programs, and for whoever asks by a signal; and what is left when one says stop

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use goldsmith_testkit::pattern::disk;
use serde_json::Value;

use crate::Folder;

#[test]
fn progress_for_programs_is_lines_of_json() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("9M:A 300M:- 9M:b"));
    let line = "convert --progress=json -f raw -O qcow2 --verify --file-digest md5";
    let said = folder.goldsmith_ok(&format!("{line} disk.raw target"));
    let lines: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (result, told) = lines.split_last().unwrap();
    assert_eq!(result["verified"], true);
    let size = disk("318M:-").len();
    let file = std::fs::metadata(folder.path("target")).unwrap().len();
    let mut rest = told;
    for (phase, total) in [("copy", size), ("verify", size), ("checksum", file)] {
        let len = rest.iter().take_while(|it| it["phase"] == phase).count();
        let (here, later) = rest.split_at(len);
        rest = later;
        for it in here {
            let keys: Vec<_> = it.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["phase", "done", "total", "data", "rate", "left"]);
            assert_eq!(it["total"], total);
        }
        let done: Vec<_> = here.iter().map(|it| it["done"].as_u64().unwrap()).collect();
        assert!(done.is_sorted(), "{done:?}");
        assert_eq!(
            (done.first(), done.last()),
            (Some(&0), Some(&total)),
            "{phase}"
        );
        assert_eq!(here[0]["rate"], Value::Null);
        assert_eq!(here[len - 1]["left"], 0);
    }
    assert!(rest.is_empty(), "{rest:?}");

    for line in [
        "compare --progress=json -f raw -F qcow2 disk.raw target",
        "checksum --progress=json -f raw disk.raw",
    ] {
        let said = folder.goldsmith_ok(line);
        let json = said.lines().filter(|line| line.starts_with('{')).count();
        assert_eq!(json, said.lines().count() - 1, "then the answer: {said}");
        assert!(json >= 2);
    }
    // Nobody else sees it.
    let said = folder.goldsmith_ok("convert -q --progress=json -f raw -O qcow2 disk.raw target");
    assert_eq!(said, "");
}

#[test]
fn percents_of_several_phases_reach_a_hundred_once() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("9M:A"));
    let said = folder.goldsmith_ok("convert -p --verify -f raw -O qcow2 disk.raw target");
    assert_eq!(said.matches("(100.00/100%)").count(), 1, "{said:?}");
    assert!(said.contains("    (0.00/100%)\r"), "{said:?}");
    assert!(said.ends_with("holds this disk\n"), "{said:?}");
}

/// Where qemu-img has none.
#[test]
fn progress_is_shown_of_whatever_takes_long() {
    let folder = Folder::new();
    folder.goldsmith_ok("create -f qcow2 -o preallocation=metadata,cluster_size=4k disk.qcow2 64M");
    for (line, phase) in [
        (
            "create -f raw -o preallocation=full made.raw 9M",
            "allocate",
        ),
        (
            "create -f qcow2 -o preallocation=full made.qcow2 9M",
            "allocate",
        ),
        (
            "resize -f raw --preallocation full made.raw 18M",
            "allocate",
        ),
        (
            "resize -f qcow2 --preallocation full made.qcow2 18M",
            "allocate",
        ),
        ("resize -f qcow2 --shrink made.qcow2 9M", "allocate"),
        ("check -f qcow2 disk.qcow2", "check"),
        ("check -f qcow2 -r all disk.qcow2", "check"),
        ("check -f raw made.raw", ""),
    ] {
        let (command, rest) = line.split_once(' ').unwrap();
        let said = folder.goldsmith(&format!("{command} --progress=json {rest}"));
        let told = said.stdout.lines().filter(|line| line.starts_with('{'));
        let told: Vec<Value> = told
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        if phase.is_empty() {
            assert_eq!(said.status, 63, "{line}");
            continue;
        }
        assert_eq!((said.status, &*said.stderr), (0, ""), "{line}: {said:?}");
        assert!(
            told.iter().all(|it| it["phase"] == phase),
            "{line}: {told:?}"
        );
        let (first, last) = (&told[0], &told[told.len() - 1]);
        assert_eq!(first["done"], 0, "{line}");
        assert_eq!(last["done"], last["total"], "{line}");
        // Not known where nothing is added.
        assert_eq!(last["total"] == 0, line.contains("--shrink"), "{line}");
        assert_eq!(
            folder.goldsmith(&format!("{command} -q -p {rest}")).stdout,
            "",
            "{line}"
        );
    }
    let said = folder.goldsmith_ok("check -p -f qcow2 disk.qcow2");
    assert!(said.contains("    (100.00/100%)\r\n"), "{said:?}");
}

#[test]
fn standard_output_is_for_one_reader() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("9M:A"));
    folder.qemu_img_ok("convert -f raw -O qcow2 disk.raw disk.qcow2");
    for line in [
        "check --output=json -f qcow2 disk.qcow2",
        "checksum --output=json -f qcow2 disk.qcow2",
        "convert --output=json -f qcow2 -O raw disk.qcow2 target",
    ] {
        let refused = folder.goldsmith(&format!("{line} -p"));
        assert_eq!((refused.status, &*refused.stdout), (1, ""), "{line}");
        assert!(refused.stderr.contains("--progress=json"), "{refused:?}");
        let said = folder.goldsmith_ok(&format!("{line} --progress=json"));
        let lines: Vec<Value> = said
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let (result, told) = lines.split_last().unwrap();
        assert!(!told.is_empty() && told.iter().all(|it| it["phase"].is_string()));
        let alone: Value = serde_json::from_str(&folder.goldsmith_ok(line)).unwrap();
        assert_eq!(*result, alone, "{line}");
    }
}

fn signal(name: &str, child: &Child) {
    let pid = child.id().to_string();
    let done = Command::new("kill").args([name, &pid]).status().unwrap();
    assert!(done.success());
}

/// Starts a command with nothing to be shown, on a disk of this size; returns when it heeds this
/// signal.
fn begun(folder: &Folder, program: &str, signal: u32, size: u64) -> Child {
    make_source(folder, size);
    let line = "convert -c -S 0 -f raw -O qcow2 disk.raw target";
    started(folder, program, signal, line)
}

/// An empty disk.raw of this size.
fn make_source(folder: &Folder, size: u64) {
    let source = std::fs::File::create(folder.path("disk.raw")).unwrap();
    source.set_len(size).unwrap();
}

/// Starts `line`, with no signal ignored, as it may be where the tests run.
fn spawned(folder: &Folder, program: &str, line: &str) -> Child {
    Command::new("env")
        .args(["--default-signal", program])
        .args(line.split(' '))
        .current_dir(folder.path(""))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Starts `line`; returns when it heeds this signal.
fn started(folder: &Folder, program: &str, signal: u32, line: &str) -> Child {
    let child = spawned(folder, program, line);
    let status = format!("/proc/{}/status", child.id());
    let heeds = || {
        let status = std::fs::read_to_string(&status).unwrap();
        let caught = status
            .lines()
            .find_map(|it| it.strip_prefix("SigCgt:"))
            .unwrap();
        let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
        caught >> (signal - 1) & 1 == 1
    };
    while !heeds() {
        std::thread::yield_now();
    }
    child
}

/// A disk whose conversion does not end by itself.
const ENDLESS: u64 = 1 << 40;
const USR1: u32 = 10;
/// The one that goldsmith heeds last.
const TERM: u32 = 15;

#[test]
fn sigusr1_prints_progress_as_qemu_img_does() {
    for (program, last, size, asked) in [
        (env!("CARGO_BIN_EXE_goldsmith"), TERM, ENDLESS, 2),
        // It answers when there is another percent, and forgets who asks while it answers.
        ("qemu-img", USR1, 8 << 30, 1),
    ] {
        let folder = Folder::new();
        let mut child = begun(&folder, program, last, size);
        let mut told = BufReader::new(child.stderr.take().unwrap());
        for _ in 0..asked {
            signal("-USR1", &child);
            let mut line = String::new();
            told.read_line(&mut line).unwrap();
            let number = line.strip_prefix("    (").unwrap();
            let number = number.strip_suffix("/100%)\n").unwrap();
            assert_eq!(number.split_once('.').unwrap().1.len(), 2, "{line:?}");
            assert!((0.0..100.0).contains(&number.parse().unwrap()), "{line:?}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let mut said = String::new();
        child.stdout.unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "", "{program}");
    }
}

#[test]
fn stopped_conversion_tells_what_stands_there() {
    for signal_name in ["-INT", "-TERM", "-HUP"] {
        for old in [None, Some("my only copy")] {
            let folder = Folder::new();
            if let Some(old) = old {
                std::fs::write(folder.path("target"), old).unwrap();
            }
            let child = begun(&folder, env!("CARGO_BIN_EXE_goldsmith"), TERM, ENDLESS);
            signal(signal_name, &child);
            let done = child.wait_with_output().unwrap();
            assert_eq!(done.status.code(), Some(130));
            let left = match old {
                None => "no target was made",
                Some(_) => "target is what it was before",
            };
            let said = String::from_utf8(done.stderr).unwrap();
            assert_eq!(said, format!("goldsmith: stopped on request: {left}\n"));
            let found = std::fs::read_to_string(folder.path("target")).ok();
            assert_eq!(found.as_deref(), old);
            let names = std::fs::read_dir(folder.path("")).unwrap().count();
            assert_eq!(names, 1 + usize::from(old.is_some()));
        }
    }
}

#[test]
fn signal_that_was_ignored_from_the_start_stops_nothing() {
    let folder = Folder::new();
    make_source(&folder, ENDLESS);
    let goldsmith = env!("CARGO_BIN_EXE_goldsmith");
    let line = format!("{goldsmith} convert -c -S 0 -f raw -O qcow2 disk.raw target");
    let mut child = started(&folder, "nohup", TERM, &line);
    signal("-HUP", &child);
    signal("-USR1", &child);
    let mut told = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.ends_with("/100%)\n") {
        assert!(line.is_empty() || line.starts_with("nohup: "), "{line:?}");
        line.clear();
        told.read_line(&mut line).unwrap();
    }
    signal("-TERM", &child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// Where nobody can listen to them, signals end the command as they end any.
#[test]
fn signal_ends_a_command_that_could_not_start_to_listen() {
    let folder = Folder::new();
    make_source(&folder, ENDLESS);
    let goldsmith = env!("CARGO_BIN_EXE_goldsmith");
    // What traces it is not its parent, which this is.
    let line = format!(
        "-D -f -qq -o /dev/null -e trace=clone3 -e inject=clone3:error=EAGAIN:when=1 {goldsmith} \
         convert --progress=json -m 1 -c -S 0 -f raw -O qcow2 disk.raw target"
    );
    let mut child = spawned(&folder, "strace", &line);
    let mut told = BufReader::new(child.stdout.take().unwrap());
    told.read_line(&mut String::new()).unwrap();
    signal("-TERM", &child);
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.signal(), Some(15), "{done:?}");
    assert_eq!(std::fs::read_dir(folder.path("")).unwrap().count(), 1);
}

/// At a byte in a second none of these ends by itself.
#[test]
fn container_is_written_at_the_rate_that_was_asked_for_and_stopped_at_once() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("64k:A 1984k:-"));
    folder.goldsmith_ok("convert -f raw -O vpc disk.raw 0.vhd");
    for line in [
        "convert -r 1 -f raw --for xenserver-ovf disk.raw target",
        "convert -r 1 -f raw --for xenserver-ovf --digest crc32 disk.raw target",
        "convert -r 1 -f raw --for xenserver-ovf --verify disk.raw target",
        "convert -r 1 -f vpc --for xenserver-ovf --keep-chain 0.vhd target",
    ] {
        let child = started(&folder, env!("CARGO_BIN_EXE_goldsmith"), TERM, line);
        signal("-TERM", &child);
        let done = child.wait_with_output().unwrap();
        assert_eq!(done.status.code(), Some(130), "{line}: {done:?}");
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(said, "goldsmith: stopped on request: no target was made\n");
        assert_eq!(std::fs::read_dir(folder.path("")).unwrap().count(), 2);
    }
}

/// One works at the VHD and one packs it, or three and three.
#[test]
fn container_with_a_digest_takes_as_many_threads_as_were_asked_for() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("64k:A"));
    let threads = |count: usize| {
        let line =
            format!("convert -q -m {count} --digest crc32 -f raw -O xenserver-ovf disk.raw t");
        // Each makes it once, at its beginning.
        let calls = folder.calls("set_robust_list", &line).into_iter();
        calls.filter(|it| it.contains("set_robust_list(")).count()
    };
    let (one, three) = (threads(1), threads(3));
    assert_eq!((three - one, one), (4, 4), "two more are there in any case");
}
