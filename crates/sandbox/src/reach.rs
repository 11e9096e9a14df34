//! Files that can still be opened.

use std::path::PathBuf;

/// What can be opened after [`Sandbox::narrow`](crate::Sandbox::narrow): nothing, but for what is added.
///
/// A path means what is there now, symbolic links followed: a file, or a directory with all in it and
/// below. What is not there, or cannot be reached, is passed over; it cannot be opened in any case.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    pub(crate) places: Vec<(PathBuf, Right)>,
    pub(crate) hands_down: bool,
}

/// What can be done with a file. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Right {
    Read,
    Write,
    /// Files are made, and get and lose names.
    Make,
}

impl Reach {
    /// What is at `path` can be read.
    pub fn read(&mut self, path: impl Into<PathBuf>) {
        self.places.push((path.into(), Right::Read));
    }

    /// What is at `path` can be read and written to.
    pub fn write(&mut self, path: impl Into<PathBuf>) {
        self.places.push((path.into(), Right::Write));
    }

    /// What is at `path` can be read and written to, and regular files can be made and removed there.
    pub fn make(&mut self, path: impl Into<PathBuf>) {
        self.places.push((path.into(), Right::Make));
    }

    /// Files that are made can be given the rights of those that they replace. No system call knows which
    /// these are: so can all others that can be opened, as far as they are the user's.
    pub fn hand_down(&mut self) {
        self.hands_down = true;
    }
}
