//! `goldsmith lint`

use std::io::stdout;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use goldsmith::References;

use crate::exit::{self, Failure};
use crate::options::{Look, OutputFormat};
use crate::output::{human, json};
use crate::sandbox;

/// List what a cloud would refuse of an image, why, and what to do about it
///
/// Reads the image's own headers and opens nothing that it names. Exit status: 0 nothing to refuse,
/// 1 something, 2 the image cannot be opened.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  goldsmith lint --for azure azure.vhd
  For a program:
    goldsmith lint --for azure --output=json azure.vhd")]
pub(crate) struct Lint {
    /// The cloud
    #[arg(long = "for", value_name = "CLOUD", value_parser = super::cloud)]
    cloud: &'static goldsmith::Cloud,

    /// Format of the image; without it the format is guessed
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,

    /// Refuse the image unless it carries the marks of this format, and of no other; raw carries none
    #[arg(long, value_name = "FMT")]
    expect: Option<String>,

    /// For whom
    #[arg(long, value_enum, default_value = "human", value_name = "FOR")]
    output: OutputFormat,

    #[command(flatten)]
    look: Look,

    /// The image
    image: PathBuf,
}

impl Lint {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        // 1 says that there is something to refuse.
        self.lint().map_err(|failure| failure.not_one(2))
    }

    fn lint(self) -> Result<ExitCode, Failure> {
        let mut reach = sandbox::Reach::new(References::Deny);
        reach.source(&self.image);
        sandbox::narrow(&reach)?;
        // Its headers alone are read, which a running machine leaves as they are.
        let mut opener = sandbox::opener()
            .limits(self.look.limits())
            .force_share(true);
        if let Some(format) = &self.expect {
            opener = opener.expect(format);
        }
        let info = goldsmith::ImageInfo::read(&opener, &self.image, self.format.as_deref())?;
        let findings = goldsmith::lint_info(&info, self.cloud, goldsmith::now());
        match self.output {
            OutputFormat::Human => {
                exit::warn(&info.layer.warnings);
                let mut out = anstream::stdout().lock();
                human::lint(&mut out, &self.image, self.cloud, &findings)?;
            }
            OutputFormat::Json => {
                json::lint(&mut stdout().lock(), &self.image, self.cloud, &findings)?
            }
        }
        Ok(ExitCode::from(u8::from(!findings.is_empty())))
    }
}
