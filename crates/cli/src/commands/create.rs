//! `goldsmith create`

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use goldsmith::Uuid;

use crate::called;
use crate::environment;
use crate::exit::{self, Failure};
use crate::names;
use crate::options::{Opening, asks_for_help, image_size, pairs, size_among};
use crate::output::human;
use crate::progress::Showing;
use crate::sandbox;

/// Make a new image without anything in it
///
/// It stands under its name complete and stored safely, or not at all; a file that stood there is
/// replaced. Over a backing file it shows what that holds, and takes no time or space for it.
#[derive(Args)]
#[command(
    override_usage = "goldsmith create [OPTIONS] IMAGE [SIZE]",
    after_long_help = "\
Examples:
  An empty disk of 20 GiB:
    goldsmith create -f qcow2 disk.qcow2 20G
  A disk that begins as a golden one, which stays as it is:
    goldsmith create -f qcow2 -b golden.qcow2 -F qcow2 disk.qcow2
  The same for XenServer and Hyper-V, a differencing disk:
    goldsmith create -f vpc -b golden.vhd -F vpc disk.vhd
  What -o takes:
    goldsmith create -f qcow2 -o help"
)]
pub(crate) struct Create {
    /// Format of the image: raw, qcow2 or vpc (also called vhd)
    #[arg(short = 'f', long, value_name = "FMT", default_value = "raw")]
    format: String,

    /// Creation options; '-o help' lists them
    #[arg(short = 'o', long, value_name = "K=V,...")]
    options: Vec<String>,

    /// The image that shows where this one holds nothing; a relative path counts from the new
    /// image's directory
    #[arg(short = 'b', long, value_name = "FILE")]
    backing: Option<String>,

    /// Format of the image that -b names
    #[arg(short = 'F', long = "backing-fmt", value_name = "FMT")]
    backing_fmt: Option<String>,

    /// Do not open the image that -b names; the size must be given then
    #[arg(short = 'u', long)]
    backing_unsafe: bool,

    #[command(flatten)]
    showing: Showing,

    /// Say nothing but errors
    #[arg(short = 'q', long)]
    quiet: bool,

    /// Leave all files as they are, and only say what would be made
    #[arg(long)]
    dry_run: bool,

    /// Identity of the image (vpc); by default a random one, or one derived from its name and size
    /// when SOURCE_DATE_EPOCH is set
    #[arg(long, value_name = "UUID")]
    uuid: Option<Uuid>,

    /// Creation time of the image (vpc), in seconds since 1970; by default SOURCE_DATE_EPOCH, or
    /// else now. 2000 is stored for what was before it, and what is after 2136 is refused
    #[arg(long, value_name = "SECONDS")]
    timestamp: Option<u64>,

    #[command(flatten)]
    opening: Opening,

    /// The image to make
    #[arg(required_unless_present = "options")]
    image: Option<PathBuf>,

    /// Size of the disk, such as 65536 or 20G; by default that of the image that -b names
    size: Option<String>,
}

impl Create {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let format = called::target_format(&self.format)?;
        if asks_for_help(&self.options) {
            human::creation_options(&mut stdout().lock(), format.options())?;
            return Ok(ExitCode::SUCCESS);
        }
        let Some(image) = &self.image else {
            return Err(Failure::with_status(1, "create takes the name of an image"));
        };
        let typed = image;
        let image = &names::whole_file(typed)?.path;
        let mut pairs = pairs(&self.options)?;
        // qemu-img's long name for -F is one that all commands here have.
        let format_behind = self.backing_fmt.as_deref();
        let format_behind = format_behind.or(self.opening.backing_format());
        for (key, value) in [
            ("backing_file", self.backing.as_deref()),
            ("backing_fmt", format_behind),
        ] {
            pairs.extend(value.map(|value| (key.to_owned(), value.to_owned())));
        }
        let size = size(self.size.as_deref(), &mut pairs)?;
        let epoch = environment::source_date_epoch(self.timestamp)?;

        let mut reach = self.opening.reach();
        reach.target(image);
        reach.named_by(&pairs, image);
        sandbox::narrow(&reach)?;
        let mut create = goldsmith::Create::new(image)
            .format(format.name())
            .opener(self.opening.opener())
            .unseen_backing(self.backing_unsafe)
            .dry_run(self.dry_run);
        for (key, value) in &pairs {
            create = create.option(key, value);
        }
        for secret in self.opening.secrets() {
            create = create.secret(&secret.id, &secret.text);
        }
        if let Some(size) = size {
            create = create.size(size);
        }
        if let Some(uuid) = self.uuid {
            create = create.uuid(uuid);
        } else if epoch.is_some() {
            create = create.uuid_from_name();
        }
        if let Some(seconds) = self.timestamp.or(epoch) {
            create = create.timestamp(seconds);
        }
        let watch = self.showing.watch(self.quiet, 1);
        let listener = |progress| watch.show(progress);
        let created = create.progress(&listener).cancel(watch.cancel()).run()?;
        watch.finish();
        if !self.quiet {
            let mut out = stdout().lock();
            let asked = size.unwrap_or(created.virtual_size);
            human::formatting(&mut out, typed, format, asked, &pairs)?;
            if self.dry_run {
                let (image, len) = (human::shown(&image.to_string_lossy()), created.file_len);
                writeln!(out, "{image}: make the file {len} bytes long")?;
            }
            drop(out);
            exit::warn(&created.warnings);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The size, which may stand alone or among the options. [qemu]
fn size(alone: Option<&str>, pairs: &mut Vec<(String, String)>) -> Result<Option<u64>, Failure> {
    match (alone, size_among(pairs)?) {
        (Some(_), Some(_)) => {
            let text = "The image size must be specified only once";
            Err(Failure::with_status(1, text))
        }
        (Some(text), None) => image_size(text).map(Some),
        (None, among) => Ok(among),
    }
}
