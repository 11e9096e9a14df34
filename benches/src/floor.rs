//! The bare loop: what any copy costs on this machine.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Bytes that are read and written at once.
const PIECE: u64 = 1 << 20;
const PAGE: usize = 4096;

/// Copies the data of the file at `source` to `target`, a new file, and nothing else: `pread`,
/// `pwrite`, no look at the bytes, no flush.
pub(crate) fn copy(source: &Path, target: &Path, threads: NonZeroUsize) -> io::Result<()> {
    let source = File::open(source)?;
    let len = source.metadata()?.len();
    let target = File::create_new(target)?;
    target.set_len(len)?;
    let pieces = pieces(&source, len)?;
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<()> {
        let mut memory = vec![0; PIECE as usize + PAGE];
        // The kernel copies faster to and from the start of a page.
        let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
        let buf = &mut memory[start..start + PIECE as usize];
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let buf = &mut buf[..(piece.end - piece.start) as usize];
            source.read_exact_at(buf, piece.start)?;
            target.write_all_at(buf, piece.start)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.get()).map(|_| scope.spawn(work)).collect();
        let mut done = work();
        for other in others {
            // A panic of a thread is one of ours.
            done = done.and(
                other
                    .join()
                    .unwrap_or_else(|_| Err(io::ErrorKind::Other.into())),
            );
        }
        done
    })
}

/// The data of `file`, in pieces.
fn pieces(file: &File, len: u64) -> io::Result<Vec<Range<u64>>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < len {
        at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(at))?;
        while at < end {
            let next = end.min(at + PIECE);
            pieces.push(at..next);
            at = next;
        }
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_has_the_bytes_and_the_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).unwrap();
        file.write_all_at(&[7; 5000], 3 << 20).unwrap();
        file.write_all_at(&[9; 3], (64 << 20) - 3).unwrap();
        copy(&from, &to, NonZeroUsize::new(2).unwrap()).unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        let pieces = pieces(&file, 64 << 20).unwrap();
        assert!(pieces.iter().all(|piece| piece.end - piece.start <= PIECE));
        // A file system without holes makes one run of data of it.
        assert!(pieces.iter().any(|piece| piece.contains(&(3 << 20))));
    }
}
