//! The command on a machine that fails: disks that are full or lose what they were given, a kill at any
//! moment, calls that the kernel refuses, somebody else who writes at the same time.
//!
//! Some of it takes root, to mount file systems and make loop devices: whoever cannot be root says so
//! with `GOLDSMITH_WITHOUT_MOUNTS=1`, and then these tests say that they were left out. Nothing is
//! left out otherwise.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod advice;
mod calls;
mod disks;
mod itself;
mod killed;
mod resumed;
mod rights;
mod writers;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use goldsmith_testkit::model::ModelDisk;
use goldsmith_testkit::qemu;

/// A directory in which commands run.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// On a file system of the caller's.
    fn within(directory: &Path) -> Self {
        Self(tempfile::tempdir_in(directory).unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The path as a word of a command line.
    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, disk: &ModelDisk) {
        std::fs::write(self.path(name), disk.bytes()).unwrap();
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// All names in it, hidden ones included.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// Makes it hold the files of `other`, and nothing else.
    fn become_like(&self, other: &Place) {
        for name in self.names() {
            std::fs::remove_file(self.path(&name)).unwrap();
        }
        for name in other.names() {
            std::fs::copy(other.path(&name), self.path(&name)).unwrap();
        }
    }

    /// The command that `line`, split at spaces, means, behind the words of `before`.
    fn command(&self, before: &[&str], line: &str) -> Command {
        let goldsmith = env!("CARGO_BIN_EXE_goldsmith");
        let words = before.iter().copied().chain([goldsmith]);
        let mut words = words.chain(line.split(' '));
        let mut command = Command::new(words.next().unwrap());
        command.args(words).current_dir(self.0.path());
        command.env_remove("SOURCE_DATE_EPOCH");
        command
    }

    fn run(&self, line: &str) -> Output {
        output(&mut self.command(&[], line))
    }

    /// Runs goldsmith, which must do as it is told and say nothing on standard error.
    fn ok(&self, line: &str) {
        let output = self.run(line);
        let fine = output.status.success() && output.stderr.is_empty();
        assert!(fine, "goldsmith {line}: {output:?}");
    }

    /// Runs goldsmith, which must end with status 1; gives the one line that it says.
    fn refused(&self, line: &str) -> String {
        let output = self.run(line);
        assert_eq!(
            output.status.code(),
            Some(1),
            "goldsmith {line}: {output:?}"
        );
        said(&output)
    }

    /// What the guest sees of the image `name` with all that is behind it; read by goldsmith, whose
    /// reading is judged elsewhere.
    fn guest(&self, name: &str, format: &str) -> Vec<u8> {
        let opener = goldsmith::Opener::new().references(goldsmith::References::SameDirectory);
        let chain = opener.open(self.path(name), Some(format));
        let chain = chain.unwrap_or_else(|error| panic!("{name}: {}", error.report()));
        let mut bytes = vec![0; chain.virtual_size() as usize];
        let read = chain.read_at(0, &mut bytes);
        read.unwrap_or_else(|error| panic!("{name}: {}", error.report()));
        bytes
    }

    /// Fails if a check of the image `name` finds more than wasted space, or, in a VHD, more than that
    /// its two footers differ, which is what a cut between them leaves and what a repair mends. QEMU's
    /// opinion counts where it has one.
    fn assert_sound(&self, name: &str, format: &str, what: &str) {
        let fine = |output: &Output| matches!(output.status.code(), Some(0 | 3));
        let ours = self.run(&format!("check -q -f {format} {name}"));
        if format == "vpc" && ours.status.code() == Some(2) {
            let found = String::from_utf8_lossy(&ours.stderr);
            let errors = found.lines().filter(|line| line.starts_with("ERROR"));
            let mut errors = errors.peekable();
            assert!(errors.peek().is_some(), "{what}: {ours:?}");
            for error in errors {
                let is_of_footers = error
                    .ends_with("; its copy at the start is intact and was used")
                    || error.ends_with(", which was used, are only zeros")
                    || error.contains("the copy of the footer at the start differs from it in ");
                assert!(is_of_footers, "{what}: {error}");
            }
            let copy = Self::new();
            std::fs::copy(self.path(name), copy.path("copy")).unwrap();
            copy.run("check -q -r all -f vpc copy");
            copy.ok("check -q -f vpc copy");
            return;
        }
        assert!(fine(&ours), "{what}: {ours:?}");
        if format == "qcow2" {
            let theirs = qemu::img(&["check", "-f", "qcow2", &self.text(name)]);
            assert!(fine(&theirs), "{what}: {theirs:?}");
        }
    }
}

/// What the command says on standard error: one line.
fn said(output: &Output) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said.trim_end().to_owned()
}

fn output(command: &mut Command) -> Output {
    match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{command:?}: {error}; run scripts/install-test-tools"),
    }
}
