//! `docs/qemu-img.md`, held against what both programs say of themselves.
//!
//! Every option in the help of an installed qemu-img has a row, every row is about an option that
//! there is, and what is told as the same or better is an option of goldsmith.

use std::collections::{BTreeMap, BTreeSet};

use crate::Folder;

/// What a row says of the options in its first cell.
#[derive(Debug)]
struct Row {
    options: Vec<String>,
    verdict: String,
    how: String,
}

type Sections = BTreeMap<String, Vec<Row>>;

/// The section about the keys of `-o`.
const CREATION: &str = "creation options";

fn page() -> Sections {
    let path = format!("{}/../../docs/qemu-img.md", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let mut sections = Sections::new();
    let mut name = None;
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            name = Some(heading.to_owned());
        }
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let (Some(name), ["", options, verdict, how, ""]) = (&name, &cells[..]) else {
            continue;
        };
        if options.starts_with('`') {
            let options = options.split('`').skip(1).step_by(2);
            sections.entry(name.clone()).or_default().push(Row {
                options: options.map(str::to_owned).collect(),
                verdict: (*verdict).to_owned(),
                how: (*how).to_owned(),
            });
        }
    }
    sections
}

/// Whether this is how an option looks, or an operand of `dd`.
fn is_option(word: &str) -> bool {
    let name = |name: &str| {
        name.bytes()
            .all(|it| it.is_ascii_alphanumeric() || it == b'-')
    };
    match (word.strip_prefix("--"), word.strip_prefix('-')) {
        (Some(long), _) => long.len() > 1 && name(long),
        (_, Some(short)) => short.len() == 1 && name(short),
        _ => word
            .strip_suffix('=')
            .is_some_and(|key| !key.is_empty() && name(key)),
    }
}

/// The word without what belongs to the notation around it.
fn bare(word: &str) -> &str {
    let word = word.trim_matches(['[', ']', '(', ')', ',', '.', '|']);
    match word.split_once('=') {
        Some((key, _)) if !key.starts_with('-') => &word[..=key.len()],
        Some((key, _)) => key,
        None => word,
    }
}

/// The options in the help of a subcommand of qemu-img: the words of its usage, and those that begin
/// a paragraph below. The text of a paragraph may mention others, of other programs.
fn options_of_qemu_img(help: &str) -> BTreeSet<String> {
    let (usage, arguments) = help.split_once("Arguments:").unwrap();
    let mut options = BTreeSet::new();
    let usage = usage.split(|it: char| it.is_whitespace() || "|[]()".contains(it));
    options.extend(
        usage
            .map(bare)
            .filter(|word| is_option(word))
            .map(str::to_owned),
    );
    for line in arguments.lines() {
        let words = line.split_whitespace().map(bare);
        options.extend(words.take_while(|word| is_option(word)).map(str::to_owned));
    }
    options
}

/// All options that the help of goldsmith mentions.
fn options_of_goldsmith(help: &str) -> BTreeSet<String> {
    let words = help.split(|it: char| it.is_whitespace() || "[],|()".contains(it));
    let words = words.map(bare).filter(|word| is_option(word));
    words.map(str::to_owned).collect()
}

/// The subcommands that qemu-img lists.
fn subcommands(folder: &Folder) -> Vec<String> {
    let help = folder.qemu_img_ok("--help");
    let (_, list) = help.split_once("Recognized commands").unwrap();
    let lines = list.lines().skip(1).skip_while(|line| line.is_empty());
    let lines = lines.take_while(|line| !line.is_empty());
    let name = |line: &str| line.split_whitespace().next().unwrap().to_owned();
    lines.map(name).collect()
}

#[test]
fn page_has_a_row_for_every_option_of_qemu_img_and_no_others() {
    let folder = Folder::new();
    let page = page();
    let subcommands = subcommands(&folder);
    assert!(subcommands.len() >= 15, "{subcommands:?}");
    let mut wrong = Vec::new();
    for name in &subcommands {
        let options = options_of_qemu_img(&folder.qemu_img_ok(&format!("{name} --help")));
        assert!(options.len() > 5, "{name}: {options:?}");
        let rows = page.get(name).map(Vec::as_slice).unwrap_or_default();
        let told: BTreeSet<_> = rows.iter().flat_map(|row| row.options.clone()).collect();
        for option in options.difference(&told) {
            wrong.push(format!("{name} {option}: in qemu-img, and not on the page"));
        }
        for row in rows {
            if !row.options.iter().any(|option| options.contains(option)) {
                wrong.push(format!(
                    "{name} {:?}: on the page, and not in qemu-img",
                    row.options
                ));
            }
        }
    }
    for name in page.keys() {
        let is_of_all = matches!(&**name, "all subcommands" | CREATION);
        if !is_of_all && !subcommands.contains(name) {
            wrong.push(format!("{name}: no subcommand of qemu-img"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_row_says_same_or_better_and_how_or_refused_and_why() {
    for (name, rows) in page() {
        for Row {
            options,
            verdict,
            how,
        } in rows
        {
            let needs_more = match &*verdict {
                "same" => false,
                "better" | "refused" => true,
                _ => panic!("{name} {options:?} is '{verdict}'"),
            };
            // Whoever asks for help gets it; that ours has examples is not worth a row.
            assert!(
                !needs_more || !how.is_empty(),
                "{name} {options:?} is {verdict}: how, or why?"
            );
        }
    }
}

#[test]
fn what_is_the_same_or_better_is_known_to_goldsmith() {
    let folder = Folder::new();
    let mut missing = Vec::new();
    for (name, rows) in page().into_iter().filter(|(name, _)| name != CREATION) {
        let line = match &*name {
            "all subcommands" => "--help".to_owned(),
            name => format!("{name} --help"),
        };
        let done = folder.goldsmith(&line);
        if done.status != 0 {
            missing.push(format!("{name}: no such subcommand"));
            continue;
        }
        let known = options_of_goldsmith(&done.stdout);
        let rows = rows.iter().filter(|row| row.verdict != "refused");
        for option in rows.flat_map(|row| &row.options) {
            // Beginnings of long names are understood, too.
            let begins = |known: &String| option.len() > 4 && known.starts_with(&**option);
            if !known.contains(option) && !known.iter().any(begins) {
                missing.push(format!("{name} {option}: unknown to goldsmith {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "\n{}", missing.join("\n"));
}

#[test]
fn what_is_no_creation_option_here_is_on_the_page() {
    let folder = Folder::new();
    let keys = |help: &str| -> BTreeSet<String> {
        let lines = help.lines().filter_map(|line| line.trim().split_once("=<"));
        lines.map(|(key, _)| key.to_owned()).collect()
    };
    let mut missing = BTreeSet::new();
    for format in ["raw", "qcow2", "vpc"] {
        // With a file name it tells what files have, too.
        let line = format!("create -f {format} -o help file");
        let theirs = keys(&folder.qemu_img_ok(&line));
        let ours = keys(&folder.goldsmith(&line).stdout);
        assert!(theirs.contains("size") && !ours.is_empty());
        for key in theirs.difference(&ours) {
            let made = folder.goldsmith(&format!("create -f {format} -o {key}=1M file 1M"));
            if key == "size" {
                // An operand of its own says that, and -o does as well.
                assert!(made.stderr.contains("must be specified only once"));
                continue;
            }
            let begins = format!("goldsmith: Invalid parameter '{key}'");
            assert!(made.stderr.starts_with(&begins), "{}", made.stderr);
            missing.insert(key.clone());
        }
    }
    let rows = page().remove(CREATION).unwrap();
    assert!(rows.iter().all(|row| row.verdict == "refused"));
    let told: BTreeSet<_> = rows.into_iter().flat_map(|row| row.options).collect();
    assert_eq!(told, missing);
}
