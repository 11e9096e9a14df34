//! `goldsmith completions`

use std::io::{Write, stdout};
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Arg, Args, Command, ValueEnum, ValueHint};
use clap_complete::Shell;
use goldsmith::{CLOUDS, FORMATS, Preallocation};

use crate::called;
use crate::exit::Failure;

/// Print what a shell needs to complete command lines
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  For this shell alone, a bash:
    eval \"$(goldsmith completions bash)\"
  For all that come, in bash, zsh (with ~/.zfunc in its fpath) and fish:
    goldsmith completions bash > ~/.local/share/bash-completion/completions/goldsmith
    goldsmith completions zsh > ~/.zfunc/_goldsmith
    goldsmith completions fish > ~/.config/fish/completions/goldsmith.fish")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Name,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    Bash,
    Zsh,
    Fish,
}

impl Completions {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let shell = match self.shell {
            Name::Bash => Shell::Bash,
            Name::Zsh => Shell::Zsh,
            Name::Fish => Shell::Fish,
        };
        let mut command = with_values(crate::definition());
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, called::name(), &mut script);
        stdout().write_all(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// `command` with the values that it knows of but leaves to others to judge.
fn with_values(command: Command) -> Command {
    command.mut_subcommands(|subcommand| subcommand.mut_args(with_values_of))
}

fn with_values_of(arg: Arg) -> Arg {
    let kind = arg.get_value_names().and_then(|names| names.first());
    match kind.map(|kind| &**kind) {
        Some("FMT") => {
            let names = FORMATS.iter().flat_map(|format| {
                let aliases = format.aliases().iter().copied();
                std::iter::once(format.name()).chain(aliases)
            });
            arg.value_parser(PossibleValuesParser::new(names))
        }
        Some("CLOUD") => {
            let names = CLOUDS.iter().map(|cloud| cloud.name);
            arg.value_parser(PossibleValuesParser::new(names))
        }
        Some("MODE") => arg.value_parser(PossibleValuesParser::new(Preallocation::NAMES)),
        Some("FILE") => arg.value_hint(ValueHint::FilePath),
        _ => arg,
    }
}
