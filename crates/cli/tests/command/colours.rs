//! Colours are for people at a terminal.

use std::process::Command;

use goldsmith_testkit::pattern::disk;

use crate::Folder;

const ESCAPE: char = '\u{1b}';

/// A folder with a sound image, one with an error, and a link to the command under another name.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.write("golden.raw", &disk("1M:A"));
    folder.write("other.raw", &disk("1M:b"));
    folder.qemu_img_ok("convert -f raw -O qcow2 golden.raw bad.qcow2");
    let mut image = std::fs::read(folder.path("bad.qcow2")).unwrap();
    // The count of the header's own cluster: in the first refcount block, which the first entry of
    // the refcount table names.
    let at = |bytes: &[u8], at: usize| {
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
    };
    let block = at(&image, at(&image, 48));
    image[block..block + 2].fill(0);
    std::fs::write(folder.path("bad.qcow2"), image).unwrap();
    let link = folder.path("qemu-img");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_goldsmith"), link).unwrap();
    folder
}

/// Lines whose words are coloured for people.
const LINES: [&str; 6] = [
    "info nothing.raw",
    "convert --frobnicate",
    "compare -f raw -F raw golden.raw golden.raw",
    "compare -f raw -F raw golden.raw other.raw",
    "lint --for azure -f raw golden.raw",
    "check -f qcow2 bad.qcow2",
];

/// What `line` shows with these words in the environment, on a terminal or through pipes.
fn said(folder: &Folder, line: &str, environment: &[(&str, &str)], terminal: bool) -> String {
    let line = format!("{} {line}", env!("CARGO_BIN_EXE_goldsmith"));
    let mut command = match terminal {
        true => Command::new("script"),
        false => Command::new("sh"),
    };
    match terminal {
        true => command.args(["-qec", &line, "/dev/null"]),
        false => command.args(["-c", &line]),
    };
    // Where CI is set, colours are taken to be shown whatever the terminal can do.
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
        command.env_remove(name);
    }
    command.env("TERM", "xterm");
    let done = folder.run(command.envs(environment.iter().copied()));
    let said = done.stdout + &done.stderr;
    assert!(said.len() > 10, "{line}: {said:?}");
    said
}

#[test]
fn terminal_gets_colours_unless_it_is_asked_not_to() {
    let folder = folder();
    for line in LINES {
        let coloured = said(&folder, line, &[], true);
        assert!(coloured.contains(ESCAPE), "{line}: {coloured:?}");
        for asked in [("NO_COLOR", "1"), ("CLICOLOR", "0"), ("TERM", "dumb")] {
            let plain = said(&folder, line, &[asked], true);
            assert!(!plain.contains(ESCAPE), "{asked:?} {line}: {plain:?}");
        }
    }
}

#[test]
fn pipes_and_files_get_none_unless_somebody_insists() {
    let folder = folder();
    for line in LINES {
        let plain = said(&folder, line, &[], false);
        assert!(!plain.contains(ESCAPE), "{line}: {plain:?}");
        let forced = said(&folder, line, &[("CLICOLOR_FORCE", "1")], false);
        assert!(forced.contains(ESCAPE), "{line}: {forced:?}");
    }
}

#[test]
fn what_programs_read_is_never_coloured() {
    let folder = folder();
    for line in [
        "info -f raw --output=json golden.raw",
        "lint --for azure -f raw --output=json golden.raw",
        "map -f raw golden.raw",
        "measure -O qcow2 golden.raw",
    ] {
        let said = said(&folder, line, &[("CLICOLOR_FORCE", "1")], true);
        assert!(!said.contains(ESCAPE), "{line}: {said:?}");
    }
}

/// qemu-img knows no colours.
#[test]
fn under_the_name_qemu_img_nothing_is_coloured() {
    let folder = folder();
    for line in LINES {
        let link = folder.path("qemu-img").display().to_string();
        let mut script = Command::new("script");
        script.args(["-qec", &format!("{link} {line}"), "/dev/null"]);
        let done = folder.run(script.env("TERM", "xterm"));
        assert!(!done.stdout.contains(ESCAPE), "{line}: {done:?}");
    }
}
