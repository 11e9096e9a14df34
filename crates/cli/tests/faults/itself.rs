//! A target that is the source, or something behind it, under another name.

use std::path::PathBuf;
use std::process::Command;

use goldsmith_testkit::mount::{self, Mount};
use goldsmith_testkit::pattern::disk;

use crate::Place;

const REFUSED: &str = "the target is also a file of the source, which would be overwritten";

/// Two partitions of a disk, of which the kernel is told; it forgets them when dropped.
struct Parts<'a>(&'a str);

impl<'a> Parts<'a> {
    fn of(disk: &'a str) -> Self {
        for (number, start) in [("1", "2048"), ("2", "10240")] {
            partx("addpart", &[disk, number, start, "8192"]);
        }
        Self(disk)
    }
}

impl Drop for Parts<'_> {
    fn drop(&mut self) {
        for number in ["1", "2"] {
            partx("delpart", &[self.0, number]);
        }
    }
}

fn partx(tool: &str, args: &[&str]) {
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new(tool);
    command
        .args(args)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let status = command.status().expect("it is there where losetup is");
    assert!(status.success(), "{tool} {args:?}: {status}");
}

/// A block device whose bytes are those of a file; let go when dropped.
struct Loop(PathBuf);

impl Loop {
    fn over(path: &str) -> Self {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show"]).arg(path);
        let output = losetup.output().expect("losetup is there");
        assert!(
            output.status.success(),
            "losetup: {output:?}; it takes root"
        );
        Self(String::from_utf8(output.stdout).unwrap().trim().into())
    }

    fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

fn chain() -> Place {
    let place = Place::new();
    place.write("base", &disk("1M:A 1M:-"));
    place.write("top.raw", &disk("1M:A 512k:b 512k:-"));
    place.ok("convert -f raw -O qcow2 -B base -F raw top.raw top");
    std::fs::remove_file(place.path("top.raw")).unwrap();
    place
}

#[test]
fn every_name_of_a_source_is_refused_as_the_target() {
    let place = chain();
    let (base, top) = (place.bytes("base"), place.bytes("top"));
    for name in ["base", "top"] {
        std::fs::hard_link(place.path(name), place.path(&format!("{name}-hard"))).unwrap();
        let link = place.path(&format!("{name}-soft"));
        std::os::unix::fs::symlink(place.path(name), link).unwrap();
    }
    let names = place.names();
    let mut targets = names.clone();
    let bound =
        mount::are_allowed("a source under a bound path").then(|| Mount::bind(&place.path("")));
    if let Some(bound) = &bound {
        let path = |name: &String| bound.path().join(name).to_str().unwrap().to_owned();
        targets.extend(names.iter().map(path));
    }
    for target in &targets {
        for format in ["raw", "qcow2", "vpc"] {
            let said = place.refused(&format!("convert -f qcow2 -O {format} top {target}"));
            assert_eq!(said, format!("goldsmith: {target}: {REFUSED}"));
        }
    }
    assert_eq!(place.names(), names);
    assert!(place.bytes("base") == base && place.bytes("top") == top);
}

/// A device that is written in place would destroy what is being read.
#[test]
fn device_over_a_source_is_refused_as_the_target() {
    if !mount::are_allowed("a loop device over the source") {
        return;
    }
    let place = chain();
    let (base, top) = (place.bytes("base"), place.bytes("top"));
    for name in ["base", "top"] {
        let over = Loop::over(&place.text(name));
        let twice = Loop::over(over.text());
        for device in [&over, &twice] {
            let target = device.text();
            let said = place.refused(&format!("convert -f qcow2 -O raw top {target}"));
            assert_eq!(said, format!("goldsmith: {target}: {REFUSED}"));
            let said = place.refused(&format!("convert -f raw -O raw {target} {name}"));
            assert_eq!(said, format!("goldsmith: {name}: {REFUSED}"));
        }
    }
    assert!(place.bytes("base") == base && place.bytes("top") == top);
    // A device over something else is as good as any.
    place.write("other", &disk("4M:C"));
    let other = Loop::over(&place.text("other"));
    place.ok(&format!("convert -f qcow2 -O raw top {}", other.text()));
}

/// Beside a device stand others, and an image may name none of them.
#[test]
fn device_brings_no_other_device_within_reach() {
    if !mount::are_allowed("a loop device") {
        return;
    }
    let place = Place::new();
    place.write("disk", &disk("4M:A"));
    let device = Loop::over(&place.text("disk"));
    let log = place.text("log");
    let strace = ["strace", "-f", "-qq", "-o", &log, "-e", "trace=open,openat"];
    for words in ["info -f raw", "bench -c 1 -w -f raw"] {
        let line = format!("{words} {}", device.text());
        let output = place.command(&strace, &line).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        let calls = std::fs::read_to_string(&log).unwrap();
        let opens = |path: &str| calls.contains(&format!("\"{path}\", O_"));
        assert!(opens(device.text()), "{calls}");
        assert!(!opens("/dev") && !opens("/dev/"), "{calls}");
    }
}

/// Two halves of one disk are two devices; one of them and the whole are not.
#[test]
fn partition_is_apart_from_its_neighbour_and_not_from_its_disk() {
    if !mount::are_allowed("partitions") {
        return;
    }
    let place = Place::new();
    place.write("disk", &disk("16M:-"));
    let whole = Loop::over(&place.text("disk"));
    let _parts = Parts::of(whole.text());
    let part = |n: u32| format!("{}p{n}", whole.text());
    for (source, target) in [
        (part(1), whole.text().into()),
        (whole.text().into(), part(2)),
    ] {
        let said = place.refused(&format!("convert -f raw -O raw {source} {target}"));
        assert_eq!(said, format!("goldsmith: {target}: {REFUSED}"));
    }
    place.ok(&format!("convert -f raw -O raw {} {}", part(1), part(2)));
}
