//! `goldsmith snapshot`

use std::io::stdout;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use goldsmith::{ErrorKind, SnapshotName, Snapshots};

use crate::exit::Failure;
use crate::options::{Editing, described};
use crate::output::human;

/// Keep states of the disk inside an image, and come back to them
///
/// For qcow2. A VHD keeps no states of itself: make a new one over it instead, with
/// 'goldsmith create -f vpc -b disk.vhd -F vpc new.vhd', and use that from then on.
#[derive(Args)]
#[command(
    override_usage = "goldsmith snapshot [OPTIONS] [-l | -c NAME | -a NAME | -d NAME] IMAGE",
    after_long_help = "\
Examples:
  Keep the disk as it is now, and see what was kept:
    goldsmith snapshot -c before-upgrade disk.qcow2
    goldsmith snapshot -l disk.qcow2
  One of them as an image of its own:
    goldsmith convert -l before-upgrade -O qcow2 disk.qcow2 old.qcow2
  Come back to it, and forget it:
    goldsmith snapshot -a before-upgrade disk.qcow2
    goldsmith snapshot -d before-upgrade disk.qcow2"
)]
pub(crate) struct Snapshot {
    /// List the snapshots; what is done if nothing else is said
    #[arg(short = 'l', long, group = "action")]
    list: bool,

    /// Keep the disk as it is now under this name
    #[arg(short = 'c', long, value_name = "NAME", group = "action")]
    create: Option<String>,

    /// Make the disk what it was at this snapshot, by its id or name; what it is now is lost
    #[arg(short = 'a', long, value_name = "ID_OR_NAME", group = "action")]
    apply: Option<String>,

    /// Forget the snapshot of this name
    #[arg(short = 'd', long, value_name = "NAME", group = "action")]
    delete: Option<String>,

    #[command(flatten)]
    editing: Editing,

    /// The image
    image: PathBuf,
}

impl Snapshot {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        if self.create.is_some() || self.apply.is_some() || self.delete.is_some() {
            self.editing.must_write()?;
        }
        let subject = self.editing.subject(&self.image)?;
        let snapshots = described!(Snapshots::new(&subject.path), subject);
        let (what, name, done) = match (&self.create, &self.apply, &self.delete) {
            (Some(name), _, _) => ("create", name, snapshots.take(name)),
            (_, Some(name), _) => {
                let wanted = SnapshotName::IdOrName(name.clone());
                ("apply", name, snapshots.apply(&wanted))
            }
            (_, _, Some(name)) => {
                let wanted = SnapshotName::Exactly {
                    id: None,
                    name: Some(name.clone()),
                };
                ("delete", name, snapshots.delete(&wanted))
            }
            _ => {
                let list = snapshots.list()?;
                if !list.is_empty() {
                    human::snapshot_list(&mut stdout().lock(), &list)?;
                }
                return Ok(ExitCode::SUCCESS);
            }
        };
        let edited = done.map_err(|error| {
            let hint = match error.kind() {
                ErrorKind::Unsupported => {
                    "; a new image over this one keeps it as it is (goldsmith create -b)"
                }
                _ => "",
            };
            let report = error.report();
            let text = format!("Could not {what} snapshot '{name}': {report}{hint}");
            Failure::with_status(1, text)
        })?;
        self.editing.say("", &edited)?;
        Ok(ExitCode::SUCCESS)
    }
}
