//! `--resume`: killed again and again, the command ends with what one uninterrupted run makes.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use goldsmith_testkit::figure;
use goldsmith_testkit::mount;
use goldsmith_testkit::pattern::disk;

use crate::Place;
use crate::killed::{killed_at, next};

const PARTIAL: &str = ".target.goldsmith-partial";

/// At the n-th call that changes a file, in each run anew: n grows slowly, so that many runs are
/// needed.
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
        let mut runs = 0;
        while killed_at(&place, &line, 1 + runs / 3) {
            runs += 1;
            assert!(runs < 500, "{line}: it never ends");
            assert!(runs > 1 || !place.path("target").exists(), "{line}");
        }
        kills += runs;
        assert!(
            place.bytes("target") == whole,
            "{line}: other bytes after {runs} kills"
        );
        assert_eq!(place.names(), ["behind", "source", "target"]);
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
    let place = Place::new();
    place.write("source", &disk("8M:A 1M:- 8M:b 1M:0 6M:C"));
    let (mut kills, mut seed) = (0, 1_u64);
    for options in ["qcow2 -c", "qcow2 -S 4k", "raw -S 4k"] {
        place.ok(&format!("convert -q -f raw -O {options} source whole"));
        let whole = place.bytes("whole");
        std::fs::remove_file(place.path("whole")).unwrap();
        let line = format!(
            "convert -q -m 2 -f raw -O {options} --resume journal --milestone 1M source target"
        );
        // Later each time, so that it ends on any machine.
        for round in 0.. {
            seed = next(seed);
            let mut command = place.command(&[], &line);
            let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis((seed >> 33) % 20 + round));
            // It may have ended; then there is nobody to kill, and that is no error.
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            if output.status.signal() != Some(9) {
                assert!(output.status.success(), "{line}: {output:?}");
                break;
            }
            kills += 1;
        }
        assert!(place.bytes("target") == whole, "{line}");
        assert_eq!(place.names(), ["source", "target"]);
        std::fs::remove_file(place.path("target")).unwrap();
    }
    figure(format_args!(
        "{kills} kills at random moments of conversions that were gone on with"
    ));
}

/// What fitted on a full disk is not done again when there is more space.
#[test]
fn conversion_onto_a_full_disk_goes_on_when_there_is_space() {
    let Some(small) = mount::small(12 << 20) else {
        return;
    };
    let source = Place::new();
    source.write("source", &disk("10M:a"));
    let place = Place::within(small.path());
    std::fs::write(small.path().join("filler"), vec![1; 6 << 20]).unwrap();
    let source = source.text("source");
    let line =
        format!("convert -q -f raw -O qcow2 --resume journal --milestone 1M {source} target");
    let said = place.refused(&line);
    assert!(
        said.starts_with("goldsmith: target: ") && said.contains("No space left"),
        "{said}"
    );
    assert_eq!(place.names(), [PARTIAL, "journal"]);
    std::fs::remove_file(small.path().join("filler")).unwrap();
    place.ok(&line);
    assert_eq!(place.names(), ["target"]);
    let bytes = std::fs::read(source).unwrap();
    assert!(place.guest("target", "qcow2") == bytes);
}
