//! `goldsmith map`

use std::io::stdout;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::exit::Failure;
use crate::options::{Opening, OutputFormat, Spelling};
use crate::output::{human, json};

/// Show where each part of the disk lies
#[derive(Args)]
pub(crate) struct Map {
    /// Format of the image; without it the format is guessed
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,

    /// For whom
    #[arg(long, value_enum, default_value = "human", value_name = "FOR")]
    output: OutputFormat,

    #[command(flatten)]
    opening: Opening,

    #[command(flatten)]
    spelling: Spelling,

    /// The image
    image: PathBuf,
}

impl Map {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let source = self.spelling.source(&self.image, self.format.as_deref())?;
        let opener = source.opener(self.opening.opener());
        let chain = opener.open(&source.path, source.format.as_deref())?;
        let mut out = std::io::BufWriter::new(stdout().lock());
        match self.output {
            OutputFormat::Human => human::map(&mut out, &chain)?,
            OutputFormat::Json => json::map(&mut out, &chain)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
