//! The manual: a page for each command, made of the words of its `--help`.

use std::io::Result;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, line_break, roman};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A name in the environment, which commands look for it, and what it means to them.
type Variable = (&'static str, fn(&Command) -> bool, &'static str);

const ENVIRONMENT: &[Variable] = &[
    (
        "GOLDSMITH_SANDBOX",
        |_| true,
        "The mode of the sandbox where --sandbox does not say it.",
    ),
    (
        "TMPDIR",
        |command| takes(command, "unpack_limit"),
        "Where images are unpacked that have to be as a whole. Without it that is /var/tmp.",
    ),
    (
        "SOURCE_DATE_EPOCH",
        |command| takes(command, "timestamp") || command.get_name() == "man",
        "The time for --timestamp, and the day that pages of the manual bear, in seconds since \
         1970-01-01 UTC: the same build gives the same bytes.",
    ),
    (
        "TZ",
        |command| matches!(command.get_name(), "info" | "snapshot"),
        "The time zone in which the times of snapshots are told.",
    ),
    (
        "NO_COLOR",
        |_| true,
        "If it is set to anything, nothing is coloured; nor is with CLICOLOR=0 or TERM=dumb.",
    ),
    (
        "CLICOLOR_FORCE",
        |_| true,
        "If it is set to anything but 0, messages are coloured also where no terminal shows them.",
    ),
];

fn takes(command: &Command, arg: &str) -> bool {
    let mut args = command.get_arguments();
    args.any(|it| it.get_id().as_str() == arg)
}

/// What the exit statuses mean where a command does not say it itself.
const STATUSES: &str = "0 it was done, 1 it was not, and standard error says why";

/// A page of the manual.
pub(crate) struct Page {
    /// The command that it is about; none for the one about all of them.
    pub(crate) subcommand: Option<String>,
    /// What its file is called.
    pub(crate) file: String,
    /// For roff.
    pub(crate) text: String,
}

/// The pages about `command` and about each of its subcommands, of the day that `seconds` after 1970 falls on,
/// or of today.
pub(crate) fn pages(command: Command, seconds: Option<u64>) -> Result<Vec<Page>> {
    let mut command = command.disable_help_subcommand(true);
    // Only then do the subcommands know what they are part of.
    command.build();
    let date = date(seconds);
    let about_all = std::iter::once((None, &command));
    let about_each = command
        .get_subcommands()
        .map(|it| (Some(it.get_name().to_owned()), it));
    about_all
        .chain(about_each)
        .map(|(subcommand, it)| page(subcommand, it, &command, &date))
        .collect()
}

/// The page about `command`, which is `whole` or a part of it.
fn page(
    subcommand: Option<String>,
    command: &Command,
    whole: &Command,
    date: &str,
) -> Result<Page> {
    let (about, statuses) = split_statuses(command);
    let described = command.clone().long_about(about);
    let version = whole.get_version().unwrap_or_default();
    let man = Man::new(described);
    let file = man.get_filename();
    let title = file.trim_end_matches(".1").to_uppercase();
    let man = man
        .title(title)
        .date(date)
        .source(format!("{} {version}", whole.get_name()))
        .manual("Disk images");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    synopsis(command).to_writer(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if subcommand.is_none() {
        man.render_subcommands_section(&mut text)?;
    }
    listed("EXIT STATUS", entries(&statuses)).to_writer(&mut text)?;
    listed("ENVIRONMENT", environment(command)).to_writer(&mut text)?;
    let after = command.get_after_long_help().map(ToString::to_string);
    examples(after.as_deref().unwrap_or_default()).to_writer(&mut text)?;
    see_also(&String::from_utf8_lossy(&text), command, whole).to_writer(&mut text)?;
    Ok(Page {
        subcommand,
        file,
        text: joined(&String::from_utf8_lossy(&text)),
    })
}

/// The parts of a page as one: what each part begins with stands once, and breaks that stand around
/// an empty line are that line.
fn joined(parts: &str) -> String {
    const BEGIN: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";
    let parts = parts
        .replace(BEGIN, "")
        .replace("\n.br\n\n.br\n", "\n.sp\n");
    format!("{BEGIN}{parts}")
}

/// What `command` says of itself, without and with only its exit statuses.
fn split_statuses(command: &Command) -> (String, String) {
    let about = command.get_long_about().or(command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    let (statuses, rest): (Vec<_>, Vec<_>) = about
        .split("\n\n")
        .partition(|paragraph| paragraph.starts_with("Exit status: "));
    let statuses = statuses
        .first()
        .and_then(|it| it.strip_prefix("Exit status: "));
    (
        rest.join("\n\n"),
        statuses
            .unwrap_or(STATUSES)
            .trim_end_matches('.')
            .to_owned(),
    )
}

/// The statuses of a text such as "0 the same, 1 different", and what they mean.
fn entries(statuses: &str) -> Vec<(String, String)> {
    let mut entries: Vec<(String, String)> = Vec::new();
    for part in statuses.split(", ") {
        match (part.split_once(' '), entries.last_mut()) {
            (Some((number, meaning)), _) if number.bytes().all(|it| it.is_ascii_digit()) => {
                entries.push((number.to_owned(), meaning.to_owned()));
            }
            (_, Some((_, meaning))) => {
                meaning.push_str(", ");
                meaning.push_str(part);
            }
            (_, None) => {}
        }
    }
    entries
}

/// What `command` and its parts look for in the environment.
fn environment(command: &Command) -> Vec<(String, String)> {
    let own = ENVIRONMENT
        .iter()
        .filter(|(_, looks, _)| looks(command) || command.get_subcommands().any(looks));
    own.map(|(name, _, text)| ((*name).to_owned(), (*text).to_owned()))
        .collect()
}

fn date(seconds: Option<u64>) -> String {
    let given = seconds.and_then(|seconds| Timestamp::from_second(seconds.try_into().ok()?).ok());
    let day = given.unwrap_or_else(Timestamp::now).to_zoned(TimeZone::UTC);
    day.strftime("%Y-%m-%d").to_string()
}

fn synopsis(command: &Command) -> Roff {
    let usage = command.clone().render_usage().to_string();
    let lines = usage.trim_start_matches("Usage:").lines().map(str::trim);
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    for (nth, line) in lines.enumerate() {
        if nth > 0 {
            roff.control("br", []);
        }
        let name = command.get_bin_name().unwrap_or(command.get_name());
        roff.text(match line.strip_prefix(name) {
            Some(rest) => vec![bold(name), roman(rest)],
            None => vec![roman(line)],
        });
    }
    roff
}

/// A section of words and what they mean.
fn listed(title: &str, entries: Vec<(String, String)>) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", [title]);
    for (word, meaning) in entries {
        roff.control("TP", []);
        roff.text([bold(word)]);
        roff.text([roman(meaning)]);
    }
    roff
}

/// The examples, which `help` gives as lines to type, some under a line that ends in a colon and
/// says what they do.
fn examples(help: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]);
    let mut typed: Vec<Inline> = Vec::new();
    let mut is_first = true;
    let flush = |roff: &mut Roff, typed: &mut Vec<Inline>| {
        if !typed.is_empty() {
            roff.control("RS", ["4"]);
            roff.text(std::mem::take(typed));
            roff.control("RE", []);
        }
    };
    for line in help.lines().skip(1).map(str::trim) {
        if line.ends_with(':') {
            flush(&mut roff, &mut typed);
            if !is_first {
                roff.control("PP", []);
            }
            roff.text([roman(line)]);
        } else {
            if !typed.is_empty() {
                typed.push(line_break());
            }
            typed.push(bold(line));
        }
        is_first = false;
    }
    flush(&mut roff, &mut typed);
    roff
}

/// The pages of those commands that `text` mentions, and of the peer.
fn see_also(text: &str, command: &Command, whole: &Command) -> Roff {
    let name = whole.get_name();
    let is_whole = command.get_name() == name;
    let mentioned = whole.get_subcommands().map(Command::get_name).filter(|it| {
        let is_itself = *it == command.get_name();
        !is_itself && (is_whole || text.contains(&format!("{name} {it} ")))
    });
    let mut pages: Vec<_> = mentioned.map(|it| format!("{name}-{it}")).collect();
    if !is_whole {
        pages.insert(0, name.to_owned());
    }
    if name != "qemu-img" {
        pages.push("qemu-img".to_owned());
    }
    let mut inlines = Vec::new();
    for (nth, page) in pages.iter().enumerate() {
        if nth > 0 {
            inlines.push(roman(", "));
        }
        inlines.extend([bold(page), roman("(1)")]);
    }
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    roff.text(inlines);
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comma_within_a_meaning_is_part_of_it() {
        let entry = |number: &str, meaning: &str| (number.to_owned(), meaning.to_owned());
        assert_eq!(
            entries("0 none, 1 one, or two, 63 a lot"),
            [
                entry("0", "none"),
                entry("1", "one, or two"),
                entry("63", "a lot")
            ]
        );
    }
}
