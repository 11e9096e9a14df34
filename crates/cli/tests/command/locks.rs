//! Two programs with one image: as between QEMU's own, by the same locks.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use goldsmith::{Opener, References};
use goldsmith_testkit::pattern::disk;

use crate::Folder;
use crate::twins::Twins;

/// A process of QEMU's that has an image open.
struct User(Child);

impl User {
    /// Opens `image`; returns when it is open.
    fn open(folder: &Folder, image: &str, args: &[&str]) -> Self {
        let mut io = Command::new("qemu-io");
        io.args(args).args(["-f", "qcow2", image]);
        io.current_dir(folder.path(""));
        io.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut io = io.spawn().unwrap();
        let mut said = BufReader::new(io.stdout.take().unwrap());
        writeln!(io.stdin.as_mut().unwrap(), "read 0 512").unwrap();
        let mut line = String::new();
        while !line.contains("read 512/512 bytes") {
            line.clear();
            assert_ne!(said.read_line(&mut line).unwrap(), 0, "it ended");
        }
        // It may go on to write there as long as it lives.
        std::thread::spawn(move || said.lines().count());
        Self(io)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let ended = self.0.wait();
        assert!(ended.is_ok_and(|status| status.success()));
    }
}

fn images() -> Twins {
    Twins::new(|folder| {
        folder.write("disk.raw", &disk("1M:A"));
        folder.qemu_img_ok("create -q -f qcow2 used.qcow2 3M");
        folder.qemu_img_ok("create -q -f qcow2 -b used.qcow2 -F qcow2 child.qcow2");
        folder.qemu_img_ok("create -q -f qcow2 free.qcow2 3M");
    })
}

const EDITS: [&str; 8] = [
    "resize -f qcow2 used.qcow2 20M",
    "snapshot -c one used.qcow2",
    "amend -o lazy_refcounts=on used.qcow2",
    "bitmap --add used.qcow2 new",
    "check -r all used.qcow2",
    "rebase -u -b  used.qcow2",
    "rebase -b free.qcow2 -F qcow2 used.qcow2",
    "commit child.qcow2",
];

#[test]
fn image_that_a_running_qemu_writes_is_left_alone() {
    let twins = images();
    let users = [&twins.ours, &twins.theirs].map(|folder| User::open(folder, "used.qcow2", &[]));
    let before = std::fs::read(twins.ours.path("used.qcow2")).unwrap();
    for line in EDITS.into_iter().chain([
        "info used.qcow2",
        "check used.qcow2",
        "map used.qcow2",
        "snapshot -l used.qcow2",
        "convert -O raw used.qcow2 out.raw",
        "convert -O raw child.qcow2 out.raw",
        "compare used.qcow2 free.qcow2",
        "rebase -b used.qcow2 -F qcow2 free.qcow2",
        "convert -f raw -O qcow2 disk.raw used.qcow2",
    ]) {
        twins.neither(line, "is another process using the image?");
        assert!(std::fs::read(twins.ours.path("used.qcow2")).unwrap() == before);
    }
    // Not with twins: qemu-img says that it is formatting it before it sees that it must not.
    let refused = twins.ours.goldsmith("create -f qcow2 used.qcow2 1M");
    assert_eq!(refused.status, 1);
    assert!(
        refused
            .stderr
            .contains("is another process using the image?")
    );
    for line in [
        "info -U -f qcow2 used.qcow2 --output=json",
        "snapshot -U used.qcow2",
        "map -U --output=json used.qcow2",
        "create -q -f qcow2 -b used.qcow2 -F qcow2 new.qcow2",
        "convert -U -O raw child.qcow2 out.raw",
        "compare -U used.qcow2 free.qcow2",
        "rebase -u -b  child.qcow2",
    ] {
        assert_eq!(twins.ours.goldsmith(line).status, 0, "{line}");
        assert_eq!(twins.theirs.qemu_img(line).status, 0, "{line}");
    }
    drop(users);
    twins.both("resize -f qcow2 used.qcow2 20M");
    twins.same("used.qcow2", "qcow2");
}

#[test]
fn image_that_a_running_qemu_reads_may_be_read() {
    let twins = images();
    let users =
        [&twins.ours, &twins.theirs].map(|folder| User::open(folder, "used.qcow2", &["-r"]));
    for line in EDITS {
        twins.neither(line, "Failed to get \"write\" lock");
    }
    twins.both("map --output=json used.qcow2");
    twins.both("convert -O raw child.qcow2 out.raw");
    drop(users);
}

/// The other way round: QEMU does not open what goldsmith writes, nor writes what it reads.
#[test]
fn running_goldsmith_keeps_qemu_out() {
    let folder = Folder::new();
    folder.write("base", &disk("8M:B"));
    folder.qemu_img_ok("create -q -f qcow2 -b base -F raw top");
    folder.qemu_io("top", &["write -P 1 0 8M"]);
    let refused = Mutex::new(Vec::new());
    let meanwhile = |_| {
        for line in ["resize -f raw base 64M", "resize -f qcow2 top 64M"] {
            refused.lock().unwrap().push(folder.qemu_img(line));
        }
    };
    let commit = goldsmith::Commit::new(folder.path("top"))
        .opener(Opener::new().references(References::SameDirectory))
        .progress(&meanwhile);
    commit.run().unwrap();
    let refused = refused.into_inner().unwrap();
    assert!(refused.len() >= 4, "{refused:?}");
    let lock = "Failed to get \"write\" lock";
    assert!(
        refused.iter().all(|done| done.stderr.contains(lock)),
        "{refused:?}"
    );

    let chain = Opener::new()
        .open(folder.path("base"), Some("raw"))
        .unwrap();
    let done = folder.qemu_img("resize -f raw base 64M");
    assert!(done.stderr.contains(lock), "{done:?}");
    folder.qemu_img_ok("info -f raw base");
    drop(chain);
    folder.qemu_img_ok("resize -f raw base 64M");
}
