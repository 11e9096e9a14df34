//! Variables of the environment, which nobody typed

use std::process::Command;

use goldsmith_testkit::pattern::disk;

use crate::{Done, Folder};

/// Runs `program` with `variables`, such as `NAME=value`.
fn run(folder: &Folder, variables: &[&str], program: &str, line: &str) -> Done {
    let mut command = Command::new("env");
    let command = command.args(variables).arg(program).args(line.split(' '));
    folder.run(command)
}

const GOLDSMITH: &str = env!("CARGO_BIN_EXE_goldsmith");

#[test]
fn empty_variable_is_none() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    std::os::unix::fs::symlink(GOLDSMITH, folder.path("qemu-img")).unwrap();
    let empty = ["SOURCE_DATE_EPOCH=", "GOLDSMITH_SANDBOX="];
    for program in [GOLDSMITH, "./qemu-img"] {
        for line in [
            "convert -q -f raw -O raw disk.raw out",
            "convert -q -f raw -O vpc disk.raw out",
            "create -q -f vpc out 1M",
        ] {
            let made = || {
                let done = run(&folder, &empty, program, line);
                assert_eq!((done.status, &*done.stderr), (0, ""), "{program} {line}");
                std::fs::read(folder.path("out")).unwrap()
            };
            // By a time the identity of a VHD would be that of its name.
            assert_eq!(made() == made(), line.contains("-O raw"), "{line}");
        }
    }
}

#[test]
fn variable_is_not_asked_where_an_option_speaks() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    for line in [
        "convert -q --timestamp 1000000000 -f raw -O vpc disk.raw out",
        "create -q --timestamp 1000000000 -f vpc out 1M",
    ] {
        let done = run(&folder, &["SOURCE_DATE_EPOCH=soon"], GOLDSMITH, line);
        assert_eq!((done.status, &*done.stderr), (0, ""), "{line}");
    }
}

#[test]
fn wrong_value_is_told_by_the_name_of_its_variable() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    let (time, sandbox) = ("SOURCE_DATE_EPOCH", "GOLDSMITH_SANDBOX");
    for (name, value, line, status) in [
        (time, "soon", "convert -f raw -O raw disk.raw out", 1),
        (time, "-1", "create -f vpc out 1M", 1),
        (time, "soon", "man", 1),
        (sandbox, "perhaps", "info disk.raw", 1),
        // As for words of the line itself; 1 is an answer of these.
        (sandbox, "perhaps", "compare disk.raw disk.raw", 2),
        (sandbox, "perhaps", "lint --for kvm disk.raw", 2),
    ] {
        let done = run(&folder, &[&format!("{name}={value}")], GOLDSMITH, line);
        assert_eq!((done.status, &*done.stdout), (status, ""), "{line}");
        let told = format!("goldsmith: the environment variable {name} is '{value}'; it must be ");
        assert!(done.stderr.starts_with(&told), "{line}: {done:?}");
        assert!(!folder.path("out").exists(), "{line}");
    }
    // What is typed counts more.
    let line = "info --sandbox off -f raw disk.raw";
    let done = run(&folder, &["GOLDSMITH_SANDBOX=perhaps"], GOLDSMITH, line);
    assert_eq!((done.status, &*done.stderr), (0, ""));
}
