//! How fast goldsmith is: beside its peers with this program, part by part with `cargo bench`.
//!
//! ```text
//! cargo build --release && cargo run --release -p goldsmith-bench -- peers
//! ```
//!
//! runs goldsmith, qemu-img, cp and nbdcopy in turn over the same images and prints a Markdown
//! report. `benches/parts.rs` measures what the engine does to each byte and each table entry,
//! `benches/convert.rs` whole conversions in memory.
#![forbid(unsafe_code)]

mod floor;
mod input;
mod machine;
mod measure;
mod peer;
mod place;
mod race;
mod report;
mod supply;
mod workload;

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, Parser, Subcommand, ValueEnum};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::input::{Files, Inputs, Scale};
use crate::peer::Tools;
use crate::place::{Grounds, Place, Room};
use crate::race::Track;
use crate::report::{Report, Section};
use crate::workload::Workload;

/// How fast goldsmith is
#[derive(Parser)]
#[command(max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    Peers(Peers),
    /// Copy the data of a file with a bare loop
    #[command(hide = true)]
    Copy {
        threads: NonZeroUsize,
        source: PathBuf,
        target: PathBuf,
    },
    /// Touch memory and keep some of it until the input ends
    #[command(hide = true)]
    Touch {
        bytes: usize,
    },
}

/// Run goldsmith and its peers in turn and print a Markdown report
#[derive(Args)]
struct Peers {
    /// Only workloads whose names hold this, in any case, or the one with just this name; may be
    /// given more than once
    #[arg(long, value_name = "SUBSTRING")]
    only: Vec<String>,

    /// Print the names of the workloads and end
    #[arg(long)]
    list: bool,

    /// How much there is to do
    #[arg(long, value_enum, default_value = "full")]
    size: Size,

    /// Runs of each contender; conversions that take minutes get at most 3. Default: 5, or 1 for
    /// the small size
    #[arg(long, value_name = "N")]
    pairs: Option<NonZeroUsize>,

    /// Where the images lie that are to be in memory; about 10 GiB at full size
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    dir: PathBuf,

    /// Where the images lie that are to be on a disk; about 12 GiB at full size
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    disk: PathBuf,

    /// The program to measure; by default the one that was built beside this one
    #[arg(long, value_name = "PATH")]
    goldsmith: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Size {
    /// About 2 GiB of data
    Full,
    /// Some 30 MiB, to see that everything works
    Small,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Action::Peers(peers) => peers.run(),
        Action::Copy {
            threads,
            source,
            target,
        } => floor::copy(&source, &target, threads)
            .map(|()| true)
            .map_err(|error| error.to_string()),
        Action::Touch { bytes } => supply::touch(bytes)
            .map(|()| true)
            .map_err(|error| error.to_string()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("goldsmith-bench: {error}"));
            ExitCode::FAILURE
        }
    }
}

impl Peers {
    /// Whether all was measured and right.
    fn run(&self) -> Result<bool, String> {
        let workloads = workload::called(workload::all(), &self.only);
        let mut out = io::stdout().lock();
        let fail = |error: io::Error| error.to_string();
        if self.list {
            for workload in workloads {
                writeln!(out, "{}", workload.title()).map_err(fail)?;
            }
            return Ok(true);
        }

        let tools = self.tools()?;
        let stop = Arc::new(AtomicBool::new(false));
        // An interrupt must not leave gigabytes behind in memory: it ends the run, not the program.
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(fail)?;
        }
        let report = self.measure(&workloads, &tools, &stop)?;
        // Of a run that was stopped, too: what was measured took its time.
        write!(out, "{report}").map_err(fail)?;
        Ok(report.is_sound() && !stop.load(Ordering::Relaxed))
    }

    fn tools(&self) -> Result<Tools, String> {
        let this = std::env::current_exe().map_err(|error| error.to_string())?;
        let goldsmith = match &self.goldsmith {
            Some(path) => path.clone(),
            None => this.with_file_name("goldsmith"),
        };
        if !goldsmith.is_file() {
            let path = goldsmith.display();
            return Err(format!(
                "{path} is missing; build it with: cargo build --release -p goldsmith-cli"
            ));
        }
        if machine::tool("qemu-img").is_none() || machine::tool("qemu-io").is_none() {
            return Err("qemu-img is missing; install it with: apt-get install qemu-utils".into());
        }
        Ok(Tools { goldsmith, this })
    }

    /// Where images lie, `bytes` of them in memory. A container may have next to no file system there; to see
    /// that everything works, a disk does.
    fn grounds(&self, bytes: u64) -> Grounds {
        let mut grounds = Grounds {
            memory: self.dir.clone(),
            disk: self.disk.clone(),
        };
        if self.size == Size::Small && Room::open(Place::Memory, &grounds, bytes).is_err() {
            grounds.memory.clone_from(&grounds.disk);
        }
        grounds
    }

    fn measure(
        &self,
        workloads: &[Workload],
        tools: &Tools,
        stop: &AtomicBool,
    ) -> Result<Report, String> {
        let (scale, pairs) = match self.size {
            Size::Full => (Scale::FULL, 5),
            Size::Small => (Scale::SMALL, 1),
        };
        let pairs = self.pairs.map_or(pairs, NonZeroUsize::get);
        let grounds = self.grounds(scale.room());
        let files = Files::new(&grounds.disk, scale.files);
        let mut report = Report {
            facts: facts(tools, &scale, pairs),
            sections: Vec::new(),
            threads: std::thread::available_parallelism().map_or(1, NonZeroUsize::get) as u64,
        };
        for place in Place::ALL {
            let workloads: Vec<_> = workloads.iter().filter(|row| row.place == place).collect();
            if workloads.is_empty() {
                continue;
            }
            let mut section = Section {
                title: place.title(),
                ground: Ok(String::new()),
                rows: Vec::new(),
                left_out: Vec::new(),
            };
            match Room::open(place, &grounds, scale.room()) {
                Err(reason) => section.ground = Err(reason),
                Ok(room) => {
                    section.ground = Ok(room.describe());
                    let track = Track {
                        room: &room,
                        scale,
                        tools,
                        pairs,
                        stop,
                    };
                    let mut inputs = Inputs::new(&room, scale, &files, tools);
                    track.all(&workloads, &mut inputs, &mut section)?;
                }
            }
            report.sections.push(section);
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(report)
    }
}

impl Track<'_> {
    /// Runs `workloads` in their order and puts what they show into `section`.
    fn all(
        &self,
        workloads: &[&Workload],
        inputs: &mut Inputs<'_>,
        section: &mut Section,
    ) -> Result<(), String> {
        for (index, workload) in workloads.iter().enumerate() {
            say(&format!("{}: {}", section.title, workload.name));
            let left = &workloads[index..];
            inputs.keep(|input| left.iter().any(|row| row.task.needs(input)))?;
            match self.run(workload, inputs) {
                Ok(row) => section.rows.push(row),
                Err(reason) => section.left_out.push((workload.name.clone(), reason)),
            }
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(())
    }
}

fn facts(tools: &Tools, scale: &Scale, pairs: usize) -> Vec<(&'static str, String)> {
    let version = |name| match machine::tool(name) {
        Some(path) => machine::version(&path),
        None => "not installed".into(),
    };
    let mut facts = machine::hardware();
    facts.extend([
        ("goldsmith", machine::version(&tools.goldsmith)),
        ("qemu-img", version("qemu-img")),
        ("nbdcopy", version("nbdcopy")),
        ("cp", version("cp")),
        (
            "input",
            format!(
                "{} MiB of files in a disk of {} MiB",
                scale.files >> 20,
                scale.disk >> 20
            ),
        ),
        ("pairs", pairs.to_string()),
    ]);
    if let Some(commit) = commit(Path::new(".")) {
        facts.push(("checkout", commit));
    }
    facts
}

/// The commit that is checked out in `dir`.
fn commit(dir: &Path) -> Option<String> {
    let git = std::process::Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .current_dir(dir)
        .output();
    let said = String::from_utf8(git.ok()?.stdout).ok()?;
    let said = said.trim();
    (!said.is_empty()).then(|| said.to_owned())
}

/// Tells the user something that is not part of the report.
fn say(text: &str) {
    // If nobody listens, the report is still wanted.
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_room_in_memory_a_disk_does_to_see_that_everything_works() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().to_str().unwrap();
        for (size, dir, memory) in [
            ("small", "/no/such/place", place),
            ("full", "/no/such/place", "/no/such/place"),
        ] {
            let line = [
                "bench", "peers", "--size", size, "--dir", dir, "--disk", place,
            ];
            let Action::Peers(peers) = Cli::parse_from(line).command else {
                unreachable!("it says peers");
            };
            assert_eq!(peers.grounds(1).memory, Path::new(memory), "{size}");
        }
    }

    #[test]
    fn missing_program_comes_with_the_way_to_build_it() {
        let parsed = Cli::parse_from(["bench", "peers", "--goldsmith", "/no/such/file"]);
        let Action::Peers(peers) = parsed.command else {
            unreachable!("it says peers");
        };
        let error = peers.run().unwrap_err();
        assert!(
            error.contains("cargo build --release -p goldsmith-cli"),
            "{error}"
        );
    }
}
