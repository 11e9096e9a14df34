//! `goldsmith check`

use std::io::stdout;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use goldsmith::Opener;

use crate::exit::Failure;
use crate::options::OutputFormat;
use crate::output::{human, json};

/// Look for errors in the tables of an image, without changing it
///
/// Exit status: 0 none, 1 the check could not be done, 2 errors, 3 nothing but wasted space, 63 the
/// format has nothing that could be checked.
#[derive(Args)]
pub(crate) struct Check {
    /// Format of the image; without it the format is guessed
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,

    /// For whom
    #[arg(long, value_enum, default_value = "human", value_name = "FOR")]
    output: OutputFormat,

    /// Say nothing but errors
    #[arg(short = 'q', long)]
    quiet: bool,

    /// The image
    image: PathBuf,
}

impl Check {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let (image, format) = (&self.image, self.format.as_deref());
        let Some((format, checked)) = goldsmith::check(&Opener::new(), image, format)? else {
            return Err(Failure::with_status(
                63,
                "This image format does not support checks",
            ));
        };
        let mut out = stdout().lock();
        match self.output {
            OutputFormat::Human if self.quiet => {}
            OutputFormat::Human => human::check(&mut out, &checked)?,
            OutputFormat::Json => json::check(&mut out, image, format, &checked)?,
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
