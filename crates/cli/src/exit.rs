//! How the command ends: what it says and the exit status. Nothing else prints an error.

use std::io::Write;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use goldsmith::Loss;

use crate::called;
use crate::output::style::{BAD, DOUBTFUL};
use crate::sandbox;

/// The exit status of a command that was stopped, as the shell expects it of one that was interrupted.
pub(crate) const STOPPED: u8 = 130;

/// A command that did not do what it was asked to.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    /// A failure with an exit status of its own.
    pub(crate) fn with_status(status: u8, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// The same, where 1 would mean something else: a failure of that status gets `status`.
    pub(crate) fn not_one(self, status: u8) -> Self {
        match self.status {
            1 => self.and_status(status),
            _ => self,
        }
    }

    /// The same, with an exit status of its own.
    pub(crate) fn and_status(self, status: u8) -> Self {
        Self { status, ..self }
    }

    /// Says it on standard error and gives the exit status.
    pub(crate) fn report(self) -> ExitCode {
        // If standard error is gone there is nobody left to tell.
        let message = crate::output::human::shown(&self.message);
        let name = called::name();
        let _ = writeln!(anstream::stderr(), "{BAD}{name}:{BAD:#} {message}");
        ExitCode::from(self.status)
    }
}

/// Says on standard output what is wrong without keeping the command from doing its work: callers
/// take anything on standard error for a failure. Not for where programs read standard output;
/// `info` has the same facts for them.
pub(crate) fn warn(warnings: &[String]) {
    for warning in warnings {
        let shown = crate::output::human::shown(warning);
        let (name, word) = (called::name(), "warning:");
        let _ = writeln!(
            anstream::stdout(),
            "{name}: {DOUBTFUL}{word}{DOUBTFUL:#} {shown}"
        );
    }
}

/// Says on standard error what could not be read, `lost` bytes in all. Whoever asked for what is left
/// must not take it for the whole. [qemu]
pub(crate) fn warn_of_losses(losses: &[Loss], lost: u64) {
    let warn = |text: &str| {
        let shown = crate::output::human::shown(text);
        let (name, word) = (called::name(), "warning:");
        let _ = writeln!(
            anstream::stderr(),
            "{name}: {DOUBTFUL}{word}{DOUBTFUL:#} {shown}"
        );
    };
    for Loss { range, why } in losses {
        let (start, len) = (range.start, range.len());
        warn(&format!(
            "error while reading offset {start}: {len} bytes are zeros in the target: {why}"
        ));
    }
    if lost > 0 {
        warn(&format!(
            "{lost} bytes could not be read and are zeros in the target"
        ));
    }
}

impl From<goldsmith::Error> for Failure {
    fn from(error: goldsmith::Error) -> Self {
        let status = if error.kind() == goldsmith::ErrorKind::Cancelled {
            STOPPED
        } else {
            1
        };
        let hint = sandbox::hint(&error);
        Self::with_status(status, called::report(&error) + hint)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::with_status(1, format!("cannot write to standard output: {error}"))
    }
}

/// Ends after `--help`, `--version` or words that make no sense. [qemu] Those exit with 1, not
/// with clap's 2, which `compare` and `check` use for something else.
pub(crate) fn usage(mut error: clap::Error) -> ExitCode {
    if let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg)
        && option.starts_with("--object")
    {
        let hidden = ContextValue::String("secret,...".into());
        error.insert(ContextKind::InvalidValue, hidden);
    }
    if called::qemu_img() && error.use_stderr() {
        let mut text = error.render().to_string();
        if let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) {
            text = format!("Command not found: {word}\n{text}");
        }
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let text = text.replace("For more information, try '--help'.", &more_help());
        let _ = write!(std::io::stderr(), "qemu-img: {text}");
    } else {
        let _ = error.print();
    }
    ExitCode::from(match error.use_stderr() {
        true => of_usage(error.kind()),
        false => 0,
    })
}

/// A failure for a value that makes no sense, where clap does not see it.
pub(crate) fn bad_value(message: String) -> Failure {
    Failure::with_status(of_usage(ErrorKind::InvalidValue), message)
}

/// The exit status for words that make no sense, where 1 may mean something else. [qemu] That of `compare`
/// is 2 for values alone; `lint` is ours.
fn of_usage(kind: ErrorKind) -> u8 {
    let is_value = matches!(kind, ErrorKind::InvalidValue | ErrorKind::ValueValidation);
    match subcommand().as_deref() {
        Some("lint") => 2,
        Some("compare") if is_value => 2,
        _ => 1,
    }
}

/// The name of the subcommand that was asked for.
fn subcommand() -> Option<String> {
    let definition = crate::definition();
    let mut words = std::env::args_os()
        .skip(1)
        .filter_map(|word| word.into_string().ok());
    words.find(|word| definition.find_subcommand(word).is_some())
}

/// Where more is said of the words, in those of `qemu-img`. [qemu]
fn more_help() -> String {
    let of = subcommand().map_or(String::new(), |name| name + " ");
    format!("Try 'qemu-img {of}--help' for more info")
}
