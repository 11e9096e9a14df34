//! Showing how far a conversion has come.

use std::io::{IsTerminal, Write, stdout};
use std::sync::{Mutex, PoisonError};

use goldsmith::{Cancel, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Who watches a long command: somebody who looks on, perhaps, and somebody who may interrupt it.
pub(crate) struct Watch {
    display: Option<Display>,
    cancel: Cancel,
}

impl Watch {
    /// Begins; from now on an interrupt only raises the flag.
    pub(crate) fn new(shown: bool) -> Self {
        let cancel = Cancel::new();
        let raise = cancel.clone();
        // Without a handler an interrupt ends the process where it is, which harms no image; that
        // the handler cannot be set is no reason not to begin.
        let _ = ctrlc::set_handler(move || raise.cancel());
        Self {
            display: shown.then(Display::new),
            cancel,
        }
    }

    /// The flag that an interrupt raises.
    pub(crate) fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Shows `progress`, if somebody looks on.
    pub(crate) fn show(&self, progress: Progress) {
        if let Some(display) = &self.display {
            display.show(progress);
        }
    }

    /// Leaves the display as it ends.
    pub(crate) fn finish(self) {
        if let Some(display) = self.display {
            display.finish();
        }
    }
}

/// A progress display on standard output: a bar on a terminal, qemu-img's lines elsewhere.
enum Display {
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
}

impl Display {
    fn new() -> Self {
        if !stdout().is_terminal() {
            return Self::Lines(Mutex::new(Lines { shown: None }));
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
        let template =
            "{bar:30} {percent:>3}% {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        // A template that does not parse is a fault of ours; the plain bar still serves.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self::Bar(bar)
    }

    /// Shows `progress`; safe to call from many threads, out of order.
    fn show(&self, progress: Progress) {
        match self {
            Self::Bar(bar) => {
                bar.set_length(progress.total);
                bar.set_position(progress.done.max(bar.position()));
            }
            Self::Lines(lines) => {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.show(100.0 * progress.done as f64 / progress.total as f64);
            }
        }
    }

    /// Leaves the display as it ends.
    fn finish(self) {
        match self {
            Self::Bar(bar) => bar.finish(),
            Self::Lines(lines) => {
                let mut lines = lines.into_inner().unwrap_or_else(PoisonError::into_inner);
                lines.show(100.0);
                let _ = writeln!(stdout());
            }
        }
    }
}

/// What was last shown of `(12.34/100%)`.
struct Lines {
    shown: Option<f64>,
}

impl Lines {
    /// [qemu] A new line for every percent, and for the last.
    fn show(&mut self, percent: f64) {
        let step = self.shown.map_or(f64::INFINITY, |shown| percent - shown);
        if step >= 1.0 || (percent >= 100.0 && step > 0.0) {
            self.shown = Some(percent);
            // A reader that went away does not stop the conversion.
            let _ = write!(stdout(), "    ({percent:.2}/100%)\r");
            let _ = stdout().flush();
        }
    }
}
