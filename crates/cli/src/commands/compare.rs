//! `goldsmith compare`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use goldsmith::{Chain, CompareError, Comparison};

use crate::exit::{self, Failure};
use crate::options::{Looking, Opening, Source, Spelling};
use crate::output::style::{BAD, DOUBTFUL, GOOD};
use crate::progress::Showing;
use crate::sandbox;

/// Compare what a guest reads from two images, whatever their formats
///
/// Exit status: 0 the same, 1 different, 2 an image cannot be opened, 3 its tables cannot be read,
/// 4 its data cannot be read.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  goldsmith compare -f raw -F qcow2 golden.raw kvm.qcow2
  Nothing but the exit status:
    goldsmith compare -q -f raw -F vpc golden.raw golden.vhd")]
pub(crate) struct Compare {
    /// Format of the first image; without it the format is guessed
    #[arg(short = 'f', long, value_name = "FMT", visible_alias = "a-format")]
    first_format: Option<String>,

    /// Format of the second image; without it the format is guessed
    #[arg(short = 'F', long, value_name = "FMT", visible_alias = "b-format")]
    second_format: Option<String>,

    /// Sizes and allocation must be the same too
    #[arg(short = 's', long)]
    strict: bool,

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

    /// One image
    first: PathBuf,

    /// The other image
    second: PathBuf,
}

impl Compare {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        // 1 says that the images differ.
        self.compare().map_err(|failure| failure.not_one(2))
    }

    fn compare(self) -> Result<ExitCode, Failure> {
        let first = self.source(&self.first, self.first_format.as_deref())?;
        let second = self.source(&self.second, self.second_format.as_deref())?;
        let mut reach = self.opening.reach_of(&first.path);
        reach.source(&second.path);
        sandbox::narrow(&reach)?;
        let (first, second) = (self.open(&first)?, self.open(&second)?);
        let watch = self.showing.watch(self.quiet, 1);
        sandbox::opener().all_open(&[])?;
        let listener = |progress| watch.show(progress);
        let compare = goldsmith::Compare::new(&first, &second)
            .strict(self.strict)
            .progress(&listener)
            .cancel(watch.cancel());
        let found = compare.run().map_err(|error| match error {
            CompareError::Status(error) => Failure::with_status(3, error.report()),
            CompareError::Read(error) => Failure::with_status(4, error.report()),
            CompareError::Other(error) => error.into(),
        })?;
        watch.finish();

        if !self.quiet {
            let mut out = anstream::stdout().lock();
            let sizes = [first.virtual_size(), second.virtual_size()];
            let common = sizes[0].min(sizes[1]);
            let past_the_end = !matches!(found, Comparison::Content(offset) if offset < common);
            if !self.strict && sizes[0] != sizes[1] && past_the_end {
                writeln!(out, "{DOUBTFUL}Warning: Image size mismatch!{DOUBTFUL:#}")?;
            }
            match found {
                Comparison::Identical => {
                    writeln!(out, "{GOOD}Images are identical.{GOOD:#}")?;
                }
                Comparison::Content(offset) => {
                    writeln!(out, "{BAD}Content mismatch at offset {offset}!{BAD:#}")?;
                }
                Comparison::Allocation(offset) => writeln!(
                    out,
                    "{BAD}Strict mode: Offset {offset} block status mismatch!{BAD:#}"
                )?,
                Comparison::Size => {
                    writeln!(out, "{BAD}Strict mode: Image size mismatch!{BAD:#}")?;
                }
            }
        }
        Ok(ExitCode::from(u8::from(found != Comparison::Identical)))
    }

    fn source(&self, path: &Path, format: Option<&str>) -> Result<Source, Failure> {
        let source = self.spelling.source(path, format);
        source.map_err(|failure| failure.and_status(2))
    }

    fn open(&self, source: &Source) -> Result<Chain, Failure> {
        let opener = source.opener(self.opening.opener().cache(self.looking.cache()));
        let opened = opener.open(&source.path, source.format.as_deref());
        let chain = opened.map_err(|error| Failure::from(error).and_status(2))?;
        if !self.quiet {
            exit::warn(chain.warnings());
        }
        Ok(chain)
    }
}
