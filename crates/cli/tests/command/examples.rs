//! The examples of the help and of the README do what they say: they run as they stand there.

use std::os::unix::fs::symlink;
use std::process::Command;

use goldsmith_testkit::pattern::disk;

use crate::{Done, Folder};

/// The names of all subcommands.
pub(crate) fn subcommands(folder: &Folder) -> Vec<String> {
    let help = folder.goldsmith_ok("--help");
    let (_, commands) = help.split_once("\nCommands:\n").unwrap();
    let (commands, _) = commands.split_once("\n\n").unwrap();
    let names = commands.lines().filter_map(|line| {
        let name = line.strip_prefix("  ")?;
        // What goes on from the line before stands further in.
        (!name.starts_with(' ')).then(|| name.split(' ').next().unwrap().to_owned())
    });
    let names: Vec<_> = names.filter(|name| name != "help").collect();
    assert!(names.len() >= 16, "{names:?}");
    names
}

/// The lines to type among the examples of a help text: those that do not end in a colon.
fn examples(help: &str) -> Vec<&str> {
    let (_, examples) = help.split_once("\nExamples:\n").unwrap_or_default();
    let lines = examples.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.ends_with(':'))
        .collect()
}

/// A folder with all files that the examples name, and `goldsmith` in `bin`.
fn prepared() -> Folder {
    let folder = Folder::new();
    folder.write("golden.raw", &disk("1M:A 2M:- 1M:b 28M:-"));
    folder.write("disk.raw", &disk("1M:A 2M:- 1M:c 28M:-"));
    for line in [
        "convert -f raw -O qcow2 golden.raw golden.qcow2",
        "convert -f raw -O qcow2 golden.raw kvm.qcow2",
        "convert -f raw -O vpc -o force_size=on golden.raw golden.vhd",
        "convert -f raw -O vpc -o subformat=fixed,force_size=on golden.raw azure.vhd",
        "convert -f raw -O vpc -o force_size=on golden.raw disk.vhd",
        "create -q -f qcow2 -b golden.qcow2 -F qcow2 middle.qcow2",
        "create -q -f qcow2 scratch.qcow2 32M",
        "create -q -f qcow2 -b middle.qcow2 -F qcow2 disk.qcow2",
        "convert -f raw -O qcow2 disk.raw old.qcow2",
        "bitmap -f qcow2 --add old.qcow2 monday",
        "convert -f raw -O qcow2 golden.raw moved.qcow2",
        "convert -f raw -O qcow2 golden.raw upload.img",
    ] {
        folder.qemu_img_ok(line);
    }
    // Which qemu-img makes none of.
    folder.goldsmith_ok("create -q -f vpc -b golden.vhd -F vpc child.vhd");
    for directory in [
        "bin",
        ".zfunc",
        ".config/fish/completions",
        ".local/share/bash-completion/completions",
        ".local/share/man/man1",
    ] {
        std::fs::create_dir_all(folder.path(directory)).unwrap();
    }
    symlink(
        env!("CARGO_BIN_EXE_goldsmith"),
        folder.path("bin/goldsmith"),
    )
    .unwrap();
    folder
}

/// Runs `line` in a bash whose home is the folder.
fn bash(folder: &Folder, line: &str) -> Done {
    let path = format!("{}:/usr/bin:/bin", folder.path("bin").display());
    let mut command = Command::new("bash");
    let command = command
        .args(["-o", "pipefail", "-c", line])
        .env("PATH", path);
    folder.run(command.env("HOME", folder.path("")))
}

#[test]
fn examples_of_every_subcommand_run_in_their_order() {
    let folder = Folder::new();
    let mut ran = 0;
    for name in subcommands(&folder) {
        let help = folder.goldsmith_ok(&format!("{name} --help"));
        let lines = examples(&help);
        assert!(!lines.is_empty(), "{name} --help has no examples");
        let folder = prepared();
        for line in lines {
            assert!(line.contains("goldsmith "), "{name}: {line}");
            let done = bash(&folder, line);
            assert!(
                done.status == 0 && done.stderr.is_empty(),
                "{name}: {line}: {done:?}"
            );
            ran += 1;
        }
    }
    assert!(ran >= 45, "{ran}");
}

#[test]
fn examples_of_the_whole_command_run() {
    let folder = prepared();
    let help = folder.goldsmith_ok("--help");
    let lines = examples(&help);
    assert!(lines.len() >= 5, "{help}");
    for line in lines {
        let done = bash(&folder, line);
        assert!(
            done.status == 0 && done.stderr.is_empty(),
            "{line}: {done:?}"
        );
    }
}

/// The lines under "Try it", the first of which builds the command.
#[test]
fn lines_of_the_readme_run() {
    let readme = include_str!("../../../../README.md");
    let (_, lines) = readme.split_once("\n## Try it\n").unwrap();
    let (lines, _) = lines.split_once("\n## ").unwrap();
    let folder = prepared();
    let testdata = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata");
    symlink(testdata, folder.path("testdata")).unwrap();
    let mut ran = 0;
    for line in lines.lines() {
        let line = line.replace("cargo run --release --bin goldsmith --", "goldsmith");
        if !line.starts_with("goldsmith ") {
            continue;
        }
        let done = bash(&folder, &line);
        // What it finds is a failure, and there is something to find.
        let expected = i32::from(line.starts_with("goldsmith lint"));
        assert!(
            done.status == expected && done.stderr.is_empty(),
            "{line}: {done:?}"
        );
        ran += 1;
    }
    assert!(ran >= 10, "{ran}");
}
