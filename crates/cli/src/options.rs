//! Options that several subcommands share.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, ValueEnum};
use goldsmith::{Edited, Format, ImageName, Limits, Opener, Part, References, SnapshotName};

use crate::called;
use crate::exit::{self, Failure};
use crate::names;
use crate::output::human;
use crate::sandbox;

/// What images may cost.
#[derive(Args)]
struct Cost {
    /// Memory for what images say of themselves: tables, snapshots, bitmaps. One that wants more is
    /// refused
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size)]
    memory: u64,
}

impl Cost {
    fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        limits.metadata_bytes = self.memory;
        limits
    }
}

/// What is unpacked for a look at an image, in bytes, in a second or two: services look first.
const LOOK_UNPACKS: u64 = 256 << 20;
/// Processor time that it takes in all, so far as it unpacks. Services have two seconds.
const LOOK_TAKES: Duration = Duration::from_millis(1500);

/// What a look at an image may cost.
#[derive(Args)]
pub(crate) struct Look {
    #[command(flatten)]
    cost: Cost,

    /// Most bytes to unpack of an image that has to be unpacked as a whole; few of them take space in
    /// temporary files (in TMPDIR, or else /var/tmp)
    #[arg(long, value_name = "SIZE", default_value = "64G", value_parser = size)]
    unpack_limit: u64,
}

impl Look {
    pub(crate) fn limits(&self) -> Limits {
        let mut limits = self.cost.limits();
        limits.unpacked_bytes = self.unpack_limit;
        limits
    }
}

/// How images are opened.
#[derive(Args)]
pub(crate) struct Opening {
    #[command(flatten)]
    cost: Cost,

    /// Which files named inside an image may be opened; by default those in its own directory, and
    /// any if the command is called qemu-img
    #[arg(long, value_enum, value_name = "POLICY")]
    references: Option<Policy>,

    /// Format of backing files for images that do not say it themselves
    #[arg(long, value_name = "FMT")]
    backing_format: Option<String>,

    /// Space for temporary files (in TMPDIR, or else /var/tmp), for images that have to be unpacked as
    /// a whole: by default 64G, and 256M for a mere look
    #[arg(long, value_name = "SIZE", value_parser = size)]
    unpack_limit: Option<u64>,

    /// A passphrase, which options such as encrypt.key-secret=ID name by its id; in a file, because
    /// everybody can see the words of a command
    #[arg(
        long = "object",
        value_name = "secret,id=ID,file=PATH|data=TEXT[,format=base64]",
        value_parser = secret
    )]
    secrets: Vec<Secret>,
}

/// A passphrase and its name.
#[derive(Clone)]
pub(crate) struct Secret {
    pub(crate) id: String,
    pub(crate) text: String,
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
        self.opener_that_unpacks(Limits::default().unpacked_bytes, None)
    }

    /// As [`opener`](Self::opener), for a look at images that nobody knows yet.
    pub(crate) fn look(&self) -> Opener {
        self.opener_that_unpacks(LOOK_UNPACKS, Some(LOOK_TAKES))
    }

    /// Unpacks so many bytes, and for so long, unless the user said something else.
    fn opener_that_unpacks(&self, bytes: u64, time: Option<Duration>) -> Opener {
        let mut limits = self.cost.limits();
        limits.unpacked_bytes = self.unpack_limit.unwrap_or(bytes);
        limits.unpacking_time = time.filter(|_| self.unpack_limit.is_none());
        let opener = sandbox::opener()
            .limits(limits)
            .references(self.references());
        let secrets = self.secrets.iter();
        let opener = secrets.fold(opener, |opener, Secret { id, text }| {
            opener.secret(id, text)
        });
        match &self.backing_format {
            Some(format) => opener.backing_format(format),
            None => opener,
        }
    }

    fn references(&self) -> References {
        match self.references {
            Some(Policy::Deny) => References::Deny,
            Some(Policy::SameDirectory) => References::SameDirectory,
            Some(Policy::Allow) => References::Allow,
            None if called::qemu_img() => References::Allow,
            None => References::SameDirectory,
        }
    }

    /// What can be opened at most, before it is said which images there are.
    pub(crate) fn reach(&self) -> sandbox::Reach {
        sandbox::Reach::new(self.references())
    }

    /// What can be opened at most if the image at `path` is all that is read.
    pub(crate) fn reach_of(&self, path: &Path) -> sandbox::Reach {
        let mut reach = self.reach();
        reach.source(path);
        reach
    }

    /// What can be opened at most if the image at `path` is changed, or that is only rehearsed.
    pub(crate) fn reach_of_edit(&self, path: &Path, dry_run: bool) -> sandbox::Reach {
        let mut reach = self.reach_of(path);
        if !dry_run {
            reach.edited(path);
        }
        reach
    }

    /// The format of backing files that nobody else states.
    pub(crate) fn backing_format(&self) -> Option<&str> {
        self.backing_format.as_deref()
    }

    /// The passphrases.
    pub(crate) fn secrets(&self) -> &[Secret] {
        &self.secrets
    }
}

/// What `--object` means. [qemu]
fn secret(text: &str) -> Result<Secret, String> {
    let (mut id, mut bytes, mut base64) = (None, None, false);
    for pair in split_options(text) {
        match pair.split_once('=') {
            None if pair == "secret" => {}
            Some(("qom-type", "secret")) => {}
            Some(("id", value)) => id = Some(value.to_owned()),
            Some(("data", value)) => bytes = Some(value.as_bytes().to_vec()),
            Some(("file", path)) => {
                let read = std::fs::read(path);
                bytes = Some(read.map_err(|error| format!("secret file '{path}': {error}"))?);
            }
            Some(("format", "raw")) => base64 = false,
            Some(("format", "base64")) => base64 = true,
            // Without the word: it may be part of a passphrase that has a comma.
            _ => return Err("one of its words is none that a secret has".into()),
        }
    }
    let (Some(id), Some(mut bytes)) = (id, bytes) else {
        return Err("a secret has an id, and a file or data".into());
    };
    if base64 {
        bytes.retain(|byte| !byte.is_ascii_whitespace());
        let decoded = BASE64_STANDARD.decode(&bytes);
        bytes = decoded.map_err(|_| format!("secret '{id}' is no base64"))?;
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("secret '{id}' is no UTF-8"))?;
    Ok(Secret { id, text })
}

/// How source images are spelled.
#[derive(Args)]
pub(crate) struct Spelling {
    /// Sources are given as 'driver=FMT,file.filename=PATH' and options of that format, such as
    /// offset=SIZE and size=SIZE for raw, instead of as paths
    #[arg(long, visible_alias = "source-image-opts")]
    image_opts: bool,

    /// Read images although somebody, such as a running virtual machine, may be writing to them
    #[arg(short = 'U', long)]
    force_share: bool,

    /// Refuse the image unless it carries the marks of this format, and of no other; raw carries none
    #[arg(long, value_name = "FMT")]
    expect: Option<String>,
}

/// A source image as the user meant it.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) format: Option<String>,
    part: Option<Part>,
    /// Options with which its format opens it.
    options: Vec<(String, String)>,
    force_share: bool,
    expect: Option<String>,
}

impl Spelling {
    /// Whether images are given as options.
    pub(crate) fn is_by_options(&self) -> bool {
        self.image_opts
    }

    /// The image that `text` means, where `format` was stated apart from it.
    pub(crate) fn source(&self, text: &Path, format: Option<&str>) -> Result<Source, Failure> {
        let name = match (self.image_opts, format) {
            (true, Some(_)) => {
                let why = "its driver states the format, so -f cannot";
                return Err(called::refused_name("--image-opts", text, why));
            }
            (true, None) => names::by_options("--image-opts", text)?,
            (false, format) => names::image(text, format)?,
        };
        let mut source = Source::new(name, self.force_share);
        source.expect = self.expect.clone();
        Ok(source)
    }
}

impl Source {
    /// The image called `name`.
    pub(crate) fn new(name: ImageName, force_share: bool) -> Self {
        Self {
            path: name.path,
            format: name.format,
            part: name.part,
            options: name.options,
            force_share,
            expect: None,
        }
    }

    /// Whether the image is not all of its file.
    pub(crate) fn is_part(&self) -> bool {
        self.part.is_some()
    }

    /// Where in its file the image begins, in bytes.
    pub(crate) fn begins_at(&self) -> u64 {
        self.part.map_or(0, |part| part.offset)
    }

    /// `opener` for this image.
    pub(crate) fn opener(&self, opener: Opener) -> Opener {
        let mut opener = opener.force_share(self.force_share);
        if let Some(part) = self.part {
            opener = opener.part(part);
        }
        let options = self.options.iter().cloned();
        if let Some(format) = &self.expect {
            opener = opener.expect(format);
        }
        options.fold(opener, |opener, (key, value)| opener.option(key, value))
    }
}

/// How an image is edited.
#[derive(Args)]
pub(crate) struct Editing {
    /// Format of the image; without it the format is guessed
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,

    /// Leave all files as they are, and only say what would be done to them
    #[arg(long)]
    dry_run: bool,

    /// Say nothing but errors
    #[arg(short = 'q', long)]
    quiet: bool,

    #[command(flatten)]
    opening: Opening,

    #[command(flatten)]
    spelling: Spelling,
}

/// How an image is to be opened for an edit.
pub(crate) struct Subject {
    pub(crate) path: PathBuf,
    pub(crate) format: Option<String>,
    pub(crate) opener: Opener,
    pub(crate) dry_run: bool,
    /// What can be opened at most.
    pub(crate) reach: sandbox::Reach,
}

impl Editing {
    /// The image that `text` means.
    pub(crate) fn subject(&self, text: &Path) -> Result<Subject, Failure> {
        let source = self.spelling.source(text, self.format.as_deref())?;
        Ok(Subject {
            opener: source.opener(self.opening.opener()),
            reach: self.opening.reach_of_edit(&source.path, self.dry_run),
            path: source.path,
            format: source.format,
            dry_run: self.dry_run,
        })
    }

    /// The format of the image, if it is to be had: stated, or guessed.
    pub(crate) fn format_of(
        &self,
        subject: Option<&Subject>,
    ) -> Result<&'static dyn Format, Failure> {
        if let Some(name) = &self.format {
            return Ok(goldsmith::format_named(name)?);
        }
        let Some(subject) = subject else {
            return Err(Failure::with_status(
                1,
                "state the format (-f) or the image",
            ));
        };
        let opener = subject.opener.clone();
        let layer = opener.open_alone(&subject.path, subject.format.as_deref())?;
        Ok(goldsmith::format_named(layer.info().format)?)
    }

    /// Fails if the image is to be read only, which `-U` means.
    pub(crate) fn must_write(&self) -> Result<(), Failure> {
        if self.spelling.force_share {
            let text = "force-share (-U) can only be used with images that are only read";
            return Err(Failure::with_status(1, text));
        }
        Ok(())
    }

    pub(crate) fn opening(&self) -> &Opening {
        &self.opening
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Says what was done: `done`, or the steps if it was only rehearsed; and what else the user may
    /// want to know.
    pub(crate) fn say(&self, done: &str, edited: &Edited) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        if self.dry_run {
            human::steps(&mut out, edited)?;
        } else if !self.quiet && !done.is_empty() {
            writeln!(out, "{done}")?;
        }
        if !self.quiet {
            exit::warn(&edited.warnings);
        }
        Ok(())
    }
}

/// Gives a builder that has these methods what the user said of its image, and the command no other
/// files than it needs.
macro_rules! described {
    ($builder:expr, $subject:expr) => {{
        let crate::options::Subject {
            format,
            opener,
            dry_run,
            reach,
            ..
        } = $subject;
        crate::sandbox::narrow(&reach)?;
        let builder = $builder.opener(opener).dry_run(dry_run);
        match format {
            Some(format) => builder.format(format),
            None => builder,
        }
    }};
}
pub(crate) use described;

/// How what is written goes through the system's cache.
#[derive(Args)]
pub(crate) struct Writing {
    /// How what is written goes through the system's cache, and when it is stored safely
    #[arg(
        short = 't',
        long = "cache",
        visible_alias = "target-cache",
        value_enum,
        value_name = "CACHE",
        default_value = "writeback"
    )]
    write_cache: Cache,
}

/// How what is read goes through the system's cache, beside what is written.
#[derive(Args)]
pub(crate) struct Reading {
    /// The same for what is read, of which only none and directsync make anything else
    #[arg(
        short = 'T',
        long = "source-cache",
        visible_alias = "backing-cache",
        value_enum,
        value_name = "CACHE",
        default_value = "writeback"
    )]
    read_cache: Cache,
}

/// How an image that is only looked at goes through the system's cache.
#[derive(Args)]
pub(crate) struct Looking {
    /// How images go through the system's cache
    #[arg(
        short = 'T',
        long = "cache",
        value_enum,
        value_name = "CACHE",
        default_value = "writeback"
    )]
    cache: Cache,
}

impl Writing {
    pub(crate) fn cache(&self) -> goldsmith::Cache {
        self.write_cache.into()
    }
}

impl Reading {
    pub(crate) fn cache(&self) -> goldsmith::Cache {
        self.read_cache.into()
    }
}

impl Looking {
    pub(crate) fn cache(&self) -> goldsmith::Cache {
        self.cache.into()
    }
}

/// A way through the system's cache. [qemu]
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Cache {
    /// As writeback, but past the cache (direct I/O), where it takes nobody's place; where the file
    /// system cannot do that, dropped from it after use
    None,
    /// As writethrough, but past the cache
    Directsync,
    /// Each write is stored safely before the next
    Writethrough,
    /// All is stored safely before the command ends with success
    Writeback,
    /// Nothing is waited for: a power cut soon afterwards may take all of it
    Unsafe,
}

impl From<Cache> for goldsmith::Cache {
    fn from(cache: Cache) -> Self {
        match cache {
            Cache::None => Self::None,
            Cache::Directsync => Self::Directsync,
            Cache::Writethrough => Self::Writethrough,
            Cache::Writeback => Self::Writeback,
            Cache::Unsafe => Self::Unsafe,
        }
    }
}

/// The pairs `K=V` of all `lists`; a `K` alone is on. [qemu] No list is empty, and none begins or ends
/// with a comma that parts.
pub(crate) fn pairs(lists: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let is_none = |list: &&String| {
        let commas = list.len() - list.trim_start_matches(',').len();
        list.is_empty() || list.ends_with(',') || commas % 2 == 1
    };
    if let Some(list) = lists.iter().find(is_none) {
        let text = format!("Invalid option list: {list}");
        return Err(Failure::with_status(1, text));
    }
    let pairs = lists.iter().flat_map(|list| split_options(list));
    let pair = |pair: String| match pair.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (pair, "on".to_owned()),
    };
    Ok(pairs.map(pair).collect())
}

/// The size among `pairs`, which is taken out of them; the last one counts. [qemu]
pub(crate) fn size_among(pairs: &mut Vec<(String, String)>) -> Result<Option<u64>, Failure> {
    let sizes = pairs.extract_if(.., |(key, _)| key == "size");
    let last = sizes.last();
    last.map(|(_, text)| image_size(&text)).transpose()
}

/// A size of a new image.
pub(crate) fn image_size(text: &str) -> Result<u64, Failure> {
    goldsmith::parse_size(text).ok_or_else(|| {
        let text = format!("Invalid image size specified: '{text}' (such as 65536 or 20G is one)");
        Failure::with_status(1, text)
    })
}

/// Whether one of the `lists` asks what there is.
pub(crate) fn asks_for_help(lists: &[String]) -> bool {
    let mut words = lists.iter().flat_map(|list| split_options(list));
    words.any(|word| matches!(&*word, "help" | "?"))
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

/// What `-l` means. [qemu] An id or a name, unless it begins like a list of both.
pub(crate) fn snapshot_name(text: &str) -> Result<SnapshotName, Failure> {
    if !text.starts_with("snapshot.") {
        return Ok(SnapshotName::IdOrName(text.to_owned()));
    }
    let (mut id, mut name) = (None, None);
    for pair in split_options(text) {
        match pair.split_once('=') {
            Some(("snapshot.id", value)) => id = Some(value.to_owned()),
            Some(("snapshot.name", value)) => name = Some(value.to_owned()),
            _ => {
                let text = format!("-l takes snapshot.id=ID and snapshot.name=NAME, not '{pair}'");
                return Err(Failure::with_status(1, text));
            }
        }
    }
    Ok(SnapshotName::Exactly { id, name })
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

/// A number of threads, for clap.
pub(crate) fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let number = text.parse().ok();
    number
        .filter(|number: &NonZeroUsize| number.get() <= goldsmith::MOST_THREADS)
        .ok_or_else(|| format!("expected a number from 1 to {}", goldsmith::MOST_THREADS))
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
