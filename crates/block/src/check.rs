//! What a look at all of an image's tables finds.

use std::fmt::Display;

/// The outcome of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// How many places break a rule of the format.
    pub corruptions: u64,
    /// How many units or tables could not be looked at, for whatever reason.
    pub errors: u64,
    /// How many units of the file hold nothing that the image knows of.
    pub leaks: u64,
    /// The first of either, [`Checked::FLAWS`] at most.
    pub flaws: Vec<Flaw>,
    /// Units in the disk; 0 where the format has none.
    pub units: u64,
    /// Units that have a place in the file.
    pub allocated: u64,
    /// Units that do not stand behind the one before.
    pub fragmented: u64,
    /// Units that are packed.
    pub compressed: u64,
    /// Byte offset in the file behind everything that the image knows of.
    pub end: u64,
}

/// Something that a check found; whole sentences without their stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A rule is broken: data is lost, or will be when somebody writes.
    Corruption(String),
    /// Space is wasted, and no more than that.
    Leak(String),
    /// Something is not as it should be, but all readers see the same disk.
    Note(String),
}

impl Checked {
    /// How many flaws are kept: a broken image may have one in every entry.
    pub const FLAWS: usize = 1000;

    /// Notes a broken rule.
    pub fn corruption(&mut self, what: impl Display) {
        self.corruption_in(1, what);
    }

    /// Notes a rule that is broken in so many places.
    pub fn corruption_in(&mut self, places: u64, what: impl Display) {
        self.corruptions = self.corruptions.saturating_add(places);
        if self.flaws.len() < Self::FLAWS {
            self.flaws.push(Flaw::Corruption(what.to_string()));
        }
    }

    /// Notes what is wrong and does no harm.
    pub fn note(&mut self, what: impl Display) {
        if self.flaws.len() < Self::FLAWS {
            self.flaws.push(Flaw::Note(what.to_string()));
        }
    }

    /// Whether there is nothing to tell.
    pub fn is_flawless(&self) -> bool {
        self.corruptions + self.errors + self.leaks == 0 && self.flaws.is_empty()
    }

    /// Notes wasted space of so many units.
    pub fn leak(&mut self, units: u64, what: impl Display) {
        self.leaks += units;
        if self.flaws.len() < Self::FLAWS {
            self.flaws.push(Flaw::Leak(what.to_string()));
        }
    }
}
