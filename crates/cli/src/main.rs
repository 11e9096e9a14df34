//! The goldsmith command: disk image conversion in qemu-img's manners.
#![forbid(unsafe_code)]

mod called;
mod commands;
mod environment;
mod exit;
mod local_time;
mod names;
mod options;
mod output;
mod progress;
mod proving;
mod sandbox;

use std::process::ExitCode;

use clap::{ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};

/// Convert disk images between RAW, qcow2 and VHD, without losing a byte.
///
/// RAW is the golden format: every cloud takes it and gives it. goldsmith turns it into the format
/// that a cloud runs and back. A target appears under its name complete and safely stored, or not
/// at all; a damaged or truncated source is an error, never silent zeros.
#[derive(Parser)]
#[command(
    name = "goldsmith",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    args_override_self = true,
    infer_long_args = true,
    after_long_help = "\
Examples:
  A golden RAW disk for KVM, and what became of it:
    goldsmith convert -O qcow2 golden.raw kvm.qcow2
    goldsmith info kvm.qcow2
    goldsmith compare golden.raw kvm.qcow2
  The same disk for Azure:
    goldsmith convert --for azure golden.raw azure.vhd
    goldsmith lint --for azure azure.vhd"
)]
struct Cli {
    /// Whether the command locks itself in, once its files are open, so that an image that breaks into
    /// it gets nothing else: no file, no network, no other program. By default as GOLDSMITH_SANDBOX
    /// says, or else 'try'
    #[arg(long, global = true, value_enum, value_name = "MODE")]
    sandbox: Option<sandbox::Wanted>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Convert(commands::convert::Convert),
    Info(commands::info::Info),
    Map(commands::map::Map),
    Measure(commands::measure::Measure),
    Compare(commands::compare::Compare),
    Checksum(commands::checksum::Checksum),
    Lint(commands::lint::Lint),
    Check(commands::check::Check),
    Create(commands::create::Create),
    Resize(commands::resize::Resize),
    Snapshot(commands::snapshot::Snapshot),
    Rebase(commands::rebase::Rebase),
    Commit(commands::commit::Commit),
    Amend(commands::amend::Amend),
    Bitmap(commands::bitmap::Bitmap),
    Bench(commands::bench::Bench),
    Dd(commands::dd::Dd),
    Completions(commands::completions::Completions),
    Man(commands::man::Man),
}

/// The command line as it is understood, under the name by which the command was called.
fn definition() -> clap::Command {
    let command = Cli::command();
    match called::qemu_img() {
        true => command
            .name(called::name())
            .version(called::VERSION)
            .color(ColorChoice::Never),
        false => command,
    }
}

fn main() -> ExitCode {
    if called::qemu_img() {
        anstream::ColorChoice::Never.write_global();
    }
    progress::bear_signals();
    let words = commands::resize::words(std::env::args_os());
    let cli = definition().try_get_matches_from(words);
    let cli = match cli.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return exit::usage(error),
    };
    let wanted = cli.sandbox.map_or_else(sandbox::Wanted::otherwise, Ok);
    if let Err(failure) = wanted.and_then(sandbox::begin) {
        return failure.report();
    }
    let done = match cli.command {
        Command::Convert(convert) => convert.run(),
        Command::Info(info) => info.run(),
        Command::Map(map) => map.run(),
        Command::Measure(measure) => measure.run(),
        Command::Compare(compare) => compare.run(),
        Command::Checksum(checksum) => checksum.run(),
        Command::Lint(lint) => lint.run(),
        Command::Check(check) => check.run(),
        Command::Create(create) => create.run(),
        Command::Resize(resize) => resize.run(),
        Command::Snapshot(snapshot) => snapshot.run(),
        Command::Rebase(rebase) => rebase.run(),
        Command::Commit(commit) => commit.run(),
        Command::Amend(amend) => amend.run(),
        Command::Bitmap(bitmap) => bitmap.run(),
        Command::Bench(bench) => bench.run(),
        Command::Dd(dd) => dd.run(),
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(),
    };
    done.unwrap_or_else(|failure| failure.report())
}
