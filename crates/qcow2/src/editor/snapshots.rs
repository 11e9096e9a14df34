//! Taking, applying and forgetting internal snapshots.

use std::collections::BTreeMap;

use goldsmith_block::{Error, HostRange, Result};
use zerocopy::IntoBytes;

use super::draft::{Draft, offset_of};
use super::tables::{L1, REMEMBERED};
use crate::error::Qcow2Error;
use crate::geometry::l1_entries_for;
use crate::ondisk::{self, COPIED, RawSnapshot, RawSnapshotExtra};
use crate::snapshot::{Entry, Snapshots};

/// Longest name of a snapshot, in bytes. [qemu] Longer ones are cut when they are read.
const NAME_BYTES: usize = 255;

impl Draft {
    /// Keeps the disk as it is under `name`.
    ///
    /// # Errors
    /// `Usage` if the image can have no (more) such snapshot; `Limit` if a cluster is used as often
    /// as can be counted.
    pub(super) fn take_snapshot(
        &mut self,
        snapshots: &Snapshots,
        name: &str,
        (seconds, nanoseconds): (u32, u32),
    ) -> Result<()> {
        if self.geometry.has_data_file() {
            let text = "an image whose data stands in a file of its own cannot have snapshots";
            return Err(Error::usage(text));
        }
        if name.is_empty() || name.len() > NAME_BYTES {
            let len = name.len();
            let text = format!("a snapshot's name has 1 to {NAME_BYTES} bytes; this one has {len}");
            return Err(Error::usage(text));
        }
        if snapshots.entries.len() as u64 >= ondisk::SNAPSHOTS {
            let limit = ondisk::SNAPSHOTS;
            let text = format!("the image has {limit} snapshots, it cannot have more");
            return Err(Error::usage(text));
        }
        let mut l1 = self.l1()?;
        let need = self.disk_entries();
        self.share_tables(&mut l1, need)?;
        let kept: Vec<u64> = l1.entries[..need]
            .iter()
            .map(|entry| offset_of(*entry))
            .collect();
        let l1_offset = self.write_table("L1 table of the snapshot", &kept)?;
        self.put_l1(l1)?;

        let extra = RawSnapshotExtra {
            vm_state_len: 0.into(),
            virtual_size: self.geometry.virtual_size.into(),
            instructions: u64::MAX.into(),
        };
        let id = next_id(snapshots);
        let mut entries = snapshots.entries.clone();
        entries.push(Entry {
            raw: RawSnapshot {
                l1_offset: l1_offset.into(),
                // At most the limit of the table.
                l1_len: (kept.len() as u32).into(),
                // Ten digits, and a name that was measured.
                id_len: (id.len() as u16).into(),
                name_len: (name.len() as u16).into(),
                seconds: seconds.into(),
                nanoseconds: nanoseconds.into(),
                vm_clock: 0.into(),
                vm_state_len: 0.into(),
                extra_len: (size_of::<RawSnapshotExtra>() as u32).into(),
            },
            extra: extra.as_bytes().to_vec(),
            id: id.into_bytes(),
            name: name.into(),
        });
        self.put_snapshots(snapshots, &entries)
    }

    /// Lets a snapshot use the first `count` L2 tables and all that they name, too: one use more of
    /// each, and no entry that says that there is only one. A table that several L1 entries name stays
    /// one.
    fn share_tables(&mut self, l1: &mut L1, count: usize) -> Result<()> {
        let mut shared = BTreeMap::new();
        for index in 0..count {
            let table = offset_of(l1.entries[index]);
            if table == 0 {
                continue;
            }
            if let Some((new, more)) = shared.get_mut(&table) {
                *more += 1;
                let new = *new;
                self.redirect(l1, index, new)?;
                l1.entries[index] = new;
                continue;
            }
            self.budget.reserve(REMEMBERED, "L2 tables")?;
            self.share_table(l1, index)?;
            shared.insert(table, (offset_of(l1.entries[index]), 0));
        }
        for (table, more) in shared.into_values() {
            if table != 0 && more > 0 {
                self.add_tree(table, more)?;
            }
        }
        Ok(())
    }

    /// As [`share_tables`](Self::share_tables), for the one that L1 entry `index` names.
    fn share_table(&mut self, l1: &mut L1, index: usize) -> Result<()> {
        let table = offset_of(l1.entries[index]);
        let mut entries = self.read_l2(table)?;
        let mut copied = 0;
        for entry in entries.iter_mut().step_by(self.numbers()) {
            copied |= *entry & COPIED;
            *entry &= !COPIED;
        }
        if copied != 0 {
            self.put_l2(l1, index, &entries)?;
        }
        let table = offset_of(l1.entries[index]);
        l1.entries[index] = table;
        match table {
            // All that it held was that flag.
            0 => Ok(()),
            table => self.add_tree(table, 1),
        }
    }

    /// Makes the disk what snapshot `index` kept.
    ///
    /// # Errors
    /// `Usage` if there is no such snapshot, or if there are bitmaps; `Corrupt` if its L1 table breaks a rule.
    pub(super) fn apply_snapshot(&mut self, snapshots: &Snapshots, index: usize) -> Result<()> {
        let entry = entry(snapshots, index)?;
        if self.header.bitmaps().is_some() {
            // What differs between the two states is nowhere recorded. [qemu]
            let text = "the image has bitmaps, which would not know what the snapshot changes";
            return Err(Error::usage(text));
        }
        let virtual_size = snapshots.infos[index].virtual_size;
        let (offset, len) = (entry.raw.l1_offset.get(), entry.raw.l1_len.get());
        let geometry = self.geometry.at_snapshot(offset, len, virtual_size)?;
        // Not what stands behind the disk, which is the state of a virtual machine.
        let kept = self.read_l1(offset, geometry.l1.len / 8)?;
        let mut l1 = self.l1()?;
        self.add_trees(&kept)?;
        self.sub_trees(&l1.entries)?;
        l1.entries = kept;
        self.settle_copied(&mut l1)?;
        self.header.raw.size = virtual_size.into();
        self.put_l1(l1)
    }

    /// Forgets snapshot `index`.
    ///
    /// # Errors
    /// `Usage` if there is no such snapshot.
    pub(super) fn delete_snapshot(&mut self, snapshots: &Snapshots, index: usize) -> Result<()> {
        let entry = entry(snapshots, index)?;
        let (offset, len) = (entry.raw.l1_offset.get(), entry.raw.l1_len.get());
        let kept = self.read_l1(offset, len.into())?;
        self.sub_trees(&kept)?;
        self.sub(HostRange::new(offset, u64::from(len) * 8))?;
        let mut l1 = self.l1()?;
        self.settle_copied(&mut l1)?;
        self.put_l1(l1)?;
        let mut entries = snapshots.entries.clone();
        entries.remove(index);
        self.put_snapshots(snapshots, &entries)
    }

    /// Puts a snapshot table of `entries` in the place of the old one.
    pub(super) fn put_snapshots(&mut self, old: &Snapshots, entries: &[Entry]) -> Result<()> {
        self.sub(HostRange::new(self.geometry.snapshots_offset, old.len))?;
        let mut bytes = Vec::new();
        for entry in entries {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes.extend(entry.bytes());
        }
        let (len, limit) = (bytes.len() as u64, ondisk::SNAPSHOT_TABLE_BYTES);
        if len > limit {
            return Err(Qcow2Error::TableTooLong {
                table: "snapshot table",
                bytes: len,
                limit,
            }
            .into());
        }
        let offset = self.write_bytes("snapshot table", &bytes)?;
        self.header.raw.snapshots_offset = offset.into();
        // At most the limit.
        self.header.raw.nb_snapshots = (entries.len() as u32).into();
        Ok(())
    }

    /// Entries of the active L1 table that the disk needs.
    pub(super) fn disk_entries(&self) -> usize {
        let Self { geometry, .. } = self;
        let (bits, extended) = (geometry.cluster_bits, geometry.extended_l2);
        // At most the limit of the table.
        l1_entries_for(geometry.virtual_size, bits, extended) as usize
    }
}

fn entry(snapshots: &Snapshots, index: usize) -> Result<&Entry, Qcow2Error> {
    let count = snapshots.entries.len();
    let missing = Qcow2Error::NoSnapshot { index, count };
    snapshots.entries.get(index).ok_or(missing)
}

/// An id that no snapshot has: one more than the greatest number among them. [qemu]
fn next_id(snapshots: &Snapshots) -> String {
    let ids = snapshots
        .infos
        .iter()
        .map(|info| info.id.parse().unwrap_or(0u32));
    ids.max().map_or(1, |id| u64::from(id) + 1).to_string()
}
