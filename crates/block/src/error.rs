//! One error for every trait boundary: who must act, which file, which guest bytes, which rule.

use std::fmt;

use crate::GuestRange;

/// The result of everything that crosses a trait of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who must act on an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The machine: a read, a write or a sync failed.
    Io,
    /// Whoever made the image: it breaks a rule of its format.
    Corrupt,
    /// Us: the image is fine, but it uses something goldsmith does not do.
    Unsupported,
    /// The caller's budget: the image wants more than [`Limits`](crate::Limits) allows.
    Limit,
    /// The caller's policy: the image names something it may not open.
    Denied,
    /// The caller: the request makes no sense for this image or format.
    Usage,
    /// Nobody: the caller asked to stop.
    Cancelled,
    /// Us: an agreement inside goldsmith was broken.
    Bug,
}

impl ErrorKind {
    const fn phrase(self) -> Option<&'static str> {
        match self {
            Self::Corrupt => Some("corrupt image"),
            Self::Unsupported => Some("not supported"),
            Self::Limit => Some("over a limit"),
            Self::Denied => Some("not allowed"),
            Self::Bug => Some("bug in goldsmith, please report it"),
            // Their sources are whole sentences already.
            Self::Io | Self::Usage | Self::Cancelled => None,
        }
    }
}

/// What went wrong, with the file and the guest bytes it concerns where they are known.
///
/// `Display` prints the place and the kind, never the source: whoever reports an error walks
/// [`source`](std::error::Error::source) and joins the parts with `": "` (see [`Error::report`]).
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    path: Option<String>,
    guest: Option<GuestRange>,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl Error {
    /// An error of `kind` because of `source`: a format's own error, an I/O error, or a sentence.
    pub fn new(
        kind: ErrorKind,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self(Box::new(Inner {
            kind,
            path: None,
            guest: None,
            source: source.into(),
        }))
    }

    /// [`ErrorKind::Corrupt`] because of `source`.
    pub fn corrupt(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(ErrorKind::Corrupt, source)
    }

    /// [`ErrorKind::Usage`] because of `source`.
    pub fn usage(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(ErrorKind::Usage, source)
    }

    /// [`ErrorKind::Unsupported`] because of `source`.
    pub fn unsupported(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(ErrorKind::Unsupported, source)
    }

    /// Says which file is meant, unless something nearer to the fault has said so already.
    #[must_use]
    pub fn in_file(mut self, path: impl Into<String>) -> Self {
        self.0.path.get_or_insert_with(|| path.into());
        self
    }

    /// Says which guest bytes are meant, unless something nearer to the fault has said so already.
    #[must_use]
    pub fn at_guest(mut self, range: GuestRange) -> Self {
        self.0.guest.get_or_insert(range);
        self
    }

    /// Who must act.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The file concerned, as the caller named it.
    pub fn path(&self) -> Option<&str> {
        self.0.path.as_deref()
    }

    /// The guest bytes concerned.
    pub fn guest(&self) -> Option<GuestRange> {
        self.0.guest
    }

    /// The whole story on one line: this error and its sources, joined with `": "`.
    pub fn report(&self) -> String {
        let mut line = self.to_string();
        let mut source: Option<&dyn std::error::Error> = Some(&*self.0.source);
        while let Some(error) = source {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&error.to_string());
            source = error.source();
        }
        line
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(path) = &self.0.path {
            write!(f, "{path}")?;
            separator = ": ";
        }
        if let Some(phrase) = self.0.kind.phrase() {
            write!(f, "{separator}{phrase}")?;
            separator = ": ";
        }
        if let Some(guest) = self.0.guest {
            write!(f, "{separator}guest range {guest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({})", self.0.kind, self.report())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_names_file_rule_and_place_once() {
        let error = Error::corrupt("block table has 15 entries; the disk size needs 16")
            .in_file("disk.vhd")
            .in_file("outer.vhd")
            .at_guest(GuestRange::new(0x1000, 0x2000));
        assert_eq!(
            error.report(),
            "disk.vhd: corrupt image: guest range 0x1000..0x2000: \
             block table has 15 entries; the disk size needs 16"
        );
    }

    #[test]
    fn report_of_a_bare_sentence_is_the_sentence() {
        assert_eq!(Error::usage("size is missing").report(), "size is missing");
    }

    #[test]
    fn report_walks_every_source() {
        let io = std::io::Error::other("the disk is on fire");
        assert_eq!(
            Error::new(ErrorKind::Io, io).in_file("a").report(),
            "a: the disk is on fire"
        );
    }
}
