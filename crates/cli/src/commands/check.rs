//! `goldsmith check`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::exit::{self, Failure};
use crate::options::{Looking, Opening, OutputFormat, Spelling, Subject, described};
use crate::output::{human, json};
use crate::progress::Showing;

/// Look for errors in the tables of an image, and mend them if asked to
///
/// Exit status: 0 none, 1 the check could not be done, 2 errors, 3 nothing but wasted space, 63 the
/// format has nothing that could be checked.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  goldsmith check -f qcow2 disk.qcow2
  Give wasted space back, and touch nothing else:
    goldsmith check -f qcow2 -r leaks disk.qcow2
  What would be written to mend all:
    goldsmith check -f qcow2 -r all --dry-run disk.qcow2")]
pub(crate) struct Check {
    /// Format of the image; without it the format is guessed
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,

    /// Mend this, and check again
    #[arg(
        short = 'r',
        long,
        value_enum,
        value_name = "WHAT",
        conflicts_with = "force_share"
    )]
    repair: Option<Repair>,

    /// With -r: leave the file as it is, and only say what would be done to it
    #[arg(long, requires = "repair", conflicts_with = "output")]
    dry_run: bool,

    /// For whom
    #[arg(long, value_enum, default_value = "human", value_name = "FOR")]
    output: OutputFormat,

    #[command(flatten)]
    showing: Showing,

    /// Say nothing but errors
    #[arg(short = 'q', long)]
    quiet: bool,

    #[command(flatten)]
    looking: Looking,

    #[command(flatten)]
    opening: Opening,

    #[command(flatten)]
    spelling: Spelling,

    /// The image
    image: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Repair {
    /// Wasted space
    Leaks,
    /// All that can be mended without guessing at guest data
    All,
}

impl Check {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        self.showing.must_fit(self.output)?;
        let watch = self.showing.watch(self.quiet, 1);
        let listener = |progress| watch.show(progress);
        let source = self.spelling.source(&self.image, self.format.as_deref())?;
        let subject = Subject {
            opener: source.opener(self.opening.opener().cache(self.looking.cache())),
            reach: self
                .opening
                .reach_of_edit(&source.path, self.dry_run || self.repair.is_none()),
            path: source.path,
            format: source.format,
            dry_run: self.dry_run,
        };
        let check = goldsmith::Check::new(&subject.path)
            .progress(&listener)
            .cancel(watch.cancel())
            .cache(self.looking.cache());
        let check = check.repair(self.repair.map(|it| match it {
            Repair::Leaks => goldsmith::Repair::Leaks,
            Repair::All => goldsmith::Repair::All,
        }));
        let Some(report) = described!(check, subject).run()? else {
            return Err(Failure::with_status(
                63,
                "This image format does not support checks",
            ));
        };
        watch.finish();
        let mut out = anstream::stdout().lock();
        let checked = if self.dry_run {
            human::repairs(&mut out, &report, self.quiet)?;
            report.before.unwrap_or(report.checked)
        } else {
            match self.output {
                OutputFormat::Human => human::check(&mut out, &report, self.quiet)?,
                OutputFormat::Json if self.quiet => {}
                OutputFormat::Json => {
                    let facts = json::check(&self.image, &report);
                    match self.showing.format() {
                        // Behind lines of progress comes one more.
                        Some(_) => json::line(&mut out, &facts)?,
                        None => json::pretty(&mut out, &facts)?,
                    }
                }
            }
            report.checked
        };
        drop(out);
        if !self.quiet {
            exit::warn(&report.edited.warnings);
        }
        if checked.errors > 0 {
            return Err(Failure::with_status(1, "Check failed"));
        }
        Ok(ExitCode::from(match checked {
            checked if checked.corruptions > 0 => 2,
            checked if checked.leaks > 0 => 3,
            _ => 0,
        }))
    }
}
