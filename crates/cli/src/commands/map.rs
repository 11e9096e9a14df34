//! `goldsmith map`

use std::io::stdout;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use goldsmith::GuestRange;

use crate::exit::Failure;
use crate::options::{Opening, Spelling, size};
use crate::output::{human, json, svg};
use crate::sandbox;

/// Show where each part of the disk lies
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  What is stored, and in which file of the chain:
    goldsmith map -f qcow2 disk.qcow2
  All of it, holes and zeros too, for a program:
    goldsmith map -f qcow2 --output=json disk.qcow2
  What stands in the second gibibyte:
    goldsmith map --start-offset 1G --max-length 1G disk.qcow2
  A picture of the disk, and of each image behind it:
    goldsmith map --output svg disk.qcow2 > disk.svg")]
pub(crate) struct Map {
    /// Format of the image; without it the format is guessed
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,

    /// Where on the disk to begin
    #[arg(short = 's', long, value_name = "OFFSET", default_value = "0", value_parser = place)]
    start_offset: u64,

    /// How much of the disk to show; by default all behind the start
    #[arg(short = 'l', long, value_name = "LENGTH", value_parser = place)]
    max_length: Option<u64>,

    /// For whom
    #[arg(long, value_enum, default_value = "human", value_name = "FOR")]
    output: Output,

    #[command(flatten)]
    opening: Opening,

    #[command(flatten)]
    spelling: Spelling,

    /// The image
    image: PathBuf,
}

/// Who reads the answer.
#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// A person
    Human,
    /// A program
    Json,
    /// A person who looks at pictures
    Svg,
}

impl Map {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let source = self.spelling.source(&self.image, self.format.as_deref())?;
        sandbox::narrow(&self.opening.reach_of(&source.path))?;
        let opener = source.opener(self.opening.opener());
        let chain = opener.survey(&source.path, source.format.as_deref())?;
        let size = chain.virtual_size();
        let start = self.start_offset;
        let most = self.max_length.unwrap_or(u64::MAX);
        let end = start.saturating_add(most).min(size).max(start);
        let range = GuestRange::new(start, end);
        opener.all_open(&[])?;
        // [qemu] Of a disk that is a part of a file the places in the file; of an image in there those
        // in the image.
        let begin = match chain.top().info().format {
            "raw" => source.begins_at(),
            _ => 0,
        };
        let mut out = std::io::BufWriter::new(stdout().lock());
        match self.output {
            Output::Human => human::map(&mut out, &chain, range, begin)?,
            Output::Json => json::map(&mut out, &chain, range, begin)?,
            Output::Svg => svg::map(&mut out, &chain, range)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// An offset or a length, which QEMU keeps in 63 bits. [qemu]
fn place(text: &str) -> Result<u64, String> {
    let most = i64::MAX.unsigned_abs();
    match size(text)? {
        place if place <= most => Ok(place),
        _ => Err(format!("must be between 0 and {most}")),
    }
}
