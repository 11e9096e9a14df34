//! What is gzip'ed, unpacked: members one after the other, and zeros behind them.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// Unpacks what `R` gives. Zeros behind a member fill up a tape's block or a device, as gzip has it.
pub(super) struct Gunzip<R> {
    /// `None` behind the last member, and where one could not be read.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Gunzip<R> {
    pub(super) fn new(packed: R) -> Self {
        Self {
            member: Some(GzDecoder::new(packed)),
        }
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(mut member) = self.member.take() {
            let len = member.read(buf)?;
            if len > 0 || buf.is_empty() {
                self.member = Some(member);
                return Ok(len);
            }
            let mut rest = member.into_inner();
            if skip_zeros(&mut rest)? {
                self.member = Some(GzDecoder::new(rest));
            }
        }
        Ok(0)
    }
}

/// Goes on to the first byte that is not zero; says whether there is one.
fn skip_zeros(rest: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let there = rest.fill_buf()?;
        let zeros = there.iter().take_while(|byte| **byte == 0).count();
        if zeros < there.len() {
            rest.consume(zeros);
            return Ok(true);
        }
        if there.is_empty() {
            return Ok(false);
        }
        rest.consume(zeros);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(bytes).unwrap();
        packer.finish().unwrap()
    }

    fn unpacked(bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let bytes = io::BufReader::with_capacity(piece, bytes);
        Gunzip::new(bytes).read_to_end(&mut all)?;
        Ok(all)
    }

    #[test]
    fn members_are_one_and_zeros_behind_them_are_nothing() {
        let [golden, empty, disk] = [&b"golden "[..], b"", b"disk"].map(packed);
        let zeros = vec![0; 1000];
        for parts in [
            vec![&golden, &disk],
            vec![&golden, &empty, &disk, &zeros],
            vec![&golden, &zeros, &disk],
        ] {
            let all: Vec<u8> = parts.into_iter().flatten().copied().collect();
            for piece in [1, 7, 4096] {
                assert_eq!(unpacked(&all, piece).unwrap(), b"golden disk");
            }
        }
    }

    #[test]
    fn what_is_no_member_is_an_error() {
        let golden = packed(b"golden");
        let cut = &golden[..golden.len() - 1];
        let mut more = golden.clone();
        more.extend(b"\0\0x");
        for (bytes, kind) in [
            (cut, io::ErrorKind::UnexpectedEof),
            (&more, io::ErrorKind::UnexpectedEof),
            (b"golden disks", io::ErrorKind::InvalidInput),
        ] {
            assert_eq!(unpacked(bytes, 4096).unwrap_err().kind(), kind);
        }
    }
}
