//! Bitmaps: which parts of the disk were written since when. Listed, not read.

use goldsmith_block::{BitmapInfo, Budget, Detail, Result, Storage};
use zerocopy::{FromZeros, IntoBytes};

use crate::error::Qcow2Error;
use crate::geometry::{Geometry, Table};
use crate::ondisk::{self, RawBitmap, RawBitmaps};
use crate::snapshot::text;

/// What a bitmap says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bitmap {
    pub(crate) name: String,
    /// Bytes of the disk that one bit stands for.
    granularity: u64,
    pub(crate) flags: u32,
    /// Byte offset and entries of its table, as the image says.
    pub(crate) table: (u64, u32),
}

impl Bitmap {
    /// Reads the directory that `raw` describes.
    ///
    /// # Errors
    /// `Corrupt` if the directory breaks a rule or the file ends in it; `Limit` if it is too long
    /// or over `budget`; `Io` if it cannot be read.
    pub(crate) fn read_all(
        raw: &RawBitmaps,
        storage: &dyn Storage,
        geometry: &Geometry,
        budget: &Budget,
    ) -> Result<Vec<Self>> {
        let (count, limit) = (raw.count.get(), ondisk::BITMAPS);
        if count > limit {
            let found = count;
            return Err(Qcow2Error::TooManyBitmaps { found, limit }.into());
        }
        let (start, len) = (raw.directory_offset.get(), raw.directory_len.get());
        Table {
            table: "bitmap directory",
            offset: start,
            len,
            limit: ondisk::BITMAP_DIRECTORY_BYTES,
            cluster_size: geometry.cluster_size(),
            file_len: geometry.file_len,
        }
        .check()?;
        let mut bitmaps = Vec::new();
        // Bytes of the directory; it is short, so no sum of what follows overflows.
        let mut at = 0;
        for index in 0..count {
            let mut entry = RawBitmap::new_zeroed();
            let fixed = size_of::<RawBitmap>() as u64;
            let filled = |used| Qcow2Error::BitmapDirectory { len, count, used };
            if at + fixed > len {
                return Err(filled(at + fixed).into());
            }
            storage.read_at(start + at, entry.as_mut_bytes())?;
            let (extra, name_len) = (u64::from(entry.extra_len.get()), entry.name_len.get());
            let name_at = at + fixed + extra;
            at = (name_at + u64::from(name_len)).next_multiple_of(8);
            if at > len {
                return Err(filled(at).into());
            }
            let found = entry.granularity_bits;
            if !ondisk::GRANULARITY_BITS.contains(&found) {
                return Err(Qcow2Error::Granularity { index, found }.into());
            }
            let cost = size_of::<Self>() as u64 + u64::from(name_len);
            budget.reserve(cost, "bitmap directory")?;
            let mut name = vec![0; name_len.into()];
            storage.read_at(start + name_at, &mut name)?;
            bitmaps.push(Self {
                name: text(&name),
                granularity: 1 << found,
                flags: entry.flags.get(),
                table: (entry.table_offset.get(), entry.table_len.get()),
            });
        }
        if at != len {
            return Err(Qcow2Error::BitmapDirectory {
                len,
                count,
                used: at,
            }
            .into());
        }
        Ok(bitmaps)
    }

    /// What everybody may know of it.
    pub(crate) fn info(&self) -> BitmapInfo {
        BitmapInfo {
            name: self.name.clone(),
            granularity: self.granularity,
            enabled: self.flags & ondisk::BITMAP_AUTO != 0,
            inconsistent: self.flags & ondisk::BITMAP_IN_USE != 0,
        }
    }

    /// What `qemu-img info` shows of it, in its order. [qemu]
    pub(crate) fn detail(&self) -> Detail {
        let flags = [
            (ondisk::BITMAP_IN_USE, "in-use"),
            (ondisk::BITMAP_AUTO, "auto"),
        ];
        let set = flags.iter().filter(|(bit, _)| self.flags & bit != 0);
        let set = set.map(|(_, name)| Detail::Text((*name).into()));
        Detail::Record(vec![
            ("flags", Detail::List(set.collect())),
            ("name", Detail::Text(self.name.clone())),
            ("granularity", Detail::Number(self.granularity)),
        ])
    }
}
