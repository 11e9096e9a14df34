//! Checking: how often everything in the file is used, against how often the refcounts say so.
//!
//! Counting follows QEMU's, so that both find the same number of flaws in an image; what only we
//! find is said where it is. [qemu]

mod count;
mod tables;

use std::collections::BTreeSet;

use byteorder::{BE, ByteOrder};
use goldsmith_block::{Budget, Checked, ErrorKind, Result, SECTOR, Storage};

use crate::bitmap::{Bitmap, Place, place};
use crate::crypt::read_luks;
use crate::error::Qcow2Error;
use crate::geometry::{DataPlace, Encryption, Geometry};
use crate::layer::Head;
use crate::ondisk::{self, REFCOUNT_RESERVED};
use crate::refcount::Block;
use crate::snapshot::Snapshots;
use crate::table::read_up_to_end;
pub(crate) use count::Counts;
use count::{ONCE, SOLE, UNREADABLE};

/// Bytes of a table that are read together. [ours]
const PIECE: u64 = 64 << 10;

/// Checks the image in `storage`; see [`Format::check`](goldsmith_block::Format::check).
///
/// # Cost
/// Reads every table once, and refcount blocks twice, however often they are named.
pub(crate) fn check(storage: &dyn Storage, budget: &Budget) -> Result<Checked> {
    Ok(survey(storage, budget, Refcounts::Judged)?.checked)
}

/// What all tables say.
pub(crate) struct Survey {
    pub(crate) checked: Checked,
    /// How often every cluster is used.
    pub(crate) uses: Counts,
    /// Whether refcount blocks are where none can be: all refcounts must be counted anew.
    pub(crate) refcounts_lost: bool,
}

/// What becomes of the refcounts in a [`survey`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refcounts {
    /// They are compared with what was counted, and use clusters themselves.
    Judged,
    /// Nobody looks at them, and they use nothing.
    Ignored,
}

/// Looks at all tables.
///
/// # Errors
/// Those of [`check`].
pub(crate) fn survey(
    storage: &dyn Storage,
    budget: &Budget,
    refcounts: Refcounts,
) -> Result<Survey> {
    let head = Head::read(storage)?;
    let snapshots = Snapshots::read(storage, &head.geometry, budget)?;
    let geometry = &head.geometry;
    if geometry.data != DataPlace::Here && head.extensions.data_file.is_none() {
        return Err(Qcow2Error::DataFileNameless.into());
    }
    // Of a cipher that is not done nothing needs to be known here.
    if let Err(error) = read_luks(storage, geometry)
        && error.kind() == ErrorKind::Corrupt
    {
        return Err(error);
    }
    let mut check = Check {
        storage,
        geometry,
        refcount_table: (
            head.raw.refcount_table_offset.get(),
            u64::from(head.raw.refcount_table_clusters.get()) << geometry.cluster_bits,
        ),
        counts: Counts::new(geometry, budget)?,
        checked: Checked {
            // QEMU drops what is left of a disk behind its last sector. [qemu]
            units: (geometry.virtual_size / SECTOR * SECTOR).div_ceil(geometry.cluster_size()),
            ..Checked::default()
        },
        refcounts_lost: false,
        at_end: BTreeSet::new(),
    };
    check.mark_refcounts()?;
    let cluster_size = geometry.cluster_size();
    check.add((0, cluster_size), "the header");
    check.check_tables(&head, &snapshots, budget)?;
    check.check_snapshots(&snapshots);
    if refcounts == Refcounts::Judged {
        check.add(check.refcount_table, "the refcount table");
    }
    if let Encryption::Luks { header } = geometry.encryption {
        check.add((header.offset, header.len), "the LUKS header");
    }
    check.check_bitmaps(&head, budget)?;
    check.check_packed_at_end(budget)?;
    if refcounts == Refcounts::Judged {
        let before = check.checked.corruptions;
        check.check_refcount_blocks()?;
        check.refcounts_lost = check.checked.corruptions > before;
        check.compare()?;
    }
    Ok(Survey {
        checked: check.checked,
        uses: check.counts,
        refcounts_lost: check.refcounts_lost,
    })
}

/// A check in progress.
struct Check<'a> {
    storage: &'a dyn Storage,
    geometry: &'a Geometry,
    /// Offset and length of the refcount table, which is in the file.
    refcount_table: (u64, u64),
    counts: Counts,
    checked: Checked,
    refcounts_lost: bool,
    /// Offset and length of the packed clusters in which the file ends.
    at_end: BTreeSet<(u64, u64)>,
}

impl Check<'_> {
    /// Counts a use by something that shares its clusters with nothing.
    fn add(&mut self, place: (u64, u64), what: impl std::fmt::Display) {
        self.counts.add(place, SOLE, 1, &mut self.checked, what);
    }

    fn check_snapshots(&mut self, snapshots: &Snapshots) {
        for index in &snapshots.incomplete {
            self.checked.corruption(format_args!(
                "entry {index} of the snapshot table does not say how large the disk was"
            ));
        }
        if self.geometry.data != DataPlace::Here && self.geometry.snapshots > 0 {
            let count = self.geometry.snapshots;
            self.checked.corruption(format_args!(
                "there are {count} snapshots, but data stands in another file"
            ));
        }
        let place = (self.geometry.snapshots_offset, snapshots.len);
        self.add(place, "the snapshot table");
    }

    /// The directory, the tables and the clusters of bitmaps, unless those are out of date: then
    /// whatever they take is lost.
    fn check_bitmaps(&mut self, head: &Head, budget: &Budget) -> Result<()> {
        let Some(raw) = &head.extensions.bitmaps else {
            return Ok(());
        };
        if !self.geometry.bitmaps_valid {
            return Ok(());
        }
        let directory = (raw.directory_offset.get(), raw.directory_len.get());
        self.add(directory, "the bitmap directory");
        for bitmap in Bitmap::read_all(raw, self.storage, self.geometry, budget)? {
            let cluster_size = self.geometry.cluster_size();
            let ((offset, entries), name) = (bitmap.table, &bitmap.name);
            let (len, reserved) = (u64::from(entries) * 8, bitmap.flags & !ondisk::BITMAP_FLAGS);
            if reserved != 0 {
                self.checked.corruption(format_args!(
                    "bitmap '{name}' has reserved flags set: {reserved:#x}"
                ));
            } else if let Err(error) = bitmap.check_rules(cluster_size) {
                // [qemu] It refuses the image.
                self.checked.corruption(error);
            }
            let table = format_args!("the table of bitmap '{name}'");
            let is_aligned = offset.is_multiple_of(cluster_size);
            if !is_aligned {
                let text = format_args!("{table} is at {offset:#x}, no multiple of {cluster_size}");
                self.checked.corruption(text);
            }
            // Any number of bitmaps may name one table: the time for it is limited, too.
            budget.reserve(len, "bitmap tables")?;
            self.add((offset, len), table);
            if !is_aligned || offset.saturating_add(len) > self.geometry.file_len {
                self.counts.note_table(table);
            }
            self.each_entry((offset, len), 1, |check, index, entry| {
                let entry = entry[0];
                match place(entry, index, check.geometry) {
                    Err(_) => check.checked.corruption(format_args!(
                        "entry {index} of bitmap '{name}', {entry:#018x}, has reserved bits set or \
                         a place that is no multiple of {cluster_size}"
                    )),
                    Ok(Place::At(place)) => {
                        let what = format_args!("entry {index} of bitmap '{name}'");
                        check.add((place, cluster_size), what);
                        let need = place.saturating_add(bitmap.bytes_at(index, cluster_size));
                        let file_len = check.geometry.file_len;
                        // What ends farther away was counted already.
                        if need > file_len && place + cluster_size - file_len < cluster_size {
                            // [ours] QEMU takes what is missing for zeros.
                            check.checked.corruption(format_args!(
                                "{what} ends at {need:#x}, but the file at {file_len:#x}"
                            ));
                            check.counts.note_lost(file_len);
                        }
                    }
                    Ok(Place::Zeros | Place::Ones) => {}
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Every refcount block in the file, at a cluster, and used once.
    fn check_refcount_blocks(&mut self) -> Result<()> {
        let cluster_size = self.geometry.cluster_size();
        self.each_entry(self.refcount_table, 1, |check, index, entry| {
            let (entry, place) = (entry[0], entry[0] & !REFCOUNT_RESERVED);
            let checked = &mut check.checked;
            if entry & REFCOUNT_RESERVED != 0 {
                checked.corruption(format_args!(
                    "entry {index} of the refcount table, {entry:#018x}, has reserved bits set"
                ));
            } else if !place.is_multiple_of(cluster_size) {
                checked.corruption(format_args!(
                    "refcount block {index} is at {place:#x}, no multiple of {cluster_size}"
                ));
            } else if place >> check.geometry.cluster_bits >= check.counts.clusters {
                checked.corruption(format_args!(
                    "refcount block {index} is at {place:#x}, but the file ends at {:#x}",
                    check.geometry.file_len
                ));
            } else if place != 0 {
                let what = format_args!("refcount block {index}");
                let counts = &mut check.counts;
                // Not the only use of the cluster: that is told here already.
                counts.add((place, cluster_size), 0, 1, checked, what);
                let count = counts.get(place >> check.geometry.cluster_bits);
                if count != 1 {
                    checked.corruption(format_args!(
                        "refcount block {index} is at {place:#x}, which is used {count} times"
                    ));
                }
            }
            Ok(())
        })
    }

    /// Notes of each cluster what the check of the copied flags needs to know of its refcount.
    fn mark_refcounts(&mut self) -> Result<()> {
        self.each_block(|check, first, block| {
            let last = check.counts.clusters.min(first + block_len(check.geometry));
            for cluster in first..last {
                match block {
                    Some(block) if block.get(cluster - first) == 1 => {
                        check.counts.mark(cluster, ONCE);
                    }
                    Some(_) => {}
                    None => check.counts.mark(cluster, UNREADABLE),
                }
            }
            Ok(())
        })
    }

    /// Compares what was counted with what is stored.
    fn compare(&mut self) -> Result<()> {
        // The header's, in any case. [qemu]
        let mut used = 1;
        self.each_block(|check, first, block| {
            let bits = check.geometry.cluster_bits;
            let last = check.counts.clusters.min(first + block_len(check.geometry));
            for cluster in first..last {
                let (at, count) = (cluster << bits, check.counts.get(cluster));
                let checked = &mut check.checked;
                let Some(block) = block else {
                    checked.errors += 1;
                    continue;
                };
                let stored = block.get(cluster - first);
                if stored > 0 || count > 0 {
                    used = cluster + 1;
                }
                let text =
                    format_args!("cluster {cluster} at {at:#x}: refcount {stored}, uses {count}");
                if stored < count {
                    checked.corruption(text);
                    continue;
                }
                if stored > count {
                    checked.leak(1, text);
                }
                if check.counts.conflict(cluster) {
                    // [ours] QEMU sees nothing wrong as long as the numbers match.
                    checked.corruption(format_args!("{text}, which cannot share it"));
                }
            }
            Ok(())
        })?;
        self.checked.end = used << self.geometry.cluster_bits;
        Ok(())
    }

    /// Calls `body` with each row of clusters that a refcount block counts: the first one, and the
    /// block; `None` if that cannot be read because its place is none.
    fn each_block(
        &mut self,
        mut body: impl FnMut(&mut Self, u64, Option<&Block>) -> Result<()>,
    ) -> Result<()> {
        let order = self.geometry.refcount_bits.trailing_zeros();
        let mut block = Block::new(self.geometry.cluster_bits, order);
        let len = block.len();
        // Those that something uses while this goes on are not many more: one.
        for number in 0..self.counts.clusters.div_ceil(len) {
            let place = self.block_place(number)?;
            if let Some(place) = place {
                read_up_to_end(self.storage, place, &mut block.bytes)?;
            }
            body(self, number * len, place.map(|_| &block))?;
        }
        Ok(())
    }

    /// Where refcount block `number` is said to stand, the end of the file if it is not there;
    /// `None` if that is inside a cluster.
    fn block_place(&self, number: u64) -> Result<Option<u64>> {
        let (table, len) = self.refcount_table;
        let mut entry = [0; 8];
        if number < len / 8 {
            self.storage.read_at(table + number * 8, &mut entry)?;
        }
        let place = BE::read_u64(&entry) & !REFCOUNT_RESERVED;
        Ok(match place {
            0 => Some(self.geometry.file_len),
            place if place.is_multiple_of(self.geometry.cluster_size()) => Some(place),
            _ => None,
        })
    }

    /// Whether the refcount of `cluster`, as stored, is one; `None` if that cannot be known.
    fn is_once(&self, cluster: u64) -> Result<Option<bool>> {
        if cluster
            < self
                .geometry
                .file_len
                .div_ceil(self.geometry.cluster_size())
            && let Some(flags) = self.counts.flags(cluster)
        {
            return Ok((flags & UNREADABLE == 0).then_some(flags & ONCE != 0));
        }
        // Behind the end of the file.
        let len = block_len(self.geometry);
        let Some(place) = self.block_place(cluster / len)? else {
            return Ok(None);
        };
        let order = self.geometry.refcount_bits.trailing_zeros();
        let bit = (cluster % len) << order;
        let mut bytes = vec![0; (1usize << order).div_ceil(8)];
        read_up_to_end(self.storage, place.saturating_add(bit / 8), &mut bytes)?;
        // Narrow ones share their byte.
        let counter = Block::holding(bytes, order);
        Ok(Some(counter.get((bit % 8) >> order) == 1))
    }

    /// Calls `body` with each entry of `numbers` numbers in the table at `offset`, as far as the
    /// file holds it, and its index. The bytes that an entry lacks are zeros, as for any reader once
    /// the file is longer.
    fn each_entry(
        &mut self,
        (offset, len): (u64, u64),
        numbers: usize,
        mut body: impl FnMut(&mut Self, u64, &[u64]) -> Result<()>,
    ) -> Result<()> {
        let end = offset.saturating_add(len).min(self.geometry.file_len);
        let (mut at, mut index) = (offset, 0);
        let mut bytes = vec![0; PIECE.min(len) as usize];
        let mut entries = vec![0; bytes.len() / 8];
        while at < end {
            let count = (end - at)
                .min(PIECE)
                .div_ceil(8)
                .next_multiple_of(numbers as u64) as usize;
            let (bytes, entries) = (&mut bytes[..count * 8], &mut entries[..count]);
            read_up_to_end(self.storage, at, bytes)?;
            BE::read_u64_into(bytes, entries);
            for entry in entries.chunks_exact(numbers) {
                body(self, index, entry)?;
                index += 1;
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Notes a broken rule that readers would refuse the image for.
    fn broken(&mut self, places: u64, error: &Qcow2Error) {
        self.checked.corruption_in(places, error);
    }
}

/// Clusters that a refcount block counts.
fn block_len(geometry: &Geometry) -> u64 {
    (geometry.cluster_size() * 8) / u64::from(geometry.refcount_bits)
}
