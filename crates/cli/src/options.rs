//! Options that several subcommands share.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use goldsmith::{Opener, References};

use crate::exit::Failure;

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

/// How source images are spelled.
#[derive(Args)]
pub(crate) struct Spelling {
    /// Sources are given as 'driver=FMT,file.filename=PATH' and options of that format, such as
    /// force_size_calc=chs or current_size for vpc, instead of as paths
    #[arg(long)]
    image_opts: bool,
}

/// A source image as the user meant it.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) format: Option<String>,
    /// Options with which its format opens it.
    options: Vec<(String, String)>,
}

impl Spelling {
    /// The image that `text` means, where `format` was stated apart from it.
    pub(crate) fn source(&self, text: &Path, format: Option<&str>) -> Result<Source, Failure> {
        let mut source = Source {
            path: text.to_owned(),
            format: format.map(str::to_owned),
            options: Vec::new(),
        };
        if !self.image_opts {
            return Ok(source);
        }
        let refuse = |why: &str| {
            let text = format!("--image-opts '{}': {why}", text.display());
            Failure::with_status(1, text)
        };
        if format.is_some() {
            return Err(refuse("its driver states the format, so -f cannot"));
        }
        let mut path = None;
        for pair in split_options(text.to_str().ok_or_else(|| refuse("it is no text"))?) {
            match pair.split_once('=') {
                Some(("driver", driver)) => source.format = Some(driver.to_owned()),
                Some(("file.driver", "file")) => {}
                Some(("file.driver", _)) => return Err(refuse("only file.driver=file is known")),
                Some(("file.filename", name)) => path = Some(PathBuf::from(name)),
                Some((key, value)) => source.options.push((key.to_owned(), value.to_owned())),
                None => return Err(refuse("it takes pairs such as driver=vpc")),
            }
        }
        source.path = path.ok_or_else(|| refuse("file.filename is missing"))?;
        Ok(source)
    }
}

impl Source {
    /// `opener` for this image.
    pub(crate) fn opener(&self, opener: Opener) -> Opener {
        let options = self.options.iter().cloned();
        options.fold(opener, |opener, (key, value)| opener.option(key, value))
    }
}

/// The pairs of one list: separated by commas, of which a doubled one stands for itself. [qemu]
pub(crate) fn split_options(text: &str) -> Vec<String> {
    let mut pairs = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            pairs.push(String::new());
        } else if let Some(last) = pairs.last_mut() {
            last.push(character);
        }
    }
    pairs.retain(|pair| !pair.is_empty());
    pairs
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubled_comma_is_part_of_a_value() {
        assert_eq!(split_options("a=1,b=x,,y,c=3"), ["a=1", "b=x,y", "c=3"]);
        assert_eq!(split_options(""), [""; 0]);
        assert_eq!(split_options("a=1,"), ["a=1"]);
    }
}
