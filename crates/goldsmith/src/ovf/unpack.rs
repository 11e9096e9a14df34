//! Unpacking: a stranger's tar, of which nothing is believed.

use std::cell::RefCell;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use goldsmith_block::{Budget, Error, ErrorKind, Result, Storage, StorageMut, is_zero};
use goldsmith_storage::FileStorage;

/// Most VHDs in one tar. [ours] XenServer's chains end at 30.
const MEMBERS: u32 = 200;
/// Bytes of the tar between two members, its headers among them, that are looked at. [ours] Writers
/// fill the end up to 10 KiB.
const BETWEEN: u64 = 1 << 20;
/// Bytes that are packed, or unpacked, together.
const PIECE: usize = 256 << 10;
/// Zeros of this length or more become holes.
const HOLE: usize = 4096;

/// What a tar holds: `0.vhd`, `1.vhd` and so on, each in a file without a name.
///
/// # Errors
/// `Unsupported` if it holds anything else; `Corrupt` if it is truncated or one of them is missing or
/// there twice; `Limit` if they are too many or too long for `budget`; `Io` if it cannot be read or
/// there is no room for them.
///
/// # Cost
/// All of the file is read, and what it holds is written.
pub(super) fn unpack(storage: &dyn Storage, budget: &Budget) -> Result<Vec<Arc<dyn Storage>>> {
    let state = RefCell::new(State {
        allowed: BETWEEN,
        failure: None,
    });
    let packed = Packed {
        storage,
        at: 0,
        state: &state,
    };
    let unpacked = MultiGzDecoder::new(BufReader::with_capacity(PIECE, packed));
    let mut archive = tar::Archive::new(Allowed {
        inside: unpacked,
        state: &state,
    });
    let told = |error: io::Error| {
        // Whatever the libraries make of it.
        let failure = state.borrow_mut().failure.take();
        failure.unwrap_or_else(|| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::corrupt("the gzip'ed tar is truncated"),
            _ => Error::corrupt(error),
        })
    };
    let mut members: Vec<(u32, Arc<dyn Storage>)> = Vec::new();
    let mut entries = archive.entries().map_err(told)?;
    loop {
        state.borrow_mut().allowed = BETWEEN;
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(told)?;
        let path = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&path).into_owned();
        let kind = entry.header().entry_type();
        if kind.is_dir() && is_directory(&path) {
            continue;
        }
        let Some(number) = number(&path).filter(|_| kind.is_file()) else {
            let text = format!("the tar holds '{shown}', which is none of 0.vhd, 1.vhd and so on");
            return Err(Error::unsupported(text));
        };
        if number >= MEMBERS {
            let text = format!("the tar holds {shown}; at most {MEMBERS} VHDs are allowed");
            return Err(Error::new(ErrorKind::Limit, text));
        }
        if members.iter().any(|(known, _)| *known == number) {
            return Err(Error::corrupt(format!("the tar holds {number}.vhd twice")));
        }
        let len = entry.size();
        budget.unpack(len, "VHD in the tar")?;
        state.borrow_mut().allowed = len.saturating_add(BETWEEN);
        let name = format!("{}: {number}.vhd", storage.name());
        let member = FileStorage::scratch(name)?;
        copy(&mut entry, len, &member, told)?;
        members.push((number, Arc::new(member)));
    }
    drain(&mut archive.into_inner(), told)?;
    members.sort_by_key(|(number, _)| *number);
    for (expected, (number, _)) in (0..).zip(&members) {
        if *number != expected {
            let text = format!("the tar holds {number}.vhd, and no {expected}.vhd");
            return Err(Error::corrupt(text));
        }
    }
    if members.is_empty() {
        return Err(Error::corrupt("the tar holds no 0.vhd"));
    }
    Ok(members.into_iter().map(|(_, member)| member).collect())
}

/// Puts `len` bytes of `from` into `member`, which is empty.
fn copy(
    from: &mut impl Read,
    len: u64,
    member: &FileStorage,
    told: impl Fn(io::Error) -> Error,
) -> Result<()> {
    let mut buf = vec![0; PIECE];
    let mut at = 0;
    while at < len {
        // At most a piece.
        let part = &mut buf[..(len - at).min(PIECE as u64) as usize];
        from.read_exact(part).map_err(&told)?;
        for (nth, run) in part.chunks(HOLE).enumerate() {
            if !is_zero(run) {
                member.write_at(at + (nth * HOLE) as u64, run)?;
            }
        }
        at += part.len() as u64;
    }
    member.set_len(len)
}

/// Reads on to the end: only there stands whether all that came before was right.
fn drain(rest: &mut impl Read, told: impl Fn(io::Error) -> Error) -> Result<()> {
    let mut buf = [0; HOLE];
    loop {
        let len = rest.read(&mut buf).map_err(&told)?;
        if len == 0 {
            return Ok(());
        }
        if !is_zero(&buf[..len]) {
            return Err(Error::corrupt("something stands behind the end of the tar"));
        }
    }
}

/// The number of the VHD that a member of this name is.
pub(super) fn number(path: &[u8]) -> Option<u32> {
    let name = path.strip_prefix(b"./").unwrap_or(path);
    let digits = std::str::from_utf8(name.strip_suffix(b".vhd")?).ok()?;
    // Each number has one name: no signs, no zeros in front.
    let number: u32 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

/// Whether a member of this name is the directory that all others are in.
pub(super) fn is_directory(path: &[u8]) -> bool {
    matches!(path, b"." | b"./")
}

/// What reading is bound to, and why it failed.
struct State {
    /// Bytes that may still be unpacked.
    allowed: u64,
    failure: Option<Error>,
}

impl State {
    fn fail(state: &RefCell<Self>, error: Error) -> io::Error {
        state.borrow_mut().failure = Some(error);
        io::Error::other("it failed")
    }
}

/// The file, from its first byte to its last.
struct Packed<'a> {
    storage: &'a dyn Storage,
    at: u64,
    state: &'a RefCell<State>,
}

impl Read for Packed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // At most the buffer.
        let len = (self.storage.len() - self.at).min(buf.len() as u64) as usize;
        let read = self.storage.read_at(self.at, &mut buf[..len]);
        read.map_err(|error| State::fail(self.state, error))?;
        self.at += len as u64;
        Ok(len)
    }
}

/// What is inside, as far as it is allowed: names and other things that a tar says of its members
/// would be taken into memory as long as they are.
struct Allowed<'a, R> {
    inside: R,
    state: &'a RefCell<State>,
}

impl<R: Read> Read for Allowed<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let allowed = self.state.borrow().allowed;
        if allowed == 0 && !buf.is_empty() {
            let text = format!("more than {BETWEEN} bytes of the tar stand between its members");
            let error = Error::new(ErrorKind::Limit, text);
            return Err(State::fail(self.state, error));
        }
        let len = allowed.min(buf.len() as u64) as usize;
        let len = self.inside.read(&mut buf[..len])?;
        self.state.borrow_mut().allowed -= len as u64;
        Ok(len)
    }
}
