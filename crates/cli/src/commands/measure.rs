//! `goldsmith measure`

use std::io::stdout;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::called;
use crate::exit::Failure;
use crate::options::{Opening, OutputFormat, Spelling, pairs, size, size_among, snapshot_name};
use crate::output::{human, json};
use crate::sandbox;

/// Tell how long a target would become, without writing it
///
/// What is required and what is fully allocated are the numbers that qemu-img gives. The exact size
/// is the length of the file that 'goldsmith convert' makes of the same image with the same options; a
/// container in a tar.gz can differ from it by some bytes, as its identity and its time are packed, too.
#[derive(Args)]
#[command(
    override_usage = "goldsmith measure [OPTIONS] IMAGE\n       goldsmith measure [OPTIONS] --size SIZE",
    after_long_help = "\
Examples:
  How long a qcow2 of this disk would be:
    goldsmith measure -O qcow2 golden.raw
  How long an empty VHD of 40 GiB is, and how long it can become:
    goldsmith measure -O vpc --size 40G"
)]
pub(crate) struct Measure {
    /// Format of the image; without it the format is guessed
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,

    /// Format of the target: raw, qcow2, vpc (also called vhd) or xenserver-ovf (VHDs in a tar.gz)
    #[arg(short = 'O', long, value_name = "FMT", default_value = "raw")]
    target_format: String,

    /// Measure what a cloud takes, as 'goldsmith convert --for' makes it
    #[arg(
        long = "for",
        value_name = "CLOUD",
        value_parser = super::cloud,
        conflicts_with = "target_format"
    )]
    cloud: Option<&'static goldsmith::Cloud>,

    /// Creation options of the target
    #[arg(short = 'o', long, value_name = "K=V,...", visible_alias = "options")]
    target_options: Vec<String>,

    /// Measure this internal snapshot of the image (qcow2), by its id or name
    #[arg(
        short = 'l',
        long,
        value_name = "ID_OR_NAME|snapshot.id=ID,snapshot.name=NAME"
    )]
    snapshot: Option<String>,

    /// Measure an empty disk of this size
    #[arg(short = 's', long, value_name = "SIZE", value_parser = size)]
    size: Option<u64>,

    /// Leave the exact size out, for which all data is read
    #[arg(long)]
    estimate: bool,

    /// For whom
    #[arg(long, value_enum, default_value = "human", value_name = "FOR")]
    output: OutputFormat,

    #[command(flatten)]
    opening: Opening,

    #[command(flatten)]
    spelling: Spelling,

    /// The image
    image: Vec<PathBuf>,
}

impl Measure {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let refuse = |text: &str| Err(Failure::with_status(1, text));
        let mut reach = self.opening.reach();
        let measure = match (&self.image[..], self.size) {
            ([], None) => return refuse("Either --size N or one filename must be specified."),
            ([_, _, ..], _) => return refuse("At most one filename argument is allowed."),
            ([_], Some(_)) => {
                return refuse("--size N cannot be used together with a filename.");
            }
            ([], Some(size)) => {
                let of_image = self.format.is_some() || self.snapshot.is_some();
                if of_image || self.spelling.is_by_options() {
                    return refuse("--image-opts, -f, and -l require a filename argument.");
                }
                goldsmith::Measure::of_size(size)
            }
            ([image], None) => {
                let source = self.spelling.source(image, self.format.as_deref())?;
                let mut opener = source.opener(self.opening.opener());
                if let Some(text) = &self.snapshot {
                    opener = opener.snapshot(snapshot_name(text)?);
                }
                reach.source(&source.path);
                let measure = goldsmith::Measure::new(&source.path).opener(opener);
                match &source.format {
                    Some(format) => measure.source_format(format),
                    None => measure,
                }
            }
        };
        let mut measure = measure
            .target_format(called::target_format(&self.target_format)?.name())
            .exact(!(self.estimate || called::qemu_img()));
        let mut pairs = pairs(&self.target_options)?;
        if let Some(size) = size_among(&mut pairs)? {
            measure = measure.expect_size(size);
        }
        // A target has no place, so what it names counts from here.
        reach.named_by(&pairs, Path::new(""));
        sandbox::narrow(&reach)?;
        for (key, value) in pairs {
            measure = measure.option(key, value);
        }
        for secret in self.opening.secrets() {
            measure = measure.secret(&secret.id, &secret.text);
        }
        if let Some(cloud) = self.cloud {
            measure = measure.cloud(cloud);
        }
        let measured = measure.run()?;
        let mut out = stdout().lock();
        match self.output {
            OutputFormat::Human => human::measure(&mut out, &measured)?,
            OutputFormat::Json => json::measure(&mut out, &measured)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
