//! An open image.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use goldsmith_block::{
    BackingReference, Budget, Codec, Detail, Error, Extent, ExtentKind, GuestRange, HostRange,
    Layer, LayerInfo, Result, SECTOR, Storage, Symptom, align_down, align_up,
};
use goldsmith_codec::{CodecError, Pool, Unpacker};
use goldsmith_crypt::Luks;
use zerocopy::{FromZeros, IntoBytes};

use crate::NAME;
use crate::area::Area;
use crate::bitmap::Bitmap;
use crate::crypt::{self, Crypt, read_luks};
use crate::error::Qcow2Error;
use crate::features::{Extensions, read_name};
use crate::geometry::{DataPlace, Encryption, Geometry};
use crate::health::symptoms;
use crate::holes::Holes;
use crate::mapping::{Mapping, NOWHERE};
use crate::ondisk::RawHeader;
use crate::snapshot::Snapshots;
use crate::spare::Spare;
use crate::table::{Part, Tables};

/// Packed bytes that are read together at most, unless one unit alone has more. [ours] As many as
/// a caller's buffer is likely to take in.
const BATCH: u64 = 1 << 20;
/// Bytes between two packed units that are read though nobody wants them. [ours] Less costs another
/// read; the upper bounds of neighbours overlap or touch anyway.
const GAP: u64 = 4096;

/// A qcow2 image, open for reading.
#[derive(Clone)]
pub(crate) struct Qcow2Layer {
    storage: Arc<dyn Storage>,
    /// Where guest data stands: the image file, or another one as soon as it is given.
    data: Option<Arc<dyn Storage>>,
    geometry: Geometry,
    /// Where the refcount table stands.
    refcounts: HostRange,
    /// Holes below guest data, if somebody looks for them.
    holes: Option<Arc<Holes>>,
    tables: Arc<Tables>,
    snapshots: Arc<Snapshots>,
    bitmaps: Arc<Vec<Bitmap>>,
    info: LayerInfo,
    crypt: Arc<Crypt>,
    scratch: Arc<Pool<Scratch>>,
    /// Whether an editor has made another image of it, so that what was known of its tables is no more.
    pub(crate) superseded: Arc<AtomicBool>,
}

/// All that the header says.
pub(crate) struct Head {
    pub(crate) raw: RawHeader,
    pub(crate) area: Area,
    pub(crate) extensions: Extensions,
    pub(crate) geometry: Geometry,
}

impl Head {
    /// Reads the header and its extensions, and checks them.
    pub(crate) fn read(storage: &dyn Storage) -> Result<Self> {
        Self::read_with(storage, &mut Spare::Needed)
    }

    /// The same, for whom `spare` says what must be sound of what the disk can be read without.
    fn read_with(storage: &dyn Storage, spare: &mut Spare) -> Result<Self> {
        let file_len = storage.len();
        let mut raw = RawHeader::new_zeroed();
        let there = file_len.min(size_of::<RawHeader>() as u64);
        storage.read_at(0, &mut raw.as_mut_bytes()[..there as usize])?;
        let area = Area::parse(&raw, file_len)?;
        // Before any other rule: an unknown feature may be why that one seems broken.
        let extensions = Extensions::read(storage, &area)?;
        extensions.refuse_unknown(area.incompatible)?;
        let luks = extensions.encryption.as_ref();
        let geometry = Geometry::parse(&raw, &area, luks, file_len, spare)?;
        Ok(Self {
            raw,
            area,
            extensions,
            geometry,
        })
    }

    /// Where the refcount table stands, as the header says.
    pub(crate) fn refcount_table(&self) -> HostRange {
        let clusters = u64::from(self.raw.refcount_table_clusters.get());
        let len = clusters << self.geometry.cluster_bits;
        HostRange::new(self.raw.refcount_table_offset.get(), len)
    }
}

/// What one reader needs to unpack; never more than a batch and two clusters, in any image.
#[derive(Default)]
struct Scratch {
    unpacker: Unpacker,
    units: Vec<Packed>,
    packed: Vec<u8>,
    unit: Vec<u8>,
    /// Where the cluster stands that `unit` holds, if it holds one.
    held: Option<HostRange>,
}

/// A compressed cluster.
#[derive(Clone, Copy)]
struct Packed {
    /// Where it starts on the disk.
    start: u64,
    /// Its sectors, whether or not the file holds them all.
    host: HostRange,
}

/// Clusters or subclusters in a row that share a status.
struct Run {
    /// The status of the first one.
    mapping: Mapping,
    /// Where they end on the disk, or the limit before that.
    end: u64,
}

impl Qcow2Layer {
    /// Opens the image in `storage`, whose guest data `passphrase` opens if it is encrypted.
    pub(crate) fn open(
        storage: Arc<dyn Storage>,
        budget: &Budget,
        passphrase: Option<&str>,
    ) -> Result<Self> {
        Self::open_with(storage, budget, passphrase, Spare::Needed)
    }

    /// The same, where `spare` says what must be sound of what the disk can be read without.
    pub(crate) fn open_with(
        storage: Arc<dyn Storage>,
        budget: &Budget,
        passphrase: Option<&str>,
        mut spare: Spare,
    ) -> Result<Self> {
        let head = Head::read_with(&*storage, &mut spare)?;
        let refcounts = head.refcount_table();
        let Head {
            area,
            extensions,
            geometry,
            ..
        } = head;
        let backing = match area.backing_name {
            Some(name) => Some(BackingReference {
                name: read_name(&*storage, name, "backing file name")?,
                format: extensions.backing_format,
                ..BackingReference::default()
            }),
            None => None,
        };
        let tables = Tables::open(&*storage, &geometry, budget, spare.gaps())?;
        spare.add(tables.gaps.warnings("L1 table"));
        let snapshots = spare.or_default(Snapshots::read(&*storage, &geometry, budget))?;
        let bitmaps = match &extensions.bitmaps {
            // Others than these may say nothing of the disk any more. [spec]
            Some(raw) if geometry.bitmaps_valid => {
                spare.or_default(Bitmap::read_all(raw, &*storage, &geometry, budget))?
            }
            _ => Vec::new(),
        };
        let luks = read_luks(&*storage, &geometry)?;
        let crypt = Crypt::open(&geometry, luks.as_ref(), &*storage, passphrase, budget)?;
        let data_file = match geometry.data {
            DataPlace::Here => None,
            DataPlace::Elsewhere { .. } => {
                Some(extensions.data_file.ok_or(Qcow2Error::DataFileNameless)?)
            }
        };
        Ok(Self {
            info: LayerInfo {
                format: NAME,
                virtual_size: geometry.virtual_size,
                unit: Some(geometry.cluster_size()),
                backing,
                snapshots: snapshots.infos.clone(),
                dirty: geometry.dirty,
                encrypted: geometry.encryption != Encryption::None,
                locked: crypt.is_locked(),
                bitmaps: bitmaps.iter().map(Bitmap::info).collect(),
                details: details(&geometry, data_file.as_deref(), &bitmaps, luks.as_ref()),
                facts: vec![("keeps-bitmaps", Detail::Flag(geometry.version >= 3))],
                data_file,
                warnings: spare.into_warnings(),
                ..LayerInfo::default()
            },
            data: (geometry.data == DataPlace::Here).then(|| Arc::clone(&storage)),
            refcounts,
            holes: None,
            storage,
            tables: Arc::new(tables),
            snapshots: Arc::new(snapshots),
            bitmaps: Arc::new(bitmaps),
            geometry,
            crypt: Arc::new(crypt),
            scratch: Arc::new(Pool::new(Scratch::default)),
            superseded: Arc::default(),
        })
    }

    /// This image with its guest data in `data`; see [`Layer::with_data`].
    pub(crate) fn reading(&self, data: Arc<dyn Storage>) -> Result<Self> {
        if self.geometry.data == DataPlace::Here {
            let text = format!(
                "the image holds its own data, it needs no '{}'",
                data.name()
            );
            return Err(Error::usage(text));
        }
        let holes = self.holes.as_ref();
        Ok(Self {
            holes: holes.map(|holes| Arc::new(holes.in_data(&data))),
            data: Some(data),
            ..self.clone()
        })
    }

    /// The same image, of which nothing changes as long as it is open: so holes of its file stay holes.
    pub(crate) fn unchanging(self) -> Self {
        let file = self.data_storage();
        Self {
            holes: Some(Arc::new(Holes::new(self.refcounts, file))),
            ..self
        }
    }

    /// The same image, whose disk ends at `end`: not before it does, and inside the same cluster.
    pub(crate) fn stretched(&self, end: u64) -> Self {
        let mut layer = self.clone();
        layer.geometry.virtual_size = end;
        layer.info.virtual_size = end;
        layer
    }

    /// This image, as open or locked as `other`, which has the same master key.
    pub(crate) fn unlocked_as(mut self, other: &Self) -> Self {
        self.crypt = Arc::clone(&other.crypt);
        self.info.locked = other.info.locked;
        self
    }

    /// Says that the image has become another one, for all who still have this.
    pub(crate) fn supersede(&self) {
        self.superseded.store(true, Ordering::Release);
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(crate) fn crypt(&self) -> &Crypt {
        &self.crypt
    }

    pub(crate) fn snapshots(&self) -> &Arc<Snapshots> {
        &self.snapshots
    }

    /// What the entries say from `offset`, up to `limit`. Says nothing of whether the file holds it.
    ///
    /// An error is about the guest range that the broken entry, or the missing piece of the table, maps.
    fn run(&self, offset: u64, limit: u64) -> Result<Run> {
        if self.superseded.load(Ordering::Acquire) {
            let what = "reads an image as it was before it was changed";
            return Err(Qcow2Error::Contract { what }.into());
        }
        let geometry = &self.geometry;
        let (bits, status_bits) = (geometry.cluster_bits, geometry.status_bits());
        let (cluster, last) = (offset >> bits, (limit - 1) >> bits);
        let until = |cluster: u64| GuestRange::new(offset, limit.min(cluster << bits));
        let part = self
            .tables
            .part(&*self.storage, geometry, cluster, last + 1)
            .map_err(|error| {
                let end = self.tables.lost_end(cluster, &error);
                error.at_guest(until(end))
            })?;
        let slice = match part {
            Part::Empty { end } => {
                return Ok(Run {
                    mapping: NOWHERE,
                    end: limit.min(end << bits),
                });
            }
            Part::Entries(slice) => slice,
        };
        let of = |cluster: u64, at: u32| {
            let entry = slice.entry(cluster)?;
            let guest = (cluster << bits) + (u64::from(at) << status_bits);
            let found = Mapping::of(entry, at, geometry);
            Some(
                found.and_then(|(mapping, parts)| Ok((mapping.for_guest(guest, geometry)?, parts))),
            )
        };

        let start = align_down(offset, 1 << status_bits);
        // Less than the parts of a cluster.
        let at = ((start - (cluster << bits)) >> status_bits) as u32;
        let first = of(cluster, at).transpose();
        let first = first.map_err(|error| Error::from(error).at_guest(until(cluster + 1)))?;
        // The slice holds the cluster asked for.
        let (mapping, parts) = first.unwrap_or((NOWHERE, 1));
        // Clusters past the disk's end do not exist, so ends stay below 2^63 and a cluster.
        let mut end = start + (u64::from(parts) << status_bits);
        let is_edge = |end: u64| end.is_multiple_of(geometry.cluster_size());
        if let Mapping::Unallocated { .. } | Mapping::Zero { .. } = mapping
            && is_edge(end)
        {
            // Whoever walks a chain, or two disks at once, asks again for each piece of the other.
            let all = 1_u32 << (bits - status_bits);
            let is_next = |cluster: u64| {
                let before = of(cluster - 1, all - 1)?.ok()?.0;
                let (found, parts) = of(cluster, 0)?.ok()?;
                Some(before.after(1 << status_bits) == Some(found) && parts == all)
            };
            let is_in = |it| it == cluster || is_next(it).unwrap_or(false);
            let limit = slice.end().min(last + 1);
            end = slice.holes.end(cluster, limit, is_in) << bits;
        }
        // A faulty entry ends the run: its error belongs to whoever asks for its own bytes.
        while end < limit
            && is_edge(end)
            && let Some(expected) = mapping.after(end - start)
            && let Some(Ok((found, parts))) = of(end >> bits, 0)
            && found == expected
        {
            end += u64::from(parts) << status_bits;
        }
        let end = limit.min(end);
        Ok(Run { mapping, end })
    }

    /// Where guest data stands.
    fn data(&self) -> Result<&Arc<dyn Storage>, Qcow2Error> {
        self.data
            .as_ref()
            .ok_or_else(|| Qcow2Error::DataFileClosed {
                name: self.info.data_file.clone().unwrap_or_default(),
            })
    }

    /// The host bytes of `range`, which starts `into` bytes into what stands at `host`.
    ///
    /// Only what the guest can see must exist: QEMU leaves the file's last cluster as short as the
    /// disk. [qemu]
    fn visible(&self, host: u64, into: u64, range: GuestRange) -> Result<HostRange> {
        let host = HostRange::new(host + into, range.len());
        let data = self.data()?;
        let file_len = data.len();
        // Part of an encrypted sector says nothing.
        let unit = if self.crypt.is_plain() { 1 } else { SECTOR };
        let whole = align_down(file_len, unit);
        if align_up(host.end(), unit).is_none_or(|end| end > whole) {
            // Only the part that is missing: what the file still holds is good.
            let there = whole.saturating_sub(host.offset);
            let host = HostRange::new(host.offset + there, host.len - there);
            let missing = GuestRange::new(range.start + there, range.end);
            let mut error = Error::from(Qcow2Error::DataTruncated { host, file_len });
            if self.geometry.data != DataPlace::Here {
                error = error.in_file(data.name());
            }
            return Err(error.at_guest(missing));
        }
        Ok(host)
    }

    /// The same for zeros, which are known: a file may end inside their cluster, as QEMU leaves it
    /// where subclusters of data come before them, but not before it. [qemu]
    fn zero_place(&self, host: u64, into: u64, range: GuestRange) -> Result<Option<HostRange>> {
        let cluster = align_down(host + into, self.geometry.cluster_size());
        match self.visible(host, into, range) {
            Err(_) if cluster < self.data()?.len() => Ok(None),
            place => place.map(Some),
        }
    }

    /// The host bytes of a compressed cluster, cut where the file ends: old writers did not fill
    /// up the last sector. [qemu] If anything that is needed was cut, it does not unpack.
    fn packed(&self, host: HostRange) -> Result<HostRange, Qcow2Error> {
        let file_len = self.geometry.file_len;
        if host.offset >= file_len {
            return Err(Qcow2Error::DataTruncated { host, file_len });
        }
        let len = host.len.min(file_len - host.offset);
        Ok(HostRange::new(host.offset, len))
    }

    fn not_unpacked(&self, host: HostRange, source: CodecError) -> Qcow2Error {
        let file_len = self.geometry.file_len;
        if host.end() > file_len {
            return Qcow2Error::UnpackTruncated {
                host,
                file_len,
                source,
            };
        }
        Qcow2Error::Unpack { host, source }
    }

    /// Fills the front of `buf`, which starts at `offset`, from the compressed cluster there and
    /// those that follow it both on the disk and in the file. Returns how far it came.
    fn read_packed(&self, offset: u64, host: HostRange, buf: &mut [u8]) -> Result<u64> {
        let (cluster_size, limit) = (self.geometry.cluster_size(), offset + buf.len() as u64);
        let mut scratch = self.scratch.take_suited(|idle| idle.held == Some(host));
        let Scratch {
            unpacker,
            units,
            packed,
            unit,
            held,
        } = &mut *scratch;

        let mut start = offset & !(cluster_size - 1);
        // An image above this one may ask for any number of small pieces of it.
        if *held == Some(host) {
            let end = limit.min(start + cluster_size);
            let part = &unit[(offset - start) as usize..(end - start) as usize];
            buf[..part.len()].copy_from_slice(part);
            return Ok(end);
        }
        let mut all = self.packed(host).map_err(|error| {
            let end = limit.min(start + cluster_size);
            Error::from(error).at_guest(GuestRange::new(offset, end))
        })?;
        units.clear();
        units.push(Packed { start, host });
        start += cluster_size;
        while start < limit {
            // An error belongs to the next call, which starts there.
            let Ok(Run {
                mapping: Mapping::Compressed { host },
                ..
            }) = self.run(start, limit)
            else {
                break;
            };
            let Ok(there) = self.packed(host) else { break };
            let behind = all.offset..=all.end().saturating_add(GAP);
            if !behind.contains(&there.offset) || there.end() - all.offset > BATCH {
                break;
            }
            all = HostRange::new(all.offset, there.end().max(all.end()) - all.offset);
            units.push(Packed { start, host });
            start += cluster_size;
        }

        // At most a batch, or one unit of two clusters.
        let packed = at_least(packed, all.len as usize);
        self.storage.read_at(all.offset, packed)?;
        for &Packed { start, host } in units.iter() {
            let there = self.packed(host)?;
            let bytes = &packed[(there.offset - all.offset) as usize..][..there.len as usize];
            let mut unpack = |unit: &mut [u8]| {
                unpacker
                    .unpack(self.geometry.codec, bytes, unit)
                    .map_err(|source| self.not_unpacked(host, source))
            };
            let from = offset.saturating_sub(start);
            let to = limit.min(start + cluster_size) - start;
            let part = &mut buf[(start + from - offset) as usize..(start + to - offset) as usize];
            if part.len() as u64 == cluster_size {
                unpack(part)?;
            } else {
                *held = None;
                let unit = at_least(unit, cluster_size as usize);
                unpack(unit)?;
                *held = Some(host);
                part.copy_from_slice(&unit[from as usize..to as usize]);
            }
        }
        Ok(limit.min(start))
    }
}

/// The first `len` bytes of `buf`, whatever they hold.
fn at_least(buf: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buf.len() < len {
        buf.resize(len, 0);
    }
    &mut buf[..len]
}

impl Layer for Qcow2Layer {
    fn info(&self) -> &LayerInfo {
        &self.info
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn data_storage(&self) -> &Arc<dyn Storage> {
        // Without the data file no extent has a host offset.
        self.data.as_ref().unwrap_or(&self.storage)
    }

    fn with_data(&self, data: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
        Ok(Arc::new(self.reading(data)?))
    }

    fn snapshot(&self, index: usize, budget: &Budget) -> Result<Arc<dyn Layer>> {
        let Snapshots { infos, entries, .. } = &*self.snapshots;
        let count = infos.len();
        let Some((info, entry)) = infos.get(index).zip(entries.get(index)) else {
            return Err(Qcow2Error::NoSnapshot { index, count }.into());
        };
        let virtual_size = info.virtual_size;
        let (l1_offset, l1_entries) = entry.l1_table();
        let geometry = self
            .geometry
            .at_snapshot(l1_offset, l1_entries, virtual_size)?;
        let gaps = self.tables.gaps.afresh();
        let tables = Tables::open(&*self.storage, &geometry, budget, gaps)?;
        let mut info = self.info.clone();
        info.virtual_size = virtual_size;
        info.warnings
            .extend(tables.gaps.warnings("L1 table of the snapshot"));
        Ok(Arc::new(Self {
            tables: Arc::new(tables),
            info,
            geometry,
            ..self.clone()
        }))
    }

    fn dirty_ranges(&self, index: usize, budget: &Budget) -> Result<Vec<GuestRange>> {
        let count = self.bitmaps.len();
        let bitmap = self.bitmaps.get(index);
        let bitmap = bitmap.ok_or(Qcow2Error::NoBitmap { index, count })?;
        bitmap.dirty(&*self.storage, &self.geometry, budget)
    }

    fn tables_len(&self) -> u64 {
        let geometry = &self.geometry;
        let clusters = self.storage.len() >> geometry.cluster_bits;
        // Refcounts are read twice.
        let refcounts = 2 * (clusters * u64::from(geometry.refcount_bits)).div_ceil(8);
        self.tables.count() * geometry.cluster_size() + refcounts
    }

    fn symptoms(&self) -> Result<Vec<Symptom>> {
        symptoms(&*self.storage)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        debug_assert!(offset < limit && limit <= self.info.virtual_size);
        let Run { mapping, end } = self.run(offset, limit)?;
        let mut range = GuestRange::new(offset, end);
        let into = offset % (1 << self.geometry.status_bits());
        // What stands there encrypted is no place of the guest's bytes.
        let place = |host: HostRange| Some(host.offset).filter(|_| self.crypt.is_plain());
        let kind = match mapping {
            // [qemu] What is not there has a place all the same, if nothing can show through.
            Mapping::Unallocated { host: Some(host) } if self.info.backing.is_none() => {
                let host = self.visible(host, into, range).ok();
                ExtentKind::Zero {
                    allocated: false,
                    host: host.and_then(place),
                }
            }
            Mapping::Unallocated { .. } => ExtentKind::Unallocated,
            Mapping::Zero { host } => {
                let host = host.map(|host| self.zero_place(host, into, range));
                ExtentKind::Zero {
                    allocated: true,
                    host: host.transpose()?.flatten().and_then(place),
                }
            }
            Mapping::Data { host } => {
                let host = self.visible(host, into, range)?;
                // What is encrypted is no zeros where the file has a hole.
                let holes = self.holes.as_ref().filter(|_| self.crypt.is_plain());
                let (len, hole) = holes.map_or((host.len, false), |holes| {
                    holes.span(&*self.storage, &self.geometry, host)
                });
                range.end = offset + len;
                match hole {
                    true => ExtentKind::Hole { host: host.offset },
                    false => ExtentKind::Data { host: place(host) },
                }
            }
            Mapping::Compressed { host } => {
                let start = align_down(offset, self.geometry.cluster_size());
                let host = self.packed(host);
                ExtentKind::Compressed {
                    unit: GuestRange::new(start, start + self.geometry.cluster_size()),
                    host: host.map_err(|error| Error::from(error).at_guest(range))?,
                    codec: self.geometry.codec,
                }
            }
        };
        Ok(Extent { range, kind })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let limit = offset + buf.len() as u64;
        debug_assert!(limit <= self.info.virtual_size);
        let mut at = offset;
        while at < limit {
            let Run { mapping, end } = self.run(at, limit)?;
            // Both ends lie in `buf`, so their distances from its start fit.
            let rest = &mut buf[(at - offset) as usize..];
            let part = &mut rest[..(end - at) as usize];
            let into = at % (1 << self.geometry.status_bits());
            at = match mapping {
                Mapping::Unallocated { .. } => {
                    part.fill(0);
                    end
                }
                Mapping::Zero { host } => {
                    if let Some(host) = host {
                        self.zero_place(host, into, GuestRange::new(at, end))?;
                    }
                    part.fill(0);
                    end
                }
                Mapping::Data { host } => {
                    let host = self.visible(host, into, GuestRange::new(at, end))?;
                    self.crypt.read(&**self.data()?, host.offset, at, part)?;
                    end
                }
                Mapping::Compressed { host } => self.read_packed(at, host, rest)?,
            };
        }
        Ok(())
    }
}

/// What `qemu-img info` shows of the format, in its order. [qemu]
fn details(
    geometry: &Geometry,
    data_file: Option<&str>,
    bitmaps: &[Bitmap],
    luks: Option<&Luks>,
) -> Vec<(&'static str, Detail)> {
    let v3 = geometry.version == 3;
    let text = |text: &str| Detail::Text(text.into());
    let mut details = vec![
        ("compat", text(if v3 { "1.1" } else { "0.10" })),
        (
            "compression-type",
            text(match geometry.codec {
                Codec::Deflate => "zlib",
                Codec::Zstd => "zstd",
            }),
        ),
    ];
    let refcount_bits = (
        "refcount-bits",
        Detail::Number(geometry.refcount_bits.into()),
    );
    let encrypt = crypt::detail(geometry, luks).map(|detail| ("encrypt", detail));
    if !v3 {
        details.push(refcount_bits);
        details.extend(encrypt);
        return details;
    }
    details.push(("lazy-refcounts", Detail::Flag(geometry.lazy_refcounts)));
    if !bitmaps.is_empty() {
        let bitmaps = bitmaps.iter().map(Bitmap::detail);
        details.push(("bitmaps", Detail::List(bitmaps.collect())));
    }
    details.push(refcount_bits);
    details.extend(encrypt);
    if let (Some(name), DataPlace::Elsewhere { raw }) = (data_file, geometry.data) {
        details.push(("data-file", text(name)));
        details.push(("data-file-raw", Detail::Flag(raw)));
    }
    details.push(("corrupt", Detail::Flag(geometry.corrupt)));
    details.push(("extended-l2", Detail::Flag(geometry.extended_l2)));
    details
}
