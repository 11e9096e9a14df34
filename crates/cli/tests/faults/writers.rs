//! Several commands that write to one image at once.

use std::process::{Command, Output, Stdio};

use goldsmith_testkit::figure;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;

use crate::{Place, said};

/// Starts all of them at once, and waits until all have ended.
fn at_once(commands: impl IntoIterator<Item = Command>) -> Vec<Output> {
    let children: Vec<_> = commands
        .into_iter()
        .map(|mut command| {
            let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
            command.stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let ended = children.into_iter().map(|child| child.wait_with_output());
    ended.map(Result::unwrap).collect()
}

/// One of them works, and whoever comes meanwhile is told; none waits, none destroys the other's work.
#[test]
fn edits_of_one_image_at_once_are_done_or_refused_each_as_a_whole() {
    let picture = disk("256k:A 1M:- 128k:b 640k:-");
    let place = Place::new();
    place.write("raw", &picture);
    let (mut done, mut refused) = (0, 0);
    for _ in 0..10 {
        place.ok("convert -f raw -O qcow2 -o cluster_size=4k raw disk");
        let lines = (0..6).map(|nth| match nth % 2 {
            0 => format!("snapshot -q -c s{nth} disk"),
            _ => format!("resize -q -f qcow2 disk {}M", 10 + nth),
        });
        let outputs = at_once(lines.map(|line| place.command(&[], &line)));
        for output in outputs {
            if output.status.success() {
                done += 1;
                continue;
            }
            let said = said(&output);
            // Somebody was faster, or had made the disk larger than this one wanted it.
            let why = [
                "is another process using the image?",
                "perform a shrink operation",
            ];
            assert!(why.iter().any(|why| said.ends_with(why)), "{said}");
            refused += 1;
        }
        place.assert_sound("disk", "qcow2", "after all");
        assert!(place.guest("disk", "qcow2").starts_with(picture.bytes()));
    }
    figure(format_args!("{done} edits at once done, {refused} refused"));
    assert!(done >= 10, "{done} done, {refused} refused");
}

/// Each writes its own file. Whoever is done first gives it the name, and takes it from nobody who came
/// meanwhile.
#[test]
fn conversions_into_one_name_at_once_leave_one_of_them_whole() {
    let place = Place::new();
    let pictures = ["3M:a 1M:- 2M:B", "6M:C", "1M:- 5M:d"].map(disk);
    for (nth, picture) in pictures.iter().enumerate() {
        place.write(&format!("source{nth}"), picture);
    }
    for _ in 0..5 {
        let lines = (0..3).map(|nth| format!("convert -f raw -O qcow2 source{nth} target"));
        let outputs = at_once(lines.map(|line| place.command(&[], &line)));
        assert!(
            outputs.iter().any(|output| output.status.success()),
            "{outputs:?}"
        );
        for output in outputs.iter().filter(|output| !output.status.success()) {
            let said = said(output);
            let taken = "another file has taken its name since this one was begun";
            assert!(said.ends_with(taken), "{said}");
        }
        qemu::check(place.path("target"));
        let found = place.guest("target", "qcow2");
        assert!(pictures.iter().any(|picture| picture.bytes() == found));
        assert_eq!(place.names(), ["source0", "source1", "source2", "target"]);
    }
}

/// `-U` reads what somebody may be writing to, and writes nothing.
#[test]
fn force_share_reads_and_never_writes() {
    let place = Place::new();
    place.write("raw", &disk("1M:A"));
    place.ok("convert -f raw -O qcow2 raw disk");
    let held = goldsmith_storage::FileStorage::edit(place.path("disk")).unwrap();
    goldsmith_storage::lock(&held, goldsmith_storage::Use::Write).unwrap();
    for line in ["info -f qcow2 disk", "convert -f qcow2 -O raw disk out"] {
        let said = place.refused(line);
        assert!(
            said.ends_with("is another process using the image?"),
            "{said}"
        );
        let (command, rest) = line.split_once(' ').unwrap();
        assert!(
            place.run(&format!("{command} -U {rest}")).status.success(),
            "{line}"
        );
    }
    for line in [
        "resize -q -U -f qcow2 disk 2M",
        "snapshot -U -q -c one disk",
    ] {
        let said = place.refused(line);
        assert!(said.contains("force-share"), "{said}");
    }
    drop(held);
    place.ok("resize -q -f qcow2 disk 2M");
}
