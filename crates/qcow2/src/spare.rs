//! What an image has that its disk can be read without, or some of it: refcounts, snapshots, bitmaps,
//! the end of the L1 table.

use goldsmith_block::{Gaps, Result};

/// What becomes of an image in which something of it is broken.
#[derive(Debug)]
pub(crate) enum Spare {
    /// It is refused: nobody knows what else is.
    Needed,
    /// It is opened without; a sentence for each that is missing.
    Missing(Vec<String>),
}

impl Spare {
    /// What was `found`, or none of it.
    ///
    /// # Errors
    /// That of what was found, if it is needed.
    pub(crate) fn or_default<T: Default>(&mut self, found: Result<T>) -> Result<T> {
        match (self, found) {
            (Self::Missing(missing), Err(error)) => {
                let why = error.report();
                missing.push(format!("{why}; what does not need it is read all the same"));
                Ok(T::default())
            }
            (_, found) => found,
        }
    }

    /// What may be lost of a table: nothing, or what no entry can say.
    pub(crate) fn gaps(&self) -> Gaps {
        match self {
            Self::Needed => Gaps::default(),
            Self::Missing(_) => Gaps::filled_with(u8::MAX),
        }
    }

    /// Adds what is missing of something else.
    pub(crate) fn add(&mut self, what: impl Iterator<Item = String>) {
        if let Self::Missing(missing) = self {
            missing.extend(what);
        }
    }

    /// The sentences.
    pub(crate) fn into_warnings(self) -> Vec<String> {
        match self {
            Self::Needed => Vec::new(),
            Self::Missing(missing) => missing,
        }
    }
}
