//! The command as a shell sees it: exit status, standard output, standard error.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod amend;
mod backing_chain;
mod beginnings;
mod bench;
mod bitmap;
mod caches;
mod check;
mod checksum;
mod colours;
mod commit;
mod compare;
mod completions;
mod concatenated;
mod convert;
mod create;
mod dd;
mod drop_in;
mod dry_run;
mod environment;
mod errors;
mod examples;
mod expect;
mod health;
mod info;
mod into_existing;
mod limits;
mod lint;
mod locks;
mod manual;
mod map;
mod measure;
mod mixes;
mod names;
mod one_pass;
mod page;
mod phrases;
mod progress;
mod proof;
mod rebase;
mod resize;
mod salvage;
mod sandbox;
mod secrets;
mod snapshot;
mod suggestions;
mod svg;
mod twins;
mod unclosed;
mod vhd;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use goldsmith_testkit::model::ModelDisk;

/// A temporary folder in which commands run, so that files have short names.
struct Folder(tempfile::TempDir);

/// What a command did.
#[derive(Debug)]
struct Done {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, disk: &ModelDisk) {
        std::fs::write(self.path(name), disk.bytes()).unwrap();
    }

    /// Runs goldsmith; `line` is split at spaces.
    fn goldsmith(&self, line: &str) -> Done {
        self.run(Command::new(env!("CARGO_BIN_EXE_goldsmith")).args(line.split(' ')))
    }

    /// Runs goldsmith, which must do as it is told and say nothing on standard error.
    fn goldsmith_ok(&self, line: &str) -> String {
        let done = self.goldsmith(line);
        assert!(
            done.status == 0 && done.stderr.is_empty(),
            "goldsmith {line}: {done:?}"
        );
        done.stdout
    }

    /// Runs goldsmith under the name `qemu-img`, which must do as it is told and say nothing on
    /// standard error.
    fn as_qemu_img_ok(&self, line: &str) -> String {
        let done = self.as_qemu_img(line);
        assert!(
            done.status == 0 && done.stderr.is_empty(),
            "goldsmith as qemu-img {line}: {done:?}"
        );
        done.stdout
    }

    fn as_qemu_img(&self, line: &str) -> Done {
        let mut command = Command::new(env!("CARGO_BIN_EXE_goldsmith"));
        self.run(command.arg0("qemu-img").args(line.split(' ')))
    }

    /// Runs qemu-img, which must do as it is told.
    fn qemu_img_ok(&self, line: &str) -> String {
        let done = self.qemu_img(line);
        assert_eq!(done.status, 0, "qemu-img {line}: {done:?}");
        done.stdout
    }

    fn qemu_img(&self, line: &str) -> Done {
        self.run(Command::new("qemu-img").args(line.split(' ')))
    }

    fn qemu_io(&self, image: &str, commands: &[&str]) {
        let mut io = Command::new("qemu-io");
        io.args(["-f", "qcow2"]);
        for command in commands {
            io.args(["-c", command]);
        }
        let done = self.run(io.arg(image));
        assert_eq!(done.status, 0, "qemu-io {commands:?}: {done:?}");
    }

    /// The calls of these kinds that goldsmith makes, with the paths of open files; it must do as it is
    /// told and say nothing on standard error.
    fn calls(&self, kinds: &str, line: &str) -> Vec<String> {
        let (done, calls) = self.traced(kinds, line);
        assert_eq!((done.status, &*done.stderr), (0, ""), "{line}: {done:?}");
        calls
    }

    /// The same where it must refuse what it is told.
    fn calls_of_failing(&self, kinds: &str, line: &str) -> Vec<String> {
        let (done, calls) = self.traced(kinds, line);
        assert_eq!(done.status, 1, "{line}: {done:?}");
        calls
    }

    fn traced(&self, kinds: &str, line: &str) -> (Done, Vec<String>) {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-y", "-o", "calls.out", "-e"]);
        strace.arg(format!("trace={kinds}"));
        strace.arg(env!("CARGO_BIN_EXE_goldsmith"));
        let done = self.run(strace.args(line.split(' ')));
        let calls = std::fs::read_to_string(self.path("calls.out")).unwrap();
        (done, calls.lines().map(str::to_owned).collect())
    }

    /// What `work` gives with a loop device over the file `backing`, unless mounts were ruled out.
    fn on_device<T>(&self, backing: &str, work: impl FnOnce(&str) -> T) -> Option<T> {
        if !goldsmith_testkit::mount::are_allowed("loop devices") {
            return None;
        }
        let made = self.run(Command::new("losetup").args(["--find", "--show", backing]));
        assert_eq!(made.status, 0, "{made:?}");
        let device = made.stdout.trim();
        let done = work(device);
        let gone = self.run(Command::new("losetup").args(["-d", device]));
        assert_eq!(gone.status, 0, "{gone:?}");
        Some(done)
    }

    fn run(&self, command: &mut Command) -> Done {
        command
            .current_dir(self.0.path())
            .env_remove("SOURCE_DATE_EPOCH");
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => panic!("{command:?}: {error}; run scripts/install-test-tools"),
        };
        Done {
            status: output.status.code().expect("no signal ended it"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}
