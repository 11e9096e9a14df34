//! A VHD in the tar while its bytes go by, once.

use std::sync::Arc;

use goldsmith_block::{Budget, HostRange, Result};

use super::walk::Member;

/// Bytes that are passed over together.
const PIECE: u64 = 256 << 10;

/// The bytes of a member from the first to the last, of which the first have been taken already.
pub(super) struct Passing<'p, 'w> {
    member: &'p mut Member<'w>,
    head: Arc<Vec<u8>>,
    /// How many bytes have gone by.
    at: u64,
    /// What is kept of them, by byte offset.
    kept: Vec<(u64, Vec<u8>)>,
    /// Where bytes go that nobody wants.
    void: Vec<u8>,
}

impl<'p, 'w> Passing<'p, 'w> {
    /// `head` is what was read of `member`; `parts` of it, which do not end behind it, are kept.
    pub(super) fn new(
        member: &'p mut Member<'w>,
        head: Arc<Vec<u8>>,
        parts: &[HostRange],
        budget: &Budget,
    ) -> Result<Self> {
        let mut kept = Vec::new();
        for part in parts {
            let bytes = budget.zeroed(part.len, "part of a VHD in the tar")?;
            kept.push((part.offset, bytes));
        }
        Ok(Self {
            void: vec![0; PIECE.min(member.len) as usize],
            member,
            head,
            at: 0,
            kept,
        })
    }

    /// How many bytes of the file have been unpacked, and of how many.
    pub(super) fn unpacked(&self) -> (u64, u64) {
        self.member.unpacked()
    }

    /// Fills `buf` with the next bytes, which are not behind the end.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> Result<()> {
        let at = usize::try_from(self.at).unwrap_or(usize::MAX);
        let known = self.head.get(at..).unwrap_or_default();
        let (front, rest) = buf.split_at_mut(known.len().min(buf.len()));
        front.copy_from_slice(&known[..front.len()]);
        self.member.read_exact(rest)?;
        for (start, bytes) in &mut self.kept {
            fill(*start, bytes, self.at, buf);
        }
        self.at += buf.len() as u64;
        Ok(())
    }

    /// Lets the bytes before `offset`, which is not behind the end, go by, as many as fit in memory at
    /// once; whether that were all.
    pub(super) fn pass_on(&mut self, offset: u64) -> Result<bool> {
        let mut void = std::mem::take(&mut self.void);
        let len = offset.saturating_sub(self.at).min(void.len() as u64);
        // At most a piece.
        let read = self.read(&mut void[..len as usize]);
        self.void = void;
        read.map(|()| self.at >= offset)
    }

    /// Lets all go by that is left; gives what was kept.
    pub(super) fn finish(mut self) -> Result<Vec<(u64, Vec<u8>)>> {
        while !self.pass_on(self.member.len)? {}
        Ok(self.kept)
    }
}

/// Copies what `from`, which begins at `from_start`, has of `to`, which begins at `start`.
fn fill(start: u64, to: &mut [u8], from_start: u64, from: &[u8]) {
    let first = start.max(from_start);
    let end = (start + to.len() as u64).min(from_start + from.len() as u64);
    if first < end {
        // Inside both.
        to[(first - start) as usize..(end - start) as usize]
            .copy_from_slice(&from[(first - from_start) as usize..(end - from_start) as usize]);
    }
}
