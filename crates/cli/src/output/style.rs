//! Colours for people at a terminal. Whoever writes with them writes through `anstream`, which takes
//! them out where no terminal is, or where the environment says so.

use anstyle::{AnsiColor, Style};

/// What is wrong.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// What may be wrong.
pub(crate) const DOUBTFUL: Style = AnsiColor::Yellow.on_default().bold();
/// What is as it must be.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
