//! `goldsmith commit`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::exit::Failure;
use crate::options::{Editing, Writing, described, size};
use crate::progress::Showing;

/// Put what an image holds into its backing file
///
/// The image is empty afterwards and shows the same disk. Everybody else who is based on that
/// backing file finds another disk there. If the work is stopped, the image shows what it did.
#[derive(Args)]
#[command(
    override_usage = "goldsmith commit [OPTIONS] IMAGE",
    after_long_help = "\
Examples:
  goldsmith commit -f qcow2 disk.qcow2
  Into an image deeper in the chain; the ones between are of no use then:
    goldsmith commit -f qcow2 -b golden.qcow2 disk.qcow2
  How much would be written:
    goldsmith commit -f qcow2 --dry-run disk.qcow2"
)]
pub(crate) struct Commit {
    /// The image in the chain that takes it all, instead of the next one; as with -d, the image
    /// keeps what it holds
    #[arg(short = 'b', long, value_name = "FILE")]
    base: Option<String>,

    /// Leave in the image what it holds, because it is going to be deleted
    #[arg(short = 'd', long)]
    drop: bool,

    /// Most bytes to write in a second
    #[arg(short = 'r', long, value_name = "RATE", value_parser = size)]
    rate: Option<u64>,

    #[command(flatten)]
    showing: Showing,

    #[command(flatten)]
    writing: Writing,

    #[command(flatten)]
    editing: Editing,

    /// The image
    image: PathBuf,
}

impl Commit {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        self.editing.must_write()?;
        let subject = self.editing.subject(&self.image)?;
        let watch = self.showing.watch(self.editing.is_quiet(), 1);
        let listener = |progress| watch.show(progress);
        let mut commit = goldsmith::Commit::new(&subject.path)
            .keep(self.drop)
            .cache(self.writing.cache())
            .progress(&listener)
            .cancel(watch.cancel());
        if let Some(name) = &self.base {
            commit = commit.base(name);
        }
        if let Some(rate) = self.rate {
            commit = commit.rate(rate);
        }
        let edited = described!(commit, subject).run()?;
        watch.finish();
        self.editing.say("Image committed.", &edited)?;
        Ok(ExitCode::SUCCESS)
    }
}
