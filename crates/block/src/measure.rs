//! How long an image file is going to be.

use crate::{BitmapInfo, GuestRange, Result};

/// What a new image is to hold, as far as the tables of its source tell without a look at the data.
pub struct Content<'a> {
    /// The parts of the disk that hold data, ascending, perhaps some that touch.
    pub data: &'a mut dyn Iterator<Item = Result<GuestRange>>,
    /// The bitmaps of the source, if its format keeps any.
    pub bitmaps: Option<&'a [BitmapInfo]>,
}

/// How long an image file gets, in bytes; upper bounds, as `qemu-img measure` gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// With the data there is.
    pub required: u64,
    /// When all of the disk has been written to.
    pub fully_allocated: u64,
    /// What the bitmaps of the source take in addition, where both formats keep some.
    pub bitmaps: Option<u64>,
}
