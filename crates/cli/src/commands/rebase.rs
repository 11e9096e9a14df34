//! `goldsmith rebase`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::exit::Failure;
use crate::options::{Editing, Reading, Writing, described};
use crate::progress::Showing;

/// Base an image on another backing file, or on none
///
/// The guest sees the same disk before and after: what the new backing file shows differently is
/// copied into the image first. With -u only the name is changed, for a backing file that was moved.
#[derive(Args)]
#[command(
    override_usage = "goldsmith rebase [OPTIONS] -b FILE -F FMT IMAGE",
    after_long_help = "\
Examples:
  On an image deeper in the chain, so that those between are not needed any more:
    goldsmith rebase -f qcow2 -b golden.qcow2 -F qcow2 disk.qcow2
  On nothing, so that the image stands alone:
    goldsmith rebase -f qcow2 -b '' disk.qcow2
  The backing file has another name now:
    goldsmith rebase -f qcow2 -u -b moved.qcow2 -F qcow2 disk.qcow2"
)]
pub(crate) struct Rebase {
    /// The new backing file; an empty name is none. A relative path counts from the image's
    /// directory
    #[arg(short = 'b', long, value_name = "FILE")]
    backing: Option<String>,

    /// Format of the image that -b names
    #[arg(short = 'F', long = "backing-fmt", value_name = "FMT")]
    backing_fmt: Option<String>,

    /// Change only the name, and look at neither backing file; only if the image is a VHD, the one
    /// that -b names is opened, for its identity
    #[arg(short = 'u', long)]
    backing_unsafe: bool,

    /// Compress what is copied into the image (qcow2)
    #[arg(short = 'c', long)]
    compress: bool,

    #[command(flatten)]
    showing: Showing,

    #[command(flatten)]
    writing: Writing,

    #[command(flatten)]
    reading: Reading,

    #[command(flatten)]
    editing: Editing,

    /// The image
    image: PathBuf,
}

impl Rebase {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let mut subject = self.editing.subject(&self.image)?;
        subject.opener = subject.opener.cache(self.reading.cache());
        let watch = self.showing.watch(self.editing.is_quiet(), 1);
        let listener = |progress| watch.show(progress);
        let mut rebase = goldsmith::Rebase::new(&subject.path)
            .unseen(self.backing_unsafe)
            .compress(self.compress)
            .cache(self.writing.cache())
            .progress(&listener)
            .cancel(watch.cancel());
        match &self.backing {
            Some(name) if !name.is_empty() => {
                // qemu-img's long name for -F is one that all commands here have.
                let format = self.backing_fmt.as_deref();
                let format = format.or(self.editing.opening().backing_format());
                subject.reach.beside(&subject.path, name);
                rebase = rebase.onto(name, format);
            }
            None if !self.backing_unsafe => {
                let text = "Must specify backing file (-b) or use unsafe mode (-u)";
                return Err(Failure::with_status(1, text));
            }
            _ => {}
        }
        let edited = described!(rebase, subject).run()?;
        watch.finish();
        self.editing.say("", &edited)?;
        Ok(ExitCode::SUCCESS)
    }
}
