//! Reading: opening an image, and what it says about each guest byte.

use std::sync::Arc;

use byteorder::{BigEndian, ByteOrder};
use goldsmith_block::{
    Budget, Error, Extent, ExtentKind, Flat, GuestRange, HostRange, Layer, LayerInfo, Result,
    SECTOR, Storage,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::bitmap::{Bitmap, BitmapCache};
use crate::error::VhdError;
use crate::geometry::{Block, Disk, Dynamic, Footer, footer_at_end, parent_name};
use crate::ondisk::{FOOTER_COOKIE, FOOTER_LEN, RawFooter, RawHeader, UNUSED};

/// Zeros that the image states and does not store.
const ZERO: ExtentKind = ExtentKind::Zero {
    allocated: true,
    host: None,
};

/// Opens the image in `storage`; see [`Format::open`](goldsmith_block::Format::open).
pub(crate) fn open(storage: Arc<dyn Storage>, budget: &Budget) -> Result<Arc<dyn Layer>> {
    let file_len = storage.len();
    let mut tail = vec![0; file_len.min(FOOTER_LEN) as usize];
    storage.read_at(file_len - tail.len() as u64, &mut tail)?;
    let Some((raw, footer_len)) = footer_at_end(&tail) else {
        return Err(missing_footer(&*storage)?.into());
    };
    let footer = Footer::parse(&raw)?;
    let data_end = file_len - footer_len;
    match footer.disk {
        Disk::Fixed => Ok(Arc::new(FixedLayer::open(storage, &footer, data_end)?)),
        Disk::Dynamic { header_offset } => {
            let (raw, place) = read_header(&*storage, header_offset, data_end)?;
            let geometry = Dynamic::parse(&raw, place, footer.virtual_size, data_end)?;
            Ok(Arc::new(DynamicLayer::open(
                storage, &footer, geometry, budget,
            )?))
        }
        Disk::Differencing { header_offset } => {
            // A name for the message is worth a look, not an error of its own.
            let parent = read_header(&*storage, header_offset, data_end)
                .map(|(raw, _)| parent_name(&raw))
                .unwrap_or_default();
            Err(VhdError::Differencing { parent }.into())
        }
    }
}

/// Why there is no footer at the end of `storage`.
///
/// [spec] A damaged footer may be replaced by its copy at the start; but a file that lost its end
/// has lost its last block with it, and the two look the same. So that is for a repair to decide.
fn missing_footer(storage: &dyn Storage) -> Result<VhdError> {
    let file_len = storage.len();
    if file_len >= FOOTER_LEN {
        let mut copy = RawFooter::new_zeroed();
        storage.read_at(0, copy.as_mut_bytes())?;
        if copy.cookie == FOOTER_COOKIE && Footer::parse(&copy).is_ok() {
            return Ok(VhdError::FooterLost { file_len });
        }
    }
    Ok(VhdError::NoFooter { file_len })
}

/// The dynamic header at `offset`, unchecked, and where it stands.
fn read_header(
    storage: &dyn Storage,
    offset: u64,
    data_end: u64,
) -> Result<(RawHeader, HostRange)> {
    let place = Dynamic::header_range(offset, data_end)?;
    let mut raw = RawHeader::new_zeroed();
    storage.read_at(place.offset, raw.as_mut_bytes())?;
    Ok((raw, place))
}

/// A fixed image: the disk as it is, and a footer behind it.
#[derive(Debug)]
struct FixedLayer {
    info: LayerInfo,
    disk: Flat,
}

impl FixedLayer {
    fn open(storage: Arc<dyn Storage>, footer: &Footer, data_len: u64) -> Result<Self, VhdError> {
        let virtual_size = footer.virtual_size;
        if virtual_size > data_len {
            return Err(VhdError::FixedTruncated {
                virtual_size,
                data_len,
            });
        }
        Ok(Self {
            info: info(virtual_size, None),
            disk: Flat::new(storage, virtual_size),
        })
    }
}

impl Layer for FixedLayer {
    fn info(&self) -> &LayerInfo {
        &self.info
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        self.disk.storage()
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.disk.extent_at(offset, limit)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.disk.storage().read_at(offset, buf)
    }
}

/// A dynamic image: blocks where the block allocation table says, each behind its sector bitmap.
#[derive(Debug)]
struct DynamicLayer {
    storage: Arc<dyn Storage>,
    info: LayerInfo,
    geometry: Dynamic,
    low_bit_first: bool,
    /// One entry per block of the disk.
    bat: Vec<u32>,
    bitmaps: BitmapCache,
}

impl DynamicLayer {
    fn open(
        storage: Arc<dyn Storage>,
        footer: &Footer,
        geometry: Dynamic,
        budget: &Budget,
    ) -> Result<Self> {
        let mut bat = budget.zeroed(geometry.blocks, "block table")?;
        storage.read_at(geometry.bat.offset, bat.as_mut_bytes())?;
        BigEndian::from_slice_u32(&mut bat);
        budget.reserve(
            BitmapCache::SLOTS as u64 * geometry.bitmap_bytes(),
            "sector bitmaps",
        )?;
        Ok(Self {
            storage,
            info: info(geometry.virtual_size, Some(geometry.block_size())),
            geometry,
            low_bit_first: footer.low_bit_first,
            bat,
            bitmaps: BitmapCache::new(),
        })
    }

    /// How many blocks from `first` up to `end` have no place in the file.
    fn unused_run(&self, first: u64, end: u64) -> u64 {
        // Indices below `blocks`, which is the length of a Vec.
        let entries = &self.bat[first as usize..end as usize];
        entries.iter().take_while(|entry| **entry == UNUSED).count() as u64
    }

    fn bitmap(&self, index: u64, block: Block) -> Result<Arc<Bitmap>> {
        self.bitmaps.get(index, || {
            let mut bytes = vec![0; self.geometry.bitmap_bytes() as usize];
            self.storage.read_at(block.bitmap, &mut bytes)?;
            Ok(Bitmap::new(bytes, self.low_bit_first))
        })
    }
}

impl Layer for DynamicLayer {
    fn info(&self) -> &LayerInfo {
        &self.info
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let bits = self.geometry.block_bits;
        let index = offset >> bits;
        let unused = self.unused_run(index, ((limit - 1) >> bits) + 1);
        if unused > 0 {
            let end = limit.min((index + unused) << bits);
            // A dynamic disk has nothing behind it, so what it does not hold is its own zeros.
            // QEMU's map says the same.
            let kind = ZERO;
            return Ok(Extent {
                range: GuestRange::new(offset, end),
                kind,
            });
        }
        let start = index << bits;
        let end = limit.min(start + self.geometry.block_size());
        let block = self
            .geometry
            .block(index, self.bat[index as usize])
            .map_err(|error| Error::from(error).at_guest(GuestRange::new(offset, end)))?;
        let bitmap = self.bitmap(index, block)?;
        let sector = (offset - start) / SECTOR;
        let (set, sectors) = bitmap.run(sector, (end - start).div_ceil(SECTOR));
        let kind = if set {
            ExtentKind::Data {
                host: Some(block.data + (offset - start)),
            }
        } else {
            // [spec] A sector whose bit is clear was never written: it reads as zeros, whatever
            // stands there. QEMU does not look at the bitmap and shows what stands there.
            ZERO
        };
        let run_end = start + (sector + sectors) * SECTOR;
        Ok(Extent {
            range: GuestRange::new(offset, end.min(run_end)),
            kind,
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset + buf.len() as u64;
        let mut at = offset;
        while at < end {
            let extent = self.extent_at(at, end)?;
            // The extent ends inside `buf`, so both differences fit in usize.
            let part = &mut buf[(at - offset) as usize..(extent.range.end - offset) as usize];
            match extent.kind {
                ExtentKind::Data { host: Some(host) } => self.storage.read_at(host, part)?,
                _ => part.fill(0),
            }
            at = extent.range.end;
        }
        Ok(())
    }
}

fn info(virtual_size: u64, unit: Option<u64>) -> LayerInfo {
    LayerInfo {
        format: crate::NAME,
        virtual_size,
        unit,
        ..LayerInfo::default()
    }
}
