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
        let mut info = ImageInfo::read(&opener, &source.path, source.format.as_deref())?;
        info.layer.format = asked_for(source.format.as_deref(), info.layer.format);
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

/// The name for the format `found` by which the user `asked`: Glance takes another one for another
/// format.
fn asked_for(asked: Option<&str>, found: &'static str) -> &'static str {
    let format = asked.and_then(|asked| goldsmith::format_named(asked).ok());
    let aliases = format.map_or(&[][..], |format| format.aliases());
    let alias = aliases.iter().find(|alias| Some(**alias) == asked);
    alias.copied().unwrap_or(found)
}
