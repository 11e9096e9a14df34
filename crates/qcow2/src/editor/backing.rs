//! What stands behind the image.

use goldsmith_block::{BackingReference, Error, Result};

use super::draft::Draft;

impl Draft {
    /// Makes the image name `backing`, or nothing.
    ///
    /// # Errors
    /// `Usage` if the image cannot have a backing file, or a name is too long.
    pub(super) fn set_backing(&mut self, backing: Option<&BackingReference>) -> Result<()> {
        if backing.is_some() && self.geometry.is_raw_data() {
            // The disk would not be what the data file holds. [qemu]
            let text = "an image whose data file is the disk, byte for byte, cannot have a \
                        backing file";
            return Err(Error::usage(text));
        }
        let names = backing.map(|backing| (&*backing.name, backing.format.as_deref()));
        Ok(self.header.set_backing(names)?)
    }

    /// Gives up everything that the disk holds.
    ///
    /// # Errors
    /// `Corrupt` or `Io` if its tables cannot be read.
    pub(super) fn empty(&mut self) -> Result<()> {
        let mut l1 = self.l1()?;
        self.drop_from(&mut l1, 0)?;
        self.put_l1(l1)
    }
}
