//! Random edits of chains, one after the other, beside a model of what every image shows.

use std::path::Path;

use goldsmith::{Commit, Edited, NewSize, Opener, Rebase, References, Resize, Result};
use goldsmith_testkit::figure;
use goldsmith_testkit::model::{ModelDisk, any_disk};
use goldsmith_testkit::qemu;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{Folder, convert, guest};
use crate::{QCOW2, SHAPES, VPC};

/// What VHD takes behind it.
const PARENTS: std::ops::Range<usize> = 7..11;

/// For a base, an image over it, one over that, and one to be based on instead.
fn shapes() -> impl Strategy<Value = [usize; 4]> {
    let any = || 0..SHAPES.len();
    // Only qcow2 has a mark for what was not closed, and QEMU reads no VHD over something.
    prop_oneof![
        3 => [any(), QCOW2, QCOW2, any()],
        1 => [PARENTS, VPC, QCOW2, any()],
        1 => [PARENTS, VPC, VPC, PARENTS],
    ]
}

/// Something to do with the topmost image.
#[derive(Clone, Copy, Debug)]
enum Act {
    Commit { deep: bool, keep: bool },
    Rebase(Option<&'static str>),
    Resize(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let onto = prop::sample::select(vec![None, Some("base"), Some("middle"), Some("other")]);
    prop_oneof![
        (any::<bool>(), any::<bool>()).prop_map(|(deep, keep)| Act::Commit { deep, keep }),
        onto.prop_map(Act::Rebase),
        (1u64..3000).prop_map(|sectors| Act::Resize(sectors * 512)),
    ]
}

const NAMES: [&str; 4] = ["base", "middle", "top", "other"];

/// A chain of three images, and one more.
struct Images {
    folder: Folder,
    formats: [&'static str; 4],
    /// What each image is over.
    behind: [Option<&'static str>; 4],
    /// What the guest of each sees.
    guests: [Vec<u8>; 4],
}

fn index(name: &str) -> usize {
    NAMES.iter().position(|known| *known == name).unwrap()
}

impl Images {
    fn new(disks: &[ModelDisk; 4], shapes: [usize; 4]) -> Self {
        let behind = [None, Some("base"), Some("middle"), None];
        let folder = Folder::new();
        let formats = shapes.map(|shape| SHAPES[shape].0);
        for (at, name) in NAMES.into_iter().enumerate() {
            let raw = folder.write("disk", &disks[at]);
            let mut job = convert((&raw, "raw"), (&folder.path(name), formats[at]));
            for (key, value) in SHAPES[shapes[at]].1 {
                // One for each image, by a path: QEMU counts others from where it runs.
                let value = match *key {
                    "data_file" => folder.text(&format!("{name}.data")),
                    _ => (*value).to_owned(),
                };
                job = job.option(*key, value);
            }
            if let Some(behind) = behind[at] {
                job = job.backing(behind, formats[index(behind)]);
            }
            // Children know their parents by it.
            job.uuid(goldsmith::Uuid::from_u128(at as u128 + 1))
                .run()
                .unwrap();
        }
        let guests = [0, 1, 2, 3].map(|at| disks[at].bytes().to_vec());
        Self {
            folder,
            formats,
            behind,
            guests,
        }
    }

    fn format(&self, name: &str) -> &'static str {
        self.formats[index(name)]
    }

    fn run(&self, act: Act, dry_run: bool) -> Result<Edited> {
        let (top, format) = (self.folder.path("top"), self.format("top"));
        let opener = Opener::new().references(References::Allow);
        match act {
            Act::Commit { deep, keep } => {
                let commit = Commit::new(top).opener(opener).format(format);
                let commit = commit.keep(keep).dry_run(dry_run);
                match deep {
                    true => commit.base("base").run(),
                    false => commit.run(),
                }
            }
            Act::Rebase(onto) => {
                let rebase = Rebase::new(top).opener(opener).format(format);
                let rebase = rebase.dry_run(dry_run);
                match onto {
                    Some(name) => rebase.onto(name, Some(self.format(name))).run(),
                    None => rebase.run(),
                }
            }
            Act::Resize(size) => Resize::new(top, NewSize::Exactly(size))
                .opener(opener)
                .format(format)
                .shrink(true)
                .dry_run(dry_run)
                .run(),
        }
    }

    /// What the topmost image is over.
    fn behind_top(&self) -> Option<&'static str> {
        self.behind[index("top")]
    }

    /// It may have nothing to commit to, or another image than the base at its end.
    fn can(&self, act: Act) -> bool {
        match act {
            Act::Commit { deep, .. } => match self.behind_top() {
                None => false,
                Some("other") => !deep,
                Some(_) => true,
            },
            _ => true,
        }
    }

    /// Which image `act` writes to first.
    fn written(&self, act: Act) -> &'static str {
        match act {
            Act::Commit { deep: true, .. } => "base",
            Act::Commit { deep: false, .. } => self.behind_top().unwrap(),
            Act::Rebase(_) | Act::Resize(_) => "top",
        }
    }

    /// Does to the model what `act` did to the images.
    fn follow(&mut self, act: Act, what: &str) {
        let top = index("top");
        match act {
            Act::Rebase(onto) => self.behind[top] = onto,
            Act::Resize(size) => self.guests[top].resize(size as usize, 0),
            Act::Commit { .. } => {
                let written = index(self.written(act));
                let shown = self.guests[top].clone();
                let guest = &mut self.guests[written];
                guest.resize(guest.len().max(shown.len()), 0);
                guest[..shown.len()].copy_from_slice(&shown);
                if written == index("base") {
                    self.look_through_middle(what);
                }
            }
        }
    }

    /// The base is not what it was, and the image over it shows that wherever it has nothing of its own,
    /// which is for its format to know.
    fn look_through_middle(&mut self, what: &str) {
        let [base, middle] = ["base", "middle"].map(index);
        let found = guest(&self.folder.path("middle"), self.formats[middle]);
        let old = &self.guests[middle];
        assert_eq!(found.len(), old.len(), "{what}");
        let mut new = self.guests[base].clone();
        new.resize(found.len(), 0);
        let pairs = old.chunks(512).zip(new.chunks(512));
        for (nth, (found, (old, new))) in found.chunks(512).zip(pairs).enumerate() {
            assert!(found == old || found == new, "{what}: middle: sector {nth}");
        }
        self.guests[middle] = found;
    }

    /// Whether QEMU reads the image `name` with all that is behind it: a VHD over something it takes for one
    /// over nothing.
    fn is_read_by_qemu(&self, name: &str) -> bool {
        let at = index(name);
        match self.behind[at] {
            Some(behind) => self.formats[at] != "vpc" && self.is_read_by_qemu(behind),
            None => true,
        }
    }

    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let names = self.folder.names();
        let read = |name: &String| std::fs::read(self.folder.path(name)).unwrap();
        names
            .iter()
            .map(|name| (name.clone(), read(name)))
            .collect()
    }

    /// All guests see what they should, and nothing is wrong with any image; QEMU says so, too, of `asked`.
    /// Whether it could be asked.
    fn assert_sound(&self, asked: &[&str], what: &str) -> bool {
        for (at, name) in NAMES.into_iter().enumerate() {
            let (path, format) = (self.folder.path(name), self.formats[at]);
            assert!(guest(&path, format) == self.guests[at], "{what}: {name}");
            let found = goldsmith::check(&Opener::new(), path, Some(format));
            if let Some((_, checked)) = found.unwrap() {
                assert_eq!(
                    (checked.corruptions, checked.errors),
                    (0, 0),
                    "{what}: {name}"
                );
            }
        }
        let expected = self.folder.path("expected");
        let readable = asked.iter().filter(|name| self.is_read_by_qemu(name));
        for name in readable.clone() {
            std::fs::write(&expected, &self.guests[index(name)]).unwrap();
            let image = self.folder.path(name);
            qemu::compare(&image, self.format(name), &expected, "raw");
            std::fs::remove_file(&expected).unwrap();
        }
        readable.count() == asked.len()
    }
}

/// Makes the image at `path` one that was not closed, and of which all copied flags are wrong: whoever changes
/// it moves all its tables first. Others than qcow2 of version 3 have no mark for that: false.
fn leave_open(path: &Path) -> bool {
    const COPIED: u64 = 1 << 63;
    let mut image = std::fs::read(path).unwrap();
    let number =
        |image: &[u8], at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    if !image.starts_with(b"QFI\xfb\0\0\0\x03") {
        return false;
    }
    let incompatible = image[79];
    let cluster_size = 1 << image[23];
    let (table, len) = (
        number(&image, 40) as usize,
        number(&image, 32) as u32 as usize,
    );
    let mut clear = |at: usize| {
        let entry = number(&image, at) & !COPIED;
        image[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        entry
    };
    for entry in (table..).step_by(8).take(len) {
        let l2 = clear(entry) as usize;
        // In a data file of its own, the flag alone says that a cluster is there.
        if l2 == 0 || incompatible & 4 != 0 {
            continue;
        }
        let step = if incompatible & 16 != 0 { 16 } else { 8 };
        for entry in (l2..l2 + cluster_size).step_by(step) {
            clear(entry);
        }
    }
    image[79] |= 1;
    std::fs::write(path, image).unwrap();
    true
}

/// How many there were.
#[derive(Debug, Default)]
struct Counts {
    edits: usize,
    /// Of edits that began with an image that was not closed.
    open: usize,
    /// Of edits whose outcome QEMU read.
    asked: usize,
    commits: usize,
}

#[test]
fn guest_sees_what_it_should_after_any_edits() {
    let disk = || any_disk(1 << 20, 512);
    let strategy = (
        [disk(), disk(), disk(), disk()],
        shapes(),
        prop::collection::vec((act(), prop::bool::weighted(0.8)), 1..4),
    );
    let mut runner = TestRunner::new(Config {
        cases: 250,
        ..Config::default()
    });
    let counts = std::cell::RefCell::new(Counts::default());
    let result = runner.run(&strategy, |(disks, shapes, acts)| {
        let mut images = Images::new(&disks, shapes);
        let what = format!("{shapes:?} {disks:?} {acts:?}");
        images.assert_sound(&["top"], &what);
        for (act, is_open) in acts {
            if !images.can(act) {
                continue;
            }
            let written = images.written(act);
            let is_open = is_open && leave_open(&images.folder.path(written));
            let what = format!("{act:?} of {what}");
            let before = images.files();
            let rehearsed = images.run(act, true);
            assert!(
                before == images.files(),
                "{what}: rehearsed, and changed something"
            );
            let edited = images.run(act, false);
            let edited = edited.unwrap_or_else(|error| panic!("{what}: {}", error.report()));
            let rehearsed = rehearsed.unwrap_or_else(|error| panic!("{what}: {}", error.report()));
            assert_eq!(rehearsed.copied, edited.copied, "{what}");
            images.follow(act, &what);
            let is_commit = matches!(act, Act::Commit { .. });
            let asked = [written, "top"];
            let asked = images.assert_sound(&asked[usize::from(!is_commit)..], &what);
            let mut counts = counts.borrow_mut();
            counts.edits += 1;
            counts.open += usize::from(is_open);
            counts.asked += usize::from(asked);
            counts.commits += usize::from(is_commit);
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    let counts = counts.into_inner();
    figure(format_args!("histories: {counts:?}"));
    assert!(counts.open * 3 > counts.edits, "{counts:?}");
    assert!(counts.asked * 2 > counts.edits, "{counts:?}");
    assert!(counts.commits * 8 > counts.edits, "{counts:?}");
}
