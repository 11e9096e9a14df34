//! `goldsmith resize`

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use goldsmith::{NewSize, Preallocation};

use crate::exit::Failure;
use crate::options::{Editing, described};
use crate::progress::Showing;

/// Make the disk in an image longer or shorter
///
/// What is added reads as zeros. The guest's partitions and file systems stay as they are: enlarge
/// them afterwards, and make them smaller before the disk.
#[derive(Args)]
#[command(
    override_usage = "goldsmith resize [OPTIONS] IMAGE [+-]SIZE",
    after_long_help = "\
Examples:
  A disk of 40 GiB:
    goldsmith resize -f qcow2 disk.qcow2 40G
  100 MiB more, and the space for them reserved:
    goldsmith resize -f raw --preallocation falloc disk.raw +100M
  1 GiB less, whose data is lost:
    goldsmith resize -f qcow2 --shrink disk.qcow2 -1G
  What the first one would write, and where:
    goldsmith resize --dry-run -f qcow2 disk.qcow2 40G"
)]
pub(crate) struct Resize {
    /// Allow the disk to become shorter: all data behind its new end is lost
    #[arg(long)]
    shrink: bool,

    /// What becomes of the bytes that are added: off, metadata, falloc or full
    #[arg(long, value_name = "MODE", default_value = "off", value_parser = preallocation)]
    preallocation: Preallocation,

    #[command(flatten)]
    showing: Showing,

    #[command(flatten)]
    editing: Editing,

    /// The image
    image: PathBuf,

    /// The new size, or how much longer (+) or shorter (-) the disk is to be
    #[arg(value_name = "[+-]SIZE", value_parser = new_size)]
    size: NewSize,
}

/// Stands for the minus of a size, which clap would take for the start of an option.
const MINUS: char = '\u{2212}';

/// The words of a command line, sizes as clap understands them: no option begins with a digit.
pub(crate) fn words(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<_> = words.collect();
    if words.get(1).is_some_and(|word| word == "resize") {
        // Behind `--` nothing is taken for an option.
        for word in words[2..].iter_mut().take_while(|word| *word != "--") {
            let size = word.to_str().and_then(|text| text.strip_prefix('-'));
            if let Some(size) = size.filter(|size| size.starts_with(|c: char| c.is_ascii_digit())) {
                *word = format!("{MINUS}{size}").into();
            }
        }
    }
    words
}

impl Resize {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        self.editing.must_write()?;
        let subject = self.editing.subject(&self.image)?;
        let watch = self.showing.watch(self.editing.is_quiet(), 1);
        let listener = |progress| watch.show(progress);
        let resize = goldsmith::Resize::new(&subject.path, self.size)
            .progress(&listener)
            .cancel(watch.cancel())
            .shrink(self.shrink)
            .preallocation(self.preallocation);
        let edited = described!(resize, subject).run()?;
        watch.finish();
        self.editing.say("Image resized.", &edited)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn preallocation(name: &str) -> Result<Preallocation, String> {
    Preallocation::named(name).ok_or_else(|| {
        let names = Preallocation::NAMES.join(", ");
        let hint = goldsmith::did_you_mean(name, Preallocation::NAMES.iter().copied());
        format!("Invalid preallocation mode '{name}'; there are: {names}{hint}")
    })
}

fn new_size(text: &str) -> Result<NewSize, String> {
    let (make, size): (fn(u64) -> NewSize, _) = match text.chars().next() {
        Some('+') => (NewSize::More, &text[1..]),
        Some(minus @ ('-' | MINUS)) => (NewSize::Less, &text[minus.len_utf8()..]),
        _ => (NewSize::Exactly, text),
    };
    crate::options::size(size).map(make)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_may_be_told_by_how_much() {
        for (text, size) in [
            ("1M", NewSize::Exactly(1 << 20)),
            ("+1k", NewSize::More(1024)),
            ("-512", NewSize::Less(512)),
        ] {
            let line = ["goldsmith", "resize", "-q", "disk.raw", text].map(OsString::from);
            let words = words(line.iter().cloned());
            assert_eq!(words[..4], line[..4]);
            assert_eq!(new_size(words[4].to_str().unwrap()), Ok(size));
        }
        assert!(new_size("+").is_err() && new_size("").is_err() && new_size("1M1").is_err());
        for line in [
            ["goldsmith", "create", "disk.raw", "-1", ""],
            ["goldsmith", "resize", "--", "-5name", "-512"],
        ] {
            let line = line.map(OsString::from);
            assert_eq!(words(line.iter().cloned()), line);
        }
        assert_eq!(new_size("-512"), Ok(NewSize::Less(512)));
    }
}
