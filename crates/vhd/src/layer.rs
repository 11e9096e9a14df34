//! Reading: opening an image, and what it says about each guest byte.

use std::sync::Arc;

use byteorder::{BigEndian, ByteOrder};
use goldsmith_block::{
    Budget, Detail, Error, Extent, ExtentKind, Flat, Gaps, GuestRange, HostRange, LastRun, Layer,
    LayerInfo, OptionKind, OptionSpec, Options, Result, SECTOR, Storage, Symptom,
};
use uuid::Uuid;
use zerocopy::{FromZeros, IntoBytes};

use crate::batmap::Batmap;
use crate::bitmap::{Bitmap, BitmapCache};
use crate::check::{Place, tables};
use crate::derive::Derived;
use crate::error::VhdError;
use crate::footer::{Disk, Footer, Found, SizeRule};
use crate::geometry::{Block, Dynamic};
use crate::health;
use crate::locator::{self, Parent};
use crate::ondisk::{FOOTER_COOKIE, RawHeader, UNUSED};

/// The options with which an image can be opened.
pub(crate) static OPEN_OPTIONS: [OptionSpec; 1] = [OptionSpec {
    name: "force_size_calc",
    kind: OptionKind::Choice(&["auto", "chs", "current_size"]),
    default: "auto",
    help: "which of the two sizes in a VHD is the disk's; auto: the one that its creator means",
}];

/// The options with which the parent of a differencing image is opened. Who reads those goes by the current
/// size, whoever the creator is; a disk that ended sooner would show zeros where the parent has data.
pub(crate) static OPTIONS_BEHIND: [(&str, &str); 1] = [("force_size_calc", "current_size")];

/// What a disk begins with that is misread in a fixed image, and why. [qemu block/vpc.c]
pub(crate) const MISREAD: (&[u8], &str) = (
    &FOOTER_COOKIE,
    "the disk begins with the mark of a VHD, and QEMU looks for a footer there first: it finds another \
     disk in this fixed one",
);

/// Zeros that the image states and does not store: a dynamic disk has nothing behind it, so what it
/// does not hold is its own zeros. QEMU's map says the same.
const ZERO: ExtentKind = ExtentKind::Zero {
    allocated: true,
    host: None,
};

/// Opens the image in `storage`; see [`Format::open_with`](goldsmith_block::Format::open_with).
pub(crate) fn open(
    storage: Arc<dyn Storage>,
    budget: &Budget,
    options: &Options,
) -> Result<Arc<dyn Layer>> {
    Ok(match Opened::open(storage, budget, size_rule(options))? {
        Opened::Fixed(layer) => layer,
        Opened::Dynamic(layer, _) => layer,
    })
}

/// As [`open`], but a dynamic header that does not hold is worked out from the rest of the file, a block
/// that the file does not hold to its end is read as far as it goes, and so is a block table that cannot be
/// read to its end; and an image that is marked `v_poison` is read.
pub(crate) fn salvage(
    storage: Arc<dyn Storage>,
    budget: &Budget,
    options: &Options,
) -> Result<Arc<dyn Layer>> {
    let found = Found::salvage(&*storage, size_rule(options))?;
    let gaps = Gaps::filled_with(0);
    let (opened, broken) = Opened::open_mended(storage, budget, &found, gaps)?;
    let poison = found
        .footer
        .poisoned
        .then(|| VhdError::Poisoned.to_string());
    // Nobody else has the layer yet.
    Ok(match opened {
        Opened::Fixed(mut layer) => {
            if let Some(layer) = Arc::get_mut(&mut layer) {
                layer.info.warnings.extend(poison);
                layer.poisoned = false;
            }
            layer
        }
        Opened::Dynamic(mut layer, _) => {
            if let Some(layer) = Arc::get_mut(&mut layer) {
                layer.info.warnings.extend(poison.into_iter().chain(broken));
                layer.poisoned = false;
                layer.salvages = true;
            }
            layer
        }
    })
}

/// What the option `force_size_calc` says.
pub(crate) fn size_rule(options: &Options) -> SizeRule {
    match options.choice("force_size_calc") {
        "chs" => SizeRule::Geometry,
        "current_size" => SizeRule::CurrentSize,
        _ => SizeRule::Creator,
    }
}

/// An open image of either kind.
pub(crate) enum Opened {
    Fixed(Arc<FixedLayer>),
    Dynamic(Arc<DynamicLayer>, Box<RawHeader>),
}

impl Opened {
    /// Opens the image in `storage`, checking every header.
    pub(crate) fn open(storage: Arc<dyn Storage>, budget: &Budget, rule: SizeRule) -> Result<Self> {
        let found = Found::read(&*storage, rule)?;
        Self::open_by(storage, budget, &found)
    }

    /// As [`open`](Self::open), by a footer that is known.
    pub(crate) fn open_by(
        storage: Arc<dyn Storage>,
        budget: &Budget,
        found: &Found,
    ) -> Result<Self> {
        let Some(offset) = found.footer.header_offset() else {
            return Ok(Self::Fixed(FixedLayer::open(storage, found)?.into()));
        };
        let (raw, place) = read_header(&*storage, offset, found.data_end, &mut Gaps::default())?;
        let geometry = Dynamic::parse(&raw, place, found.footer.virtual_size, found.data_end)?;
        Self::open_dynamic(storage, budget, found, raw, geometry, Gaps::default())
    }

    /// As [`open_by`](Self::open_by), but a dynamic header that does not hold is worked out anew; says
    /// what is wrong with it then. Of it and of the block table may be missing what `gaps` says.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); `Corrupt` also if the header cannot be worked out.
    pub(crate) fn open_mended(
        storage: Arc<dyn Storage>,
        budget: &Budget,
        found: &Found,
        mut gaps: Gaps,
    ) -> Result<(Self, Option<String>)> {
        let Some(offset) = found.footer.header_offset() else {
            return Ok((Self::open_by(storage, budget, found)?, None));
        };
        let (raw, place) = read_header(&*storage, offset, found.data_end, &mut gaps)?;
        let parsed = Dynamic::parse(&raw, place, found.footer.virtual_size, found.data_end);
        let (raw, geometry, broken) = match parsed {
            Ok(geometry) => (raw, geometry, None),
            // Where its checksum vouches for it, it is not damaged, but wrong, too new, or of a longer file.
            Err(error) if !error.is_of_damaged_header() => return Err(error.into()),
            Err(error) => {
                // A lost entry says nothing of how blocks stand, as one that is not used.
                let around = gaps.over(&*storage, u8::MAX);
                let derived = Derived::find(&around, &raw, place, found, error, budget);
                let derived = derived.map_err(|error| gaps.error_in(place).unwrap_or(error))?;
                (derived.raw, derived.geometry, Some(derived.what))
            }
        };
        let opened = Self::open_dynamic(storage, budget, found, raw, geometry, gaps)?;
        Ok((opened, broken))
    }

    fn open_dynamic(
        storage: Arc<dyn Storage>,
        budget: &Budget,
        found: &Found,
        raw: RawHeader,
        geometry: Dynamic,
        gaps: Gaps,
    ) -> Result<Self> {
        let geometry = geometry.reaching(found.footer.reach);
        let mut info = LayerInfo {
            unit: Some(geometry.block_size()),
            ..info(found)
        };
        let block_size = Detail::Number(geometry.block_size());
        info.facts.push(("block-size", block_size));
        info.facts.extend(raw.facts());
        let has_parent = matches!(found.footer.disk, Disk::Differencing { .. });
        let leftover = Detail::Flag(!has_parent && raw.names_parent());
        info.facts.push(("leftover-parent", leftover));
        if has_parent {
            let parent = Parent::read(&*storage, &raw, found.data_end)?;
            info.backing = Some(parent.reference);
            info.details.extend(parent.details);
            info.warnings.extend(parent.warnings);
            let wanted = info.backing.as_ref().and_then(|it| it.uuid);
            if let Some(uuid) = wanted
                && info.uuid == wanted
            {
                info.warnings.push(own_parent(uuid));
            }
        }
        let footer = &found.footer;
        let layer = DynamicLayer::open(storage, footer, &raw, geometry, info, budget, gaps)?;
        Ok(Self::Dynamic(Arc::new(layer), Box::new(raw)))
    }
}

/// What to say of an image whose parent has the identity `uuid`, which is its own.
pub(crate) fn own_parent(uuid: Uuid) -> String {
    format!(
        "its parent has its own identity, {uuid}: any image of that identity is taken for the parent; \
         converted, the disk gets another one"
    )
}

/// Most blocks that are put in order to find two of them in one place: they are those of 4 TiB in blocks of
/// 512 KiB. [ours] More take longer than who only looks is promised.
const ORDERED: usize = 8 << 20;

/// What is wrong with the places of blocks, of which each by itself can be read: at least one of them is
/// not its own. In `tables` is what else the file holds.
fn doubts(
    geometry: &Dynamic,
    bat: &[u32],
    tables: &[Place],
    budget: &Budget,
) -> Result<Vec<String>> {
    let used = (0..).zip(bat).filter(|(_, entry)| **entry != UNUSED);
    let places = used.filter(|(block, entry)| geometry.block_in_reach(*block, **entry).is_ok());
    let len = geometry.block_len() / SECTOR;
    // Of as many blocks as there may be each asks for it.
    let mut by_start = tables.to_vec();
    by_start.sort_unstable_by_key(|table| table.start);
    let ends = by_start.iter().scan(0, |end, table| {
        *end = table.end.max(*end);
        Some(*end)
    });
    let ends: Vec<u64> = ends.collect();
    let meets_table = |host: HostRange| {
        let before = by_start.partition_point(|table| table.start < host.end());
        before > 0 && ends[before - 1] > host.offset
    };
    // Where a writer puts one behind the other, nothing has to be put in order.
    let (mut count, mut in_order, mut end) = (0, true, 0);
    let (mut cut, mut on_table) = (None, None);
    for (block, entry) in places.clone() {
        in_order &= u64::from(*entry) >= end;
        end = u64::from(*entry) + len;
        count += 1;
        cut = cut.or_else(|| geometry.cut_oddly(block, *entry));
        on_table = on_table.or_else(|| {
            let host = geometry.needed(block, *entry);
            if !meets_table(host) {
                return None;
            }
            let mut tables = tables.iter();
            let table = tables.find(|it| it.start < host.end() && host.offset < it.end)?;
            let (owner, at) = (table.owner, table.start.max(host.offset));
            Some(format!(
                "block {block} and {owner} share the bytes of the file from {at:#x} on, so it may show \
                 what no guest wrote"
            ))
        });
    }
    let shared = match in_order {
        true => None,
        false if count > ORDERED => Some(format!(
            "{count} blocks stand in no order, too many to find two in one place; check tells"
        )),
        false => {
            let budget = budget.afresh();
            budget.reserve(4 * count as u64, "order of the blocks")?;
            let mut starts: Vec<u32> = places.map(|(_, entry)| *entry).collect();
            starts.sort_unstable();
            let mut pairs = starts.windows(2);
            let shared = pairs.find(|pair| u64::from(pair[1]) < u64::from(pair[0]) + len);
            shared.map(|pair| {
                let at = u64::from(pair[1]) * SECTOR;
                format!(
                    "two blocks share the bytes of the file from {at:#x} on, so one may show what the \
                     other holds"
                )
            })
        }
    };
    Ok(shared
        .into_iter()
        .chain(on_table)
        .chain(cut.map(|it| it.to_string()))
        .collect())
}

/// The facts that the footer gives.
///
/// Of an image like any other nothing is said that qemu-img does not say.
fn info(found: &Found) -> LayerInfo {
    let footer = &found.footer;
    let mut details = Vec::new();
    if let Disk::Differencing { .. } = footer.disk {
        details.push(("subformat", Detail::Text("differencing".into())));
    }
    for (name, is_so) in [
        ("footer-recovered", found.recovered),
        ("saved-state", footer.saved_state),
        ("temporary", footer.temporary),
        ("hidden", footer.hidden),
        ("poisoned", footer.poisoned),
    ] {
        if is_so {
            details.push((name, Detail::Flag(true)));
        }
    }
    LayerInfo {
        format: crate::NAME,
        virtual_size: footer.virtual_size,
        uuid: Some(Uuid::from_bytes(footer.uuid)).filter(|uuid| !uuid.is_nil()),
        details,
        facts: found.raw.facts(),
        warnings: found.warnings.clone(),
        ..LayerInfo::default()
    }
}

/// The dynamic header at `offset`, unchecked and but for `gaps`, and where it stands.
pub(crate) fn read_header(
    storage: &dyn Storage,
    offset: u64,
    data_end: u64,
    gaps: &mut Gaps,
) -> Result<(RawHeader, HostRange)> {
    let place = Dynamic::header_range(offset, data_end)?;
    let mut raw = RawHeader::new_zeroed();
    gaps.read_at(storage, place.offset, raw.as_mut_bytes())?;
    Ok((raw, place))
}

/// A fixed image: the disk as it is, and a footer behind it.
#[derive(Debug)]
pub(crate) struct FixedLayer {
    pub(crate) info: LayerInfo,
    pub(crate) poisoned: bool,
    /// Where the disk ends for those who go by its other size, if that is farther.
    pub(crate) reach: u64,
    /// Where the footer begins.
    data_end: u64,
    disk: Flat,
}

impl FixedLayer {
    fn open(storage: Arc<dyn Storage>, found: &Found) -> Result<Self, VhdError> {
        let (virtual_size, data_len) = (found.footer.virtual_size, found.data_end);
        if virtual_size > data_len {
            return Err(VhdError::FixedTruncated {
                virtual_size,
                data_len,
            });
        }
        let mut info = info(found);
        let behind = storage.len() - virtual_size;
        info.facts
            .push(("bytes-behind-disk", Detail::Number(behind)));
        Ok(Self {
            info,
            poisoned: found.footer.poisoned,
            reach: found.footer.reach.min(data_len),
            data_end: data_len,
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

    fn is_flat(&self) -> bool {
        true
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        refuse_poison(self.poisoned)?;
        self.disk.extent_at(offset, limit)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        refuse_poison(self.poisoned)?;
        self.disk.storage().read_at(offset, buf)
    }

    fn misread(&self) -> Option<(&'static [u8], &'static str)> {
        Some(MISREAD)
    }

    fn symptoms(&self) -> Result<Vec<Symptom>> {
        Ok(health::fixed(self, self.data_end))
    }
}

/// What a poisoned image gives instead of data. It opens all the same, so that `info` can tell.
fn refuse_poison(poisoned: bool) -> Result<(), VhdError> {
    match poisoned {
        true => Err(VhdError::Poisoned),
        false => Ok(()),
    }
}

/// A dynamic or differencing image: blocks where the block allocation table says, each behind its
/// sector bitmap.
#[derive(Debug)]
pub(crate) struct DynamicLayer {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) info: LayerInfo,
    pub(crate) geometry: Dynamic,
    /// What a block without a place and a sector whose bit is clear are.
    absent: ExtentKind,
    pub(crate) poisoned: bool,
    pub(crate) low_bit_first: bool,
    pub(crate) batmap: Option<Batmap>,
    /// What is wrong with the batmap, if none that can be used is there and there should be one.
    pub(crate) lost_batmap: Option<String>,
    /// What is wrong with the places of blocks, though each of them can be read.
    pub(crate) doubts: Vec<String>,
    /// One entry per block of the disk, and of those behind it that others take for a part of it.
    pub(crate) bat: Vec<u32>,
    bitmaps: BitmapCache,
    /// Blocks that have no place in the file.
    unused: LastRun,
    /// Where the block table could not be read; blocks whose entries were there have no place that can be.
    gaps: Gaps,
    /// Whether a block that the file does not hold to its end is read as far as it goes.
    salvages: bool,
}

impl DynamicLayer {
    fn open(
        storage: Arc<dyn Storage>,
        footer: &Footer,
        header: &RawHeader,
        geometry: Dynamic,
        mut info: LayerInfo,
        budget: &Budget,
        mut gaps: Gaps,
    ) -> Result<Self> {
        let mut bat = budget.zeroed(geometry.blocks_in_reach, "block table")?;
        gaps.read_at(&*storage, geometry.bat.offset, bat.as_mut_bytes())?;
        BigEndian::from_slice_u32(&mut bat);
        budget.reserve(
            BitmapCache::SLOTS as u64 * geometry.bitmap_bytes(),
            "sector bitmaps",
        )?;
        let batmap = Batmap::read(&*storage, &geometry, footer.batmap, budget, &mut gaps)?;
        info.warnings
            .extend(gaps.warnings("header, block table or batmap"));
        let lost_batmap = batmap.as_ref().err();
        let lost_batmap = lost_batmap.map(|error| format!("{error}; it was not used"));
        let mut layer = Self {
            storage,
            info,
            geometry,
            absent: match footer.disk {
                Disk::Differencing { .. } => ExtentKind::Unallocated,
                _ => ZERO,
            },
            poisoned: footer.poisoned,
            low_bit_first: footer.low_bit_first,
            lost_batmap,
            batmap: batmap.unwrap_or_default(),
            doubts: Vec::new(),
            bat,
            bitmaps: BitmapCache::new(),
            unused: LastRun::default(),
            gaps,
            salvages: false,
        };
        let doubts = doubts(&layer.geometry, &layer.bat, &tables(&layer, header), budget)?;
        let warnings = doubts.iter().chain(&layer.lost_batmap).cloned();
        layer.info.warnings.extend(warnings);
        layer.doubts = doubts;
        Ok(layer)
    }

    /// Where each locator of `header` has its name; those of an image without a parent mean nothing.
    pub(crate) fn names(&self, header: &RawHeader) -> Vec<Result<Option<HostRange>, VhdError>> {
        match self.info.backing {
            Some(_) => locator::places(header, self.geometry.data_end),
            None => Vec::new(),
        }
    }

    /// Up to which block, `limit` at the latest, those from `first` on have no place in the file.
    fn unused_end(&self, first: u64, limit: u64) -> u64 {
        // Indices below `blocks`, which is the length of a Vec.
        let is_unused = |index| self.bat[index as usize] == UNUSED;
        match is_unused(first) {
            true => self.unused.end(first, limit, is_unused),
            false => first,
        }
    }

    /// Where block `index`, which has a place, stands; if not all of it is in the file, and that will do,
    /// how many bytes of its data are, and what is wrong with it.
    fn block_there(&self, index: u64) -> Result<(Block, Option<(u64, VhdError)>), VhdError> {
        let entry = self.bat[index as usize];
        self.geometry
            .block(index, entry)
            .map(|block| (block, None))
            .or_else(|error| match self.geometry.cut_block(index, entry) {
                Some((block, there)) if self.salvages => Ok((block, Some((there, error)))),
                _ => Err(error),
            })
    }

    /// What keeps block `index` from being read: that its entry is lost or else, `error`, what that says.
    fn why_lost(&self, index: u64, error: VhdError) -> Error {
        let entry = HostRange::new(self.geometry.bat.offset + index * 4, 4);
        let lost = self.gaps.error_in(entry);
        lost.unwrap_or_else(|| error.into())
    }

    /// Which sectors of block `index`, which stands at `block`, hold data.
    pub(crate) fn bitmap(&self, index: u64, block: Block) -> Result<Arc<Bitmap>> {
        if self
            .batmap
            .as_ref()
            .is_some_and(|batmap| batmap.is_full(index))
        {
            return Ok(Arc::new(Bitmap::Full));
        }
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
        refuse_poison(self.poisoned)?;
        let bits = self.geometry.block_bits;
        let index = offset >> bits;
        let unused_end = self.unused_end(index, ((limit - 1) >> bits) + 1);
        if unused_end > index {
            let end = limit.min(unused_end << bits);
            return Ok(Extent {
                range: GuestRange::new(offset, end),
                kind: self.absent,
            });
        }
        let start = index << bits;
        let end = limit.min(start + self.geometry.block_size());
        let range = GuestRange::new(offset, end);
        let (block, cut) = self
            .block_there(index)
            .map_err(|error| self.why_lost(index, error).at_guest(range))?;
        let bitmap = self.bitmap(index, block);
        let bitmap = bitmap.map_err(|error| error.at_guest(range))?;
        let sector = (offset - start) / SECTOR;
        let (set, sectors) = bitmap.run(sector, (end - start).div_ceil(SECTOR));
        let mut range = GuestRange::new(offset, end.min(start + (sector + sectors) * SECTOR));
        if !set {
            // [spec] A sector whose bit is clear was never written, whatever stands there. QEMU
            // does not look at the bitmap and shows what stands there.
            let kind = self.absent;
            return Ok(Extent { range, kind });
        }
        if let Some((there, error)) = cut {
            // Only the part that is missing: what the file still holds is good.
            if offset >= start + there {
                return Err(Error::from(error).at_guest(range));
            }
            range.end = range.end.min(start + there);
        }
        let host = Some(block.data + (offset - start));
        let kind = ExtentKind::Data { host };
        Ok(Extent { range, kind })
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

    fn symptoms(&self) -> Result<Vec<Symptom>> {
        health::dynamic(self)
    }
}
