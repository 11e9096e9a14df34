//! The same command lines through goldsmith and qemu-img, over the same files.

use std::fs;

use serde_json::Value;

use crate::{Done, Folder};

/// Two folders with the same files in them, one for each command.
pub(crate) struct Twins {
    pub(crate) ours: Folder,
    pub(crate) theirs: Folder,
}

impl Twins {
    /// Folders that hold what `make` puts into one.
    pub(crate) fn new(make: impl FnOnce(&Folder)) -> Self {
        let twins = Self {
            ours: Folder::new(),
            theirs: Folder::new(),
        };
        make(&twins.theirs);
        for entry in fs::read_dir(twins.theirs.path("")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            // What is sparse stays so: some tests look at the space that is taken.
            let copy = format!("--sparse=always {} {name}", entry.path().display());
            let done = twins
                .ours
                .run(std::process::Command::new("cp").args(copy.split(' ')));
            assert_eq!(done.status, 0, "{done:?}");
        }
        twins
    }

    /// Both do as `line` says, and print the same.
    pub(crate) fn both(&self, line: &str) -> String {
        let (ours, theirs) = self.run(line);
        assert_eq!(theirs.status, 0, "qemu-img {line}: {theirs:?}");
        assert!(
            ours.status == 0 && ours.stderr.is_empty(),
            "goldsmith {line}: {ours:?}"
        );
        assert_eq!(ours.stdout, theirs.stdout, "{line}");
        ours.stdout
    }

    /// Both refuse to do as `line` says, with the same exit status, and print nothing but why.
    pub(crate) fn neither(&self, line: &str, hint: &str) {
        let (ours, theirs) = self.run(line);
        assert_ne!(theirs.status, 0, "qemu-img {line}: {theirs:?}");
        assert_eq!(
            (ours.status, &*ours.stdout, &*theirs.stdout),
            (theirs.status, "", ""),
            "{line}: {ours:?} {theirs:?}"
        );
        assert!(ours.stderr.contains(hint), "{line}: {ours:?}");
        assert!(!theirs.stderr.is_empty());
    }

    pub(crate) fn run(&self, line: &str) -> (Done, Done) {
        (self.ours.goldsmith(line), self.theirs.qemu_img(line))
    }

    /// Both have the same image there: what the guest sees, what QEMU says of it; and it is sound.
    pub(crate) fn same(&self, name: &str, format: &str) {
        let read = |folder: &Folder| {
            folder.qemu_img_ok(&format!("convert -f {format} -O raw {name} content.out"));
            let content = fs::read(folder.path("content.out")).unwrap();
            fs::remove_file(folder.path("content.out")).unwrap();
            content
        };
        assert!(read(&self.ours) == read(&self.theirs), "content of {name}");
        let facts = |folder: &Folder| {
            let line = format!("info -f {format} --output=json {name}");
            let mut facts: Value = serde_json::from_str(&folder.qemu_img_ok(&line)).unwrap();
            comparable(&mut facts);
            facts
        };
        assert_eq!(facts(&self.ours), facts(&self.theirs), "facts of {name}");
        if format == "qcow2" {
            self.ours.qemu_img_ok(&format!("check -f {format} {name}"));
        }
    }

    /// A command that is only rehearsed says so much, and leaves every file as it is.
    pub(crate) fn rehearsed(&self, line: &str) -> String {
        let files = || {
            let entries = fs::read_dir(self.ours.path("")).unwrap();
            let file = |entry: fs::DirEntry| (entry.path(), fs::read(entry.path()).unwrap());
            let mut files: Vec<_> = entries.map(|entry| file(entry.unwrap())).collect();
            files.sort();
            files
        };
        let before = files();
        let said = self.ours.goldsmith_ok(&format!("{line} --dry-run"));
        assert!(before == files(), "{line} --dry-run changed a file");
        said
    }
}

/// Leaves out what differs by nature: the space that is taken, and when things were done.
fn comparable(facts: &mut Value) {
    let object = facts.as_object_mut().unwrap();
    object.remove("children");
    object.remove("actual-size");
    let snapshots = object.get_mut("snapshots").and_then(Value::as_array_mut);
    for snapshot in snapshots.into_iter().flatten() {
        let snapshot = snapshot.as_object_mut().unwrap();
        for key in ["date-sec", "date-nsec", "icount"] {
            snapshot.remove(key);
        }
    }
}
