//! What one L2 entry says of its cluster.

use goldsmith_block::HostRange;

use crate::error::Qcow2Error;
use crate::geometry::{DataPlace, Geometry};
use crate::ondisk::{self, COMPRESSED, COPIED, OFFSET, ZERO};

/// The status of a guest cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// Not in this image, though with subclusters there may be a place for it.
    Unallocated {
        /// The subcluster's byte offset.
        host: Option<u64>,
    },
    /// Zeros, perhaps with a cluster kept for them.
    Zero {
        /// The cluster's byte offset.
        host: Option<u64>,
    },
    /// Stored as it is.
    Data {
        /// The cluster's byte offset.
        host: u64,
    },
    /// Packed.
    Compressed {
        /// The sectors that hold it, from its first byte on; an upper bound.
        host: HostRange,
    },
}

/// A cluster that is not in this image and has no place in it.
pub(crate) const NOWHERE: Mapping = Mapping::Unallocated { host: None };

impl Mapping {
    /// What an entry says of the `at`th part of its cluster, and of how many parts from there on.
    ///
    /// `entry` is one number, or two where L2 entries are extended: then parts are subclusters,
    /// otherwise the only part is the cluster. [spec "Cluster mapping"] The host range starts below
    /// 2^56: whether the file holds it is another question.
    pub(crate) fn of(
        entry: &[u64],
        at: u32,
        geometry: &Geometry,
    ) -> Result<(Self, u32), Qcow2Error> {
        match *entry {
            [entry, bitmap] => subclusters(entry, bitmap, at, geometry),
            // Entries are cut to the length that the geometry says, never to none.
            _ => Ok((cluster(entry[0], geometry)?, 1)),
        }
    }

    /// The same, if it is for the guest byte `guest`: data in a file of its own stands where the guest has
    /// it. [spec] [qemu]
    ///
    /// # Errors
    /// [`Qcow2Error::Misplaced`] if it stands elsewhere.
    pub(crate) fn for_guest(self, guest: u64, geometry: &Geometry) -> Result<Self, Qcow2Error> {
        let host = match self {
            Self::Unallocated { host } | Self::Zero { host } => host,
            Self::Data { host } => Some(host),
            Self::Compressed { .. } => None,
        };
        match host {
            Some(host) if geometry.has_data_file() && host != guest => {
                Err(Qcow2Error::Misplaced { host, guest })
            }
            _ => Ok(self),
        }
    }

    /// What the same run says of the cluster or subcluster that starts `bytes` after its first one.
    pub(crate) fn after(self, bytes: u64) -> Option<Self> {
        match self {
            Self::Unallocated { host } => Some(Self::Unallocated {
                host: host.map(|host| host + bytes),
            }),
            Self::Zero { host } => Some(Self::Zero {
                host: host.map(|host| host + bytes),
            }),
            Self::Data { host } => Some(Self::Data { host: host + bytes }),
            Self::Compressed { .. } => None,
        }
    }
}

/// Reads a standard entry. [spec "Standard Cluster Descriptor"]
fn cluster(entry: u64, geometry: &Geometry) -> Result<Mapping, Qcow2Error> {
    if entry & COMPRESSED != 0 {
        return compressed(entry, geometry);
    }
    let offset = host_offset("L2", entry, ZERO, geometry)?;
    if entry & ZERO == 0 {
        return Ok(offset.map_or(NOWHERE, |host| Mapping::Data { host }));
    }
    if geometry.version < 3 {
        return Err(Qcow2Error::ZeroFlag { entry });
    }
    // [qemu] Without an offset there is no place, wherever data stands.
    let host = offset.filter(|host| *host != 0);
    Ok(Mapping::Zero { host })
}

/// Reads an extended entry. [spec "Extended L2 Entries"] The lower half of the bitmap says which
/// subclusters are allocated, the upper half which read as zeros.
fn subclusters(
    entry: u64,
    bitmap: u64,
    at: u32,
    geometry: &Geometry,
) -> Result<(Mapping, u32), Qcow2Error> {
    let broken = |rule| {
        Err(Qcow2Error::SubclusterBitmap {
            entry,
            bitmap,
            rule,
        })
    };
    let (allocated, zero) = (bitmap as u32, (bitmap >> 32) as u32);
    if entry & COMPRESSED != 0 {
        if bitmap != 0 {
            return broken("a compressed cluster has no subclusters");
        }
        return Ok((compressed(entry, geometry)?, 32 - at));
    }
    let offset = host_offset("L2", entry, 0, geometry)?;
    if allocated & zero != 0 {
        return broken("a subcluster is both data and zeros");
    }
    if offset.is_none() && allocated != 0 {
        return broken("a subcluster is data, but the cluster has no place");
    }
    let here = offset.map(|host| host + (u64::from(at) << geometry.status_bits()));
    let (mapping, same) = match (allocated >> at & 1, zero >> at & 1, here) {
        (1, _, Some(host)) => (Mapping::Data { host }, allocated),
        (_, 1, host) => (Mapping::Zero { host }, zero),
        (_, _, host) => (Mapping::Unallocated { host }, !(allocated | zero)),
    };
    Ok((mapping, (same >> at).trailing_ones()))
}

/// The offset in a standard L2 entry or, with no `flags`, in an L1 entry; `None` if it names nothing.
pub(crate) fn host_offset(
    table: &'static str,
    entry: u64,
    flags: u64,
    geometry: &Geometry,
) -> Result<Option<u64>, Qcow2Error> {
    let reserved = entry & !(OFFSET | COPIED | flags);
    if reserved != 0 {
        return Err(Qcow2Error::ReservedBits {
            table,
            entry,
            reserved,
        });
    }
    let (offset, cluster_size) = (entry & OFFSET, geometry.cluster_size());
    if !offset.is_multiple_of(cluster_size) {
        return Err(Qcow2Error::Misaligned {
            table,
            entry,
            offset,
            cluster_size,
        });
    }
    if offset == 0 && entry & COPIED != 0 {
        // In a file of its own, data may stand at the very beginning. [spec]
        return match geometry.data {
            DataPlace::Elsewhere { .. } if table == "L2" => Ok(Some(0)),
            _ => Err(Qcow2Error::NoOffset { table, entry }),
        };
    }
    Ok((offset != 0).then_some(offset))
}

/// The low bits that hold the offset of a compressed cluster; the number of further sectors follows.
fn packed_offset_bits(cluster_bits: u32) -> u32 {
    62 - (cluster_bits - 8)
}

/// A compressed cluster. The copied flag should be clear but says nothing about its bytes.
fn compressed(entry: u64, geometry: &Geometry) -> Result<Mapping, Qcow2Error> {
    if geometry.data != DataPlace::Here {
        return Err(Qcow2Error::PackedElsewhere { entry });
    }
    let host = packed_place(entry, geometry.cluster_bits);
    let offset = host.offset;
    if offset >= ondisk::OFFSET_END {
        return Err(Qcow2Error::ReservedBits {
            table: "L2",
            entry,
            reserved: offset & !(ondisk::OFFSET_END - 1),
        });
    }
    if offset == 0 {
        return Err(Qcow2Error::NoOffset { table: "L2", entry });
    }
    Ok(Mapping::Compressed { host })
}

/// The sectors of a compressed cluster, from its first byte on, whatever that is.
pub(crate) fn packed_place(entry: u64, cluster_bits: u32) -> HostRange {
    let descriptor = entry & !(COMPRESSED | COPIED);
    let offset_bits = packed_offset_bits(cluster_bits);
    let offset = descriptor & ((1 << offset_bits) - 1);
    let sectors = descriptor >> offset_bits;
    let first = offset % ondisk::PACKED_SECTOR;
    HostRange::new(offset, (sectors + 1) * ondisk::PACKED_SECTOR - first)
}

/// The L2 entry of a compressed cluster of `len` bytes at `host`.
///
/// `len` is at least 1 and at most the cluster size.
///
/// # Errors
/// `HostLimit` if it does not start below [`packed_end`].
pub(crate) fn packed_entry(host: HostRange, cluster_bits: u32) -> Result<u64, Qcow2Error> {
    let limit = packed_end(cluster_bits);
    if host.offset >= limit {
        return Err(Qcow2Error::HostLimit {
            what: "a compressed cluster",
            offset: host.offset,
            limit,
        });
    }
    let sector = |byte: u64| byte / ondisk::PACKED_SECTOR;
    let further = sector(host.end() - 1) - sector(host.offset);
    Ok(COMPRESSED | further << packed_offset_bits(cluster_bits) | host.offset)
}

/// First byte offset at which no compressed cluster can start.
fn packed_end(cluster_bits: u32) -> u64 {
    ondisk::OFFSET_END.min(1 << packed_offset_bits(cluster_bits))
}

#[cfg(test)]
mod tests {
    use crate::geometry::Encryption;
    use goldsmith_block::Codec;
    use proptest::prelude::*;

    use super::*;

    fn geometry(version: u32, cluster_bits: u32) -> Geometry {
        Geometry {
            version,
            cluster_bits,
            virtual_size: 1 << 30,
            file_len: 1 << 30,
            l1: HostRange::new(0, 0),
            codec: Codec::Deflate,
            refcount_bits: 16,
            dirty: false,
            corrupt: false,
            lazy_refcounts: false,
            extended_l2: false,
            data: DataPlace::Here,
            encryption: Encryption::None,
            snapshots_offset: 0,
            snapshots: 0,
            bitmaps_valid: false,
        }
    }

    fn of(entry: u64) -> Result<Mapping, Qcow2Error> {
        cluster(entry, &geometry(3, 16))
    }

    /// Subclusters of 2 KiB.
    fn part(entry: u64, bitmap: u64, at: u32) -> Result<(Mapping, u32), Qcow2Error> {
        let geometry = Geometry {
            extended_l2: true,
            ..geometry(3, 16)
        };
        Mapping::of(&[entry, bitmap], at, &geometry)
    }

    #[test]
    fn subclusters_are_read_in_runs() {
        let place = COPIED | 0x5_0000;
        // Two of data, three of zeros, the rest nothing.
        let bitmap = 0b11 | 0b11100 << 32;
        let data = |host| Mapping::Data { host };
        let zero = |host| Mapping::Zero { host };
        assert_eq!(part(place, bitmap, 0), Ok((data(0x5_0000), 2)));
        assert_eq!(part(place, bitmap, 1), Ok((data(0x5_0800), 1)));
        assert_eq!(part(place, bitmap, 2), Ok((zero(Some(0x5_1000)), 3)));
        let host = Some(0x5_2800);
        assert_eq!(
            part(place, bitmap, 5),
            Ok((Mapping::Unallocated { host }, 27))
        );
        assert_eq!(
            part(place, u64::from(u32::MAX), 0),
            Ok((data(0x5_0000), 32))
        );
        assert_eq!(part(0, 1 << 63, 31), Ok((zero(None), 1)));
        assert_eq!(part(0, 1 << 63, 0), Ok((NOWHERE, 31)));
        let packed = part(COMPRESSED | 0x5_0123, 0, 7).unwrap();
        assert_eq!(packed.1, 25);
    }

    #[test]
    fn subclusters_that_break_a_rule_are_refused() {
        for (entry, bitmap, rule) in [
            (0x5_0000, 1 | 1 << 32, "both data and zeros"),
            (0, 2, "no place"),
            (COMPRESSED | 0x5_0000, 1, "no subclusters"),
            (0x5_0001, 0, "reserved bits"),
        ] {
            for at in [0, 31] {
                let refused = part(entry, bitmap, at).unwrap_err().to_string();
                assert!(refused.contains(rule), "{refused}");
            }
        }
    }

    #[test]
    fn data_in_another_file_may_stand_at_its_start_and_is_never_packed() {
        let elsewhere = Geometry {
            data: DataPlace::Elsewhere { raw: true },
            ..geometry(3, 16)
        };
        let of = |entry| cluster(entry, &elsewhere);
        assert_eq!(of(COPIED), Ok(Mapping::Data { host: 0 }));
        assert_eq!(of(COPIED | 1), Ok(Mapping::Zero { host: None }));
        assert_eq!(of(0), Ok(NOWHERE));
        let packed = of(COMPRESSED | 0x5_0000);
        assert!(matches!(packed, Err(Qcow2Error::PackedElsewhere { .. })));
        assert!(host_offset("L1", COPIED, 0, &elsewhere).is_err());
    }

    #[test]
    fn standard_entries_are_read() {
        let host = 0x5_0000;
        assert_eq!(of(0), Ok(NOWHERE));
        assert_eq!(of(1), Ok(Mapping::Zero { host: None }));
        assert_eq!(of(host | 1), Ok(Mapping::Zero { host: Some(host) }));
        assert_eq!(of(host), Ok(Mapping::Data { host }));
        assert_eq!(of(COPIED | host), Ok(Mapping::Data { host }));
    }

    #[test]
    fn entries_that_break_a_rule_are_refused() {
        for bit in (1..9).chain(56..62) {
            let reserved = 1 << bit;
            let refused = of(0x5_0000 | reserved).unwrap_err();
            assert!(
                matches!(refused, Qcow2Error::ReservedBits { reserved: found, .. }
                if found == reserved)
            );
        }
        assert!(matches!(
            of(0x5_0200),
            Err(Qcow2Error::Misaligned {
                offset: 0x5_0200,
                ..
            })
        ));
        assert!(matches!(of(COPIED), Err(Qcow2Error::NoOffset { .. })));
        let v2 = cluster(0x5_0001, &geometry(2, 16));
        assert!(matches!(v2, Err(Qcow2Error::ZeroFlag { entry: 0x5_0001 })));
    }

    #[test]
    fn compressed_entry_at_64_kib_has_54_bits_of_offset() {
        let host = HostRange::new(0x5_0123, 3 * 512 - 0x123);
        let entry = COMPRESSED | 2 << 54 | 0x5_0123;
        assert_eq!(of(entry), Ok(Mapping::Compressed { host }));
        assert_eq!(of(entry | COPIED), Ok(Mapping::Compressed { host }));
        assert!(matches!(of(COMPRESSED), Err(Qcow2Error::NoOffset { .. })));
    }

    #[test]
    fn compressed_offset_past_2_to_the_56_is_refused() {
        let entry = COMPRESSED | 1 << 56 | 512;
        let refused = cluster(entry, &geometry(3, 9)).unwrap_err();
        assert!(
            matches!(refused, Qcow2Error::ReservedBits { reserved, .. } if reserved == 1 << 56)
        );
    }

    proptest! {
        /// Any entry: an answer, never a panic, and a range that later sums cannot overflow.
        #[test]
        fn any_entry_gets_an_answer(
            entry: u64,
            bitmap: u64,
            at in 0u32..32,
            version in 2u32..4,
            cluster_bits in 9u32..22,
        ) {
            let standard = geometry(version, cluster_bits);
            let extended = Geometry {
                extended_l2: true,
                cluster_bits: cluster_bits.max(14),
                ..standard.clone()
            };
            for found in [
                Mapping::of(&[entry], 0, &standard),
                Mapping::of(&[entry, bitmap], at, &extended),
                Mapping::of(&[entry, bitmap & !(bitmap << 32)], at, &extended),
            ] {
                match found {
                    Ok((Mapping::Compressed { host }, _)) => prop_assert!(host.end() < 1 << 57),
                    Ok((Mapping::Data { host }, parts)) => {
                        prop_assert!(host < 1 << 56 && (1..=32).contains(&parts));
                    }
                    Ok((_, parts)) => prop_assert!((1..=32).contains(&parts)),
                    Err(_) => {}
                }
            }
        }

        /// What is written for a packed cluster is read back, rounded up to its last sector.
        #[test]
        fn packed_entry_names_every_byte(
            cluster_bits in 9u32..22,
            offset: u64,
            len: u64,
        ) {
            let offset = offset % (packed_end(cluster_bits) - 1) + 1;
            let len = len % ((1 << cluster_bits) - 1) + 1;
            let entry = packed_entry(HostRange::new(offset, len), cluster_bits).unwrap();
            match cluster(entry, &geometry(2, cluster_bits)) {
                Ok(Mapping::Compressed { host }) => {
                    prop_assert_eq!(host.offset, offset);
                    prop_assert_eq!(host.end(), (offset + len).next_multiple_of(512));
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
