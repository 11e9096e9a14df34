//! Writing over the disk of a dynamic or differencing image, sector by sector.

use std::sync::{Arc, Mutex, PoisonError};

use goldsmith_block::{
    Committed, Demand, Error, ErrorKind, GuestRange, HostRange, Placement, Result, SECTOR, Sink,
    SinkProfile, Slot, StorageMut, ZeroPolicy, Zeroing,
};

use super::image::Image;
use crate::bitmap::Bitmap;

/// How much longer the file becomes at a time, in bytes: as much again as was added already, but no
/// more than this. [ours] Each time must wait for the disk, and what is too much is cut off again.
const GROWTH: u64 = 1 << 30;

/// See the module.
///
/// What stands in a block that has a place is overwritten there. A new block, and a sector that held
/// no data so far, are written where nobody looks; table and bitmaps come to tell of them when all is
/// stored. A sink that goes before that cuts the new blocks off again: [qemu] what stands behind all blocks
/// shows in the next one that QEMU adds.
pub(super) struct BlockSink {
    storage: Arc<dyn StorageMut>,
    profile: SinkProfile,
    /// Whether what is no data is the parent's.
    is_differencing: bool,
    state: Mutex<State>,
}

struct State {
    image: Image,
    /// Where the file ended, and where the next block goes.
    before: u64,
    next: u64,
    /// Whether the table may tell of new blocks.
    told: bool,
    /// New blocks, ascending.
    blocks: Vec<usize>,
    /// Bitmaps of old blocks that have more bits now: byte offset and bytes.
    bitmaps: Vec<(u64, Vec<u8>)>,
    /// The block that is written to, if it has a bitmap to keep. The disk comes in order, so no
    /// other block is half known.
    current: Option<Current>,
}

struct Current {
    index: usize,
    /// Byte offset of the bitmap, and the bitmap as it shall stand in the file.
    start: u64,
    bits: Vec<u8>,
    is_new: bool,
}

impl BlockSink {
    pub(super) fn new(image: Image, len: u64) -> Result<Self> {
        Ok(Self {
            storage: Arc::clone(image.scribe.storage()),
            profile: SinkProfile {
                virtual_size: len,
                grain: SECTOR,
                placement: Placement::Allocated,
                zeroes: ZeroPolicy::Covering,
                packing: None,
            },
            is_differencing: image.is_differencing()?,
            state: Mutex::new(State {
                before: image.end,
                next: image.end,
                image,
                told: false,
                blocks: Vec::new(),
                bitmaps: Vec::new(),
                current: None,
            }),
        })
    }

    /// Gives `range` a place, calling `found` with each part that lies in one block and with the
    /// byte offset of its data.
    fn place(
        &self,
        range: GuestRange,
        mut found: impl FnMut(GuestRange, u64) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (bits, bitmap_len) = {
            let geometry = &state.image.layer.geometry;
            (geometry.block_bits, geometry.bitmap_len())
        };
        let GuestRange { mut start, end } = range;
        while start < end {
            let index = start >> bits;
            let block = index << bits;
            let part = GuestRange::new(start, end.min(block + (1 << bits)));
            let bitmap = self.enter(&mut state, index as usize)?;
            state.mark(
                index as usize,
                (part.start - block) / SECTOR,
                (part.end - block) / SECTOR,
            );
            found(part, bitmap + bitmap_len + (start - block))?;
            start = part.end;
        }
        Ok(())
    }

    /// Byte offset of block `index`, which gets a place if it has none and becomes the current one.
    fn enter(&self, state: &mut State, index: usize) -> Result<u64> {
        let is_current = state.current.as_ref().is_some_and(|it| it.index == index);
        let place = Image::place_in(&state.image.bat, index);
        if let Some(start) = place.filter(|_| is_current) {
            return Ok(start);
        }
        if state.current.as_ref().is_some_and(|it| index < it.index) {
            let text = format!("block {index} was asked for after a later one");
            return Err(Error::new(ErrorKind::Bug, text));
        }
        self.finish_block(state)?;
        let (start, bits, is_new) = match place {
            Some(start) => (start, state.known_bits(start)?, false),
            None => {
                let bits = match self.is_differencing {
                    true => Some(vec![0; state.image.layer.geometry.bitmap_len() as usize]),
                    // As when it is created: all of it holds data, be it zeros.
                    false => None,
                };
                (self.add_block(state, index)?, bits, true)
            }
        };
        state.current = bits.map(|bits| Current {
            index,
            start,
            bits,
            is_new,
        });
        Ok(start)
    }

    /// Gives block `index` a place at the end of the file, where that became longer and so holds
    /// zeros.
    fn add_block(&self, state: &mut State, index: usize) -> Result<u64> {
        let (start, end) = state.image.place_behind(index, state.next)?;
        if end > state.image.end {
            let added = state.next - state.before;
            state.image.grow_to(end + added.min(GROWTH))?;
        }
        if !self.is_differencing {
            let bits = vec![u8::MAX; state.image.layer.geometry.bitmap_len() as usize];
            self.storage.write_at(start, &bits)?;
        }
        state.next = end;
        // `place_behind` gave a sector that an entry can hold.
        state.image.bat[index] = (start / SECTOR) as u32;
        state.blocks.push(index);
        Ok(start)
    }

    /// Keeps the bitmap of the current block: at once if nobody looks at it yet, else for later.
    fn finish_block(&self, state: &mut State) -> Result<()> {
        match state.current.take() {
            Some(block) if block.is_new => self.storage.write_at(block.start, &block.bits),
            Some(block) => {
                state.bitmaps.push((block.start, block.bits));
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl State {
    /// The bitmap of an old block as it stands in the file; `None` if all its sectors hold data.
    fn known_bits(&self, start: u64) -> Result<Option<Vec<u8>>> {
        let image = &self.image;
        let geometry = &image.layer.geometry;
        let mut bits = vec![0; geometry.bitmap_len() as usize];
        image.scribe.read().read_at(start, &mut bits)?;
        let used = bits[..geometry.bitmap_bytes() as usize].to_vec();
        let is_full = Bitmap::new(used, image.layer.low_bit_first).is_full();
        Ok((!is_full).then_some(bits))
    }

    /// Notes that these sectors of block `index` hold data.
    fn mark(&mut self, index: usize, first: u64, end: u64) {
        if let Some(current) = &mut self.current
            && current.index == index
        {
            self.image.mark(&mut current.bits, first, end);
        }
    }
}

impl Sink for BlockSink {
    fn profile(&self) -> &SinkProfile {
        &self.profile
    }

    fn reserve(&self, demands: &[Demand], slots: &mut Vec<Slot>) -> Result<()> {
        for demand in demands {
            self.place(demand.range, |range, host| {
                slots.push(Slot {
                    range,
                    host,
                    packed: None,
                });
                Ok(())
            })?;
        }
        Ok(())
    }

    fn reserve_zeroes(&self, range: GuestRange) -> Result<()> {
        self.place(range, |part, host| {
            self.storage
                .zero(HostRange::new(host, part.len()), Zeroing::Punch)
        })
    }

    fn write(&self, slot: Slot, data: &[u8]) -> Result<()> {
        self.storage.write_at(slot.host, data)
    }

    fn slots_in(&self) -> Option<&dyn StorageMut> {
        Some(&*self.storage)
    }

    fn write_zeroes(&self, range: GuestRange) -> Result<()> {
        self.reserve_zeroes(range)
    }

    /// Makes the image tell of what was written, once that is stored.
    fn commit(self: Box<Self>) -> Result<Committed> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.finish_block(&mut state)?;
        let State {
            image,
            before,
            next,
            told,
            blocks,
            bitmaps,
            ..
        } = &mut *state;
        image.scribe.barrier()?;
        for (start, bits) in bitmaps.drain(..) {
            image.scribe.write("sector bitmap", start, &bits)?;
        }
        *told = true;
        image.scribe.storage().may_stop(false);
        image.write_entries(blocks)?;
        image.scribe.barrier()?;
        image.cut_to((*next).max(*before))?;
        Ok(Committed {
            file_len: self.storage.len(),
        })
    }
}

impl Drop for BlockSink {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let state = state.unwrap_or_else(PoisonError::into_inner);
        if !state.told {
            // What kept it from committing may keep it from this as well; then a check tells of it.
            let _ = state.image.cut_to(state.before);
        }
    }
}
