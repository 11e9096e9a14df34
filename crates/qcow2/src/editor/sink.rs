//! Writing over a disk.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use goldsmith_block::{
    Committed, Demand, Error, ExtentKind, GuestRange, HostRange, Layer, Packing, Placement, Result,
    Sink, SinkProfile, Slot, StorageMut, ZeroPolicy, Zeroing,
};

use super::Qcow2Editor;
use super::draft::{Draft, offset_of};
use super::tables::{L1, used};
use crate::error::Qcow2Error;
use crate::layer::Qcow2Layer;
use crate::layout::clear_rest;
use crate::mapping::packed_entry;
use crate::ondisk::{COMPRESSED, COPIED, ZERO};

/// Writes over the front of the disk of an image.
///
/// Clusters that nothing else uses are overwritten where they stand, which a stopped sink leaves as
/// they are then; all other clusters, packed ones, and all tables get a new place and are found only
/// when the sink has committed. Bitmaps that record writes know of these only then, and say so meanwhile.
pub(super) struct OverSink {
    /// The image as it was: its tables stay what they are until the commit.
    layer: Arc<Qcow2Layer>,
    /// Where guest data goes.
    data: Arc<dyn StorageMut>,
    profile: SinkProfile,
    /// Held only while places are handed out; never while data is written.
    state: Mutex<State>,
}

struct State {
    draft: Draft,
    l1: L1,
    /// The L2 table that is being changed.
    table: Option<Table>,
    /// Byte offset behind the last packed cluster; a multiple of the cluster size if no cluster of the
    /// file is partly used.
    packed_at: u64,
    suspended: Suspended,
}

/// The bitmaps that have to know what is written over, and say meanwhile that they do not. A sink that goes
/// without having committed tells them of what it may have overwritten.
struct Suspended {
    /// The image in which nothing but guest data is changed.
    editor: Qcow2Editor,
    /// Their places in the directory.
    places: Vec<usize>,
    /// What was written over, ascending.
    touched: Vec<GuestRange>,
}

impl Suspended {
    fn tell(&self) -> Result<()> {
        let mut draft = self.editor.draft()?;
        draft.mark_bitmaps(&self.places, &self.touched)?;
        draft.publish()
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        if !self.places.is_empty() {
            // What kept the sink from committing may keep it from this as well; then they go on saying it.
            let _ = self.tell();
        }
    }
}

struct Table {
    index: usize,
    before: Vec<u64>,
    entries: Vec<u64>,
}

impl OverSink {
    pub(super) fn new(mut editor: Qcow2Editor, len: u64, packing: Option<Packing>) -> Result<Self> {
        let size = editor.layer.info().virtual_size;
        if len > size {
            let text = format!("{len} bytes cannot be written over a disk of {size} bytes");
            return Err(Error::usage(text));
        }
        let layer = &editor.layer;
        layer.crypt().must_be_open()?;
        let data = match (layer.geometry().has_data_file(), &editor.data) {
            (false, _) => Arc::clone(editor.scribe.storage()),
            (true, Some(data)) => Arc::clone(data),
            (true, None) => {
                let name = layer.info().data_file.clone().unwrap_or_default();
                return Err(Qcow2Error::DataFileClosed { name }.into());
            }
        };
        let places = editor.suspend_bitmaps()?;
        let suspended = Suspended {
            editor,
            places,
            touched: Vec::new(),
        };
        let draft = suspended.editor.draft()?;
        let layer = Arc::clone(&suspended.editor.layer);
        Ok(Self {
            profile: SinkProfile {
                virtual_size: len,
                grain: layer.geometry().cluster_size(),
                placement: Placement::Allocated,
                zeroes: ZeroPolicy::Covering,
                packing,
            },
            data,
            state: Mutex::new(State {
                l1: draft.l1()?,
                draft,
                table: None,
                packed_at: 0,
                suspended,
            }),
            layer,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in between is a bug already reported; an unfinished sink changes no table.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cluster_size(&self) -> u64 {
        self.profile.grain
    }

    /// What the disk has behind `end`, up to the end of its cluster or its own: the sink may end
    /// inside a cluster, but what it leaves alone must stay.
    fn tail(&self, end: u64) -> Result<Vec<u8>> {
        let cluster_end = end.next_multiple_of(self.cluster_size());
        let limit = cluster_end.min(self.layer.info().virtual_size);
        if end < self.profile.virtual_size || limit <= end {
            return Ok(Vec::new());
        }
        let mut at = end;
        while at < limit && self.layer.info().backing.is_some() {
            let found = self.layer.extent_at(at, limit)?;
            if found.kind == ExtentKind::Unallocated {
                return Err(Error::usage(format!(
                    "the disk cannot be written over up to {end}: that is inside a cluster of \
                     which another image has a part"
                )));
            }
            at = found.range.end;
        }
        // Less than a cluster.
        let mut tail = vec![0; (limit - end) as usize];
        self.layer.read_at(end, &mut tail)?;
        Ok(tail)
    }

    /// Stores `data` for guest offset `guest` at `host`, and zeros behind it if the disk ends there.
    fn store(&self, host: u64, guest: u64, data: &[u8]) -> Result<()> {
        let end = guest + data.len() as u64;
        let is_last = end == self.layer.info().virtual_size;
        let (bits, crypt) = (self.layer.geometry().cluster_bits, self.layer.crypt());
        let whole = crypt.filled(data, host, if is_last { bits } else { 0 });
        let stored = crypt.encrypt(host, guest, &whole)?;
        self.data.write_at(host, &stored)?;
        if is_last && !self.layer.geometry().has_data_file() {
            clear_rest(&*self.data, host + stored.len() as u64, bits)?;
        }
        Ok(())
    }
}

impl State {
    /// The L2 entry of guest cluster `cluster`; clusters ascend.
    fn entry(&mut self, cluster: u64) -> Result<&mut [u64]> {
        let (table_len, numbers) = (self.draft.table_len(), self.draft.numbers());
        // Clusters lie on the disk, for which the L1 table is in memory.
        let index = (cluster / table_len) as usize;
        if self.table.as_ref().is_none_or(|table| table.index != index) {
            self.close_table()?;
            let before = match offset_of(self.l1.entries[index]) {
                0 => vec![0; table_len as usize * numbers],
                table => self.draft.read_l2(table)?,
            };
            self.table = Some(Table {
                index,
                entries: before.clone(),
                before,
            });
        }
        let at = (cluster % table_len) as usize * numbers;
        let entries = self.table.as_mut().map(|table| &mut table.entries[..]);
        Ok(&mut entries.unwrap_or_default()[at..at + numbers])
    }

    fn close_table(&mut self) -> Result<()> {
        let Some(table) = self.table.take() else {
            return Ok(());
        };
        if table.entries == table.before {
            return Ok(());
        }
        self.draft.put_l2(&mut self.l1, table.index, &table.entries)
    }

    fn touch(&mut self, range: GuestRange) {
        let touched = &mut self.suspended.touched;
        match touched.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => touched.push(range),
        }
    }

    /// A place for all of guest cluster `cluster`: its own, if nothing else uses that.
    fn place(&mut self, cluster: u64) -> Result<u64> {
        let geometry = self.draft.geometry.clone();
        let entry = self.entry(cluster)?;
        let (old, offset) = (entry[0], offset_of(entry[0]));
        let packed = old & COMPRESSED != 0;
        let host = if geometry.has_data_file() {
            cluster << geometry.cluster_bits
        } else if !packed && offset != 0 && self.draft.uses(offset)? == 1 {
            offset
        } else {
            self.draft.sub(used(old, &geometry))?;
            self.draft.take(geometry.cluster_size())?
        };
        let entry = self.entry(cluster)?;
        entry[0] = COPIED | host;
        if let [_, bitmap] = entry {
            *bitmap = u32::MAX.into();
        }
        Ok(host)
    }

    /// A place for the packed form of guest cluster `cluster`, `len` bytes.
    fn place_packed(&mut self, cluster: u64, len: u64) -> Result<u64> {
        let geometry = self.draft.geometry.clone();
        if len == 0 || len >= geometry.cluster_size() {
            let what = "packed a cluster into no byte, or into no less than a cluster";
            return Err(Qcow2Error::Contract { what }.into());
        }
        let old = self.entry(cluster)?[0];
        self.draft.sub(used(old, &geometry))?;
        let host = HostRange::new(self.take_bytes(len)?, len);
        let packed = packed_entry(host, geometry.cluster_bits)?;
        self.packed_at = host.end();
        let entry = self.entry(cluster)?;
        entry[0] = packed;
        if let [_, bitmap] = entry {
            *bitmap = 0;
        }
        Ok(host.offset)
    }

    /// So many bytes, less than a cluster: behind the last ones if their cluster may have another user,
    /// and on into the next cluster if that is free.
    fn take_bytes(&mut self, len: u64) -> Result<u64> {
        let (at, size) = (self.packed_at, self.draft.geometry.cluster_size());
        let left = at.next_multiple_of(size) - at;
        if left == 0 || self.draft.uses(at)? == self.draft.counts.max() {
            return self.draft.take(size);
        }
        if len > left {
            let next = self.draft.take(size)?;
            if next != at + left {
                return Ok(next);
            }
        }
        self.draft.add(HostRange::new(at, len.min(left)))?;
        Ok(at)
    }

    /// Makes all of guest cluster `cluster` zeros that have no place, if there is such a thing.
    fn erase(&mut self, cluster: u64) -> Result<bool> {
        let geometry = self.draft.geometry.clone();
        let old = self.entry(cluster)?[0];
        let zero = match geometry.version {
            _ if geometry.has_data_file() => return Ok(false),
            // Also over nothing: whoever says so where zeros show anyway is going to put another
            // image behind this one.
            3.. => ZERO,
            _ if old == 0 || self.draft.header.has_backing() => return Ok(false),
            _ => 0,
        };
        self.draft.sub(used(old, &geometry))?;
        match self.entry(cluster)? {
            [first, bitmap] => {
                *first = 0;
                *bitmap = u64::from(u32::MAX) << 32;
            }
            entry => entry[0] = zero,
        }
        Ok(true)
    }
}

impl Sink for OverSink {
    fn profile(&self) -> &SinkProfile {
        &self.profile
    }

    fn reserve(&self, demands: &[Demand], slots: &mut Vec<Slot>) -> Result<()> {
        let bits = self.layer.geometry().cluster_bits;
        let mut state = self.state();
        for demand in demands {
            let first = slots.len();
            state.touch(demand.range);
            if let Some(len) = demand.packed {
                slots.push(Slot {
                    range: demand.range,
                    host: state.place_packed(demand.range.start >> bits, len)?,
                    packed: demand.packed,
                });
                continue;
            }
            let mut at = demand.range.start;
            while at < demand.range.end {
                let host = state.place(at >> bits)?;
                let end = demand.range.end.min(at + self.cluster_size());
                match slots[first..].last_mut() {
                    Some(last) if last.host + last.range.len() == host => last.range.end = end,
                    _ => slots.push(Slot {
                        range: GuestRange::new(at, end),
                        host,
                        packed: None,
                    }),
                }
                at = end;
            }
        }
        Ok(())
    }

    fn reserve_zeroes(&self, range: GuestRange) -> Result<()> {
        let bits = self.layer.geometry().cluster_bits;
        let mut state = self.state();
        state.touch(range);
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + self.cluster_size());
            let tail = self.tail(end)?;
            if !tail.is_empty() || !state.erase(at >> bits)? {
                let host = state.place(at >> bits)?;
                let is_plain = self.layer.crypt().is_plain();
                match self.layer.geometry().has_data_file() && is_plain {
                    true => {
                        let range = HostRange::new(host, end - at);
                        self.data.zero(range, Zeroing::Punch)?;
                        self.data.write_at(range.end(), &tail)?;
                    }
                    false => {
                        // At most a cluster.
                        let mut zeros = vec![0; (end - at) as usize];
                        zeros.extend(tail);
                        self.store(host, at, &zeros)?;
                    }
                }
            }
            at = end;
        }
        Ok(())
    }

    fn write(&self, slot: Slot, data: &[u8]) -> Result<()> {
        if slot.packed.is_some() {
            return self.data.write_at(slot.host, data);
        }
        let tail = self.tail(slot.range.end)?;
        if tail.is_empty() {
            return self.store(slot.host, slot.range.start, data);
        }
        self.store(slot.host, slot.range.start, &[data, &tail].concat())
    }

    fn write_zeroes(&self, _range: GuestRange) -> Result<()> {
        let what = "wrote zeros where they are implied";
        Err(Qcow2Error::Contract { what }.into())
    }

    fn commit(self: Box<Self>) -> Result<Committed> {
        let state = self.state.into_inner();
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.close_table()?;
        let State {
            mut draft,
            mut l1,
            packed_at,
            mut suspended,
            ..
        } = state;
        // A file does not end inside a cluster that is used.
        clear_rest(&*self.data, packed_at, draft.geometry.cluster_bits)?;
        draft.settle_unshared(&mut l1)?;
        draft.put_l1(l1)?;
        draft.mark_bitmaps(&suspended.places, &suspended.touched)?;
        if draft.data.is_some() {
            self.data.flush()?;
        }
        let storage = Arc::clone(draft.scribe().storage());
        draft.store()?;
        // From here on what stands may be the old image or the new one.
        suspended.places.clear();
        self.layer.supersede();
        draft.turn()?;
        Ok(Committed {
            file_len: storage.len(),
        })
    }
}
