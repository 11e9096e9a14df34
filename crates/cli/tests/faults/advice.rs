//! Calls that only ask or advise: what they cannot answer ends no conversion, and what they say of bytes that
//! were lost is not lost as well. By `strace`, in the real command.

use std::process::Output;

use goldsmith_testkit::pattern::disk;

use crate::{Place, output, said};

/// Runs `line` with the calls of `call` answered by `answer`, all of them or the one that it says; says how many
/// were.
fn injected(place: &Place, line: &str, call: &str, answer: &str) -> (Output, usize) {
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:{answer}"));
    let log = place.text("trace");
    let source = place.text("source");
    let mut strace = vec![
        "strace", "-f", "-qq", "-o", &log, "-e", &trace, "-e", &inject,
    ];
    if call == "lseek" {
        strace.extend(["-P", &source]);
    }
    let output = output(&mut place.command(&strace, line));
    let calls = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    (output, calls.matches("(INJECTED)").count())
}

/// Some file systems tell of a write that they lost to whoever had them store it, and to nobody else.
#[test]
fn write_that_is_lost_when_the_disk_begins_to_store_it_fails_the_conversion() {
    let place = Place::new();
    let picture = disk("40M:A");
    place.write("source", &picture);
    for (options, fails) in [
        ("raw", true),
        ("qcow2", true),
        ("vpc", true),
        ("raw -t unsafe", false),
    ] {
        let line = format!("convert -q -S 4k --digest sha256 -f raw -O {options} source target");
        for (error, number) in [("EIO", 5), ("ENOSPC", 28)] {
            let (output, calls) =
                injected(&place, &line, "sync_file_range", &format!("error={error}"));
            assert_eq!(calls > 0, fails, "{line}");
            if !fails {
                assert!(output.status.success(), "{output:?}");
                continue;
            }
            assert_eq!(output.status.code(), Some(1), "{line}: {output:?}");
            let said = said(&output);
            assert!(said.starts_with("goldsmith: target: "), "{said}");
            assert!(said.ends_with(&format!("(os error {number})")), "{said}");
            assert_eq!(place.names(), ["source"], "{line}");
        }
        // That there is no such call is no loss.
        let (output, _) = injected(&place, &line, "sync_file_range", "error=ENOSYS");
        assert!(output.status.success(), "{line}: {output:?}");
        std::fs::remove_file(place.path("target")).unwrap();
    }
}

/// Who cannot tell where the holes are can be read. [qemu]
#[test]
fn holes_that_cannot_be_found_are_read() {
    let place = Place::new();
    let picture = disk("256k:A 3M:- 128k:b 640k:- 512k:C");
    place.write("source", &picture);
    for answer in [
        "error=EINTR:when=1",
        "error=EINTR:when=2..4",
        "error=EIO:when=2",
        "error=EIO",
        "error=EOPNOTSUPP",
        "error=EOVERFLOW",
    ] {
        for format in ["raw", "qcow2"] {
            let line = format!("convert -q -f raw -O {format} source target");
            let (output, calls) = injected(&place, &line, "lseek", answer);
            assert!(calls > 0, "{answer}: {line}");
            assert!(output.status.success(), "{answer}: {line}: {output:?}");
            place.ok(&format!("convert -q -f {format} -O raw target back"));
            assert!(place.bytes("back") == picture.bytes(), "{answer}: {line}");
        }
    }
}
