//! Internal snapshots: earlier states of the disk, each with an L1 table of its own.

use goldsmith_block::{Budget, HostRange, Result, Snapshot, Storage};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::error::Qcow2Error;
use crate::geometry::Geometry;
use crate::ondisk::{self, RawSnapshot, RawSnapshotExtra};

/// The internal snapshots of an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshots {
    /// What is known of each.
    pub(crate) infos: Vec<Snapshot>,
    /// Each one as it stands in the table.
    pub(crate) entries: Vec<Entry>,
    /// Numbers of those that say less than their version must.
    pub(crate) incomplete: Vec<usize>,
    /// Length of the table in bytes.
    pub(crate) len: u64,
}

/// An entry of the snapshot table.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) raw: RawSnapshot,
    pub(crate) extra: Vec<u8>,
    pub(crate) id: Vec<u8>,
    pub(crate) name: Vec<u8>,
}

impl Entry {
    /// Byte offset and entries of the L1 table, as the image says.
    pub(crate) fn l1_table(&self) -> (u64, u32) {
        (self.raw.l1_offset.get(), self.raw.l1_len.get())
    }

    /// Whether it says how large the disk was.
    pub(crate) fn says_size(&self) -> bool {
        self.extra.len() as u64 >= ondisk::SNAPSHOT_EXTRA_V3
    }

    /// The bytes of the table that it stands for, without the padding to a multiple of 8.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [self.raw.as_bytes(), &self.extra, &self.id, &self.name].concat()
    }
}

impl Snapshots {
    /// Reads the snapshot table, whose start is known to be in the file.
    ///
    /// # Errors
    /// `Corrupt` if the file ends in it; `Limit` if it is too long or over `budget`; `Io` if it
    /// cannot be read.
    pub(crate) fn read(
        storage: &dyn Storage,
        geometry: &Geometry,
        budget: &Budget,
    ) -> Result<Self> {
        let mut found = Self::default();
        let mut at = geometry.snapshots_offset;
        for index in 0..geometry.snapshots as usize {
            let mut raw = RawSnapshot::new_zeroed();
            let fixed = raw.as_mut_bytes();
            within(at, fixed.len() as u64, geometry)?;
            storage.read_at(at, fixed)?;
            at += fixed.len() as u64;

            let (extra, limit) = (u64::from(raw.extra_len.get()), ondisk::SNAPSHOT_EXTRA_BYTES);
            if extra > limit {
                let len = extra;
                return Err(Qcow2Error::SnapshotExtra { index, len, limit }.into());
            }
            let (id_len, name_len) = (raw.id_len.get(), raw.name_len.get());
            let rest = extra + u64::from(id_len) + u64::from(name_len);
            within(at, rest, geometry)?;
            let names = text_cost(id_len) + text_cost(name_len);
            let fixed = (size_of::<Snapshot>() + size_of::<Entry>()) as u64;
            budget.reserve(rest + names + fixed, "snapshot table")?;
            // Two names of 16-bit lengths and a little more.
            let mut bytes = vec![0; rest as usize];
            storage.read_at(at, &mut bytes)?;
            found.len = at + rest - geometry.snapshots_offset;
            at = (at + rest).next_multiple_of(8);
            if geometry.version >= 3 && extra < ondisk::SNAPSHOT_EXTRA_V3 {
                found.incomplete.push(index);
            }
            let (extra, names) = bytes.split_at(extra as usize);
            let (id, name) = names.split_at(id_len.into());
            let snapshot = snapshot(&raw, extra, id, name, geometry);
            found.infos.push(snapshot);
            found.entries.push(Entry {
                extra: extra.to_vec(),
                id: id.to_vec(),
                name: name.to_vec(),
                raw,
            });
        }
        Ok(found)
    }
}

fn snapshot(
    raw: &RawSnapshot,
    extra: &[u8],
    id: &[u8],
    name: &[u8],
    geometry: &Geometry,
) -> Snapshot {
    let known = extra.len().min(size_of::<RawSnapshotExtra>());
    let mut bytes = [0; size_of::<RawSnapshotExtra>()];
    bytes[..known].copy_from_slice(&extra[..known]);
    let more = RawSnapshotExtra::read_from_bytes(&bytes);
    // The bytes have the length of the structure, which any bytes are one of.
    let more = more.unwrap_or_else(|_| RawSnapshotExtra::new_zeroed());
    // Old images say less. [qemu]
    let has = |bytes: usize| known >= bytes;
    let instructions = more.instructions.get();
    Snapshot {
        id: text(id),
        name: text(name),
        virtual_size: match has(16) {
            true => more.virtual_size.get(),
            false => geometry.virtual_size,
        },
        vm_state_len: match has(8) {
            true => more.vm_state_len.get(),
            false => raw.vm_state_len.get().into(),
        },
        taken_seconds: raw.seconds.get(),
        taken_nanoseconds: raw.nanoseconds.get(),
        vm_clock_nanoseconds: raw.vm_clock.get(),
        vm_instructions: (has(24) && instructions != u64::MAX).then_some(instructions),
    }
}

/// The text that `bytes` are meant to be: nothing hangs on it but what people read.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..text_len(bytes)]).into_owned()
}

/// How many of `bytes` are of that text: it ends before a zero.
pub(crate) fn text_len(bytes: &[u8]) -> usize {
    let end = bytes.iter().position(|byte| *byte == 0);
    end.unwrap_or(bytes.len())
}

/// Bytes of memory that such a text of `len` bytes takes: what is none of it becomes a mark of three, and who
/// tells of it makes copies.
pub(crate) fn text_cost(len: u16) -> u64 {
    const COPIES: u64 = 5;
    u64::from(len) * 3 * COPIES
}

/// Whether the table goes on for `len` bytes from `at`.
fn within(at: u64, len: u64, geometry: &Geometry) -> Result<(), Qcow2Error> {
    let Geometry {
        snapshots_offset: offset,
        file_len,
        ..
    } = *geometry;
    // The table starts in the file and each step is short, so no sum overflows before this stops.
    let bytes = at + len - offset;
    if bytes > ondisk::SNAPSHOT_TABLE_BYTES {
        return Err(Qcow2Error::TableTooLong {
            table: "snapshot table",
            bytes,
            limit: ondisk::SNAPSHOT_TABLE_BYTES,
        });
    }
    let host = HostRange::new(offset, bytes);
    if host.end() > file_len {
        return Err(Qcow2Error::TableTruncated {
            table: "snapshot table",
            offset,
            len: bytes,
            file_len,
        });
    }
    Ok(())
}
