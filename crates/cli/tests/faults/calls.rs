//! Calls that the kernel refuses or does by halves, one after the other, and the order of those that make
//! a target durable; all by `strace`, in the real command.

use std::process::Output;

use goldsmith_testkit::figure;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;
use serde_json::{Value, json};

use crate::{Place, output, said};

/// Runs `line` with each `call` that has the number `nth`, from 1, among those of its thread answered by
/// `answer` instead of being done. Also says whether there was one.
///
/// One kind at a time: of a set strace counts each kind apart, so that a rarer one is never the first.
fn injected(place: &Place, line: &str, call: &str, answer: &str, nth: usize) -> (Output, bool) {
    let trace = format!("trace={call}");
    let inject = format!("inject={call}:{answer}:when={nth}");
    let log = place.path("trace");
    let log_text = log.to_str().unwrap();
    let strace = [
        "strace", "-f", "-qq", "-o", log_text, "-e", &trace, "-e", &inject,
    ];
    let output = output(&mut place.command(&strace, line));
    let injected = std::fs::read_to_string(&log)
        .unwrap()
        .contains("(INJECTED)");
    std::fs::remove_file(&log).unwrap();
    (output, injected)
}

/// Whether it was the loader of programs that failed, before there was a command.
fn is_of_the_loader(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stderr).contains("error while loading shared libraries")
}

const TARGETS: [&str; 6] = [
    "raw",
    "qcow2",
    "qcow2 -c",
    "vpc",
    "vpc -o subformat=fixed",
    "xenserver-ovf",
];

fn source() -> (Place, Vec<u8>) {
    let picture = disk("256k:A 3M:- 128k:b 640k:- 512k:C");
    let place = Place::new();
    place.write("source", &picture);
    (place, picture.bytes().to_vec())
}

/// Each write, growth and flush fails once: the command says so by the target's name, and no target
/// appears.
#[test]
fn failing_call_fails_the_conversion_by_name() {
    let (place, _) = source();
    let mut faults = 0;
    for options in TARGETS {
        for (calls, error) in [
            ("pwrite64", "EIO"),
            ("pwrite64", "ENOSPC"),
            ("ftruncate", "ENOSPC"),
            ("fdatasync", "EIO"),
            ("fdatasync", "ENOSPC"),
            ("fsync", "EIO"),
            ("fsync", "ENOSPC"),
            ("linkat", "ENOSPC"),
        ] {
            let mut late_ones = Vec::new();
            for nth in 1.. {
                // Every byte is read and written here: what the kernel is asked to copy it may refuse.
                let line = format!("convert -q -m 1 -S 4k -f raw -O {options} source target");
                let what = format!("{line}: call {nth} of {calls}: {error}");
                let answer = format!("error={error}");
                let (output, injected) = injected(&place, &line, calls, &answer, nth);
                if !injected {
                    assert!(output.status.success(), "{what}: {output:?}");
                    // These become longer by being written.
                    let has_none = calls == "ftruncate"
                        && (options.ends_with("fixed") || options == "xenserver-ovf");
                    assert!(nth > 1 || has_none, "{what}: there is none");
                    std::fs::remove_file(place.path("target")).unwrap();
                    break;
                }
                faults += 1;
                assert_eq!(output.status.code(), Some(1), "{what}: {output:?}");
                let said = said(&output);
                let number = if error == "EIO" { 5 } else { 28 };
                assert!(said.starts_with("goldsmith: target: "), "{what}: {said}");
                assert!(
                    said.ends_with(&format!("(os error {number})")),
                    "{what}: {said}"
                );
                // The name is the last thing but one: only its own flush comes later.
                let late = said.contains("cannot write its directory to disk");
                let names = place.names();
                assert!(
                    names == ["source"] || late && names == ["source", "target"],
                    "{what}"
                );
                late_ones.push(late);
                let _ = std::fs::remove_file(place.path("target"));
            }
            // The file's own, and then that of its directory.
            let both = late_ones == [false, true];
            assert!(calls != "fsync" || both, "{options}: {late_ones:?}");
        }
    }
    figure(format_args!("{faults} calls of conversions failed"));
    assert!(faults >= 80, "only {faults} faults");
}

/// Nothing is stored safely, and what a file system of the network lost already it tells whoever closes
/// the file.
#[test]
fn failing_close_fails_a_conversion_that_waits_for_nothing() {
    let (place, _) = source();
    for options in TARGETS {
        let mut faults = 0;
        let line = format!("convert -q -m 1 -t unsafe -f raw -O {options} source target");
        for nth in 1.. {
            let (output, injected) = injected(&place, &line, "close", "error=EDQUOT", nth);
            if output.status.success() {
                std::fs::remove_file(place.path("target")).unwrap();
            } else if !is_of_the_loader(&output) {
                let said = said(&output);
                assert_eq!(output.status.code(), Some(1), "{nth}: {output:?}");
                assert!(said.starts_with("goldsmith: target: "), "{nth}: {said}");
                assert!(said.ends_with("(os error 122)"), "{nth}: {said}");
                assert_eq!(place.names(), ["source"], "{nth}");
                faults += 1;
            }
            if !injected {
                break;
            }
        }
        assert!(faults > 0, "{options}: closing tells nothing");
    }
}

/// What the kernel copies is flushed, too, where all is to be written through; a flush that fails tells of
/// it once, and of whoever's write it was.
#[test]
fn failing_flush_behind_a_copy_fails_the_conversion() {
    let place = Place::new();
    place.write("source", &disk("40M:A"));
    let line = "convert -q -m 1 -t writethrough -f raw -O qcow2 source target";
    // As many flushes has no other thread than the one that copies.
    for nth in 15..25 {
        let (output, injected) = injected(&place, line, "fdatasync", "error=EIO", nth);
        assert!(injected, "{nth}: {output:?}");
        assert_eq!(output.status.code(), Some(1), "flush {nth}: {output:?}");
        assert!(said(&output).starts_with("goldsmith: target: "));
        assert_eq!(place.names(), ["source"]);
    }
}

#[test]
fn failing_read_fails_the_conversion_by_name() {
    let (place, _) = source();
    let mut faults = 0;
    place.ok("convert -f raw -O qcow2 -c source disk");
    place.ok("convert -f raw -O vpc source disk.vhd");
    for (format, name) in [("raw", "source"), ("qcow2", "disk"), ("vpc", "disk.vhd")] {
        for nth in 1.. {
            let line = format!("convert -q -m 1 -S 4k -f {format} -O raw {name} target");
            let (output, injected) = injected(&place, &line, "pread64", "error=EIO", nth);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if !injected {
                assert!(output.status.success(), "{said}");
                std::fs::remove_file(place.path("target")).unwrap();
                break;
            }
            if is_of_the_loader(&output) {
                continue;
            }
            faults += 1;
            assert_eq!(output.status.code(), Some(1), "read {nth}: {said}");
            assert!(
                said.starts_with(&format!("goldsmith: {name}: ")),
                "read {nth}: {said}"
            );
            assert!(
                said.trim_end().ends_with("(os error 5)"),
                "read {nth}: {said}"
            );
            assert!(!place.path("target").exists());
        }
    }
    figure(format_args!("{faults} reads of conversions failed"));
    assert!(faults >= 10, "only {faults} faults");
}

/// A signal that somebody catches is no failure: the call is made again.
#[test]
fn interrupted_call_is_made_again() {
    let (place, bytes) = source();
    let mut faults = 0;
    for options in TARGETS {
        let format = options.split(' ').next().unwrap();
        for sparse in ["", "-S 4k "] {
            for calls in [
                "pread64",
                "pwrite64",
                "ftruncate",
                "fdatasync",
                "fsync",
                "copy_file_range",
            ] {
                for nth in 1.. {
                    let line = format!("convert -q -m 1 {sparse}-f raw -O {options} source target");
                    let what = format!("{line}: call {nth} of {calls}");
                    let (output, injected) = injected(&place, &line, calls, "error=EINTR", nth);
                    if is_of_the_loader(&output) {
                        continue;
                    }
                    assert!(output.status.success(), "{what}: {output:?}");
                    assert!(place.guest("target", format) == bytes, "{what}");
                    if !injected {
                        break;
                    }
                    faults += 1;
                }
            }
        }
    }
    figure(format_args!("{faults} calls interrupted"));
    assert!(faults >= 80, "only {faults} faults");
}

/// The kernel may do less than it was asked to; half of it, here, each time.
#[test]
fn short_reads_and_writes_change_nothing() {
    let (place, bytes) = source();
    let shim = place.path("shim.c");
    std::fs::write(&shim, SHIM).unwrap();
    let mut cc = std::process::Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(place.path("shim.so"))
        .arg(&shim);
    let made = cc
        .status()
        .expect("a C compiler, which Rust needs to link, is there");
    assert!(made.success());
    for (from, options) in [
        ("-f raw source", "raw -S 4k"),
        ("-f raw source", "qcow2"),
        ("-f raw source", "qcow2 -c"),
        ("-f raw source", "vpc"),
        ("-f raw source", "vpc -o subformat=fixed"),
        ("-f qcow2 disk", "raw"),
        ("-f qcow2 packed", "raw"),
        ("-f vpc disk.vhd", "raw"),
    ] {
        if !place.path("disk").exists() {
            place.ok("convert -f raw -O qcow2 source disk");
            place.ok("convert -f raw -O qcow2 -c source packed");
            place.ok("convert -f raw -O vpc source disk.vhd");
        }
        let counts = place.path("counts");
        let line = format!("convert -q -O {options} {from} target");
        let mut command = place.command(&[], &line);
        command
            .env("LD_PRELOAD", place.path("shim.so"))
            .env("SHORT_CALLS", &counts)
            // The shim opens the file in which it counts.
            .env("GOLDSMITH_SANDBOX", "off");
        let output = output(&mut command);
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{line}: {output:?}"
        );
        let format = options.split(' ').next().unwrap();
        assert!(place.guest("target", format) == bytes, "{line}");
        let counts = std::fs::read_to_string(counts).unwrap();
        assert!(
            counts.len() >= 10,
            "{line}: only {} calls were short",
            counts.len()
        );
    }
}

/// Halves each positioned read and write, and writes down a letter for each.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

static void note(char letter) {
    int fd = open(getenv("SHORT_CALLS"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (write(fd, &letter, 1) != 1) abort();
    close(fd);
}

ssize_t pread64(int fd, void *buf, size_t len, off64_t at) {
    ssize_t (*real)(int, void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pread64");
    if (len > 1) { note('r'); len = (len + 1) / 2; }
    return real(fd, buf, len, at);
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t at) {
    ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");
    if (len > 1) { note('w'); len = (len + 1) / 2; }
    return real(fd, buf, len, at);
}
"#;

/// What stands under the name is durable before it has the name, and the name is before the command
/// ends well.
#[test]
fn target_is_stored_before_it_has_its_name_and_its_name_before_success() {
    let (place, _) = source();
    for options in TARGETS {
        for stands_there in [false, true] {
            let _ = std::fs::remove_file(place.path("target"));
            if stands_there {
                std::fs::write(place.path("target"), "old").unwrap();
            }
            let log = place.text("trace");
            let calls =
                "trace=pwrite64,copy_file_range,ftruncate,fdatasync,fsync,linkat,rename,exit_group";
            let strace = ["strace", "-f", "-qq", "-y", "-o", &log, "-e", calls];
            let line = format!("convert -q -f raw -O {options} source target");
            let output = output(&mut place.command(&strace, &line));
            assert!(output.status.success(), "{output:?}");
            let log = place.bytes("trace");
            let log = String::from_utf8(log).unwrap();
            std::fs::remove_file(place.path("trace")).unwrap();

            let directory = format!("<{}>", place.0.path().display());
            let steps: Vec<_> = log
                .lines()
                .filter_map(|line| step(line, &directory))
                .collect();
            let position = |step: Step| {
                let found = steps.iter().rposition(|found| *found == step);
                found.unwrap_or_else(|| panic!("{step:?} is missing: {log}"))
            };
            let order = [
                Step::Write,
                Step::Sync,
                Step::Name,
                Step::SyncDirectory,
                Step::Exit,
            ];
            let at = order.map(position);
            assert!(at.is_sorted(), "{options}: {log}");
            // Nothing is written once the name is there.
            assert!(
                steps[at[2]..].iter().all(|step| *step != Step::Write),
                "{log}"
            );
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Write,
    Sync,
    Name,
    SyncDirectory,
    Exit,
}

/// What a line of a trace is about, if it is about the target.
fn step(line: &str, directory: &str) -> Option<Step> {
    let call = line.split_once(' ')?.1.trim_start();
    let name = call.split('(').next()?;
    match name {
        "pwrite64" | "copy_file_range" | "ftruncate" => Some(Step::Write),
        "fsync" if call.contains(directory) => Some(Step::SyncDirectory),
        "fsync" => Some(Step::Sync),
        "linkat" | "rename" if call.ends_with(" = 0") => Some(Step::Name),
        "exit_group" => Some(Step::Exit),
        _ => None,
    }
}

/// [qemu] A file system that can be asked for locks has them: where one cannot be had, nobody knows who
/// else is at work.
#[test]
fn lock_that_fails_is_no_lock_that_is_not_needed() {
    let (place, _) = source();
    let (mut refused, mut nth) = (0, 1);
    loop {
        place.ok("convert -f raw -O qcow2 source disk");
        let (output, injected) = injected(
            &place,
            "resize -f qcow2 disk 8M",
            "fcntl",
            "error=ENOLCK",
            nth,
        );
        if !injected {
            break;
        }
        nth += 1;
        if !output.status.success() {
            let said = said(&output);
            assert!(said.contains("disk: Failed to lock byte "), "{said}");
            refused += 1;
        }
    }
    // Those of each permission, and those that others may have.
    assert_eq!(refused, 10, "of {nth} calls");
}

/// [fsync(2)] Some file systems have nothing to flush of a directory, and say so.
#[test]
fn directory_that_cannot_be_flushed_is_no_failure() {
    let (place, disk) = source();
    // Each file is flushed before its directory: that of the journal, and that of the target.
    let resumed = "convert --resume journal -f raw -O qcow2 source target";
    for (line, nth) in [
        ("convert -f raw -O qcow2 source target", 2),
        (resumed, 2),
        (resumed, 4),
    ] {
        let (output, injected) = injected(&place, line, "fsync", "error=EINVAL", nth);
        assert!(injected && output.status.success(), "{}", said(&output));
        assert!(place.guest("target", "qcow2") == disk);
        std::fs::remove_file(place.path("target")).unwrap();
    }
}

/// What is stopped before the image is another one leaves the old one, and all that comes later is done to its end.
/// Bitmaps hear of what a resize over a backing file keeps by itself, or are told that nothing was done.
#[test]
fn stopped_edit_is_done_or_not() {
    let picture = disk("2M:A");
    let over = "-b base -F raw top 1015808";
    let bytes = ["1015808 4194304", "20971520 31457280", "20971520 10485760"];
    let [longer, vhd, shorter] = bytes.map(|it| it.split_once(' ').unwrap());
    let (mut signals, mut stopped) = (0, 0);
    for (format, create, edit, sizes) in [
        (
            "qcow2",
            over,
            "resize --references same-directory top 4M",
            longer,
        ),
        (
            "qcow2",
            over,
            "amend --references same-directory -o refcount_bits=8,size=4M top",
            longer,
        ),
        ("vpc", "top 20M", "resize top 30M", vhd),
        ("vpc", "top 20M", "resize --shrink top 10M", shorter),
        ("vpc", "-o subformat=fixed top 20M", "resize top 30M", vhd),
        (
            "vpc",
            "-o subformat=fixed top 20M",
            "resize --shrink top 10M",
            shorter,
        ),
    ] {
        let (verb, rest) = edit.split_once(' ').unwrap();
        let line = format!("{verb} -q -f {format} {rest}");
        for nth in 1..10 {
            let place = Place::new();
            place.write("base", &picture);
            place.ok(&format!("create -q -f {format} {create}"));
            if format == "qcow2" {
                place.ok("bitmap -f qcow2 --add top day");
            }
            let (output, was_signalled) = told_to_stop(&place, &line, nth);
            signals += u32::from(was_signalled);
            let what = format!("{line}, stopped at {nth}: {output:?}");
            let info = place.run(&format!("info -f {format} --output=json top"));
            let info: Value = serde_json::from_slice(&info.stdout).unwrap();
            let (old, new) = sizes;
            let size = if output.status.success() { new } else { old };
            assert_eq!(info["virtual-size"].to_string(), size, "{what}");
            if !output.status.success() {
                assert!(said(&output).ends_with("stopped on request"), "{what}");
                stopped += 1;
            }
            if format == "qcow2" {
                let data = &info["format-specific"]["data"];
                assert_eq!(data["bitmaps"][0]["flags"], json!(["auto"]), "{what}");
                qemu::check(place.path("top"));
            }
            let checked = place.run(&format!("check -q -f {format} top"));
            assert!(
                checked.status.success() || !output.status.success(),
                "{what}"
            );
        }
    }
    figure(format_args!(
        "{signals} signals to edits at flushes, {stopped} of which stopped one"
    ));
    assert!(stopped >= 1, "none was stopped");
}

/// The same of what a check gives back.
#[test]
fn stopped_repair_is_done_or_not() {
    let place = Place::new();
    place.write("raw", &disk("8M:A"));
    place.ok("convert -f raw -O vpc raw dynamic");
    let mut dynamic = place.bytes("dynamic");
    // [spec BAT] The first block has no place any more.
    dynamic[1536..1540].fill(0xff);
    place.ok("convert -f raw -O vpc -o subformat=fixed raw fixed");
    let fixed = [place.bytes("fixed"), vec![0; 4096]].concat();
    let mut signals = 0;
    for (image, repair) in [(dynamic, "leaks"), (fixed, "all")] {
        for nth in 1..8 {
            std::fs::write(place.path("disk"), &image).unwrap();
            let line = format!("check -q -r {repair} -f vpc disk");
            let (output, was_signalled) = told_to_stop(&place, &line, nth);
            signals += u32::from(was_signalled);
            let left = place.run("check -q -f vpc disk");
            let what = format!("{line}, stopped at {nth}: {output:?}, {left:?}");
            assert_eq!(output.status.success(), left.status.success(), "{what}");
            if !output.status.success() {
                assert!(said(&output).ends_with("stopped on request"), "{what}");
            }
        }
    }
    assert!(signals >= 5, "only {signals} signals");
}

/// Runs `line`, which is told to stop at the `nth` flush of a thread, from 1. Whether there was one.
fn told_to_stop(place: &Place, line: &str, nth: usize) -> (Output, bool) {
    let log = tempfile::NamedTempFile::new().unwrap();
    // Long enough for the thread that hears of it.
    let inject = format!("inject=fdatasync:signal=INT:delay_exit=200ms:when={nth}");
    let strace = "env --default-signal strace -f -qq -e trace=fdatasync -e";
    let to_log = ["-o", log.path().to_str().unwrap()];
    let words: Vec<_> = strace.split(' ').chain([&*inject]).chain(to_log).collect();
    let output = output(&mut place.command(&words, line));
    let log = std::fs::read_to_string(log.path()).unwrap();
    (output, log.contains("SIGINT"))
}
