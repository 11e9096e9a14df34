//! The command locked in: it reads strangers' images.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use goldsmith::{Error, ErrorKind, ImageName, Opener, References};
use goldsmith_sandbox::{Mode, Sandbox, is_open_outside};

use crate::environment;
use crate::exit::Failure;
use crate::local_time;

/// It holds for the whole process, and there is one.
static SANDBOX: OnceLock<Sandbox> = OnceLock::new();

/// What is going to be written to, once some files can no longer be opened.
static NARROW: OnceLock<Vec<PathBuf>> = OnceLock::new();

/// Whether no file can be opened any more.
static LOCKED: AtomicBool = AtomicBool::new(false);

/// As many symbolic links as Linux follows for one name.
const LINKS: usize = 40;

/// What the user wants of it.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Wanted {
    /// All of it; without it the command does nothing
    Require,
    /// As much of it as the system has
    Try,
    /// None
    Off,
}

impl Wanted {
    /// What is wanted where no option says it.
    pub(crate) fn otherwise() -> Result<Self, Failure> {
        let read = |text: &str| Self::from_str(text, false).ok();
        let wanted = environment::variable("GOLDSMITH_SANDBOX", read, "require, try or off")?;
        Ok(wanted.unwrap_or(Self::Try))
    }
}

/// Begins, before anything is opened and any thread started.
pub(crate) fn begin(wanted: Wanted) -> Result<(), Failure> {
    let mode = match wanted {
        Wanted::Require => Mode::Require,
        Wanted::Try => Mode::Try,
        Wanted::Off => Mode::Off,
    };
    let sandbox = Sandbox::begin(mode).map_err(|error| Failure::from(told(error)))?;
    SANDBOX.get_or_init(|| sandbox);
    Ok(())
}

/// What is going to be opened: what the command line names, and what the images there may name.
pub(crate) struct Reach {
    places: goldsmith_sandbox::Reach,
    /// What is written to.
    written: Vec<PathBuf>,
    references: References,
    has_target: bool,
}

impl Reach {
    /// Of images that may name these files.
    pub(crate) fn new(references: References) -> Self {
        let mut places = goldsmith_sandbox::Reach::default();
        // What the system says of devices and processors.
        places.read("/sys");
        places.read("/proc/self");
        // For images that have to be unpacked.
        let scratch = goldsmith::scratch_directory();
        places.make(&scratch);
        Self {
            places,
            written: vec![scratch],
            references,
            has_target: false,
        }
    }

    /// An image that is read.
    pub(crate) fn source(&mut self, path: &Path) {
        self.places.read(path);
        match self.references {
            References::Allow => self.places.read("/"),
            References::SameDirectory if !is_device(path) => self.places.read(directory_of(path)),
            _ => {}
        }
    }

    /// An image that is read, if `name` means one in the directory of `image`.
    pub(crate) fn beside(&mut self, image: &Path, name: &str) {
        // What makes no sense is refused by whoever is going to open it.
        if let Ok(name) = ImageName::typed(name) {
            self.source(&directory_of(image).join(name.path));
        }
    }

    /// An image that is changed where it stands.
    pub(crate) fn edited(&mut self, path: &Path) {
        self.written.push(path.to_owned());
        self.places.write(path);
        match self.references {
            References::Allow => self.places.write("/"),
            References::SameDirectory if !is_device(path) => self.places.write(directory_of(path)),
            _ => {}
        }
    }

    /// A file that is made, or a device that is written to.
    pub(crate) fn target(&mut self, path: &Path) {
        self.has_target = true;
        self.written.push(path.to_owned());
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            let Ok(next) = std::fs::read_link(&path) else {
                break;
            };
            path = directory_of(&path).join(next);
        }
        self.places.write(&path);
        if std::fs::metadata(&path).map_or(true, |found| found.is_file()) {
            self.places.make(directory_of(&path));
            self.places.hand_down();
        }
    }

    /// The files that the creation options of the image at `target` name.
    pub(crate) fn named_by(&mut self, options: &[(String, String)], target: &Path) {
        for (key, value) in options {
            match &**key {
                "backing_file" => self.beside(target, value),
                "data_file" => {
                    if let Ok(name) = ImageName::typed(value) {
                        self.target(&directory_of(target).join(name.path));
                    }
                }
                _ => {}
            }
        }
    }
}

/// Whether a device is at `path`, and beside it others, none of which an image may name.
fn is_device(path: &Path) -> bool {
    let found = std::fs::metadata(path);
    path.starts_with("/dev") && found.is_ok_and(|found| found.file_type().is_block_device())
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Gives up all files but those within `reach`: before the first image is looked at.
pub(crate) fn narrow(reach: &Reach) -> Result<(), Failure> {
    let Some(sandbox) = SANDBOX.get() else {
        return Ok(());
    };
    // What has no target may show dates.
    if !reach.has_target {
        local_time::zone();
    }
    if sandbox.is_on() {
        NARROW.get_or_init(|| reach.written.clone());
    }
    let narrowed = sandbox.narrow(&reach.places);
    narrowed.map_err(|error| told(error).into())
}

/// An opener that locks the command in when everything is open.
pub(crate) fn opener() -> Opener {
    Opener::new().when_open(lock_in)
}

fn lock_in(directories: &[PathBuf]) -> goldsmith::Result<()> {
    match SANDBOX.get() {
        Some(sandbox) => {
            LOCKED.store(sandbox.is_on(), Ordering::Relaxed);
            sandbox.lock_in(directories).map_err(told)
        }
        None => Ok(()),
    }
}

fn told(error: goldsmith_sandbox::SandboxError) -> Error {
    Error::new(ErrorKind::Unsupported, NotLocked(error))
}

#[derive(Debug)]
struct NotLocked(goldsmith_sandbox::SandboxError);

impl std::fmt::Display for NotLocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the command cannot lock itself in, which --sandbox=require wants")
    }
}

impl std::error::Error for NotLocked {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// What to add to the report of `error`, if the sandbox may be what refused the command something.
pub(crate) fn hint(error: &Error) -> &'static str {
    let is_narrowed = NARROW
        .get()
        .zip(error.path())
        .is_some_and(|(written, path)| {
            let path = Path::new(path);
            let is_written = written.iter().any(|it| it == path);
            // What replaces a file is made beside it.
            is_open_outside(path, is_written)
                && (!is_written || is_open_outside(&directory_of(path), true))
        });
    // Before that no file is refused.
    let locked = is_narrowed || LOCKED.load(Ordering::Relaxed);
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let io = error.downcast_ref::<std::io::Error>();
        if locked && io.is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied) {
            return "; the command had locked itself in: if it does its work with --sandbox=off, \
                    please report it";
        }
        source = error.source();
    }
    ""
}
