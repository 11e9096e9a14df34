//! The header, checked. After this no code sees an integer that only the file vouches for.

use goldsmith_block::{Codec, Error, HostRange, Result};

use crate::area::Area;
use crate::error::Qcow2Error;
use crate::ondisk::{self, RawEncryption, RawHeader, RawSnapshot};
use crate::spare::Spare;

/// The shape of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// 2 or 3.
    pub(crate) version: u32,
    /// Base-2 logarithm of the cluster size.
    pub(crate) cluster_bits: u32,
    /// Virtual size in bytes; at most 2^63 - 1.
    pub(crate) virtual_size: u64,
    /// Length of the file in bytes.
    pub(crate) file_len: u64,
    /// Where the part of the L1 table stands that the disk needs; the rest holds the state of
    /// virtual machines.
    pub(crate) l1: HostRange,
    /// How compressed clusters are packed.
    pub(crate) codec: Codec,
    /// Width of a refcount in bits.
    pub(crate) refcount_bits: u32,
    /// Whether refcounts may be wrong.
    pub(crate) dirty: bool,
    /// Whether somebody found the image corrupt.
    pub(crate) corrupt: bool,
    /// Whether refcounts may be updated late.
    pub(crate) lazy_refcounts: bool,
    /// Whether L2 entries say for each subcluster of a cluster what it is.
    pub(crate) extended_l2: bool,
    /// Where guest data stands.
    pub(crate) data: DataPlace,
    /// How guest data is encrypted.
    pub(crate) encryption: Encryption,
    /// Byte offset of the snapshot table; 0 if there are no snapshots.
    pub(crate) snapshots_offset: u64,
    /// Internal snapshots.
    pub(crate) snapshots: u32,
    /// Whether the bitmaps are up to date.
    pub(crate) bitmaps_valid: bool,
}

/// How the clusters of guest data are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encryption {
    /// Not at all.
    None,
    /// With a passphrase for key.
    Aes,
    /// With the key that a LUKS header keeps.
    Luks {
        /// Where the header and its key material stand.
        header: HostRange,
    },
}

/// Where the clusters of guest data stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataPlace {
    /// In the image file.
    Here,
    /// In a file of their own.
    Elsewhere {
        /// Whether that file is the disk, byte for byte.
        raw: bool,
    },
}

impl Geometry {
    /// Checks everything else in the header. Unknown incompatible features were refused before.
    ///
    /// `luks` is what a header extension says of a LUKS header. That refcounts, snapshots or the end of
    /// the L1 table are missing, without which some of the disk can be read, is for `spare` to judge.
    pub(crate) fn parse(
        raw: &RawHeader,
        area: &Area,
        luks: Option<&RawEncryption>,
        file_len: u64,
        spare: &mut Spare,
    ) -> Result<Self> {
        let disk = Self::of_disk(raw, area, luks, file_len)?;
        let l1 = l1_table(raw, area, file_len).check();
        spare.or_default(l1.map_err(Error::from))?;
        // A file that lost one of them lost its end.
        let order = spare.or_default(refcounts(raw, area, file_len).map_err(Error::from))?;
        let snapshots = spare.or_default(snapshots(raw, area, file_len).map_err(Error::from))?;
        Ok(Self {
            refcount_bits: 1 << order,
            snapshots,
            ..disk
        })
    }

    /// The same without refcounts and snapshots; the file may end in the L1 table.
    fn of_disk(
        raw: &RawHeader,
        area: &Area,
        luks: Option<&RawEncryption>,
        file_len: u64,
    ) -> Result<Self, Qcow2Error> {
        let cluster_size = 1u64 << area.cluster_bits;
        let encryption = match (raw.crypt_method.get(), luks) {
            (0, Some(_)) => return Err(Qcow2Error::EncryptionHeader),
            (0, None) => Encryption::None,
            (1, _) => Encryption::Aes,
            (2, Some(luks)) => luks_header(luks, cluster_size, file_len)?,
            (2, None) => return Err(Qcow2Error::NoLuksHeader),
            _ => {
                let what = "an unknown encryption method";
                return Err(Qcow2Error::Unsupported { what });
            }
        };
        let v3 = area.version == 3;
        let autoclear = if v3 { raw.autoclear_features.get() } else { 0 };
        let data = match (
            area.incompatible & ondisk::EXTERNAL_DATA != 0,
            autoclear & ondisk::RAW_EXTERNAL_DATA != 0,
        ) {
            (true, raw) => DataPlace::Elsewhere { raw },
            (false, false) => DataPlace::Here,
            (false, true) => return Err(Qcow2Error::RawExternalData),
        };
        let extended_l2 = area.incompatible & ondisk::EXTENDED_L2 != 0;
        if extended_l2 && area.cluster_bits < ondisk::EXTENDED_CLUSTER_BITS {
            return Err(Qcow2Error::Subclusters { cluster_size });
        }
        let virtual_size = raw.size.get();
        if i64::try_from(virtual_size).is_err() {
            let found = virtual_size;
            return Err(Qcow2Error::VirtualSize { found });
        }

        let l1_entries = raw.l1_size.get();
        let need = l1_entries_for(virtual_size, area.cluster_bits, extended_l2);
        if u64::from(l1_entries) < need {
            return Err(Qcow2Error::L1TooSmall {
                entries: l1_entries,
                need,
            });
        }
        let l1_offset = raw.l1_table_offset.get();
        match l1_table(raw, area, file_len).check() {
            // Whether what is left of it will do is for the caller to know.
            Err(Qcow2Error::TableTruncated { .. }) if l1_offset < file_len => {}
            checked => checked?,
        }

        Ok(Self {
            version: area.version,
            cluster_bits: area.cluster_bits,
            virtual_size,
            file_len,
            // Checked as part of the whole table, unless that is empty and may claim to be anywhere.
            l1: HostRange::new(if need == 0 { 0 } else { l1_offset }, need * 8),
            codec: codec(raw, area)?,
            refcount_bits: 1,
            dirty: area.incompatible & ondisk::DIRTY != 0,
            corrupt: area.incompatible & ondisk::CORRUPT != 0,
            lazy_refcounts: v3 && raw.compatible_features.get() & ondisk::LAZY_REFCOUNTS != 0,
            extended_l2,
            data,
            encryption,
            snapshots_offset: raw.snapshots_offset.get(),
            snapshots: 0,
            bitmaps_valid: autoclear & ondisk::BITMAPS_VALID != 0,
        })
    }

    /// The shape that the image had when a snapshot was taken whose L1 table has `l1_entries` at
    /// `l1_offset`, of a disk of `virtual_size` bytes.
    pub(crate) fn at_snapshot(
        &self,
        l1_offset: u64,
        l1_entries: u32,
        virtual_size: u64,
    ) -> Result<Self, Qcow2Error> {
        if i64::try_from(virtual_size).is_err() {
            let found = virtual_size;
            return Err(Qcow2Error::VirtualSize { found });
        }
        let need = l1_entries_for(virtual_size, self.cluster_bits, self.extended_l2);
        if u64::from(l1_entries) < need {
            let entries = l1_entries;
            return Err(Qcow2Error::L1TooSmall { entries, need });
        }
        Table {
            table: "snapshot's L1 table",
            offset: l1_offset,
            len: u64::from(l1_entries) * 8,
            limit: ondisk::L1_BYTES,
            cluster_size: self.cluster_size(),
            file_len: self.file_len,
        }
        .check()?;
        Ok(Self {
            virtual_size,
            l1: HostRange::new(if need == 0 { 0 } else { l1_offset }, need * 8),
            ..self.clone()
        })
    }

    /// Base-2 logarithm of the length of an L2 entry in bytes.
    pub(crate) fn entry_bits(&self) -> u32 {
        entry_bits(self.extended_l2)
    }

    /// Base-2 logarithm of the guest bytes that share a status: a cluster or a subcluster.
    pub(crate) fn status_bits(&self) -> u32 {
        match self.extended_l2 {
            true => self.cluster_bits - ondisk::SUBCLUSTERS_BITS,
            false => self.cluster_bits,
        }
    }

    /// Whether guest data stands in a file of its own.
    pub(crate) fn has_data_file(&self) -> bool {
        self.data != DataPlace::Here
    }

    /// Whether the file of guest data is the disk, byte for byte.
    pub(crate) fn is_raw_data(&self) -> bool {
        self.data == DataPlace::Elsewhere { raw: true }
    }

    /// Whether guest data is encrypted.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.encryption != Encryption::None
    }

    /// Bytes per cluster.
    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }
}

/// Entries of the L1 table that a disk of `virtual_size` bytes needs.
pub(crate) fn l1_entries_for(virtual_size: u64, cluster_bits: u32, extended_l2: bool) -> u64 {
    virtual_size.div_ceil(1 << mapped_bits(cluster_bits, extended_l2))
}

/// Base-2 logarithm of the guest bytes that one L2 table maps: a cluster for each entry.
pub(crate) fn mapped_bits(cluster_bits: u32, extended_l2: bool) -> u32 {
    2 * cluster_bits - entry_bits(extended_l2)
}

/// Base-2 logarithm of the length of an L2 entry in bytes.
fn entry_bits(extended_l2: bool) -> u32 {
    if extended_l2 { 4 } else { 3 }
}

/// Where the L1 table stands, with the part that holds the state of virtual machines.
fn l1_table(raw: &RawHeader, area: &Area, file_len: u64) -> Table {
    Table {
        table: "L1 table",
        offset: raw.l1_table_offset.get(),
        len: u64::from(raw.l1_size.get()) * 8,
        limit: ondisk::L1_BYTES,
        cluster_size: 1 << area.cluster_bits,
        file_len,
    }
}

/// Base-2 logarithm of the width of a refcount in bits, where there is a table of them.
fn refcounts(raw: &RawHeader, area: &Area, file_len: u64) -> Result<u32, Qcow2Error> {
    let order = match area.version {
        2 => ondisk::REFCOUNT_ORDER_V2,
        _ => raw.refcount_order.get(),
    };
    if order > ondisk::REFCOUNT_ORDER {
        return Err(Qcow2Error::RefcountOrder { found: order });
    }
    let clusters = u64::from(raw.refcount_table_clusters.get());
    if clusters == 0 {
        return Err(Qcow2Error::NoRefcountTable);
    }
    Table {
        table: "refcount table",
        offset: raw.refcount_table_offset.get(),
        len: clusters << area.cluster_bits,
        limit: ondisk::REFCOUNT_TABLE_BYTES,
        cluster_size: 1 << area.cluster_bits,
        file_len,
    }
    .check()?;
    Ok(order)
}

/// How many internal snapshots there are, where there is room for a table of them.
fn snapshots(raw: &RawHeader, area: &Area, file_len: u64) -> Result<u32, Qcow2Error> {
    let snapshots = raw.nb_snapshots.get();
    let least = size_of::<RawSnapshot>() as u64;
    Table {
        table: "snapshot table",
        offset: raw.snapshots_offset.get(),
        len: u64::from(snapshots) * least,
        limit: ondisk::SNAPSHOTS * least,
        cluster_size: 1 << area.cluster_bits,
        file_len,
    }
    .check()?;
    Ok(snapshots)
}

/// Where the LUKS header stands.
fn luks_header(
    raw: &RawEncryption,
    cluster_size: u64,
    file_len: u64,
) -> Result<Encryption, Qcow2Error> {
    let (offset, len) = (raw.offset.get(), raw.len.get());
    if len == 0 {
        return Err(Qcow2Error::NoLuksHeader);
    }
    Table {
        table: "LUKS header",
        offset,
        len,
        limit: ondisk::LUKS_BYTES,
        cluster_size,
        file_len,
    }
    .check()?;
    let header = HostRange::new(offset, len);
    Ok(Encryption::Luks { header })
}

/// The codec of compressed clusters, from a field that old images do not have.
fn codec(raw: &RawHeader, area: &Area) -> Result<Codec, Qcow2Error> {
    let found = if area.header_len > ondisk::COMPRESSION_TYPE_AT {
        raw.compression_type
    } else {
        0
    };
    let bit = area.incompatible & ondisk::COMPRESSION_TYPE != 0;
    if bit != (found != 0) {
        return Err(Qcow2Error::CompressionBit { found, bit });
    }
    match found {
        0 => Ok(Codec::Deflate),
        1 => Ok(Codec::Zstd),
        found => Err(Qcow2Error::CompressionType { found }),
    }
}

/// A table that the header or another structure names.
pub(crate) struct Table {
    /// What people call it.
    pub(crate) table: &'static str,
    /// Byte offset.
    pub(crate) offset: u64,
    /// Length in bytes.
    pub(crate) len: u64,
    /// The longest it may be.
    pub(crate) limit: u64,
    /// Bytes per cluster.
    pub(crate) cluster_size: u64,
    /// Length of the file in bytes.
    pub(crate) file_len: u64,
}

impl Table {
    /// Whether it is short enough, starts at a cluster behind the first and ends in the file. An
    /// empty table may be anywhere.
    pub(crate) fn check(self) -> Result<(), Qcow2Error> {
        let Self {
            table,
            offset,
            len,
            limit,
            cluster_size,
            file_len,
        } = self;
        if len > limit {
            return Err(Qcow2Error::TableTooLong {
                table,
                bytes: len,
                limit,
            });
        }
        if len == 0 {
            return Ok(());
        }
        if offset == 0 || !offset.is_multiple_of(cluster_size) {
            return Err(Qcow2Error::TableOffset {
                table,
                offset,
                cluster_size,
            });
        }
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end > file_len) {
            return Err(Qcow2Error::TableTruncated {
                table,
                offset,
                len,
                file_len,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::FromBytes;

    use super::*;

    const FILE_LEN: u64 = 4 << 16;

    /// The header of a 1 MiB disk with 64 KiB clusters in a file of [`FILE_LEN`] bytes.
    fn good() -> RawHeader {
        RawHeader {
            magic: ondisk::MAGIC,
            version: 3.into(),
            backing_file_offset: 0.into(),
            backing_file_size: 0.into(),
            cluster_bits: 16.into(),
            size: (1 << 20).into(),
            crypt_method: 0.into(),
            l1_size: 1.into(),
            l1_table_offset: (3 << 16).into(),
            refcount_table_offset: (1 << 16).into(),
            refcount_table_clusters: 1.into(),
            nb_snapshots: 0.into(),
            snapshots_offset: 0.into(),
            incompatible_features: 0.into(),
            compatible_features: 0.into(),
            autoclear_features: 0.into(),
            refcount_order: 4.into(),
            header_length: 112.into(),
            compression_type: 0,
            padding: [0; 7],
        }
    }

    fn parse(raw: &RawHeader, file_len: u64) -> Result<Geometry> {
        let area = Area::parse(raw, file_len)?;
        Geometry::parse(raw, &area, None, file_len, &mut Spare::Needed)
    }

    /// What is said of the good header after `change`.
    fn refused(change: impl FnOnce(&mut RawHeader)) -> String {
        let mut raw = good();
        change(&mut raw);
        parse(&raw, FILE_LEN).unwrap_err().report()
    }

    #[test]
    fn good_header_is_understood() {
        let geometry = parse(&good(), FILE_LEN).unwrap();
        assert_eq!(geometry.cluster_size(), 65536);
        assert_eq!(mapped_bits(geometry.cluster_bits, geometry.extended_l2), 29);
        assert_eq!(geometry.l1, HostRange::new(3 << 16, 8));
        assert_eq!(geometry.refcount_bits, 16);
    }

    #[test]
    fn every_broken_rule_is_named_with_its_numbers() {
        assert!(refused(|raw| raw.magic[3] = 0).contains("51, 46, 49, 00"));
        assert!(refused(|raw| raw.version = 4.into()).contains("version 4"));
        assert!(refused(|raw| raw.cluster_bits = 8.into()).contains("2^8"));
        assert!(refused(|raw| raw.cluster_bits = 22.into()).contains("2^22"));
        assert!(refused(|raw| raw.header_length = 96.into()).contains("is 96 bytes"));
        assert!(refused(|raw| raw.header_length = 108.into()).contains("is 108 bytes"));
        assert!(refused(|raw| raw.header_length = 65544.into()).contains("is 65544 bytes"));
        assert!(refused(|raw| raw.crypt_method = 2.into()).contains("LUKS"));
        assert!(refused(|raw| raw.crypt_method = 3.into()).contains("unknown encryption"));
        let subclusters = |raw: &mut RawHeader| {
            raw.incompatible_features = 16.into();
            raw.cluster_bits = 13.into();
        };
        assert!(refused(subclusters).contains("clusters of 8192 bytes"));
        assert_eq!(
            refused(|raw| {
                raw.incompatible_features = 16.into();
                raw.size = ((1 << 28) + 1).into();
            }),
            "corrupt image: L1 table has 1 entries; the disk size needs 2"
        );
        assert!(refused(|raw| raw.incompatible_features = 8.into()).contains("bit 3"));
        assert!(refused(|raw| raw.compression_type = 1).contains("type is 1"));
        assert!(refused(|raw| raw.autoclear_features = 2.into()).contains("autoclear"));
        assert!(refused(|raw| raw.refcount_order = 7.into()).contains("order is 7"));
        assert!(refused(|raw| raw.size = (1 << 63).into()).contains("2^63"));
        assert_eq!(
            refused(|raw| raw.size = ((1 << 29) + 1).into()),
            "corrupt image: L1 table has 1 entries; the disk size needs 2"
        );
        assert!(refused(|raw| raw.l1_size = (1 << 23).into()).contains("33554432"));
        assert!(refused(|raw| raw.l1_table_offset = 0.into()).contains("offset 0x0"));
        assert!(refused(|raw| raw.l1_table_offset = 512.into()).contains("offset 0x200"));
        assert_eq!(
            refused(|raw| raw.l1_table_offset = (4 << 16).into()),
            "corrupt image: the L1 table takes 8 bytes at offset 0x40000; the file ends at 0x40000, \
             it is truncated"
        );
        assert!(refused(|raw| raw.l1_table_offset = (u64::MAX << 16).into()).contains("truncated"));
        assert!(refused(|raw| raw.refcount_table_clusters = 0.into()).contains("no refcount"));
        assert!(refused(|raw| raw.refcount_table_clusters = 129.into()).contains("8388608"));
        assert!(refused(|raw| raw.refcount_table_clusters = 4.into()).contains("truncated"));
        assert!(refused(|raw| raw.nb_snapshots = 65537.into()).contains("2621480 bytes"));
        assert!(refused(|raw| raw.nb_snapshots = 1.into()).contains("snapshot table"));
    }

    #[test]
    fn backing_name_stays_behind_the_header_and_in_the_first_cluster() {
        let name = |offset: u64, len: u32| {
            let mut raw = good();
            raw.backing_file_offset = offset.into();
            raw.backing_file_size = len.into();
            Area::parse(&raw, FILE_LEN).map(|area| (area.backing_name, area.extensions))
        };
        let area = name(512, 10).unwrap();
        assert_eq!(area, (Some(HostRange::new(512, 10)), (112, 512)));
        assert_eq!(name(512, 0).unwrap(), (None, (112, 512)));
        assert_eq!(name(0, 5000).unwrap(), (None, (112, 65536)));
        name(65536 - 1023, 1023).unwrap();
        for (offset, len) in [
            (104, 1),
            (512, 1024),
            (65536, 1),
            (65530, 7),
            (u64::MAX, u32::MAX),
        ] {
            name(offset, len).unwrap_err();
        }
    }

    #[test]
    fn empty_disk_needs_no_l1_table_wherever_it_claims_to_be() {
        let mut raw = good();
        raw.size = 0.into();
        raw.l1_size = 0.into();
        raw.l1_table_offset = u64::MAX.into();
        assert_eq!(parse(&raw, FILE_LEN).unwrap().l1, HostRange::new(0, 0));
    }

    #[test]
    fn version_2_ignores_what_only_version_3_has() {
        let mut raw = good();
        raw.version = 2.into();
        raw.incompatible_features = u64::MAX.into();
        raw.autoclear_features = u64::MAX.into();
        raw.refcount_order = 77.into();
        raw.header_length = 0.into();
        raw.compression_type = 9;
        let geometry = parse(&raw, FILE_LEN).unwrap();
        assert_eq!(geometry.refcount_bits, 16);
        assert_eq!(geometry.codec, Codec::Deflate);
        assert!(!geometry.dirty && !geometry.corrupt && !geometry.lazy_refcounts);
    }

    proptest! {
        /// Any bytes: an answer, never a panic.
        #[test]
        fn parse_is_total(bytes in prop::collection::vec(any::<u8>(), 112), len: u64) {
            let raw = RawHeader::read_from_bytes(&bytes).unwrap();
            let _ = parse(&raw, len);
        }

        /// Bytes that pass the first checks: an answer, never a panic, and never a table outside.
        #[test]
        fn parse_is_total_behind_the_first_checks(
            mut bytes in prop::collection::vec(any::<u8>(), 112),
            version in 2u32..4,
            cluster_bits in 9u32..22,
            zeroed in prop::collection::vec(any::<bool>(), 14),
            l1_size in any::<u32>().prop_flat_map(|size| Just(size >> (size % 32))),
            len: u64,
        ) {
            // Any 8-byte field may be zero: nearly all random headers die otherwise.
            for (field, zero) in bytes.chunks_mut(8).zip(zeroed) {
                if zero {
                    field.fill(0);
                }
            }
            let mut raw = RawHeader::read_from_bytes(&bytes).unwrap();
            raw.magic = ondisk::MAGIC;
            raw.version = version.into();
            raw.cluster_bits = cluster_bits.into();
            raw.header_length = 112.into();
            raw.l1_size = l1_size.into();
            raw.refcount_table_clusters = 1.into();
            raw.refcount_table_offset = (1 << 21).into();
            if let Ok(area) = Area::parse(&raw, len) {
                let mut spare = Spare::Missing(Vec::new());
                if let Ok(found) = Geometry::parse(&raw, &area, None, len, &mut spare) {
                    prop_assert!(found.l1.len == 0 || found.l1.offset < len);
                    prop_assert!(found.l1.len <= ondisk::L1_BYTES);
                }
            }
            if let Ok(geometry) = parse(&raw, len) {
                prop_assert!(geometry.l1.end() <= len);
                prop_assert!(geometry.l1.len <= ondisk::L1_BYTES);
                let mapped = (geometry.l1.len / 8) << mapped_bits(geometry.cluster_bits, geometry.extended_l2);
                prop_assert!(geometry.virtual_size <= mapped);
            }
        }
    }
}
