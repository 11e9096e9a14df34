//! The first cluster, checked: what has to be known before the header extensions can be read.

use goldsmith_block::HostRange;

use crate::error::Qcow2Error;
use crate::ondisk::{self, RawHeader};

/// The first cluster: what lies where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    /// 2 or 3.
    pub(crate) version: u32,
    /// Base-2 logarithm of the cluster size.
    pub(crate) cluster_bits: u32,
    /// Where the header extensions start and end.
    pub(crate) extensions: (u64, u64),
    /// Where the backing file's name stands.
    pub(crate) backing_name: Option<HostRange>,
    /// Features that must be known; always 0 in version 2.
    pub(crate) incompatible: u64,
    /// Length of the header in bytes.
    pub(crate) header_len: u64,
}

impl Area {
    /// Checks what has to be known before the header extensions can be read.
    ///
    /// `raw` holds the first bytes of a file of `file_len` bytes, zeros where it is shorter.
    pub(crate) fn parse(raw: &RawHeader, file_len: u64) -> Result<Self, Qcow2Error> {
        if raw.magic != ondisk::MAGIC {
            return Err(Qcow2Error::Magic { found: raw.magic });
        }
        let version = raw.version.get();
        let need = match version {
            2 => ondisk::HEADER_LEN_V2,
            3 => ondisk::HEADER_LEN_V3,
            found => return Err(Qcow2Error::Version { found }),
        };
        if file_len < need {
            return Err(Qcow2Error::HeaderTruncated { need, file_len });
        }
        let cluster_bits = raw.cluster_bits.get();
        if !ondisk::CLUSTER_BITS.contains(&cluster_bits) {
            let found = cluster_bits;
            return Err(Qcow2Error::ClusterBits { found });
        }
        let cluster_size = 1u64 << cluster_bits;
        let header_len = match version {
            2 => ondisk::HEADER_LEN_V2,
            _ => u64::from(raw.header_length.get()),
        };
        if header_len < need || header_len > cluster_size || !header_len.is_multiple_of(8) {
            let found = raw.header_length.get();
            return Err(Qcow2Error::HeaderLength {
                found,
                cluster_size,
            });
        }
        if file_len < header_len {
            let need = header_len;
            return Err(Qcow2Error::HeaderTruncated { need, file_len });
        }
        let cluster_end = cluster_size.min(file_len);
        let backing_name = backing_name(raw, header_len, cluster_end)?;
        let extensions_end = backing_name.map_or(cluster_end, |name| name.offset);
        Ok(Self {
            version,
            cluster_bits,
            extensions: (header_len, extensions_end),
            // QEMU takes an empty name for none. [qemu]
            backing_name: backing_name.filter(|name| name.len > 0),
            incompatible: match version {
                2 => 0,
                _ => raw.incompatible_features.get(),
            },
            header_len,
        })
    }
}

/// Where the backing file's name stands: behind the header, in the first cluster. [qemu] The
/// specification only says that it should.
fn backing_name(raw: &RawHeader, start: u64, end: u64) -> Result<Option<HostRange>, Qcow2Error> {
    let (offset, len) = (raw.backing_file_offset.get(), raw.backing_file_size.get());
    if offset == 0 {
        return Ok(None);
    }
    let len = u64::from(len);
    let name_end = offset.checked_add(len);
    if offset < start || name_end.is_none_or(|name_end| name_end > end) || len > ondisk::NAME_LEN {
        return Err(Qcow2Error::BackingName {
            offset,
            len,
            start,
            end,
        });
    }
    Ok(Some(HostRange::new(offset, len)))
}
