//! `kill -9`, at any moment: at every call that changes a file, and at random ones.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use goldsmith_testkit::figure;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;

use crate::{Place, output};

const KILL: i32 = 9;
/// The calls by which a file or a directory comes to be another one.
const CHANGES: &str = "pwrite64,ftruncate,fallocate,copy_file_range,fdatasync,fsync,\
                       linkat,link,rename,renameat,renameat2,unlink,unlinkat";

/// The kinds of call by which `line`, run to its end, changes something.
pub(crate) fn changing_calls(place: &Place, line: &str) -> BTreeSet<String> {
    let trace = format!("trace={CHANGES}");
    let calls = calls_seen(place, line, &["-e", &trace]);
    assert!(!calls.is_empty(), "{line} changes nothing");
    calls
}

/// The kinds of call that `line`, run to its end, makes and `strace` sees with these `words`.
pub(crate) fn calls_seen(place: &Place, line: &str, words: &[&str]) -> BTreeSet<String> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let strace = ["strace", "-f", "-qq", "-o", log.path().to_str().unwrap()];
    let output = output(&mut place.command(&[&strace, words].concat(), line));
    assert!(output.status.success(), "{line}: {output:?}");
    let log = std::fs::read_to_string(log.path()).unwrap();
    let calls = log.lines().filter_map(|line| line.split_once('('));
    let calls = calls.filter_map(|(before, _)| before.split_whitespace().nth(1));
    // Of a thread that the end of the process overtakes, strace may know no name ("???").
    calls
        .filter(|call| *call != "???")
        .map(str::to_owned)
        .collect()
}

/// Kills `line` at the `nth` `call`, from 1, of a thread. False if there is none.
///
/// One kind at a time: of a set strace counts each kind apart, so that the commonest would take every
/// kill.
pub(crate) fn killed_at(place: &Place, line: &str, call: &str, nth: usize) -> bool {
    let trace = format!("trace={call}");
    let inject = format!("inject={call}:signal=KILL:when={nth}");
    let strace = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        &trace,
        "-e",
        &inject,
    ];
    let output = output(&mut place.command(&strace, line));
    match output.status.signal() {
        Some(KILL) => true,
        _ => {
            assert!(output.status.success(), "{line}: {output:?}");
            false
        }
    }
}

/// Kills `line`, which edits the files that `prepare` makes, at each call; `look` judges what is left
/// each time, and then the command must still do its work. Gives the number of kills.
fn kill_everywhere(
    line: &str,
    prepare: impl Fn(&Place),
    look: impl Fn(&Place, &str),
    finished: impl Fn(&Place, &str),
) -> usize {
    let (model, place) = (Place::new(), Place::new());
    prepare(&model);
    let names = model.names();
    place.become_like(&model);
    let mut kills = 0;
    for call in changing_calls(&place, line) {
        for nth in 1.. {
            let what = format!("{line}, killed at {call} {nth}");
            place.become_like(&model);
            let was_killed = killed_at(&place, line, &call, nth);
            assert_eq!(place.names(), names, "{what}: leaves something behind");
            look(&place, &what);
            if !was_killed {
                assert!(nth > 1, "{line}: no kill at {call}");
                finished(&place, line);
                break;
            }
            kills += 1;
            // Whatever is left can be worked on: a VHD with two footers only once it is mended.
            let mut again = place.run(line);
            if String::from_utf8_lossy(&again.stderr).contains("the image is damaged") {
                names
                    .iter()
                    .for_each(|name| _ = place.run(&format!("check -q -r all {name}")));
                again = place.run(line);
            }
            // It may have been done already, and cannot be done twice.
            finished(&place, &format!("{what}, then {again:?}"));
        }
    }
    kills
}

#[test]
fn qcow2_edits_survive_a_kill_at_every_call() {
    let picture = disk("256k:A 1M:- 128k:b 640k:-");
    let prepare = |place: &Place| {
        place.write("raw", &picture);
        place.ok("convert -f raw -O qcow2 -o cluster_size=4k raw disk");
        std::fs::remove_file(place.path("raw")).unwrap();
        place.ok("snapshot -c old disk");
        qemu::io_ok(place.path("disk"), "qcow2", &["write -q -P 7 64k 200k"]);
    };
    let model = Place::new();
    prepare(&model);
    let now = model.guest("disk", "qcow2");
    let old = picture.bytes().to_vec();
    let grown = |len: usize| {
        let mut bytes = now.clone();
        bytes.resize(len, 0);
        bytes
    };
    let mut kills = 0;
    for (line, after) in [
        ("resize -q -f qcow2 disk 20M", grown(20 << 20)),
        (
            "resize -q -f qcow2 --preallocation metadata disk 3M",
            grown(3 << 20),
        ),
        ("resize -q -f qcow2 --shrink disk 300k", grown(300 << 10)),
        ("snapshot -q -c new disk", now.clone()),
        ("snapshot -q -a old disk", old),
        ("snapshot -q -d old disk", now.clone()),
        ("amend -q -f qcow2 -o lazy_refcounts=on disk", now.clone()),
        ("bitmap -f qcow2 --add disk new", now.clone()),
    ] {
        let look = |place: &Place, what: &str| {
            place.assert_sound("disk", "qcow2", what);
            let found = place.guest("disk", "qcow2");
            assert!(found == now || found == after, "{what}");
        };
        let finished = |place: &Place, what: &str| {
            place.assert_sound("disk", "qcow2", what);
            assert!(place.guest("disk", "qcow2") == after, "{what}");
        };
        kills += kill_everywhere(line, prepare, look, finished);
    }
    figure(format_args!("{kills} kills of qcow2 edits"));
    assert!(kills >= 40, "only {kills} kills");
}

#[test]
fn vhd_edits_survive_a_kill_at_every_call() {
    let picture = disk("256k:A 3M:- 128k:b 640k:-");
    let mut kills = 0;
    for subformat in ["dynamic", "fixed"] {
        let prepare = |place: &Place| {
            place.write("raw", &picture);
            place.ok(&format!(
                "convert -f raw -O vpc -o subformat={subformat} raw disk"
            ));
            std::fs::remove_file(place.path("raw")).unwrap();
        };
        for (line, len) in [
            ("resize -q -f vpc disk 60M", 60 << 20),
            ("resize -q -f vpc --shrink disk 300k", 300 << 10),
        ] {
            let before = picture.bytes().to_vec();
            let mut after = before.clone();
            after.resize(len, 0);
            let look = |place: &Place, what: &str| {
                place.assert_sound("disk", "vpc", what);
                let found = place.guest("disk", "vpc");
                assert!(found == before || found == after, "{what}");
            };
            let finished = |place: &Place, what: &str| {
                place.assert_sound("disk", "vpc", what);
                assert!(place.guest("disk", "vpc") == after, "{what}");
                // [qemu] reads it, too.
                assert!(qemu::read("vpc", &place.bytes("disk")) == after, "{what}");
            };
            kills += kill_everywhere(line, prepare, look, finished);
        }
    }
    figure(format_args!("{kills} kills of VHD edits"));
    assert!(kills >= 20, "only {kills} kills");
}

/// A killed commit leaves some of it in the backing file, which the image hides: whoever reads
/// through the image sees what was there before, and the commit can be done again.
#[test]
fn commits_survive_a_kill_at_every_call() {
    let base = disk("512k:A 512k:- 512k:B 512k:-");
    let top = disk("256k:c 256k:A 512k:- 128k:D 384k:B 256k:- 256k:e");
    let mut kills = 0;
    for (format, options, base_options) in [
        ("qcow2", "-o cluster_size=4k", "-o cluster_size=4k"),
        ("vpc", "-o block_size=512k", "-o block_size=512k"),
    ] {
        let prepare = |place: &Place| {
            place.write("base.raw", &base);
            place.write("top.raw", &top);
            place.ok(&format!(
                "convert -f raw -O {format} {base_options} base.raw base"
            ));
            place.ok(&format!(
                "convert -f raw -O {format} {options} -B base -F {format} top.raw top"
            ));
            std::fs::remove_file(place.path("base.raw")).unwrap();
            std::fs::remove_file(place.path("top.raw")).unwrap();
        };
        let look = |place: &Place, what: &str| {
            place.assert_sound("base", format, what);
            place.assert_sound("top", format, what);
            assert!(place.guest("top", format) == top.bytes(), "{what}");
            // What stands in the base is old or new, sector by sector.
            let found = place.guest("base", format);
            let pairs = base.bytes().chunks(512).zip(top.bytes().chunks(512));
            for (nth, (found, (old, new))) in found.chunks(512).zip(pairs).enumerate() {
                assert!(found == old || found == new, "{what}: sector {nth}");
            }
        };
        let finished = |place: &Place, what: &str| {
            look(place, what);
            assert!(place.guest("base", format) == top.bytes(), "{what}");
        };
        let line = format!("commit -q -f {format} top");
        kills += kill_everywhere(&line, prepare, look, finished);
    }
    figure(format_args!("{kills} kills of commits"));
    assert!(kills >= 20, "only {kills} kills");
}

/// Until the last call there is nothing under the name, or what stood there before; afterwards all of it.
#[test]
fn conversions_survive_a_kill_at_every_call() {
    let picture = disk("256k:A 3M:- 128k:b 640k:- 512k:C");
    let mut kills = 0;
    for options in ["raw", "qcow2", "qcow2 -c", "vpc", "vpc -o subformat=fixed"] {
        for old in [None, Some(b"my only copy".as_slice())] {
            let place = Place::new();
            place.write("source", &picture);
            let format = options.split(' ').next().unwrap();
            let line = format!("convert -q -f raw -O {options} source target");
            put_back(&place, old);
            for call in changing_calls(&place, &line) {
                for nth in 1.. {
                    put_back(&place, old);
                    let was_killed = killed_at(&place, &line, &call, nth);
                    let what = format!("{line}, killed at {call} {nth}");
                    assert_old_or_new(&place, format, picture.bytes(), old, was_killed, &what);
                    if !was_killed {
                        assert!(nth > 1, "{line}: no kill at {call}");
                        break;
                    }
                    kills += 1;
                }
            }
        }
    }
    figure(format_args!("{kills} kills of conversions at calls"));
    assert!(kills >= 40, "only {kills} kills");
}

/// Has `old`, or nothing, under the target's name.
fn put_back(place: &Place, old: Option<&[u8]>) {
    match old {
        Some(old) => std::fs::write(place.path("target"), old).unwrap(),
        None => _ = std::fs::remove_file(place.path("target")),
    }
}

/// Fails unless a conversion over `old` left that, or all of an image of `bytes`, and nothing else.
fn assert_old_or_new(
    place: &Place,
    format: &str,
    bytes: &[u8],
    old: Option<&[u8]>,
    was_killed: bool,
    what: &str,
) {
    let names = place.names();
    let (strays, names): (Vec<_>, Vec<_>) = names
        .into_iter()
        .partition(|name| name.starts_with(".target.goldsmith-"));
    match (was_killed, old) {
        // A finished file must have a name before it can take another one's: between these
        // two calls it has its own.
        (true, Some(_)) => assert!(strays.len() <= 1, "{what}: {strays:?}"),
        _ => assert!(strays.is_empty(), "{what}: {strays:?}"),
    }
    for stray in &strays {
        assert!(place.guest(stray, format) == bytes, "{what}");
        std::fs::remove_file(place.path(stray)).unwrap();
    }
    let there = names == ["source", "target"];
    assert!(there || names == ["source"], "{what}: {names:?}");
    assert!(there || old.is_none(), "{what}: the old file is gone");
    let untouched = old.is_some_and(|old| place.bytes("target") == old);
    assert!(was_killed || there && !untouched, "{what}");
    if there && !untouched {
        assert!(place.guest("target", format) == bytes, "{what}");
    }
}

/// Moments that no call marks, while several threads work: spread over the time that the command
/// takes, by a generator with a seed. What is asserted holds whenever the kill comes.
#[test]
fn conversions_survive_a_kill_at_random_moments() {
    const KILLS: u32 = 100;
    let picture = disk("4M:A 1M:- 4M:b 2M:0 1M:C");
    let place = Place::new();
    place.write("source", &picture);
    let lines = [
        ("qcow2", "convert -q -m 2 -f raw -O qcow2 -c source target"),
        ("vpc", "convert -q -m 2 -S 64k -f raw -O vpc source target"),
        ("raw", "convert -q -m 2 -S 64k -f raw -O raw source target"),
    ];
    let mut moments = lines.map(|(format, line)| {
        let moments = Moments::of(1, || place.ok(line));
        assert!(place.guest("target", format) == picture.bytes());
        moments
    });
    let mut killed = 0;
    for nth in (0..lines.len()).cycle() {
        if killed == KILLS {
            break;
        }
        let (format, line) = lines[nth];
        let _ = std::fs::remove_file(place.path("target"));
        let (moment, was_killed) = moments[nth].kill(place.command(&[], line));
        killed += u32::from(was_killed);
        let names = place.names();
        match names.len() {
            1 => assert_eq!(names, ["source"]),
            _ => {
                assert_eq!(names, ["source", "target"], "a kill after {moment:?}");
                assert!(place.guest("target", format) == picture.bytes());
                if format == "qcow2" {
                    qemu::check(place.path("target"));
                }
            }
        }
    }
    figure(format_args!(
        "{killed} conversions were killed at a random moment"
    ));
}

/// The same for edits, each a hundred times: what a killed one leaves is the old image or the new one,
/// for whoever reads it through the image that it is about, and the edit can be done again.
#[test]
fn edits_survive_a_kill_at_random_moments() {
    const KILLS: u32 = 100;
    let (base, top) = (disk("2M:A 1M:- 1M:b"), disk("1M:c 1M:A 1M:- 512k:D 512k:b"));
    let edits = [
        ("qcow2", "resize -q -f qcow2 top 40G"),
        ("qcow2", "snapshot -q -c new top"),
        ("qcow2", "commit -q -f qcow2 top"),
        ("vpc", "resize -q -f vpc top 40G"),
        ("vpc", "commit -q -f vpc top"),
    ];
    for (format, edit) in edits {
        let (model, place) = (Place::new(), Place::new());
        model.write("base.raw", &base);
        model.write("top.raw", &top);
        model.ok(&format!("convert -f raw -O {format} base.raw base"));
        model.ok(&format!(
            "convert -f raw -O {format} -B base -F {format} top.raw top"
        ));
        for raw in ["base.raw", "top.raw"] {
            std::fs::remove_file(model.path(raw)).unwrap();
        }
        let names = model.names();
        place.become_like(&model);
        let mut moments = Moments::of(2, || place.ok(edit));
        let mut killed = 0;
        while killed < KILLS {
            place.become_like(&model);
            let (moment, was_killed) = moments.kill(place.command(&[], edit));
            killed += u32::from(was_killed);
            let what = format!("{edit}, killed after {moment:?}");
            assert_eq!(place.names(), names, "{what}");
            for image in &names {
                place.assert_sound(image, format, &what);
            }
            let found = Seen::through(&place, "top", format);
            assert!(found.starts_as(top.bytes()), "{what}");
        }
    }
    figure(format_args!(
        "{} edits were killed at a random moment",
        edits.len() as u32 * KILLS
    ));
}

/// A disk of any size, seen from its start.
struct Seen {
    start: Vec<u8>,
    rest: u64,
}

impl Seen {
    fn through(place: &Place, name: &str, format: &str) -> Self {
        let opener = goldsmith::Opener::new().references(goldsmith::References::SameDirectory);
        let chain = opener.open(place.path(name), Some(format)).unwrap();
        let mut start = vec![0; 4 << 20];
        chain.read_at(0, &mut start).unwrap();
        let rest = chain.virtual_size() - start.len() as u64;
        Self { start, rest }
    }

    fn starts_as(&self, bytes: &[u8]) -> bool {
        self.start == bytes && [0, (40 << 30) - (4 << 20)].contains(&self.rest)
    }
}

/// The next of a row of numbers that look random. [Knuth, MMIX]
fn next(seed: u64) -> u64 {
    seed.wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407)
}

/// From 0 to 1.
fn fraction(seed: u64) -> f64 {
    (seed >> 40) as f64 / (1_u64 << 24) as f64
}

/// Moments at which to kill a command: from its start to about its end, wherever that is on this machine.
pub(crate) struct Moments {
    seed: u64,
    last: Duration,
}

impl Moments {
    /// Those of a command that takes about as long as `run`.
    pub(crate) fn of(seed: u64, run: impl FnOnce()) -> Self {
        let start = Instant::now();
        run();
        let last = start.elapsed();
        Self { seed, last }
    }

    /// Kills `command`. Gives the moment, and whether that was before the end.
    ///
    /// If it was not, the next ones are earlier, and else a little later: so neither do all come too
    /// late nor all at the start.
    pub(crate) fn kill(&mut self, mut command: Command) -> (Duration, bool) {
        self.seed = next(self.seed);
        let moment = self.last.mul_f64(fraction(self.seed));
        let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(moment);
        // It may have ended; then there is nobody to kill, and that is no error.
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        let was_killed = output.status.signal() == Some(KILL);
        assert!(was_killed || output.status.success(), "{output:?}");
        self.last = self.last.mul_f64(if was_killed { 1.02 } else { 0.9 });
        (moment, was_killed)
    }
}
