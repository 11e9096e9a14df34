//! `goldsmith amend`

use std::io::stdout;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use goldsmith::{Phase, Progress};

use crate::exit::Failure;
use crate::options::{Editing, Writing, asks_for_help, described, pairs};
use crate::output::human;
use crate::progress::Showing;

/// Set options of an image that exists
#[derive(Args)]
#[command(
    override_usage = "goldsmith amend [OPTIONS] -o K=V,... IMAGE",
    after_long_help = "\
Examples:
  goldsmith amend -f qcow2 -o compat=1.1,lazy_refcounts=on disk.qcow2
  Wider counts, for more snapshots of the same data:
    goldsmith amend -f qcow2 -o refcount_bits=32 disk.qcow2
  What -o takes:
    goldsmith amend -f qcow2 -o help"
)]
pub(crate) struct Amend {
    /// The options; '-o help' lists them
    #[arg(short = 'o', long, value_name = "K=V,...", required = true)]
    options: Vec<String>,

    /// Taken for qemu-img's sake: what would be unsafe (to overwrite a key slot that is taken, to erase
    /// the last one) is refused with it, too
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    showing: Showing,

    #[command(flatten)]
    writing: Writing,

    #[command(flatten)]
    editing: Editing,

    /// The image
    #[arg(required_unless_present = "options")]
    image: Option<PathBuf>,
}

impl Amend {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        self.editing.must_write()?;
        let subject = match &self.image {
            Some(image) => Some(self.editing.subject(image)?),
            None => None,
        };
        if asks_for_help(&self.options) {
            let format = self.editing.format_of(subject.as_ref())?;
            human::amend_options(&mut stdout().lock(), format)?;
            return Ok(ExitCode::SUCCESS);
        }
        let Some(subject) = subject else {
            return Err(Failure::with_status(1, "Expecting one image file name"));
        };
        let watch = self.showing.watch(self.editing.is_quiet(), 1);
        // It takes no time worth more than a beginning and an end.
        watch.show(Progress::start(Phase::Check, 1));
        let mut amend = goldsmith::Amend::new(&subject.path)
            .cache(self.writing.cache())
            .cancel(watch.cancel());
        for (key, value) in pairs(&self.options)? {
            amend = amend.option(key, value);
        }
        let edited = described!(amend, subject).run()?;
        watch.finish();
        self.editing.say("", &edited)?;
        Ok(ExitCode::SUCCESS)
    }
}
