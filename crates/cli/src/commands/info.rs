//! `goldsmith info`

use std::io::{BufWriter, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use goldsmith::ImageInfo;

use crate::exit::{self, Failure};
use crate::names;
use crate::options::{Opening, OutputFormat, Spelling};
use crate::output::{human, json};
use crate::sandbox;

/// Show what an image is
///
/// Reads the image's own headers, and opens what it names only for --backing-chain. Says what
/// ails the image as far as that shows at a glance ('goldsmith check' looks closer), which files it
/// names, and whether it, or the disk inside of it, could be taken for something else.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  goldsmith info disk.qcow2
  The image and all behind it, for a program:
    goldsmith info --backing-chain --output json disk.qcow2
  Only if it is what somebody said, and nothing else besides:
    goldsmith info --expect qcow2 upload.img
  For a program, which knows the format and trusts nobody's guess:
    goldsmith info -f qcow2 --output=json disk.qcow2
  While a machine is running on it:
    goldsmith info -U disk.qcow2")]
pub(crate) struct Info {
    /// Format of the image; without it the format is guessed
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,

    /// Show everything behind the image, too
    #[arg(short = 'b', long)]
    backing_chain: bool,

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

impl Info {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let source = self.spelling.source(&self.image, self.format.as_deref())?;
        sandbox::narrow(&self.opening.reach_of(&source.path))?;
        let opener = source.opener(self.opening.look());
        let format = source.format.as_deref();
        let whole = std::fs::metadata(&source.path).map(|file| file.len());
        let mut infos = match self.backing_chain {
            true => ImageInfo::read_chain(&opener, &source.path, format)?,
            false => vec![ImageInfo::read(&opener, &source.path, format)?],
        };
        if let Some(top) = infos.first_mut() {
            top.layer.format = asked_for(format, top.layer.format);
            if let (true, Ok(len)) = (source.is_part(), whole) {
                top.file_len = len;
            }
        }
        let by_options = self.spelling.is_by_options();
        let format = infos.first().map_or("", |top| top.layer.format);
        let name = names::told(&self.image, by_options, &source.path, format);
        let name = name.as_deref();
        let mut out = stdout().lock();
        match self.output {
            OutputFormat::Json if self.backing_chain => json::chain_info(&mut out, &infos, name)?,
            OutputFormat::Json => {
                for info in &infos {
                    json::info(&mut out, info, name)?;
                }
            }
            OutputFormat::Human => {
                for (nth, info) in infos.iter().enumerate() {
                    let mut out = BufWriter::new(&mut out);
                    if nth > 0 {
                        writeln!(out)?;
                    }
                    human::info(&mut out, info, name.filter(|_| nth == 0))?;
                    out.flush()?;
                    exit::warn(&info.layer.warnings);
                }
            }
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
