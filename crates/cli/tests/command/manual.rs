//! The manual, judged by those who show manuals.

use std::process::Command;

use crate::examples::subcommands;
use crate::{Done, Folder};

const SECTIONS: [&str; 8] = [
    "NAME",
    "SYNOPSIS",
    "DESCRIPTION",
    "OPTIONS",
    "EXIT STATUS",
    "ENVIRONMENT",
    "EXAMPLES",
    "SEE ALSO",
];

/// All pages, in the folder `man`.
fn pages(folder: &Folder) -> Vec<String> {
    std::fs::create_dir(folder.path("man")).unwrap();
    assert_eq!(folder.goldsmith_ok("man --directory man"), "");
    let mut names: Vec<_> = std::fs::read_dir(folder.path("man"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A page as `man` shows it.
fn shown(folder: &Folder, page: &str) -> String {
    let mut man = Command::new("man");
    man.args(["-E", "ascii", "-l", &format!("man/{page}")]);
    let done = folder.run(man.env("MANWIDTH", "80").env("MAN_KEEP_FORMATTING", ""));
    assert_eq!((done.status, &*done.stderr), (0, ""), "{page}");
    done.stdout
}

#[test]
fn there_is_a_page_about_every_subcommand_and_one_about_all() {
    let folder = Folder::new();
    let mut expected = vec!["goldsmith.1".to_owned()];
    let names = subcommands(&folder);
    expected.extend(names.iter().map(|name| format!("goldsmith-{name}.1")));
    expected.sort();
    assert_eq!(pages(&folder), expected);
    let page = |name: &str| std::fs::read_to_string(folder.path("man").join(name)).unwrap();
    assert_eq!(folder.goldsmith_ok("man"), page("goldsmith.1"));
    let convert = folder.goldsmith_ok("man convert");
    assert_eq!(convert, page("goldsmith-convert.1"));

    let done = folder.goldsmith("man convrt");
    assert_eq!((done.status, &*done.stdout), (1, ""));
    assert_eq!(
        done.stderr,
        "goldsmith: there is no page about 'convrt'; did you mean 'convert'?\n"
    );
}

#[test]
fn every_page_is_shown_without_a_complaint_and_has_all_sections() {
    let folder = Folder::new();
    for page in pages(&folder) {
        let Done { stdout, stderr, .. } = folder.run(Command::new("mandoc").args([
            "-Tlint",
            "-Wwarning",
            &format!("man/{page}"),
        ]));
        assert_eq!((&*stdout, &*stderr), ("", ""), "{page}");

        let shown = shown(&folder, &page);
        let mut titles = shown.lines().filter(|line| SECTIONS.contains(line));
        for title in SECTIONS {
            assert_eq!(titles.next(), Some(title), "{page}: {shown}");
        }
        assert_eq!(titles.next(), None, "{page}");
    }
}

#[test]
fn page_says_what_the_help_says() {
    let folder = Folder::new();
    pages(&folder);
    let shown = shown(&folder, "goldsmith-check.1");
    let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    for text in [
        "goldsmith-check - Look for errors in the tables of an image, and mend them if asked to",
        "SYNOPSIS goldsmith check [OPTIONS] <IMAGE>",
        "-r, --repair <WHAT> Mend this, and check again",
        "63 the format has nothing that could be checked",
        "Give wasted space back, and touch nothing else: goldsmith check -f qcow2 -r leaks \
         disk.qcow2",
        "GOLDSMITH_SANDBOX The mode of the sandbox",
        "TMPDIR Where images are unpacked",
        "SEE ALSO goldsmith(1), qemu-img(1)",
    ] {
        assert!(words.contains(text), "{text}: {shown}");
    }
    assert!(
        !words.contains("SOURCE_DATE_EPOCH"),
        "check has no use for it"
    );
    // Its example uses another command.
    assert!(
        folder
            .goldsmith_ok("man snapshot")
            .contains("goldsmith\\-convert")
    );
}

#[test]
fn pages_of_one_day_are_the_same() {
    let folder = Folder::new();
    let mut man = Command::new(env!("CARGO_BIN_EXE_goldsmith"));
    let man = man.arg("man").current_dir(folder.path(""));
    let output = man.env("SOURCE_DATE_EPOCH", "86400").output().unwrap();
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(page.contains(" 1970-01-02 "), "{page}");
}
