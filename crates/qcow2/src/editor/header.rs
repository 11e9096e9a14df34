//! The first cluster of an image: read whole, changed, and written so that it is never half of one
//! and half of the other.

use goldsmith_block::{HostRange, Result, Scribe, Storage};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::area::Area;
use crate::error::Qcow2Error;
use crate::features::extension;
use crate::ondisk::{self, RawBitmaps, RawEncryption, RawExtension, RawHeader};

/// Bytes that a storage device writes all or none of. [ours] Every disk's sector is as long or
/// longer.
const SECTOR: usize = 512;

/// The header, its extensions and the name of the backing file.
#[derive(Clone, Debug)]
pub(super) struct Header {
    /// As far as it is known; the front of it in version 2.
    pub(super) raw: RawHeader,
    /// What a longer header holds behind that, kept as it is.
    more: Vec<u8>,
    /// Length of the header in bytes.
    len: usize,
    /// Types and data of all extensions, known or not, in their order.
    extensions: Vec<(u32, Vec<u8>)>,
    /// Name of the backing file, and where it stands; 0 if it has no place yet.
    backing: Option<(Vec<u8>, u64)>,
    /// The first cluster, as it was read.
    area: Vec<u8>,
}

impl Header {
    /// Reads the first cluster of an image whose header was checked.
    ///
    /// # Errors
    /// Those of opening the image.
    pub(super) fn read(storage: &dyn Storage) -> Result<Self> {
        let mut raw = RawHeader::new_zeroed();
        let there = storage.len().min(size_of::<RawHeader>() as u64) as usize;
        storage.read_at(0, &mut raw.as_mut_bytes()[..there])?;
        let area = Area::parse(&raw, storage.len())?;
        let mut bytes = vec![0; 1 << area.cluster_bits];
        let there = storage.len().min(bytes.len() as u64) as usize;
        storage.read_at(0, &mut bytes[..there])?;

        let len = area.extensions.0 as usize;
        // A short header ends inside the structure; what follows it is something else.
        raw.as_mut_bytes()[len.min(size_of::<RawHeader>())..].fill(0);
        let more = bytes.get(size_of::<RawHeader>()..len);
        let backing = area.backing_name.map(|name| {
            let range = name.offset as usize..name.end() as usize;
            (bytes[range].to_vec(), name.offset)
        });
        Ok(Self {
            more: more.unwrap_or_default().to_vec(),
            len,
            extensions: extensions(&bytes[len..area.extensions.1 as usize]),
            backing,
            raw,
            area: bytes,
        })
    }

    /// Where the refcount table stands.
    pub(super) fn refcount_table(&self) -> HostRange {
        let clusters = u64::from(self.raw.refcount_table_clusters.get());
        let bits = self.raw.cluster_bits.get();
        HostRange::new(self.raw.refcount_table_offset.get(), clusters << bits)
    }

    pub(super) fn set_refcount_table(&mut self, table: HostRange, cluster_bits: u32) {
        self.raw.refcount_table_offset = table.offset.into();
        // At most the limit of the table.
        self.raw.refcount_table_clusters = ((table.len >> cluster_bits) as u32).into();
    }

    /// Sets where the L1 table stands, and its entries.
    pub(super) fn set_l1(&mut self, offset: u64, entries: usize) {
        self.raw.l1_table_offset = offset.into();
        // At most the limit of the table.
        self.raw.l1_size = (entries as u32).into();
    }

    /// Makes it a header of `version`, which is 2 or 3.
    pub(super) fn set_version(&mut self, version: u32) {
        self.raw.version = version.into();
        match version {
            2 => {
                self.len = ondisk::HEADER_LEN_V2 as usize;
                self.raw.as_mut_bytes()[self.len..].fill(0);
                self.more.clear();
                self.remove(ondisk::EXTENSION_FEATURE_NAMES);
            }
            _ => {
                self.len = size_of::<RawHeader>();
                self.raw.header_length = (self.len as u32).into();
                self.raw.refcount_order = ondisk::REFCOUNT_ORDER_V2.into();
            }
        }
    }

    /// Clears what any change of the image makes wrong: features that this program does not know
    /// may be cleared by whoever writes. [spec "autoclear_features"]
    pub(super) fn clear_unknown(&mut self) {
        let known = ondisk::BITMAPS_VALID | ondisk::RAW_EXTERNAL_DATA;
        let kept = self.raw.autoclear_features.get() & known;
        self.raw.autoclear_features = kept.into();
    }

    /// Names another backing file, of `format`, or none.
    ///
    /// # Errors
    /// `Usage` if a name is too long.
    pub(super) fn set_backing(
        &mut self,
        backing: Option<(&str, Option<&str>)>,
    ) -> Result<(), Qcow2Error> {
        let Some((name, format)) = backing else {
            self.backing = None;
            self.remove(ondisk::EXTENSION_BACKING_FORMAT);
            return Ok(());
        };
        let names = [("backing_file", Some(name)), ("backing_fmt", format)];
        for (option, name) in names {
            let len = name.map_or(0, str::len) as u64;
            let limit = ondisk::NAME_LEN;
            if len > limit {
                return Err(Qcow2Error::NameOption { option, len, limit });
            }
        }
        let same = self
            .backing
            .take()
            .filter(|(old, _)| old == name.as_bytes());
        self.backing = Some(same.unwrap_or((name.into(), 0)));
        match format {
            Some(format) => self.set(ondisk::EXTENSION_BACKING_FORMAT, format.as_bytes()),
            None => self.remove(ondisk::EXTENSION_BACKING_FORMAT),
        }
        Ok(())
    }

    /// Whether something stands behind the image.
    pub(super) fn has_backing(&self) -> bool {
        self.backing.is_some()
    }

    /// The backing file's name, and what the image says of its format.
    pub(super) fn backing_name(&self) -> Option<String> {
        let (name, _) = self.backing.as_ref()?;
        String::from_utf8(name.clone()).ok()
    }

    pub(super) fn backing_format(&self) -> Option<String> {
        let format = self.get(ondisk::EXTENSION_BACKING_FORMAT)?;
        String::from_utf8(format.to_vec()).ok()
    }

    /// Names another data file.
    ///
    /// # Errors
    /// `Usage` if the name is too long.
    pub(super) fn set_data_file(&mut self, name: &str) -> Result<(), Qcow2Error> {
        let (len, limit) = (name.len() as u64, ondisk::NAME_LEN);
        if len > limit {
            let option = "data_file";
            return Err(Qcow2Error::NameOption { option, len, limit });
        }
        self.set(ondisk::EXTENSION_DATA_FILE, name.as_bytes());
        Ok(())
    }

    /// What is said of bitmaps, if that is valid.
    pub(super) fn bitmaps(&self) -> Option<RawBitmaps> {
        let valid = self.raw.autoclear_features.get() & ondisk::BITMAPS_VALID != 0;
        let data = self.get(ondisk::EXTENSION_BITMAPS).filter(|_| valid)?;
        RawBitmaps::read_from_bytes(data).ok()
    }

    /// Says where the bitmaps are, or that there are none.
    pub(super) fn set_bitmaps(&mut self, bitmaps: Option<&RawBitmaps>) {
        let valid = ondisk::BITMAPS_VALID;
        let others = self.raw.autoclear_features.get() & !valid;
        match bitmaps {
            Some(bitmaps) => {
                self.set(ondisk::EXTENSION_BITMAPS, bitmaps.as_bytes());
                self.raw.autoclear_features = (others | valid).into();
            }
            None => {
                self.remove(ondisk::EXTENSION_BITMAPS);
                self.raw.autoclear_features = others.into();
            }
        }
    }

    /// Says where the LUKS header stands.
    pub(super) fn set_luks(&mut self, place: HostRange) {
        let data = RawEncryption {
            offset: place.offset.into(),
            len: place.len.into(),
        };
        self.set(ondisk::EXTENSION_ENCRYPTION, data.as_bytes());
    }

    fn get(&self, kind: u32) -> Option<&[u8]> {
        let found = self.extensions.iter().find(|(found, _)| *found == kind);
        found.map(|(_, data)| &**data)
    }

    fn set(&mut self, kind: u32, data: &[u8]) {
        match self.extensions.iter_mut().find(|(found, _)| *found == kind) {
            Some((_, old)) => *old = data.to_vec(),
            None => self.extensions.push((kind, data.to_vec())),
        }
    }

    fn remove(&mut self, kind: u32) {
        self.extensions.retain(|(found, _)| *found != kind);
    }

    /// Puts this header in the place of `old`, which stands there. All that it names must be
    /// durable before; on return it is, too.
    ///
    /// # Errors
    /// `Usage` if it does not fit in a cluster; `Io` if it cannot be written.
    pub(super) fn write(mut self, old: &Self, scribe: &Scribe) -> Result<()> {
        let mut new = self.lay_out(old)?;
        let mut old = old.clone();
        if old.bare(&new).is_none()
            && let Some((moved, laid_out)) = self.without_old_name(&old)
        {
            moved.replace(&old.area, scribe)?;
            (old, new) = (moved, laid_out);
        }
        let Some(bare) = old.bare(&new) else {
            let name_end = new.iter().rposition(|byte| *byte != 0);
            let end = self.extensions_end().max(name_end.map_or(0, |at| at + 1));
            if let Some(moved) = old.with_all_behind(end) {
                moved.replace(&old.area, scribe)?;
                let mut new = self.lay_out(&moved)?;
                new[moved.len..].copy_from_slice(&moved.area[moved.len..]);
                self.area = new;
                return self.replace(&moved.area, scribe);
            }
            // Names that fill more than a sector and have nowhere else to go.
            scribe.write("header", 0, &new)?;
            return scribe.barrier();
        };
        if new[SECTOR..] != old.area[SECTOR..] {
            scribe.write("header without its names of features", 0, &bare)?;
            scribe.barrier()?;
        }
        self.area = new;
        self.replace(&old.area, scribe)
    }

    /// `old` with its name out of the way of what shall stand there, and what then follows it; `None`
    /// if that does not help.
    fn without_old_name(&self, old: &Self) -> Option<(Self, Vec<u8>)> {
        let moved = old.with_name_behind(self.extensions_end())?;
        let mut next = self.clone();
        if let (Some((new, at)), Some((name, moved_to))) = (&mut next.backing, &moved.backing)
            && new == name
        {
            *at = *moved_to;
        }
        let laid_out = next.lay_out(&moved).ok()?;
        moved.bare(&laid_out)?;
        Some((moved, laid_out))
    }

    /// Puts this area in the place of `old`: first what the first sector names, then that.
    fn replace(&self, old: &[u8], scribe: &Scribe) -> Result<()> {
        let differs = |at: &usize| self.area[*at] != old[*at];
        let first = (SECTOR..old.len()).find(differs);
        let last = (SECTOR..old.len()).rfind(differs);
        if let (Some(first), Some(last)) = (first, last) {
            scribe.write(
                "names in the header",
                first as u64,
                &self.area[first..=last],
            )?;
            scribe.barrier()?;
        }
        scribe.write("header", 0, &self.area[..SECTOR])?;
        scribe.barrier()
    }

    /// The same state with the name of the backing file behind `end` and behind its old place; `None`
    /// if there is no such name, or no room for it.
    fn with_name_behind(&self, end: usize) -> Option<Self> {
        let mut moved = self.clone();
        let (name, place) = moved.backing.as_mut()?;
        let old = *place as usize;
        let at = end.max(old + name.len()).next_multiple_of(8);
        // Whoever reads the extensions must not go on into the old name.
        let marked = self.len + self.packed_extensions().len() <= old;
        if !marked || at + name.len() > moved.area.len() {
            return None;
        }
        moved.area[at..at + name.len()].copy_from_slice(name);
        *place = at as u64;
        moved.raw.backing_file_offset = (at as u64).into();
        let known = self.len.min(size_of::<RawHeader>());
        moved.area[..known].copy_from_slice(&moved.raw.as_bytes()[..known]);
        Some(moved)
    }

    /// The same state with extensions and name behind `end` and behind all that stands in it, as if the
    /// header were that long; `None` if there is no room, or the version knows no longer header.
    fn with_all_behind(&self, end: usize) -> Option<Self> {
        if self.raw.version.get() < 3 {
            return None;
        }
        let mut moved = self.clone();
        let end = end.max(self.extensions_end()).max(self.name_range().end);
        moved.len = end.max(SECTOR).next_multiple_of(8);
        let mut behind = self.packed_extensions();
        if let Some((name, place)) = &mut moved.backing {
            *place = (moved.len + behind.len()) as u64;
            moved.raw.backing_file_offset = (*place).into();
            behind.extend(&*name);
        }
        let room = moved.area.get_mut(moved.len..)?;
        room.fill(0);
        room.get_mut(..behind.len())?.copy_from_slice(&behind);
        moved.raw.header_length = (moved.len as u32).into();
        moved.area[..size_of::<RawHeader>()].copy_from_slice(moved.raw.as_bytes());
        Some(moved)
    }

    /// Where the extensions and their end mark end.
    fn extensions_end(&self) -> usize {
        self.len + self.packed_extensions().len()
    }

    /// The extensions and their end mark.
    fn packed_extensions(&self) -> Vec<u8> {
        let extensions = self
            .by_rank()
            .flat_map(|(kind, data)| extension(*kind, data));
        let end = extension(ondisk::EXTENSION_END, &[]);
        extensions.chain(end).collect()
    }

    /// The first cluster as it shall be. What nobody can do without comes first, so that it stands in
    /// the first sector. The old name of the backing file stays where it is if that is not needed.
    fn lay_out(&self, old: &Self) -> Result<Vec<u8>, Qcow2Error> {
        let cluster_size = old.area.len();
        let mut area = vec![0; cluster_size];
        let kept = old.name_range();
        area[kept.clone()].copy_from_slice(&old.area[kept.clone()]);

        let extensions = self
            .by_rank()
            .flat_map(|(kind, data)| extension(*kind, data));
        let mut extensions: Vec<u8> = extensions.collect();
        extensions.extend(extension(ondisk::EXTENSION_END, &[]));
        let end = self.len + extensions.len();
        let mut raw = self.raw.clone();
        raw.backing_file_offset = 0.into();
        raw.backing_file_size = 0.into();
        let mut len = end;
        let mut name_at = 0;
        if let Some((name, place)) = &self.backing {
            let fits = |at: usize| at >= end && at + name.len() <= cluster_size;
            let apart = |at: usize| at >= kept.end || at + name.len() <= kept.start;
            let places = [end, kept.end.next_multiple_of(8)];
            let place = *place as usize;
            name_at = match places.into_iter().find(|at| fits(*at) && apart(*at)) {
                _ if place != 0 && fits(place) => place,
                Some(at) => at,
                None => end,
            };
            len = name_at + name.len();
            raw.backing_file_offset = (name_at as u64).into();
            // Names are short.
            raw.backing_file_size = (name.len() as u32).into();
        }
        if len > cluster_size {
            let (len, cluster_size) = (len as u64, cluster_size as u64);
            return Err(Qcow2Error::HeaderTooLong { len, cluster_size });
        }
        let known = self.len.min(size_of::<RawHeader>());
        area[..known].copy_from_slice(&raw.as_bytes()[..known]);
        area[known..self.len].copy_from_slice(&self.more);
        area[self.len..end].copy_from_slice(&extensions);
        if let Some((name, _)) = &self.backing {
            area[name_at..len].copy_from_slice(name);
        }
        Ok(area)
    }

    /// The first sector of this state that names nothing in the sectors behind it but the backing
    /// file, so that those can become what they are in `new`; `None` if there is no such thing.
    fn bare(&self, new: &[u8]) -> Option<Vec<u8>> {
        let name = self.name_range();
        let behind = name.start.max(SECTOR)..name.end.max(SECTOR);
        if new[behind.clone()] != self.area[behind] {
            return None;
        }
        let limit = match name.is_empty() {
            true => SECTOR,
            false => name.start.min(SECTOR),
        };
        let mut sector = self.area[..SECTOR].to_vec();
        let end = size_of::<RawExtension>();
        let mut at = self.len;
        for (kind, data) in self.by_rank() {
            let bytes = extension(*kind, data);
            let needed = rank(*kind) < UNKNOWN;
            if at + bytes.len() + end > limit {
                match needed {
                    true => return None,
                    false => continue,
                }
            }
            sector[at..at + bytes.len()].copy_from_slice(&bytes);
            at += bytes.len();
        }
        if at + end > limit {
            return None;
        }
        sector[at..limit].fill(0);
        Some(sector)
    }

    /// Where the name of the backing file stands, empty if there is none.
    fn name_range(&self) -> std::ops::Range<usize> {
        match &self.backing {
            // It is in the first cluster.
            Some((name, at)) => *at as usize..*at as usize + name.len(),
            None => 0..0,
        }
    }

    /// The extensions, those first that nobody can do without.
    fn by_rank(&self) -> impl Iterator<Item = &(u32, Vec<u8>)> {
        let mut extensions: Vec<_> = self.extensions.iter().collect();
        extensions.sort_by_key(|(kind, _)| rank(*kind));
        extensions.into_iter()
    }
}

/// The rank of extensions that this program does not know.
const UNKNOWN: u32 = 4;

/// The place of an extension among the others.
fn rank(kind: u32) -> u32 {
    match kind {
        ondisk::EXTENSION_BITMAPS => 0,
        ondisk::EXTENSION_ENCRYPTION => 1,
        ondisk::EXTENSION_BACKING_FORMAT => 2,
        ondisk::EXTENSION_DATA_FILE => 3,
        ondisk::EXTENSION_FEATURE_NAMES => UNKNOWN + 1,
        _ => UNKNOWN,
    }
}

/// The extensions in `area`, which were checked when the image was opened.
fn extensions(area: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut rest = area;
    while let Ok((head, data)) = RawExtension::read_from_prefix(rest) {
        let (kind, len) = (head.kind.get(), head.len.get() as usize);
        let Some(bytes) = data.get(..len).filter(|_| kind != ondisk::EXTENSION_END) else {
            break;
        };
        found.push((kind, bytes.to_vec()));
        rest = data.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    found
}
