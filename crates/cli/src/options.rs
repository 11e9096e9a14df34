//! Options that several subcommands share.

use clap::{Args, ValueEnum};
use goldsmith::{Opener, References};

/// How images are opened.
#[derive(Args)]
pub(crate) struct Opening {
    /// Which files named inside an image may be opened
    #[arg(
        long,
        value_enum,
        default_value = "same-directory",
        value_name = "POLICY"
    )]
    references: Policy,

    /// Format of backing files for images that do not say it themselves
    #[arg(long, value_name = "FMT")]
    backing_format: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Policy {
    /// None
    Deny,
    /// Those in the image's own directory
    SameDirectory,
    /// Any: for images from people you trust
    Allow,
}

impl Opening {
    /// The opener that does as the user said.
    pub(crate) fn opener(&self) -> Opener {
        let opener = Opener::new().references(match self.references {
            Policy::Deny => References::Deny,
            Policy::SameDirectory => References::SameDirectory,
            Policy::Allow => References::Allow,
        });
        match &self.backing_format {
            Some(format) => opener.backing_format(format),
            None => opener,
        }
    }
}

/// Who reads the answer.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum OutputFormat {
    /// A person
    Human,
    /// A program
    Json,
}

/// A size such as 65536 or 64k, for clap.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    goldsmith::parse_size(text).ok_or_else(|| "expected a size such as 65536 or 64k".into())
}
