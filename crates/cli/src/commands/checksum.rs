//! `goldsmith checksum`

use std::io::{Write, stdout};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use goldsmith::Algorithm;
use serde_json::json;

use crate::exit::Failure;
use crate::options::{Opening, OutputFormat, Spelling, snapshot_name, threads};
use crate::output::human::shown;
use crate::output::json::line;
use crate::progress::Showing;
use crate::proving::{algorithm, by_name};
use crate::sandbox;

/// Print digests of the disk in an image
///
/// They are those of the same disk as a RAW file, whatever the format of the image and wherever it
/// has holes: the line is the one that sha256sum, b3sum and the like print of that file. fsverity,
/// which is printed unless others are asked for, is what 'fsverity digest' prints (SHA-256, blocks of
/// 4096 bytes): all cores work on it, and zeros cost next to nothing. blake3 takes all cores, too; the
/// others go through the disk byte after byte.
#[derive(Args)]
#[command(
    override_usage = "goldsmith checksum [OPTIONS] IMAGE",
    after_long_help = "\
Examples:
  Whether two images hold the same disk, one of them on another machine:
    goldsmith checksum -f qcow2 disk.qcow2
    goldsmith checksum -f vpc disk.vhd
  What sha256sum would print of the RAW disk:
    goldsmith checksum --digest sha256 disk.qcow2"
)]
pub(crate) struct Checksum {
    /// Format of the image; without it the format is guessed
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,

    /// Which digests
    #[arg(
        long,
        value_name = "NAME,...",
        value_delimiter = ',',
        value_parser = algorithm(),
        default_value = "fsverity"
    )]
    digest: Vec<Algorithm>,

    /// Read this internal snapshot of the image (qcow2), by its id or name
    #[arg(
        short = 'l',
        long,
        value_name = "ID_OR_NAME|snapshot.id=ID,snapshot.name=NAME"
    )]
    snapshot: Option<String>,

    /// Threads; by default one per core
    #[arg(short = 'm', long, value_name = "N", visible_alias = "threads", value_parser = threads)]
    parallel: Option<NonZeroUsize>,

    #[command(flatten)]
    showing: Showing,

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

impl Checksum {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        self.showing.must_fit(self.output)?;
        let source = self.spelling.source(&self.image, self.format.as_deref())?;
        sandbox::narrow(&self.opening.reach_of(&source.path))?;
        let mut opener = source.opener(self.opening.opener());
        if let Some(text) = &self.snapshot {
            opener = opener.snapshot(snapshot_name(text)?);
        }
        let watch = self.showing.watch(false, 1);
        let listener = |progress| watch.show(progress);
        opener = opener.cancel(watch.cancel());
        let disk = opener.open(&source.path, source.format.as_deref())?;
        opener.all_open(&[])?;
        let mut checksum = goldsmith::Checksum::new(&disk)
            .progress(&listener)
            .cancel(watch.cancel());
        for algorithm in self.digest {
            checksum = checksum.digest(algorithm);
        }
        if let Some(threads) = self.parallel {
            checksum = checksum.threads(threads);
        }
        let digests = checksum.run()?;
        watch.finish();

        let mut out = stdout().lock();
        let name = shown(&source.path.to_string_lossy());
        match (self.output, &digests[..]) {
            (OutputFormat::Json, _) => {
                let facts = json!({
                    "filename": source.path.to_string_lossy(),
                    "format": disk.top().info().format,
                    "virtual-size": disk.virtual_size(),
                    "digests": by_name(&digests),
                });
                line(&mut out, &facts)?;
            }
            (OutputFormat::Human, [digest]) => writeln!(out, "{digest}  {name}")?,
            (OutputFormat::Human, digests) => {
                for digest in digests {
                    writeln!(out, "{}: {digest}  {name}", digest.algorithm())?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
