//! The head of an image: header, block table, batmap and the names of the parent in a row.

use byteorder::{BigEndian, ByteOrder};
use goldsmith_block::{Result, SECTOR};
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::{U32, U64};

use super::image::Image;
use crate::batmap;
use crate::footer::{Footer, Presence};
use crate::locator;
use crate::ondisk::{BATMAP_1_2, FOOTER_LEN, HEADER_LEN, RawFooter, RawHeader, UNUSED};

/// Most entries of a table that is made or kept: those of the largest disk in the smallest blocks that
/// anybody writes. [ours]
pub(super) const MOST: u32 = 1 << 22;

/// What a head says, wherever it stands.
pub(super) struct Head {
    pub(super) header: RawHeader,
    /// All entries of the block table.
    pub(super) table: Vec<u32>,
    /// Version and bits of the batmap, if the creator keeps one.
    pub(super) batmap: Option<(u32, Vec<u8>)>,
    /// What the locators point to.
    pub(super) names: Vec<Option<Vec<u8>>>,
}

impl Head {
    /// The head of `image` as it is.
    pub(super) fn of(image: &Image) -> Result<Self> {
        let (layer, storage) = (&image.layer, image.scribe.read());
        let mut table = image.bat.clone();
        // Room for a disk that may grow; what such entries say means nothing.
        let entries = layer.geometry.bat_entries.min(MOST) as usize;
        table.resize(entries.max(table.len()), UNUSED);
        Ok(Self {
            header: image.header.clone(),
            table,
            batmap: batmap_of(image)?,
            names: layer
                .names(&image.header)
                .into_iter()
                .map(|place| match place {
                    Ok(Some(place)) => {
                        let mut bytes = vec![0; place.len as usize];
                        storage.read_at(place.offset, &mut bytes)?;
                        Ok(Some(bytes))
                    }
                    _ => Ok(None),
                })
                .collect::<Result<_>>()?,
        })
    }

    /// Says in the batmap whether all sectors of block `index` hold data.
    pub(super) fn set_full(&mut self, index: usize, is_full: bool) {
        let Some((_, map)) = &mut self.batmap else {
            return;
        };
        let bit = 0x80 >> (index % 8);
        map.resize(map.len().max(index / 8 + 1), 0);
        map[index / 8] = (map[index / 8] & !bit) | if is_full { bit } else { 0 };
    }

    /// Gives the disk another number of blocks; new ones have no place.
    pub(super) fn set_blocks(&mut self, old: usize, new: usize) {
        for index in old.min(new)..old.max(new) {
            self.set_full(index, false);
        }
        if new < old {
            self.table.truncate(new);
        } else {
            self.table.resize(new.max(self.table.len()), UNUSED);
        }
    }

    /// Length in bytes, in whole sectors.
    pub(super) fn len(&self) -> u64 {
        let batmap = self.batmap.as_ref();
        let batmap = batmap.map_or(0, |_| SECTOR + batmap::map_len(self.entries()));
        let names = self.names.iter().flatten();
        let names: u64 = names
            .map(|name| (name.len() as u64).next_multiple_of(SECTOR))
            .sum();
        HEADER_LEN + self.table_len() + batmap + names
    }

    fn entries(&self) -> u32 {
        // Of a disk of at most 2040 GiB in blocks of at least 4 KiB.
        self.table.len() as u32
    }

    /// Bytes of the table, in whole sectors, at least one.
    fn table_len(&self) -> u64 {
        batmap::header_offset(0, self.entries())
    }

    /// The bytes of the head that stands at `at` of an image of a disk of `virtual_size` bytes.
    fn bytes(&self, at: u64, virtual_size: u64) -> Vec<u8> {
        let mut table = vec![u8::MAX; self.table_len() as usize];
        BigEndian::write_u32_into(&self.table, &mut table[..self.table.len() * 4]);
        let mut header = self.header.clone();
        header.table_offset = U64::new(at + HEADER_LEN);
        header.max_table_entries = U32::new(self.entries());
        let offset = at + HEADER_LEN + self.table_len();
        let batmap = self.batmap.as_ref().map(|(version, full)| {
            batmap::build(full, self.entries(), virtual_size, offset, *version)
        });
        let batmap = batmap.unwrap_or_default();
        let names = self.names.iter().map(Option::as_deref);
        let names = locator::place(&mut header, names, offset + batmap.len() as u64);
        header.checksum = U32::new(header.computed_checksum());
        [header.as_bytes(), &table, &batmap, &names].concat()
    }
}

/// Version and bits of the batmap that `image` has or should have.
fn batmap_of(image: &Image) -> Result<Option<(u32, Vec<u8>)>> {
    let layer = &image.layer;
    if let Some(batmap) = &layer.batmap {
        return Ok(Some((batmap.version, batmap.map.clone())));
    }
    // The footer was parsed when the image was opened.
    let presence = Footer::parse(&image.footer, image.rule)?.batmap;
    if presence != Presence::Yes && layer.lost_batmap.is_none() {
        return Ok(None);
    }
    let mut map = vec![0; image.bat.len().div_ceil(8)];
    for index in 0..image.bat.len() {
        if image.bat[index] == UNUSED {
            continue;
        }
        let block = layer
            .geometry
            .block_in_reach(index as u64, image.bat[index])?;
        if layer.bitmap(index as u64, block)?.is_full() {
            map[index / 8] |= 0x80 >> (index % 8);
        }
    }
    Ok(Some((BATMAP_1_2, map)))
}

impl Image {
    /// Makes the image one with this head and a footer that differs from the present one only in
    /// what it says of the disk. What the head points to has been written.
    ///
    /// The head ends up at the start of the file, where all tools look for it and where some demand
    /// it; blocks that stand there are moved to the end. Says whether there were any: what they leave may be
    /// more than the head takes.
    pub(super) fn switch(&mut self, mut head: Head, footer: RawFooter) -> Result<bool> {
        let with_head_at = |at: u64| {
            let mut footer = footer.clone();
            footer.data_offset = U64::new(at);
            footer.checksum = U32::new(footer.computed_checksum());
            footer
        };
        let virtual_size = Footer::parse(&with_head_at(FOOTER_LEN), self.rule)?.virtual_size;
        self.keep_bits(&head, virtual_size)?;
        let moved = self.make_room(FOOTER_LEN + head.len(), &mut head.table)?;

        let away = self.end;
        self.grow_to(away + head.len())?;
        self.scribe
            .write("new head", away, &head.bytes(away, virtual_size))?;
        self.scribe.barrier()?;
        self.scribe.storage().may_stop(false);
        self.set_footers(with_head_at(away))?;

        let home = FOOTER_LEN;
        self.scribe
            .write("new head", home, &head.bytes(home, virtual_size))?;
        self.scribe.barrier()?;
        self.set_footers(with_head_at(home))?;
        self.cut_to(away)?;
        self.refresh()?;
        // An edit that was cut short may have left something before the footer.
        let end = self.used_end();
        if end < self.end {
            self.cut_to(end)?;
            self.refresh()?;
        }
        Ok(moved)
    }

    /// Sets all bits of blocks that the batmap calls full in the part of it that is not written: they
    /// may have none, for nobody looked at them.
    fn keep_bits(&self, head: &Head, virtual_size: u64) -> Result<()> {
        let Some((_, map)) = &head.batmap else {
            return Ok(());
        };
        let bits = vec![u8::MAX; self.layer.geometry.bitmap_len() as usize];
        let lost = batmap::summed(virtual_size) as usize * 8;
        for index in lost..head.table.len() {
            let byte = map.get(index / 8).copied().unwrap_or_default();
            if byte & (0x80 >> (index % 8)) != 0
                && let Some(start) = Self::place_in(&head.table, index)
            {
                self.scribe.write("sector bitmap", start, &bits)?;
            }
        }
        Ok(())
    }
}
