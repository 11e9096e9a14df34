//! `goldsmith man`

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueHint};

use crate::environment;
use crate::exit::Failure;
use crate::output::manual;

/// Print the manual, a page for each command
#[derive(Args)]
#[command(
    override_usage = "goldsmith man [SUBCOMMAND | --directory DIR]",
    after_long_help = "\
Examples:
  To be read now:
    goldsmith man convert | man -l -
  For yourself, ever after:
    goldsmith man --directory ~/.local/share/man/man1"
)]
pub(crate) struct Man {
    /// Write all pages into this directory instead
    #[arg(
        long,
        value_name = "DIR",
        value_hint = ValueHint::DirPath,
        conflicts_with = "subcommand"
    )]
    directory: Option<PathBuf>,

    /// The command whose page it is; by default the one about all of them
    #[arg(value_name = "SUBCOMMAND")]
    subcommand: Option<String>,
}

impl Man {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let pages = manual::pages(crate::definition(), environment::source_date_epoch(None)?)?;
        let Some(directory) = &self.directory else {
            let mut wanted = pages.iter().filter(|it| it.subcommand == self.subcommand);
            let Some(page) = wanted.next() else {
                let name = self.subcommand.unwrap_or_default();
                let known = pages.iter().filter_map(|page| page.subcommand.as_deref());
                let hint = goldsmith::did_you_mean(&name, known);
                let text = format!("there is no page about '{name}'{hint}");
                return Err(Failure::with_status(1, text));
            };
            stdout().write_all(page.text.as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        };
        for page in &pages {
            let path = directory.join(&page.file);
            std::fs::write(&path, &page.text)
                .map_err(|error| Failure::with_status(1, format!("{}: {error}", path.display())))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
