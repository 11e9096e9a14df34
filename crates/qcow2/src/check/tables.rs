//! L1 and L2 tables: the active ones, and those of snapshots.

use std::fmt::Display;

use goldsmith_block::{Budget, HostRange, Result, SECTOR};
use goldsmith_codec::Unpacker;

use super::Check;
use super::count::{DATA, TABLE};
use crate::error::Qcow2Error;
use crate::geometry::{DataPlace, l1_entries_for, mapped_bits};
use crate::layer::Head;
use crate::mapping::packed_place;
use crate::ondisk::{self, COMPRESSED, COPIED, OFFSET, ZERO};
use crate::snapshot::Snapshots;

/// Packed clusters in which the file ends. [ours] Those of honest images share its last sector.
const PACKED_AT_END: usize = 64;

/// An L2 table, as an L1 table names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    /// Byte offset, a multiple of the cluster size.
    offset: u64,
    /// The guest byte that its first entry is about.
    guest: u64,
    /// Bytes of the disk, or of the state of a machine, from its first cluster on.
    visible: u64,
    /// Whether the active L1 table names it.
    active: bool,
}

/// An L2 table and everything that is known of those who name it.
#[derive(Clone, Copy)]
struct Table {
    offset: u64,
    /// The guest byte that its first entry is about, for the first of those.
    guest: u64,
    /// The most bytes that any disk has from its first cluster on.
    visible: u64,
    /// How often it is named.
    times: u64,
    /// How often the active L1 table names it.
    active: u64,
}

impl Check<'_> {
    /// Looks at all tables. Each L2 table is read once, whoever names it and however often: a small
    /// file may name its tables very often.
    pub(super) fn check_tables(
        &mut self,
        head: &Head,
        snapshots: &Snapshots,
        budget: &Budget,
    ) -> Result<()> {
        let mut named = Vec::new();
        let l1 = (head.raw.l1_table_offset.get(), head.raw.l1_size.get());
        let sizes = (self.geometry.virtual_size, 0);
        let what = "the active L1 table";
        self.check_l1(l1, sizes, true, what, &mut named, budget)?;
        for (info, entry) in snapshots.infos.iter().zip(&snapshots.entries) {
            let l1 = entry.l1_table();
            let what = format!("the L1 table of snapshot '{}'", info.id);
            let (cluster_size, bytes) = (self.geometry.cluster_size(), u64::from(l1.1) * 8);
            if !l1.0.is_multiple_of(cluster_size) {
                let text = format_args!("{what} is at {:#x}, no multiple of {cluster_size}", l1.0);
                self.checked.corruption(text);
                self.counts.note_table(what);
            } else if bytes > ondisk::L1_BYTES {
                let limit = ondisk::L1_BYTES;
                let text = format_args!("{what} takes {bytes} bytes, over the {limit} allowed");
                self.checked.corruption(text);
                self.counts.note_table(what);
            } else {
                self.check_length(&what, l1.1, (info.virtual_size, entry.says_size()));
                let sizes = (info.virtual_size, info.vm_state_len);
                self.check_l1(l1, sizes, false, &what, &mut named, budget)?;
            }
        }
        named.sort_unstable();
        for same in named.chunk_by(|a, b| a.offset == b.offset) {
            if self.geometry.has_data_file() {
                // It says where the guest's bytes are for one of them at most.
                for other in &same[1..] {
                    let (host, guest) = (same[0].guest, other.guest);
                    self.broken(1, &Qcow2Error::Misplaced { host, guest });
                }
            }
            let visible = same.iter().map(|named| named.visible).max();
            self.check_l2(Table {
                offset: same[0].offset,
                guest: same[0].guest,
                visible: visible.unwrap_or(0),
                times: same.len() as u64,
                active: same.iter().filter(|named| named.active).count() as u64,
            })?;
        }
        Ok(())
    }

    /// Whether `what`, of so many `entries`, maps all of a disk; of one whose size nobody says it may map less.
    fn check_length(&mut self, what: &str, entries: u32, (size, is_said): (u64, bool)) {
        let (bits, extended) = (self.geometry.cluster_bits, self.geometry.extended_l2);
        let need = l1_entries_for(size, bits, extended);
        if is_said && u64::from(entries) < need {
            let text = format_args!("{what} has {entries} entries; the disk size needs {need}");
            self.checked.corruption(text);
            // What it maps no more has no other owner.
            self.counts.note_table(what);
        }
    }

    fn check_l1(
        &mut self,
        (offset, entries): (u64, u32),
        (virtual_size, vm_state_len): (u64, u64),
        active: bool,
        what: &str,
        named: &mut Vec<Named>,
        budget: &Budget,
    ) -> Result<()> {
        let len = u64::from(entries) * 8;
        // Any number of snapshots may name one table: the time for it is limited, too.
        budget.reserve(len, "L1 tables")?;
        self.add((offset, len), what);
        let end = offset.saturating_add(len);
        let missing = end.saturating_sub(self.geometry.file_len);
        if len > 0 && missing > 0 {
            self.counts.note_table(what);
        }
        // If it is more, that was told already.
        if (1..self.geometry.cluster_size()).contains(&missing) {
            self.cut_off("L1 table", (offset, len), 1);
        }
        let mapped = mapped_bits(self.geometry.cluster_bits, self.geometry.extended_l2);
        // The state of a machine begins with a table of its own. [spec]
        let disk_tables = virtual_size.div_ceil(1 << mapped);
        self.each_entry((offset, len), 1, |check, index, entry| {
            let entry = entry[0];
            if entry == 0 {
                return Ok(());
            }
            let reserved = entry & !(OFFSET | COPIED);
            if reserved != 0 {
                let table = "L1";
                check.broken(
                    1,
                    &Qcow2Error::ReservedBits {
                        table,
                        entry,
                        reserved,
                    },
                );
            }
            let (offset, cluster_size) = (entry & OFFSET, check.geometry.cluster_size());
            let l2 = format_args!("L2 table {index} of {what}");
            if offset == 0 {
                check.broken(1, &Qcow2Error::NoOffset { table: "L1", entry });
                check.counts.note_table(l2);
                return Ok(());
            }
            let place = (offset, cluster_size);
            check.counts.add(place, TABLE, 1, &mut check.checked, l2);
            if active {
                let once = check.is_once(offset >> check.geometry.cluster_bits)?;
                check.check_copied(1, entry, once, l2);
            }
            if !offset.is_multiple_of(cluster_size) {
                check.broken(
                    1,
                    &Qcow2Error::Misaligned {
                        table: "L1",
                        entry,
                        offset,
                        cluster_size,
                    },
                );
                check.counts.note_table(l2);
                return Ok(());
            }
            if offset < check.geometry.file_len {
                let cost = size_of::<Named>() as u64;
                budget.reserve(cost, "list of L2 tables")?;
                // An L1 table has 2^22 entries or fewer, and a table maps less than 2^40 bytes.
                let visible = match index.checked_sub(disk_tables) {
                    None => virtual_size - (index << mapped),
                    Some(nth) => vm_state_len.saturating_sub(nth << mapped),
                };
                named.push(Named {
                    offset,
                    guest: index << mapped,
                    visible,
                    active,
                });
            } else {
                check.counts.note_table(l2);
            }
            Ok(())
        })
    }

    fn check_l2(&mut self, table: Table) -> Result<()> {
        let geometry = self.geometry;
        let numbers = (1usize << geometry.entry_bits()) / 8;
        let clusters = table.visible.div_ceil(geometry.cluster_size());
        let needed = clusters.saturating_mul(1 << geometry.entry_bits());
        let needed = needed.min(geometry.cluster_size());
        // [ours] QEMU takes what is missing for zeros.
        if table.offset + needed > geometry.file_len {
            let l2 = format_args!("the L2 table at {:#x}", table.offset);
            self.counts.note_table(l2);
            self.cut_off("L2 table", (table.offset, needed), table.times);
        }
        let place = (table.offset, geometry.cluster_size());
        let mut next = None;
        self.each_entry(place, numbers, |check, index, entry| {
            let bitmap = entry.get(1).copied().unwrap_or(0);
            let entry = entry[0];
            if entry == 0 && bitmap == 0 {
                return Ok(());
            }
            if entry & COMPRESSED != 0 {
                check.check_packed(table, index, entry, bitmap);
                return Ok(());
            }
            check.check_standard(table, index, entry, bitmap, &mut next)
        })
    }

    /// Tells of a table in which the file ends.
    fn cut_off(&mut self, table: &'static str, (offset, len): (u64, u64), times: u64) {
        let file_len = self.geometry.file_len;
        self.broken(
            times,
            &Qcow2Error::TableTruncated {
                table,
                offset,
                len,
                file_len,
            },
        );
    }

    fn check_packed(&mut self, table: Table, index: u64, entry: u64, bitmap: u64) {
        let cluster = cluster(table, index);
        let checked = &mut self.checked;
        if entry & COPIED != 0 {
            let text = format_args!("{cluster}, {entry:#018x}, is packed, but says it is copied");
            checked.corruption_in(table.times, text);
        }
        if self.geometry.data != DataPlace::Here {
            return self.broken(table.times, &Qcow2Error::PackedElsewhere { entry });
        }
        if bitmap != 0 {
            return self.broken(
                table.times,
                &subclusters(entry, bitmap, "a compressed cluster has no subclusters"),
            );
        }
        let host = packed_place(entry, self.geometry.cluster_bits);
        let file_len = self.geometry.file_len;
        let missing = host.end().saturating_sub(file_len);
        // If it is more, that is told below.
        if (1..self.geometry.cluster_size()).contains(&missing)
            && self.at_end.len() <= PACKED_AT_END
        {
            self.at_end.insert((host.offset, host.len));
        }
        self.counts
            .add((host.offset, host.len), DATA, table.times, checked, cluster);
        checked.allocated += table.active;
        checked.compressed += table.active;
        // They are never aligned. [qemu]
        checked.fragmented += table.active;
    }

    /// `next` is where the next cluster of the table stands if it is not fragmented.
    fn check_standard(
        &mut self,
        table: Table,
        index: u64,
        entry: u64,
        bitmap: u64,
        next: &mut Option<u64>,
    ) -> Result<()> {
        let (geometry, times) = (self.geometry, table.times);
        // With subclusters, the bitmap says what reads as zeros.
        let zero = if geometry.extended_l2 {
            0
        } else {
            entry & ZERO
        };
        let reserved = entry & !(OFFSET | COPIED | zero);
        if reserved != 0 {
            // [ours] With subclusters, QEMU does not mind the bit for zeros.
            let table = "L2";
            self.broken(
                times,
                &Qcow2Error::ReservedBits {
                    table,
                    entry,
                    reserved,
                },
            );
        }
        if zero != 0 && geometry.version < 3 {
            // [ours] QEMU finds nothing here, but does not read the cluster either.
            self.broken(times, &Qcow2Error::ZeroFlag { entry });
        }
        let (offset, cluster_size) = (entry & OFFSET, geometry.cluster_size());
        let here = geometry.data == DataPlace::Here;
        if offset == 0 && entry & COPIED != 0 && here {
            // [ours] QEMU does not mind: nothing is there.
            self.broken(times, &Qcow2Error::NoOffset { table: "L2", entry });
        }
        if offset == 0 && (here || zero != 0 || entry & COPIED == 0) {
            if bitmap & u64::from(u32::MAX) != 0 {
                let rule = "a subcluster is data, but the cluster has no place";
                self.broken(times, &subclusters(entry, bitmap, rule));
            }
            return Ok(());
        }
        if (bitmap >> 32) & bitmap != 0 {
            let rule = "a subcluster is both data and zeros";
            self.broken(times, &subclusters(entry, bitmap, rule));
        }
        if !offset.is_multiple_of(cluster_size) {
            self.broken(
                times,
                &Qcow2Error::Misaligned {
                    table: "L2",
                    entry,
                    offset,
                    cluster_size,
                },
            );
        }
        let guest = table.guest + (index << geometry.cluster_bits);
        if !here && offset != guest {
            let host = offset;
            self.broken(times, &Qcow2Error::Misplaced { host, guest });
        }
        self.checked.allocated += table.active;
        if next.is_some_and(|next| next != offset) {
            self.checked.fragmented += table.active;
        }
        *next = Some(offset + cluster_size);
        let cluster = cluster(table, index);
        if here {
            let place = (offset, cluster_size);
            self.counts
                .add(place, DATA, times, &mut self.checked, &cluster);
            if zero == 0 {
                self.check_presence(table, index, offset, bitmap);
            }
        }
        if table.active > 0 {
            // Clusters of another file have no refcounts, and belong to one entry only. [spec]
            let once = match here {
                true => self.is_once(offset >> geometry.cluster_bits)?,
                false => Some(true),
            };
            self.check_copied(table.active, entry, once, cluster);
        }
        Ok(())
    }

    /// [ours] The file has every byte of a cluster that the guest can see; QEMU takes those behind
    /// its end for zeros if they are less than a cluster.
    fn check_presence(&mut self, table: Table, index: u64, offset: u64, bitmap: u64) {
        let (geometry, file_len) = (self.geometry, self.geometry.file_len);
        let cluster_size = geometry.cluster_size();
        let last = match geometry.extended_l2 {
            // Bytes up to the end of the last subcluster of data.
            true => u64::from(32 - (bitmap as u32).leading_zeros()) << geometry.status_bits(),
            false => cluster_size,
        };
        let visible = table.visible.saturating_sub(index << geometry.cluster_bits);
        let need = offset + last.min(visible);
        // What ends farther away was counted already.
        if need > file_len && offset + cluster_size - file_len < cluster_size {
            let cluster = cluster(table, index);
            self.checked.corruption_in(
                table.times,
                format_args!("{cluster} ends at {need:#x}, but the file at {file_len:#x}"),
            );
            self.counts.note_lost(file_len);
        }
    }

    /// [ours] What is packed and reaches behind the end of the file is whole: old writers did not fill up
    /// the last sector, and what a cluster takes is an upper bound. QEMU takes what is missing for zeros;
    /// once the file is longer it is, and the cluster may unpack to something else.
    pub(super) fn check_packed_at_end(&mut self, budget: &Budget) -> Result<()> {
        let (codec, file_len) = (self.geometry.codec, self.geometry.file_len);
        let all = std::mem::take(&mut self.at_end);
        if all.is_empty() {
            return Ok(());
        }
        let mut unit: Vec<u8> = budget.zeroed(self.geometry.cluster_size(), "packed cluster")?;
        let mut unpacker = Unpacker::new();
        // One after the other, they begin in the last sector, but for the first of them.
        let sectors = SECTOR * PACKED_AT_END as u64;
        let mut room = 2 * self.geometry.cluster_size() + sectors;
        for (nth, (offset, len)) in all.into_iter().enumerate() {
            let host = HostRange::new(offset, len);
            let there = file_len.saturating_sub(offset);
            let left = room.checked_sub(there).filter(|_| nth < PACKED_AT_END);
            let Some(left) = left else {
                self.checked.corruption(format_args!(
                    "more packed clusters than the last sector can share end behind the file, at \
                     {file_len:#x}"
                ));
                self.counts.note_lost(file_len);
                break;
            };
            room = left;
            // At most two clusters.
            let mut packed = vec![0; there as usize];
            if !packed.is_empty() {
                self.storage.read_at(offset, &mut packed)?;
            }
            if let Err(source) = unpacker.unpack(codec, &packed, &mut unit) {
                let error = Qcow2Error::UnpackTruncated {
                    host,
                    file_len,
                    source,
                };
                self.broken(1, &error);
                self.counts.note_lost(file_len);
            }
        }
        Ok(())
    }

    /// The copied flag of `entry`, an L1 or L2 entry, says whether the refcount is one; `once` is
    /// whether it is, as far as that can be known.
    fn check_copied(&mut self, places: u64, entry: u64, once: Option<bool>, what: impl Display) {
        let copied = entry & COPIED != 0;
        if once.is_some_and(|once| once != copied) {
            let (not, is) = if copied { ("", "not ") } else { ("not ", "") };
            self.checked.corruption_in(
                places,
                format_args!(
                    "{what}, {entry:#018x}, is {not}marked as copied, but its refcount is {is}one"
                ),
            );
        }
    }
}

/// What a message calls entry `index` of `table`.
fn cluster(table: Table, index: u64) -> impl Display {
    let offset = table.offset;
    std::fmt::from_fn(move |f| write!(f, "entry {index} of the L2 table at {offset:#x}"))
}

fn subclusters(entry: u64, bitmap: u64, rule: &'static str) -> Qcow2Error {
    Qcow2Error::SubclusterBitmap {
        entry,
        bitmap,
        rule,
    }
}
