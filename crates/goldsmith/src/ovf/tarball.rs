//! A tar of VHDs, `0.vhd`, `1.vhd` and so on, as bytes to be packed: none of it is ever stored.

use goldsmith_block::{Error, Result};

use super::BLOCK;
use super::gzip::Bytes;

/// Its members, one behind the other.
pub(super) struct Tarball<'a> {
    members: Vec<Member<'a>>,
    len: u64,
}

struct Member<'a> {
    /// Byte offset of its header.
    start: u64,
    header: tar::Header,
    bytes: &'a dyn Bytes,
}

impl<'a> Tarball<'a> {
    /// The same for everybody who packs the same; `timestamp` is in seconds since 1970.
    pub(super) fn new(members: &[&'a dyn Bytes], timestamp: u64) -> Result<Self> {
        let mut tarball = Self {
            members: Vec::new(),
            len: 0,
        };
        for (number, bytes) in members.iter().enumerate() {
            tarball.members.push(Member {
                start: tarball.len,
                header: header(number, bytes.len(), timestamp)?,
                bytes: *bytes,
            });
            tarball.len += member_len(bytes.len());
        }
        tarball.len += END;
        Ok(tarball)
    }
}

/// Two blocks of zeros.
const END: u64 = 2 * BLOCK as u64;

/// Length of a member of `len` bytes: its header and whole blocks.
fn member_len(len: u64) -> u64 {
    BLOCK as u64 + len.next_multiple_of(BLOCK as u64)
}

/// Length of the tar of one VHD of `len` bytes.
pub(super) fn len_of(len: u64) -> u64 {
    member_len(len) + END
}

fn header(number: usize, len: u64, timestamp: u64) -> Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    let path = header.set_path(format!("{number}.vhd"));
    path.map_err(|error| Error::usage(format!("a tar header cannot be made: {error}")))?;
    header.set_size(len);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(timestamp);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(header)
}

impl Bytes for Tarball<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let after = self.members.partition_point(|member| member.start <= at);
            let next = self.members.get(after).map_or(self.len, |next| next.start);
            // The first one starts at 0.
            let member = &self.members[after - 1];
            let data = member.start + BLOCK as u64;
            let data_end = data + member.bytes.len();
            let end = [data, data_end, next].into_iter().find(|end| at < *end);
            let end = end.unwrap_or(self.len);
            // At most as long as the buffer.
            let len = (end - at).min(rest.len() as u64) as usize;
            let (part, others) = rest.split_at_mut(len);
            if at < data {
                let from = (at - member.start) as usize;
                part.copy_from_slice(&member.header.as_bytes()[from..from + len]);
            } else if at < data_end {
                member.bytes.read_at(at - data, part)?;
            } else {
                part.fill(0);
            }
            at += len as u64;
            rest = others;
        }
        Ok(())
    }
}
