//! `--resume`: killed again and again, the command ends with what one uninterrupted run makes.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use goldsmith_testkit::figure;
use goldsmith_testkit::mount;
use goldsmith_testkit::pattern::disk;

use crate::killed::{Moments, calls_seen, changing_calls, killed_at};
use crate::{Place, output, said};

const PARTIAL: &str = ".target.goldsmith-partial";

/// At the n-th call of a kind that changes a file, in each run anew: n grows slowly, so that many runs
/// are needed.
#[test]
fn killed_at_calls_again_and_again_it_ends_with_the_same_bytes() {
    let place = Place::new();
    place.write("source", &disk("2M:A 1M:- 3M:b 1M:0 2M:C"));
    place.write("behind", &disk("1M:A 8M:D"));
    let mut kills = 0;
    for options in [
        "raw -S 4k",
        "qcow2",
        "qcow2 -c",
        "qcow2 -B behind -F raw",
        "vpc --uuid 6f6c6473-6d69-7468-8000-000000000001 --timestamp 1000000000",
        "vpc -o subformat=fixed --uuid 6f6c6473-6d69-7468-8000-000000000001 --timestamp 7",
    ] {
        place.ok(&format!("convert -q -f raw -O {options} source whole"));
        let whole = place.bytes("whole");
        std::fs::remove_file(place.path("whole")).unwrap();
        let line =
            format!("convert -q -f raw -O {options} --resume journal --milestone 1M source target");
        for call in changing_calls(&place, &line) {
            std::fs::remove_file(place.path("target")).unwrap();
            let mut runs = 0;
            while killed_at(&place, &line, &call, 1 + runs / 3) {
                runs += 1;
                assert!(runs < 500, "{line}: it never ends");
                let done = !place.path("target").exists() || place.bytes("target") == whole;
                assert!(done, "{line}: half a target after {runs} kills at {call}");
            }
            assert!(runs > 0, "{line}: no kill at {call}");
            kills += runs;
            assert!(
                place.bytes("target") == whole,
                "{line}: other bytes after {runs} kills at {call}"
            );
            assert_eq!(place.names(), ["behind", "source", "target"]);
        }
        std::fs::remove_file(place.path("target")).unwrap();
    }
    figure(format_args!(
        "{kills} kills of conversions that were gone on with"
    ));
    assert!(kills >= 50, "only {kills} kills");
}

/// At moments that no call marks, with several threads.
#[test]
fn killed_at_random_moments_it_ends_with_the_same_bytes() {
    // Of each conversion, those that leave something to go on with.
    const KILLS: u32 = 10;
    let place = Place::new();
    place.write("source", &disk("8M:A 1M:- 8M:b 1M:0 6M:C"));
    for options in ["qcow2 -c", "qcow2 -S 4k", "raw -S 4k"] {
        let whole = format!("convert -q -m 2 -f raw -O {options} source whole");
        let mut moments = Moments::of(1, || place.ok(&whole));
        let whole = place.bytes("whole");
        std::fs::remove_file(place.path("whole")).unwrap();
        let line = format!(
            "convert -q -m 2 -f raw -O {options} --resume journal --milestone 1M source target"
        );
        let mut kills = 0;
        while kills < KILLS {
            let (_, was_killed) = moments.kill(place.command(&[], &line));
            if was_killed {
                kills += u32::from(place.path("journal").exists());
                continue;
            }
            assert!(place.bytes("target") == whole, "{line}");
            assert_eq!(place.names(), ["source", "target"]);
            std::fs::remove_file(place.path("target")).unwrap();
        }
        place.ok(&line);
        assert!(place.bytes("target") == whole, "{line}");
        assert_eq!(place.names(), ["source", "target"]);
        std::fs::remove_file(place.path("target")).unwrap();
    }
    figure(format_args!(
        "{} kills at random moments of conversions that were gone on with",
        3 * KILLS
    ));
}

/// The first is stopped at each call that names the target, its unfinished file or the journal, or goes to one
/// of them, until the second has ended; then it goes on.
#[test]
fn a_second_one_that_comes_meanwhile_spoils_nothing() {
    let place = Place::new();
    place.write("source", &disk("1M:A 512k:- 512k:b"));
    place.ok("convert -q -f raw -O qcow2 source whole");
    let whole = place.bytes("whole");
    std::fs::remove_file(place.path("whole")).unwrap();
    // By their whole names strace knows the files.
    let [journal, target] = ["journal", "target"].map(|name| place.text(name));
    let line = format!(
        "convert -q -m 1 -f raw -O qcow2 --resume {journal} --milestone 1M source {target}"
    );
    let (mut meetings, mut refused) = (0, 0);
    for is_begun in [false, true] {
        let prepare = || {
            _ = std::fs::remove_file(place.path("target"));
            if is_begun {
                assert!(killed_at(&place, &line, "fdatasync", 3), "{line}: no kill");
                assert_eq!(place.names(), [PARTIAL, "journal", "source"]);
            }
        };
        prepare();
        let files = on_files(&place);
        let words: Vec<_> = files.iter().map(String::as_str).collect();
        let calls = calls_seen(&place, &line, &words);
        for call in calls {
            for nth in 1.. {
                prepare();
                let Some((first, second)) = meeting(&place, &line, &call, nth) else {
                    assert!(nth > 1, "{line}: no stop at {call}");
                    break;
                };
                let what = format!("{line}, stopped at {call} {nth}: {first:?}, {second:?}");
                let failed = [&first, &second]
                    .into_iter()
                    .filter(|it| !it.status.success());
                for output in failed {
                    refused += 1;
                    let said = said(output);
                    assert!(WHY.iter().any(|why| said.ends_with(why)), "{what}");
                }
                assert!(first.status.success() || second.status.success(), "{what}");
                assert!(place.bytes("target") == whole, "{what}");
                if place.path("journal").exists() {
                    // What was done in vain can be gone on with as well.
                    place.ok(&line);
                    assert!(place.bytes("target") == whole, "{what}");
                }
                assert_eq!(place.names(), ["source", "target"], "{what}");
                meetings += 1;
            }
        }
    }
    figure(format_args!(
        "{meetings} conversions met another one of their journal, {refused} of which were refused"
    ));
    assert!(meetings >= 50, "only {meetings} meetings");
}

/// What is said to one of two that meet.
const WHY: [&str; 3] = [
    "another file has taken its name since this one was begun",
    "is another process using the image?",
    "another process was at work on it, and has just ended; look what it left",
];

/// The words of `strace` that have it see the calls on the target, its unfinished file and the journal alone.
fn on_files(place: &Place) -> Vec<String> {
    let names = ["target", PARTIAL, "journal"].into_iter();
    names
        .flat_map(|name| ["-P".to_owned(), place.text(name)])
        .collect()
}

/// Stops `line` at the `nth` `call`, from 1, on one of these, runs it a second time until that one has
/// ended, and has the first go on. What became of both; `None` if there is no such call.
fn meeting(place: &Place, line: &str, call: &str, nth: usize) -> Option<(Output, Output)> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let trace = format!("trace={call}");
    let inject = format!("inject={call}:signal=STOP:when={nth}");
    let files = on_files(place);
    // Apart from it, so that the child is the command itself.
    let mut strace = vec![
        "strace",
        "-D",
        "-f",
        "-qq",
        "-o",
        log.path().to_str().unwrap(),
    ];
    strace.extend(files.iter().map(String::as_str));
    strace.extend(["-e", &trace, "-e", &inject]);
    let mut first = place.command(&strace, line);
    let first = first
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut first = first.spawn().unwrap();
    let stopped = || {
        std::fs::read_to_string(log.path())
            .unwrap()
            .contains("stopped by SIGSTOP")
    };
    while !stopped() {
        if first.try_wait().unwrap().is_some() {
            assert!(first.wait_with_output().unwrap().status.success(), "{line}");
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let second = place.run(line);
    let pid = first.id().to_string();
    // Each thread is stopped at such a call of its own.
    while first.try_wait().unwrap().is_none() {
        let status = Command::new("kill").args(["-CONT", &pid]).status();
        assert!(status.unwrap().success());
        std::thread::sleep(Duration::from_millis(2));
    }
    Some((first.wait_with_output().unwrap(), second))
}

/// What fitted on a full disk is not done again when there is more space.
#[test]
fn conversion_onto_a_full_disk_goes_on_when_there_is_space() {
    let Some(small) = mount::small(12 << 20) else {
        return;
    };
    let other = Place::new();
    other.write("source", &disk("10M:a"));
    let place = Place::within(small.path());
    std::fs::write(small.path().join("filler"), vec![1; 6 << 20]).unwrap();
    let source = other.text("source");
    let line =
        format!("convert -q -m 1 -f raw -O qcow2 --resume journal --milestone 1M {source} target");
    let said = place.refused(&line);
    assert!(
        said.starts_with("goldsmith: target: ") && said.contains("No space left"),
        "{said}"
    );
    assert_eq!(place.names(), [PARTIAL, "journal"]);
    std::fs::remove_file(small.path().join("filler")).unwrap();
    // What did not fit, less than two milestones before that, and a megabyte to know the file by.
    let left = bytes_read(&place, &line, &source, &other.text("trace"));
    assert!((1..=7 << 20).contains(&left), "{left} bytes are read");
    assert_eq!(place.names(), ["target"]);
    let bytes = std::fs::read(source).unwrap();
    assert!(place.guest("target", "qcow2") == bytes);
}

/// Runs `line`, which must go well, and counts the bytes that it reads from the file `path`.
fn bytes_read(place: &Place, line: &str, path: &str, log: &str) -> u64 {
    let calls = "trace=read,readv,pread64,preadv,preadv2,mmap,copy_file_range,splice,sendfile";
    let strace = ["strace", "-f", "-qq", "-P", path, "-o", log, "-e", calls];
    let output = output(&mut place.command(&strace, line));
    let fine = output.status.success() && output.stderr.is_empty();
    assert!(fine, "{line}: {output:?}");
    let log = std::fs::read_to_string(log).unwrap();
    let results = log.lines().filter_map(|line| line.rsplit_once(" = "));
    // Between two file systems no call copies, and none is expected to.
    let results = results.filter(|(_, result)| !result.starts_with("-1 EXDEV"));
    let bytes = results.map(|(call, result)| {
        assert!(!call.contains("mmap"), "{call}");
        result.parse::<u64>().unwrap()
    });
    bytes.sum()
}
