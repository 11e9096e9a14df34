//! XenServer's batmap: which blocks are full, so that nobody needs their sector bitmaps.

use goldsmith_block::{Budget, Gaps, HostRange, Result, SECTOR, Storage, align_up, is_zero};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use crate::error::VhdError;
use crate::footer::Presence;
use crate::geometry::Dynamic;
use crate::ondisk::{BATMAP_1_1, BATMAP_1_2, BATMAP_COOKIE, RawBatmap};

/// Bytes of the nonce and the hash of a key. [libvhd]
const KEY_LEN: usize = 64;

/// One bit per block, highest bit first.
#[derive(Debug)]
pub(crate) struct Batmap {
    pub(crate) map: Vec<u8>,
    /// [`BATMAP_1_1`] or [`BATMAP_1_2`].
    pub(crate) version: u32,
    /// Where its header and all of the map stand.
    pub(crate) places: [HostRange; 2],
}

impl Batmap {
    /// Whether all sectors of `block` hold data.
    pub(crate) fn is_full(&self, block: u64) -> bool {
        let byte = self.map.get((block / 8) as usize);
        byte.is_some_and(|byte| byte & (0x80 >> (block % 8)) != 0)
    }

    /// The batmap behind the block table of `geometry`, if there is one.
    ///
    /// The inner error says what is wrong with it: that is no reason to refuse the image, whose
    /// sector bitmaps say all that the batmap says.
    ///
    /// # Errors
    /// `Unsupported` if the disk is encrypted; `Limit` if it is over `budget`; `Io` if it cannot be read.
    pub(crate) fn read(
        storage: &dyn Storage,
        geometry: &Dynamic,
        presence: Presence,
        budget: &Budget,
        gaps: &mut Gaps,
    ) -> Result<std::result::Result<Option<Self>, VhdError>> {
        if presence == Presence::No {
            return Ok(Ok(None));
        }
        let offset = header_offset(geometry.bat.offset, geometry.bat_entries);
        let mut raw = RawBatmap::new_zeroed();
        if offset + SECTOR <= geometry.data_end {
            gaps.read_at(storage, offset, raw.as_mut_bytes())?;
        }
        if raw.cookie != BATMAP_COOKIE {
            let missing = VhdError::NoBatmap { offset };
            return Ok(if presence == Presence::Yes {
                Err(missing)
            } else {
                Ok(None)
            });
        }
        // [libvhd] `vhd_keyhash`: tapdisk decrypts what it reads.
        match raw.has_key {
            0 => {}
            1 if !is_zero(&raw.padding[..KEY_LEN]) => return Err(VhdError::Encrypted.into()),
            found => return Ok(Err(VhdError::BatmapKey { found })),
        }
        let place = match place(&raw, geometry) {
            Ok(place) => place,
            Err(error) => return Ok(Err(error)),
        };
        let mut map = budget.zeroed(place.len, "batmap")?;
        gaps.read_at(storage, place.offset, &mut map)?;
        // [libvhd] Newer versions leave out the last bytes of some maps, and nobody says so.
        let newer = geometry.virtual_size >> 24;
        let newer = newer.div_ceil(SECTOR).max(1) * SECTOR;
        let newer = newer.min(place.len) as usize;
        let stored = raw.checksum.get();
        let computed = checksum(&map, raw.version.get());
        if stored != computed && stored != checksum(&map[..newer], raw.version.get()) {
            return Ok(Err(VhdError::BatmapChecksum { stored, computed }));
        }
        let whole = u64::from(raw.map_sectors.get()) * SECTOR;
        Ok(Ok(Some(Self {
            map,
            version: raw.version.get(),
            places: [
                HostRange::new(offset, SECTOR),
                HostRange::new(place.offset, whole),
            ],
        })))
    }
}

/// Where the batmap's header stands: in the first sector behind the block table. [libvhd]
///
/// Both come from a table that lies inside a file, so nothing overflows.
pub(crate) fn header_offset(bat_offset: u64, bat_entries: u32) -> u64 {
    bat_offset + (u64::from(bat_entries) * 4).div_ceil(SECTOR).max(1) * SECTOR
}

/// Where the part of the map stands that has bits for entries of the table.
fn place(raw: &RawBatmap, geometry: &Dynamic) -> std::result::Result<HostRange, VhdError> {
    let version = raw.version.get();
    if ![BATMAP_1_1, BATMAP_1_2].contains(&version) {
        return Err(VhdError::BatmapVersion { found: version });
    }
    let (offset, sectors) = (raw.map_offset.get(), raw.map_sectors.get());
    let len = u64::from(sectors) * SECTOR;
    let data_end = geometry.data_end;
    if sectors == 0 || offset.checked_add(len).is_none_or(|end| end > data_end) {
        return Err(VhdError::BatmapOutside {
            offset,
            sectors,
            data_end,
        });
    }
    let needed = u64::from(geometry.bat_entries).div_ceil(8 * SECTOR) * SECTOR;
    Ok(HostRange::new(offset, len.min(needed)))
}

/// Length of the map of so many blocks, in bytes: whole sectors, at least one.
pub(crate) fn map_len(blocks: u32) -> u64 {
    u64::from(blocks).div_ceil(8 * SECTOR).max(1) * SECTOR
}

/// How many bytes of the map say something. [libvhd] It reads and sums so many; bits behind them
/// would spoil its sum.
pub(crate) fn summed(virtual_size: u64) -> u64 {
    align_up((virtual_size >> 24).max(1), SECTOR).unwrap_or(SECTOR)
}

/// A batmap of the bits `full` as it stands at `offset` in the file of a disk of `virtual_size`
/// bytes and so many blocks.
pub(crate) fn build(
    full: &[u8],
    blocks: u32,
    virtual_size: u64,
    offset: u64,
    version: u32,
) -> Vec<u8> {
    let mut map = vec![0; map_len(blocks) as usize];
    let known = full.len().min(map.len()).min(summed(virtual_size) as usize);
    map[..known].copy_from_slice(&full[..known]);
    let mut raw = RawBatmap::new_zeroed();
    raw.cookie = BATMAP_COOKIE;
    raw.map_offset = U64::new(offset + SECTOR);
    raw.map_sectors = U32::new((map.len() as u64 / SECTOR) as u32);
    raw.version = U32::new(version);
    raw.checksum = U32::new(checksum(&map, version));
    [raw.as_bytes(), &map].concat()
}

/// What the header's checksum of `map` should be. [libvhd] Version 1.1 sums signed bytes.
pub(crate) fn checksum(map: &[u8], version: u32) -> u32 {
    let signed = version == BATMAP_1_1;
    !map.iter().fold(0u32, |sum, byte| {
        sum.wrapping_add(match signed {
            true => byte.cast_signed() as u32,
            false => u32::from(*byte),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_version_1_1_is_signed() {
        let map = [0xff, 0x80, 0x01];
        assert_eq!(checksum(&map, BATMAP_1_2), !0x180);
        assert_eq!(checksum(&map, BATMAP_1_1), !((-1i32 - 128 + 1) as u32));
    }
}
