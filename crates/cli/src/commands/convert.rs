//! `goldsmith convert`

use std::io::{Write, stdout};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use goldsmith::{Bitmaps, Opener, SnapshotName, Uuid};

use crate::called;
use crate::environment;
use crate::exit::{self, Failure};
use crate::names;
use crate::options::{
    Opening, Reading, Source, Spelling, Writing, asks_for_help, pairs, size, size_among,
    snapshot_name, threads,
};
use crate::output::human;
use crate::progress::Showing;
use crate::proving::{Proving, stopped};
use crate::sandbox::{self, Reach};

/// Convert an image from one format to another
///
/// The target is written beside its name and takes it only when it is complete and stored safely;
/// an existing file stands until then. (With -n, and on a block device, there is no such moment: the
/// target is written in place.) The same source gives the same target byte for byte, whatever the
/// number of threads, given the same --uuid and --timestamp.
#[derive(Args)]
#[command(
    override_usage = "goldsmith convert [OPTIONS] SOURCE... TARGET",
    after_long_help = "\
Examples:
  A golden RAW disk for KVM, compressed:
    goldsmith convert -p -c -O qcow2 golden.raw disk.qcow2
  The same disk for XenServer and for Azure:
    goldsmith convert --for xenserver golden.raw disk.vhd
    goldsmith convert --for azure golden.raw azure.vhd
  And for Glance, which keeps XenServer's disks in a tar.gz (container_format ovf):
    goldsmith convert --for xenserver-ovf golden.raw disk.tgz
  And back:
    goldsmith convert -f vpc -O raw disk.vhd golden.raw
  Only what differs from another image, which the new one then needs:
    goldsmith convert -O qcow2 -B golden.qcow2 -F qcow2 disk.raw overlay.qcow2
  Proven, and with the digest that Glance keeps of the file:
    goldsmith convert --verify --file-digest sha512 -O qcow2 golden.raw disk.qcow2
  Several disks behind each other as one:
    goldsmith convert -O qcow2 golden.raw disk.raw whole.qcow2
  Into an image that stands, here an empty one:
    goldsmith create -f qcow2 prepared.qcow2 64M
    goldsmith convert -n --target-is-zero -O qcow2 golden.raw prepared.qcow2
  What -o takes:
    goldsmith convert -O qcow2 -o help"
)]
pub(crate) struct Convert {
    /// Format of the source; without it the format is guessed
    #[arg(short = 'f', long, value_name = "FMT", visible_alias = "format")]
    source_format: Option<String>,

    /// Format of the target: raw, qcow2, vpc (also called vhd), xenserver-ovf (VHDs in a tar.gz), or
    /// host_device: raw, into a block device that is there
    #[arg(short = 'O', long, value_name = "FMT", default_value = "raw")]
    target_format: String,

    /// Make what a cloud takes: azure, xenserver, xenserver-ovf, hyperv, kvm or openstack-raw. Sets
    /// format, options and alignment, and fails if the cloud would refuse what came of them and of
    /// other options; 'goldsmith lint' tells of any image what a cloud would refuse
    #[arg(
        long = "for",
        value_name = "CLOUD",
        value_parser = super::cloud,
        conflicts_with = "target_format"
    )]
    cloud: Option<&'static goldsmith::Cloud>,

    /// Keep the images that the source consists of apart: XenServer's container (--for xenserver-ovf)
    /// holds a VHD and its parents; without this they become one disk
    #[arg(long)]
    keep_chain: bool,

    /// Creation options of the target; '-o help' lists them
    #[arg(short = 'o', long, value_name = "K=V,...", visible_alias = "options")]
    target_options: Vec<String>,

    /// Convert this internal snapshot of the source (qcow2), by its id or name; with several sources
    /// that of the first, in the longer spelling only
    #[arg(
        short = 'l',
        long,
        visible_alias = "source-snapshot",
        value_name = "ID_OR_NAME|snapshot.id=ID,snapshot.name=NAME"
    )]
    snapshot: Option<String>,

    /// Put only what differs from this image into the target, which then needs it; a relative path
    /// counts from the target's directory
    #[arg(short = 'B', long, value_name = "FILE")]
    backing: Option<String>,

    /// Format of the image that -B names
    #[arg(short = 'F', long, value_name = "FMT", requires = "backing")]
    backing_fmt: Option<String>,

    /// Make no new image, but write into the one that stands at the target, in the format of -O and
    /// at least as large as the source. Not in one step: until it is done, and if it is stopped or
    /// fails, the target holds a mixture of old and new. With -B only what differs is written
    #[arg(short = 'n', long)]
    no_create: bool,

    /// With -n: the target reads as zeros all over, so those of the source need not be written.
    /// What it has there all the same stays
    #[arg(long)]
    target_is_zero: bool,

    /// With -n: the target is given as 'driver=FMT,file.filename=PATH' and options of that format,
    /// such as offset=SIZE and size=SIZE for raw, instead of as a path
    #[arg(long, conflicts_with = "target_format")]
    target_image_opts: bool,

    /// Compress the target (qcow2)
    #[arg(short = 'c', long)]
    compress: bool,

    /// Copy the bitmaps of the source image, too (qcow2)
    #[arg(long)]
    bitmaps: bool,

    /// With --bitmaps, leave out those that were not saved properly, instead of giving up
    #[arg(long, requires = "bitmaps")]
    skip_broken_bitmaps: bool,

    /// Make zeros of what cannot be read of the source, and tell on standard error how much that is,
    /// instead of giving up. What is broken and not needed, as refcounts, snapshots and bitmaps are not, is
    /// told, too
    #[arg(long)]
    salvage: bool,

    #[command(flatten)]
    showing: Showing,

    /// Say nothing but errors; wins over -p
    #[arg(short = 'q', long)]
    quiet: bool,

    /// Shortest run of zeros that takes no space in the target; 0 stores every byte. By default
    /// 4k, except where blocks are shared; a size given here has every byte looked at, as with
    /// --reflink never
    #[arg(short = 'S', long, value_name = "SIZE", value_parser = sparse_size)]
    sparse_size: Option<u64>,

    /// Whether the target shares the source's blocks where the file system can do that (XFS,
    /// btrfs): in no time, and without space of its own until one of them is written to
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    reflink: Reflink,

    /// Write nothing: read the source, and say how long the target would be, or with -n how much would
    /// be written to it
    #[arg(long)]
    dry_run: bool,

    /// Let the kernel copy where it can, as is done anyway
    #[arg(
        short = 'C',
        long = "copy-range-offloading",
        conflicts_with = "reflink"
    )]
    offload: bool,

    /// Most bytes to write in a second; 0 is no limit
    #[arg(short = 'r', long, value_name = "RATE", value_parser = size)]
    rate: Option<u64>,

    /// Keep in this file how far the work has come, and go on from there if the file is there already:
    /// after an error, a kill or a power cut. The target becomes the same as without a cut. Until it
    /// is complete it stands beside its name as .NAME.goldsmith-partial; at the end both are gone
    #[arg(long, value_name = "JOURNAL")]
    resume: Option<PathBuf>,

    /// With --resume, make sure of what is done each time so much of the disk is: that much may have to
    /// be done again
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "256M", requires = "resume")]
    milestone: u64,

    /// Threads; by default one per core
    #[arg(short = 'm', long, value_name = "N", visible_alias = "threads", value_parser = threads)]
    parallel: Option<NonZeroUsize>,

    /// Write in any order, as is done anyway
    #[arg(short = 'W', long, visible_alias = "oob-writes")]
    out_of_order: bool,

    /// Add zero bytes to a disk whose size the target's format cannot hold
    #[arg(long)]
    round_up: bool,

    /// Identity of the target (vpc); by default a random one, or one derived from the target's
    /// name and size when SOURCE_DATE_EPOCH is set
    #[arg(long, value_name = "UUID")]
    uuid: Option<Uuid>,

    /// Creation time of the target (vpc), in seconds since 1970; by default SOURCE_DATE_EPOCH,
    /// or else now. 2000 is stored for what was before it, and what is after 2136 is refused
    #[arg(long, value_name = "SECONDS")]
    timestamp: Option<u64>,

    #[command(flatten)]
    proving: Proving,

    #[command(flatten)]
    writing: Writing,

    #[command(flatten)]
    reading: Reading,

    #[command(flatten)]
    opening: Opening,

    #[command(flatten)]
    spelling: Spelling,

    /// The image to read, and the one to write; of several to read, the disks stand behind each other
    /// in the target
    #[arg(required_unless_present = "target_options", value_name = "IMAGE")]
    images: Vec<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Reflink {
    Auto,
    Never,
}

impl Convert {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        if asks_for_help(&self.target_options) {
            let format = self
                .cloud
                .map_or(&*self.target_format, |cloud| cloud.format);
            let format = called::target_format(format)?;
            human::creation_options(&mut stdout().lock(), format.options())?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut pairs = pairs(&self.target_options)?;
        let asked = size_among(&mut pairs)?;
        let [source, more @ .., target] = &self.images[..] else {
            let text =
                "Must specify image file name: convert takes a source and a target (see --help)";
            return Err(Failure::with_status(1, text));
        };

        self.refuse_mixes()?;
        let target = self.target(target)?;
        let epoch = environment::source_date_epoch(self.timestamp)?;

        self.proving.must_fit(&self.showing)?;
        let phases = self.proving.phases(self.resume.is_some());
        let watch = self.showing.watch(self.quiet, phases);
        let listener = |progress| watch.show(progress);

        let source_format = self.source_format.as_deref();
        let source = self.spelling.source(source, source_format)?;
        let mut opener = source.opener(self.opener());
        if let Some(text) = &self.snapshot {
            let name = snapshot_name(text)?;
            if let (SnapshotName::IdOrName(_), [_, ..]) = (&name, more) {
                let text = "No support for concatenating multiple snapshot";
                return Err(Failure::with_status(1, text));
            }
            opener = opener.snapshot(name);
        }
        let mut reach = self.opening.reach_of(&source.path);
        self.reach_targets(&mut reach, &target.path, &pairs);
        let mut convert = goldsmith::Convert::new(&source.path, &target.path)
            .opener(opener)
            .target_format(target.format.as_deref().unwrap_or("raw"))
            .compress(self.compress)
            .round_up(self.round_up)
            .keep_chain(self.keep_chain)
            .salvage(self.salvage)
            .target_is_zero(self.target_is_zero)
            .dry_run(self.dry_run)
            .cache(self.writing.cache())
            .rate(self.rate.unwrap_or_default())
            .bitmaps(match (self.bitmaps, self.skip_broken_bitmaps) {
                (false, _) => Bitmaps::None,
                (true, false) => Bitmaps::All,
                (true, true) => Bitmaps::Sound,
            })
            .share(self.reflink == Reflink::Auto && self.sparse_size.is_none())
            .progress(&listener)
            .cancel(watch.cancel());
        for source in more {
            let source = self.spelling.source(source, source_format)?;
            let opener = source.opener(self.opener());
            reach.source(&source.path);
            convert = convert.then(&source.path, source.format.as_deref(), opener);
        }
        if let Some(size) = asked {
            convert = convert.expect_size(size);
        }
        if let Some(size) = self.sparse_size {
            convert = convert.sparse(size);
        }
        for (key, value) in pairs {
            convert = convert.option(key, value);
        }
        for secret in self.opening.secrets() {
            convert = convert.secret(&secret.id, &secret.text);
        }
        if let Some(name) = &self.backing {
            convert = convert.backing(name, self.backing_fmt.as_deref().unwrap_or("raw"));
        }
        if self.no_create {
            convert = convert.into_existing(target.opener(self.opening.opener()));
        }
        if let Some(cloud) = self.cloud {
            convert = convert.cloud(cloud);
        }
        if let Some(format) = &source.format {
            convert = convert.source_format(format);
        }
        if let Some(threads) = self.parallel {
            convert = convert.threads(threads);
        }
        if let Some(seconds) = self.timestamp.or(epoch) {
            convert = convert.timestamp(seconds);
        }
        if let Some(uuid) = self.uuid {
            convert = convert.uuid(uuid);
        } else if epoch.is_some() {
            convert = convert.uuid_from_name();
        }
        if let Some(journal) = &self.resume {
            convert = convert.resume(journal).milestone(self.milestone);
        }
        sandbox::narrow(&reach)?;
        let done = self.proving.of(convert).run();
        let done = done.map_err(|error| match self.no_create {
            // What it says of the target is another thing then.
            true => error.into(),
            false => stopped(error, &target.path),
        })?;
        watch.finish();
        if !self.quiet {
            if self.dry_run && !self.proving.is_for_programs(&self.showing) {
                let name = human::shown(&target.path.to_string_lossy());
                let what = match done.written {
                    Some(bytes) => format!("{bytes} bytes of guest data to be written"),
                    None => format!("make the file {} bytes long", done.file_len),
                };
                writeln!(stdout(), "{name}: {what}")?;
            }
            self.proving.say(&done, &self.showing)?;
            exit::warn_of_losses(&done.losses, done.lost);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// How sources are opened.
    fn opener(&self) -> Opener {
        self.opening.opener().cache(self.reading.cache())
    }

    /// Adds what is written to, or stands behind it.
    fn reach_targets(&self, reach: &mut Reach, target: &Path, options: &[(String, String)]) {
        match (self.dry_run, self.no_create) {
            (true, _) => reach.source(target),
            (_, true) => reach.edited(target),
            _ => reach.target(target),
        }
        reach.named_by(options, target);
        if let Some(name) = &self.backing {
            reach.beside(target, name);
        }
        if let Some(journal) = &self.resume {
            reach.target(journal);
        }
    }

    /// Fails if two words do not go together. [qemu]
    fn refuse_mixes(&self) -> Result<(), Failure> {
        let refuse = |why: &str| Err(Failure::with_status(1, why));
        if self.offload && self.compress {
            return refuse("Cannot enable copy offloading when -c is used");
        }
        if self.offload && self.sparse_size.is_some() {
            return refuse("Cannot enable copy offloading when -S is used");
        }
        if self.offload && self.salvage {
            return refuse("Cannot use copy offloading in salvaging mode");
        }
        if self.no_create {
            if !self.target_options.is_empty() {
                return refuse("-o has no effect when skipping image creation");
            }
            if self.cloud.is_some() || self.uuid.is_some() {
                return refuse("--for and --uuid have no effect when skipping image creation");
            }
        } else {
            if self.target_is_zero {
                return refuse("--target-is-zero requires use of -n flag");
            }
            if self.target_image_opts {
                return refuse("--target-image-opts requires use of -n flag");
            }
            if self.backing.is_some() && self.backing_fmt.is_none() {
                return refuse("backing format must be specified: -B needs -F");
            }
        }
        Ok(())
    }

    /// The target that `text` means.
    fn target(&self, text: &Path) -> Result<Source, Failure> {
        if self.target_image_opts {
            let option = "--target-image-opts";
            let name = names::by_options(option, text)?;
            if name.format.is_none() {
                return Err(called::refused_name(option, text, "it needs a driver"));
            }
            return Ok(Source::new(name, false));
        }
        let is_device = self.target_format == "host_device";
        let format = match is_device {
            true => "raw",
            false => called::target_format(&self.target_format)?.name(),
        };
        let name = match self.no_create {
            true => names::image(text, Some(format))?,
            false => names::whole_file(text)?,
        };
        let mut target = Source::new(name, false);
        target.format = Some(format.to_owned());
        if is_device {
            must_be_device(&target.path)?;
        }
        Ok(target)
    }
}

/// A size for -S. [qemu]
fn sparse_size(text: &str) -> Result<u64, String> {
    let most = 16 << 20;
    let valid = |size: &u64| size.is_multiple_of(512) && *size <= most;
    Some(size(text)?).filter(valid).ok_or_else(|| {
        format!(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up \
             to {most}. Select 0 to disable sparse detection (fully allocates output)."
        )
    })
}

/// Fails if no block device is at `path`. [qemu] It names no new file by mistake.
fn must_be_device(path: &Path) -> Result<(), Failure> {
    let why = match std::fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_block_device() => return Ok(()),
        Ok(_) => "it is no block device".to_owned(),
        Err(error) => error.to_string(),
    };
    let text = format!(
        "{}: host_device writes into a block device: {why}",
        path.display()
    );
    Err(Failure::with_status(1, text))
}
