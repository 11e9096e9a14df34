//! A new image, written from the first host cluster to the last.
//!
//! ```text
//! header | data | L2 | data | refcount block | data | L2 | L1 | refcount blocks | refcount table
//! ```
//!
//! Places are asked for in guest order, so an L2 table is complete when the first cluster behind
//! its range is asked for, and a refcount block when the clusters it counts are used up. Each then
//! takes the next cluster and is written, once. All else stays in memory: the L1 table, the
//! offsets of refcount blocks, one L2 table, one refcount block.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use goldsmith_block::{
    Codec, Committed, CreateSpec, Demand, GuestRange, HostRange, OptionKind, OptionSpec, Packing,
    Placement, Result, Sink, SinkProfile, Slot, Storage, StorageMut, Transfer, ZeroPolicy,
};
use zerocopy::IntoBytes;
use zerocopy::byteorder::{BE, U64};

use crate::error::Qcow2Error;
use crate::features::name_table;
use crate::geometry::{l1_entries_for, mapped_bits};
use crate::mapping::{packed_end, packed_entry};
use crate::ondisk::{self, RawHeader};
use crate::refcount::{Allocator, Tail};
use crate::table::write_table;

const REFCOUNT_BITS: [&str; 7] = ["1", "2", "4", "8", "16", "32", "64"];

/// What can be chosen about a new image; names and defaults are QEMU's. [qemu]
pub(crate) static OPTIONS: [OptionSpec; 4] = [
    OptionSpec {
        name: "compat",
        kind: OptionKind::Choice(&["0.10", "1.1"]),
        default: "1.1",
        help: "version of the format: 0.10 is 2, 1.1 is 3",
    },
    OptionSpec {
        name: "cluster_size",
        kind: OptionKind::Size,
        default: "65536",
        help: "bytes allocated together, a power of two from 512 to 2M",
    },
    OptionSpec {
        name: "compression_type",
        kind: OptionKind::Choice(&["zlib", "zstd"]),
        default: "zlib",
        help: "how compressed clusters are packed; zstd needs compat=1.1",
    },
    OptionSpec {
        name: "refcount_bits",
        kind: OptionKind::Choice(&REFCOUNT_BITS),
        default: "16",
        help: "width of a reference count in bits; all but 16 need compat=1.1",
    },
];

/// Clusters up to this many bytes get no feature names, to leave room for a backing file's. [qemu]
const NAMES_OVER: u64 = 4096;

/// The shape of a new image.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    version: u32,
    cluster_bits: u32,
    refcount_order: u32,
    codec: Codec,
    virtual_size: u64,
    l1_entries: u64,
}

impl Plan {
    fn new(spec: &CreateSpec) -> Result<Self, Qcow2Error> {
        let cluster_size = spec.options.size("cluster_size");
        let cluster_bits = cluster_size.trailing_zeros();
        if !cluster_size.is_power_of_two() || !ondisk::CLUSTER_BITS.contains(&cluster_bits) {
            let found = cluster_size;
            return Err(Qcow2Error::ClusterSizeOption { found });
        }
        let version = match spec.options.choice("compat") {
            "0.10" => 2,
            _ => 3,
        };
        let needs_version_3 = |name, value| {
            let option = format!("{name}={value}");
            Err(Qcow2Error::NeedsVersion3 { option })
        };
        let codec = match spec.options.choice("compression_type") {
            "zstd" if version < 3 => return needs_version_3("compression_type", "zstd"),
            "zstd" => Codec::Zstd,
            _ => Codec::Deflate,
        };
        let bits = spec.options.choice("refcount_bits");
        // An option's value is one of its choices.
        let order = REFCOUNT_BITS.iter().position(|choice| *choice == bits);
        let refcount_order = order.unwrap_or_default() as u32;
        if version < 3 && refcount_order != ondisk::REFCOUNT_ORDER_V2 {
            return needs_version_3("refcount_bits", bits);
        }

        let virtual_size = spec.virtual_size;
        let l1_entries = l1_entries_for(virtual_size, cluster_bits, false);
        let most = (ondisk::L1_BYTES / 8) << mapped_bits(cluster_bits, false);
        if virtual_size > most {
            return Err(Qcow2Error::DiskTooLarge {
                size: virtual_size,
                need: u128::from(l1_entries) * 8,
                limit: ondisk::L1_BYTES,
                cluster_size,
                most,
            });
        }
        Ok(Self {
            version,
            cluster_bits,
            refcount_order,
            codec,
            virtual_size,
            l1_entries,
        })
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The header and its extensions; the rest of the first cluster is zeros.
    fn header(&self, tail: &Tail) -> Vec<u8> {
        let v3 = self.version == 3;
        let zstd = self.codec == Codec::Zstd;
        let raw = RawHeader {
            magic: ondisk::MAGIC,
            version: self.version.into(),
            backing_file_offset: 0.into(),
            backing_file_size: 0.into(),
            cluster_bits: self.cluster_bits.into(),
            size: self.virtual_size.into(),
            crypt_method: 0.into(),
            // At most the limit of the table, and so are the refcount table's clusters.
            l1_size: (self.l1_entries as u32).into(),
            l1_table_offset: tail.l1_offset.into(),
            refcount_table_offset: tail.refcount_table_offset.into(),
            refcount_table_clusters: (tail.refcount_table_clusters as u32).into(),
            nb_snapshots: 0.into(),
            snapshots_offset: 0.into(),
            incompatible_features: if zstd { ondisk::COMPRESSION_TYPE } else { 0 }.into(),
            compatible_features: 0.into(),
            autoclear_features: 0.into(),
            refcount_order: self.refcount_order.into(),
            header_length: (size_of::<RawHeader>() as u32).into(),
            compression_type: zstd.into(),
            padding: [0; 7],
        };
        if !v3 {
            return raw.as_bytes()[..ondisk::HEADER_LEN_V2 as usize].to_vec();
        }
        let mut header = raw.as_bytes().to_vec();
        // The zeros that follow are the end mark.
        if self.cluster_size() > NAMES_OVER {
            header.extend(name_table());
        }
        header
    }
}

/// A qcow2 image that is being made.
pub(crate) struct Qcow2Sink {
    storage: Arc<dyn StorageMut>,
    plan: Plan,
    profile: SinkProfile,
    /// Held only while places are handed out; never while data is written.
    layout: Mutex<Layout>,
}

impl Qcow2Sink {
    pub(crate) fn create(storage: Arc<dyn StorageMut>, spec: &CreateSpec) -> Result<Self> {
        let plan = Plan::new(spec)?;
        if !storage.is_blank() {
            // Whatever was there must not open as an image while this one is unfinished.
            storage.write_at(0, &vec![0; plan.cluster_size() as usize])?;
            storage.flush()?;
        }
        let packing = Packing {
            codec: plan.codec,
            unit: plan.cluster_size(),
        };
        Ok(Self {
            profile: SinkProfile {
                virtual_size: plan.virtual_size,
                grain: plan.cluster_size(),
                placement: Placement::Allocated,
                zeroes: ZeroPolicy::Implied,
                packing: spec.compress.then_some(packing),
            },
            layout: Mutex::new(Layout::new(Arc::clone(&storage), &plan)),
            plan,
            storage,
        })
    }

    fn layout(&self) -> MutexGuard<'_, Layout> {
        // A panic in between is a bug already reported; what it left cannot be worse than no image.
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Qcow2Sink {
    fn profile(&self) -> &SinkProfile {
        &self.profile
    }

    fn reserve(&self, demands: &[Demand], slots: &mut Vec<Slot>) -> Result<()> {
        let mut layout = self.layout();
        for demand in demands {
            match demand.packed {
                None => layout.place(demand.range, slots)?,
                Some(len) => slots.push(layout.place_packed(demand.range, len)?),
            }
        }
        Ok(())
    }

    fn write(&self, slot: Slot, data: &[u8]) -> Result<()> {
        let len = data.len() as u64;
        if len != slot.packed.unwrap_or(slot.range.len()) {
            let what = "wrote another length than it reserved";
            return Err(Qcow2Error::Contract { what }.into());
        }
        self.storage.write_at(slot.host, data)?;
        if slot.packed.is_none() {
            // The disk may end inside its last cluster.
            let end = slot.host + len;
            clear_rest(&*self.storage, end, self.plan.cluster_size())?;
        }
        Ok(())
    }

    fn can_share(&self, source: &dyn Storage) -> bool {
        self.storage.can_share(source)
    }

    fn transfer(
        &self,
        slot: &Slot,
        source: &dyn Storage,
        from: u64,
        transfer: Transfer,
    ) -> Result<bool> {
        let from = HostRange::new(from, slot.range.len());
        if !transfer.run(source, from, &*self.storage, slot.host) {
            return Ok(false);
        }
        let end = slot.host + slot.range.len();
        clear_rest(&*self.storage, end, self.plan.cluster_size())?;
        Ok(true)
    }

    fn write_zeroes(&self, _range: GuestRange) -> Result<()> {
        let what = "wrote zeros where they are implied";
        Err(Qcow2Error::Contract { what }.into())
    }

    fn commit(self: Box<Self>) -> Result<Committed> {
        let layout = self.layout.into_inner();
        let tail = layout.unwrap_or_else(PoisonError::into_inner).finish()?;
        let file_len = tail.file_len;
        self.storage.set_len(file_len)?;
        self.storage.flush()?;
        self.storage.write_at(0, &self.plan.header(&tail))?;
        self.storage.flush()?;
        Ok(Committed { file_len })
    }
}

/// Who stands where; all that is known of the image before it is finished.
struct Layout {
    storage: Arc<dyn StorageMut>,
    cluster_bits: u32,
    allocator: Allocator,
    l1: Vec<U64<BE>>,
    /// The L2 table that is being filled, and its place in the L1 table.
    l2: Vec<U64<BE>>,
    l2_index: Option<usize>,
    /// Byte offset behind the last packed unit; a multiple of the cluster size if no cluster is
    /// partly used.
    packed_at: u64,
}

impl Layout {
    fn new(storage: Arc<dyn StorageMut>, plan: &Plan) -> Self {
        let allocator =
            Allocator::new(Arc::clone(&storage), plan.cluster_bits, plan.refcount_order);
        Self {
            storage,
            cluster_bits: plan.cluster_bits,
            allocator,
            // The caller's disk needs them; its size was checked.
            l1: vec![0.into(); plan.l1_entries as usize],
            l2: vec![0.into(); plan.cluster_size() as usize / 8],
            l2_index: None,
            packed_at: 0,
        }
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Clusters in a row for `range`, in as few slots as L2 tables and refcount blocks between
    /// them allow.
    fn place(&mut self, range: GuestRange, slots: &mut Vec<Slot>) -> Result<()> {
        let bits = self.cluster_bits;
        let last = range.end.div_ceil(self.cluster_size());
        let mut cluster = range.start >> bits;
        while cluster < last {
            let at = self.turn_to(cluster)?;
            let most = (last - cluster).min((self.l2.len() - at) as u64);
            let (first, count) = self.allocator.take(most)?;
            let entries = self.l2[at..].iter_mut().zip(first..first + count);
            for (entry, host) in entries {
                *entry = (ondisk::COPIED | host << bits).into();
            }
            let end = range.end.min((cluster + count) << bits);
            slots.push(Slot {
                range: GuestRange::new(cluster << bits, end),
                host: first << bits,
                packed: None,
            });
            cluster += count;
        }
        Ok(())
    }

    /// Bytes for one packed unit: behind the last one if its cluster may have another user, and on
    /// into the next cluster if that is free.
    fn place_packed(&mut self, range: GuestRange, len: u64) -> Result<Slot> {
        if len == 0 || len >= self.cluster_size() {
            let what = "packed a cluster into no byte, or into no less than a cluster";
            return Err(Qcow2Error::Contract { what }.into());
        }
        let at = self.turn_to(range.start >> self.cluster_bits)?;
        let left = self.packed_at.next_multiple_of(self.cluster_size()) - self.packed_at;
        let cluster = self.packed_at >> self.cluster_bits;
        let further = u64::from(len > left);
        if left == 0 || !self.allocator.share(cluster, further) {
            clear_rest(&*self.storage, self.packed_at, self.cluster_size())?;
            let (first, _) = self.allocator.take(1)?;
            self.packed_at = first << self.cluster_bits;
        }
        let host = HostRange::new(self.packed_at, len);
        let limit = packed_end(self.cluster_bits);
        if host.offset >= limit {
            return Err(Qcow2Error::HostLimit {
                what: "a compressed cluster",
                offset: host.offset,
                limit,
            }
            .into());
        }
        self.l2[at] = packed_entry(host, self.cluster_bits).into();
        self.packed_at = host.end();
        Ok(Slot {
            range,
            host: host.offset,
            packed: Some(len),
        })
    }

    /// Makes the L2 table of `cluster` the one being filled; returns the cluster's place in it.
    fn turn_to(&mut self, cluster: u64) -> Result<usize> {
        // Clusters lie on the disk, for which the L1 table is in memory: both positions fit.
        let table = self.l2.len() as u64;
        let (index, at) = ((cluster / table) as usize, (cluster % table) as usize);
        if index >= self.l1.len() || self.l2_index.is_some_and(|current| current > index) {
            let what = "asked for places out of order or behind the disk";
            return Err(Qcow2Error::Contract { what }.into());
        }
        if self.l2_index != Some(index) {
            self.close_table()?;
            self.l2_index = Some(index);
        }
        Ok(at)
    }

    /// Writes the L2 table that is being filled to the next cluster.
    fn close_table(&mut self) -> Result<()> {
        let Some(index) = self.l2_index.take() else {
            return Ok(());
        };
        let (cluster, _) = self.allocator.take(1)?;
        let offset = cluster << self.cluster_bits;
        write_table(&*self.storage, offset, self.l2.as_bytes())?;
        self.l1[index] = (ondisk::COPIED | offset).into();
        self.l2.fill(0.into());
        Ok(())
    }

    /// Writes what is left of the tables.
    fn finish(mut self) -> Result<Tail> {
        self.close_table()?;
        clear_rest(&*self.storage, self.packed_at, self.cluster_size())?;
        let l1_bytes = self.l1.len() as u64 * 8;
        let l1_clusters = l1_bytes.div_ceil(self.cluster_size());
        let entries = (l1_clusters << self.cluster_bits) as usize / 8;
        self.l1.resize(entries, 0.into());
        let mut tail = self.allocator.finish(l1_clusters)?;
        if l1_clusters == 0 {
            tail.l1_offset = 0;
        }
        write_table(&*self.storage, tail.l1_offset, self.l1.as_bytes())?;
        Ok(tail)
    }
}

/// Zeros from `offset` to the end of its cluster, where something old may stand.
fn clear_rest(storage: &dyn StorageMut, offset: u64, cluster_size: u64) -> Result<()> {
    let rest = offset.next_multiple_of(cluster_size) - offset;
    if rest == 0 || storage.is_blank() {
        return Ok(());
    }
    storage.write_at(offset, &vec![0; rest as usize])
}
