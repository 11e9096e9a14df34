//! `goldsmith info`

use std::io::stdout;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use goldsmith::{ImageInfo, Opener};

use crate::exit::{self, Failure};
use crate::options::{OutputFormat, Spelling};
use crate::output::{human, json};

/// Show what an image is
///
/// Reads the image's own headers and opens nothing that it names.
#[derive(Args)]
pub(crate) struct Info {
    /// Format of the image; without it the format is guessed
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,

    /// For whom
    #[arg(long, value_enum, default_value = "human", value_name = "FOR")]
    output: OutputFormat,

    #[command(flatten)]
    spelling: Spelling,

    /// The image
    image: PathBuf,
}

impl Info {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let source = self.spelling.source(&self.image, self.format.as_deref())?;
        let opener = source.opener(Opener::new());
        let info = ImageInfo::read(&opener, &source.path, source.format.as_deref())?;
        let mut out = stdout().lock();
        match self.output {
            OutputFormat::Human => {
                human::info(&mut out, &info)?;
                exit::warn(&info.layer.warnings);
            }
            OutputFormat::Json => json::info(&mut out, &info)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
