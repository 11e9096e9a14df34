//! The command under another name: what OpenStack and many a script call `qemu-img`.
//!
//! The words are the same under both names. What differs is what callers of `qemu-img` read out of
//! its answers, and that it opens whatever an image names.

use std::path::Path;
use std::sync::LazyLock;

use goldsmith::{Error, ErrorKind, Format};

use crate::exit::Failure;

/// What `--version` says under that name: the release whose command lines are understood, which
/// callers compare with the one they need, and whose work it is in truth.
pub(crate) const VERSION: &str =
    concat!("version 10.0.2 (goldsmith ", env!("CARGO_PKG_VERSION"), ")");

static QEMU_IMG: LazyLock<bool> = LazyLock::new(|| {
    let name = std::env::args_os().next();
    name.is_some_and(|name| Path::new(&name).file_name() == Some("qemu-img".as_ref()))
});

/// Whether the command was called `qemu-img`.
pub(crate) fn qemu_img() -> bool {
    *QEMU_IMG
}

/// The name it was called by.
pub(crate) fn name() -> &'static str {
    match qemu_img() {
        true => "qemu-img",
        false => "goldsmith",
    }
}

/// What went wrong, in the words of the name it was called by. [qemu]
pub(crate) fn report(error: &Error) -> String {
    let report = error.report();
    let told = error.path().and_then(|path| {
        let why = report.strip_prefix(path)?.strip_prefix(": ")?;
        let of_opening = match error.kind() {
            ErrorKind::Io => why.strip_prefix("cannot open: "),
            ErrorKind::Corrupt
            | ErrorKind::Unsupported
            | ErrorKind::Limit
            | ErrorKind::Denied
                // What is told of some guest bytes was found later.
                if error.guest().is_none() =>
            {
                Some(why.strip_prefix("corrupt image: ").unwrap_or(why))
            }
            _ => None,
        };
        of_opening.map(|why| could_not_open(path, why))
    });
    match told {
        Some(told) if qemu_img() => told,
        _ => report,
    }
}

/// Fails as `qemu-img` does if what stands before a colon in `name` is nothing that it knows.
pub(crate) fn must_be_file(name: &Path) -> Result<(), Failure> {
    let name = name.to_string_lossy();
    match goldsmith::protocol(&name) {
        Some((protocol, _)) if qemu_img() => {
            let why = format!("Unknown protocol '{protocol}'");
            Err(Failure::with_status(1, could_not_open(&name, &why)))
        }
        _ => Ok(()),
    }
}

/// Fails as `qemu-img` does if there is no `format` to open the image at `path` in.
pub(crate) fn must_be_known(path: &Path, format: Option<&str>) -> Result<(), Failure> {
    match format.filter(|it| goldsmith::format_named(it).is_err()) {
        Some(format) if qemu_img() => {
            let why = format!("Unknown driver '{format}'");
            let path = path.to_string_lossy();
            Err(Failure::with_status(1, could_not_open(&path, &why)))
        }
        _ => Ok(()),
    }
}

/// Why `text`, which `option` says is an image, is none.
pub(crate) fn refused_name(option: &str, text: &Path, why: &str) -> Failure {
    let text = text.to_string_lossy();
    let told = match qemu_img() {
        true => could_not_open(&text, why),
        false => format!("{option} '{text}': {why}"),
    };
    Failure::with_status(1, told)
}

/// The format called `name`, to write an image in.
pub(crate) fn target_format(name: &str) -> Result<&'static dyn Format, Failure> {
    goldsmith::format_named(name).map_err(|error| match qemu_img() {
        true => Failure::with_status(1, format!("Unknown file format '{name}'")),
        false => error.into(),
    })
}

fn could_not_open(path: &str, why: &str) -> String {
    format!("Could not open '{path}': {why}")
}
