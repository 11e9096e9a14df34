//! `goldsmith bitmap`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, ArgMatches, Args, FromArgMatches};
use goldsmith::EditBitmap;

use crate::exit::Failure;
use crate::names;
use crate::options::{Editing, described, size};

/// Change a bitmap of an image: which parts of the disk were written since when (qcow2)
///
/// What is to be done is done in the order in which it is said.
#[derive(Args)]
#[command(
    override_usage = "goldsmith bitmap [OPTIONS] (--add | --remove | --clear | --enable | \
                      --disable | --merge SOURCE)... IMAGE BITMAP",
    after_long_help = "\
Examples:
  goldsmith bitmap -f qcow2 --add -g 64k disk.qcow2 monday
  Stop it, and begin another one with what it has:
    goldsmith bitmap -f qcow2 --disable disk.qcow2 monday
    goldsmith bitmap -f qcow2 --add --merge monday disk.qcow2 week
  From another image of the same disk:
    goldsmith bitmap -f qcow2 --merge monday -b old.qcow2 -F qcow2 disk.qcow2 week"
)]
pub(crate) struct Bitmap {
    #[command(flatten)]
    changes: Changes,

    /// Bytes per bit of a bitmap that is added; by default 65536
    #[arg(short = 'g', long, value_name = "SIZE", value_parser = size, requires = "add")]
    granularity: Option<u64>,

    /// Take the bitmaps that are merged from this image
    #[arg(short = 'b', long, value_name = "FILE", requires = "merge")]
    source_file: Option<PathBuf>,

    /// Format of the image that -b names
    #[arg(short = 'F', long, value_name = "FMT", requires = "source_file")]
    source_format: Option<String>,

    #[command(flatten)]
    editing: Editing,

    /// The image
    image: PathBuf,

    /// Name of the bitmap
    #[arg(value_name = "BITMAP")]
    name: String,
}

/// What is to be done, in the order of the command line.
#[derive(Clone, Debug)]
struct Changes(Vec<Change>);

#[derive(Clone, Debug)]
enum Change {
    Flag(&'static str),
    Merge(String),
}

/// Those without a value, and what they are for.
const FLAGS: [(&str, &str); 5] = [
    ("add", "Make the bitmap, which records writes from now on"),
    ("remove", "Forget the bitmap"),
    ("clear", "Forget which parts were written"),
    ("enable", "Record writes from now on"),
    ("disable", "Record writes no longer"),
];

impl Args for Changes {
    fn augment_args(mut command: clap::Command) -> clap::Command {
        for (name, help) in FLAGS {
            // Counted, because only an option with values knows where it stood.
            let flag = clap::Arg::new(name)
                .long(name)
                .help(help)
                .action(ArgAction::Append)
                .num_args(0)
                .default_missing_value("on");
            command = command.arg(flag);
        }
        let merge = clap::Arg::new("merge")
            .long("merge")
            .value_name("SOURCE")
            .help("Add the parts that the bitmap SOURCE says were written")
            .action(ArgAction::Append);
        command.arg(merge)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Changes {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut found = Vec::new();
        for (name, _) in FLAGS {
            let at = matches.indices_of(name).into_iter().flatten();
            found.extend(at.map(|at| (at, Change::Flag(name))));
        }
        let at = matches.indices_of("merge").into_iter().flatten();
        let sources = matches.get_many::<String>("merge").into_iter().flatten();
        found.extend(
            at.zip(sources)
                .map(|(at, source)| (at, Change::Merge(source.clone()))),
        );
        found.sort_by_key(|(at, _)| *at);
        Ok(Self(found.into_iter().map(|(_, change)| change).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Bitmap {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        self.editing.must_write()?;
        let mut subject = self.editing.subject(&self.image)?;
        let mut bitmap = EditBitmap::new(&subject.path, &self.name);
        for change in self.changes.0 {
            bitmap = match change {
                Change::Flag("add") => bitmap.add(),
                Change::Flag("remove") => bitmap.remove(),
                Change::Flag("clear") => bitmap.clear(),
                Change::Flag("enable") => bitmap.enable(),
                Change::Flag(_) => bitmap.disable(),
                Change::Merge(source) => bitmap.merge(source),
            };
        }
        if let Some(bytes) = self.granularity {
            bitmap = bitmap.granularity(bytes);
        }
        if let Some(file) = &self.source_file {
            let file = names::whole_file(file)?.path;
            subject.reach.source(&file);
            bitmap = bitmap.merge_from(file, self.source_format.as_deref());
        }
        let edited = described!(bitmap, subject).run()?;
        self.editing.say("", &edited)?;
        Ok(ExitCode::SUCCESS)
    }
}
