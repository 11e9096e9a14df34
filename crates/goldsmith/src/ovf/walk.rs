//! A stranger's tar, from its first byte to its last, and nothing of it believed.

use std::cell::RefCell;
use std::io::{self, BufReader, Read};
use std::time::Duration;

use goldsmith_block::{Budget, Error, ErrorKind, Result, Storage, is_zero};
use goldsmith_storage::thread_time;

use crate::ovf::gunzip::Gunzip;

/// Most VHDs in one tar. [ours] XenServer's chains end at 30.
const MEMBERS: u32 = 200;
/// Most entries of a tar, those that only name the directory among them. [ours]
const ENTRIES: u32 = 1000;
/// Bytes of the tar between two members, its headers among them, that are looked at. [ours]
const BETWEEN: u64 = 1 << 20;
/// Zeros at its end. [ours] Writers fill it up to 10 KiB, unless they are told to write larger records.
const BEHIND: u64 = 64 << 20;
/// Bytes that are packed, or unpacked, together.
const PIECE: usize = 256 << 10;
/// Most bytes that one packed byte can stand for: 258 of them, twice in three bits less one.
/// [RFC 1951]
const RATIO: u64 = 1032;

/// A VHD that the walk has come to.
pub(super) struct Member<'a> {
    pub(super) number: u32,
    /// Length in bytes, which the tar says and nobody has seen yet.
    pub(super) len: u64,
    /// What messages call it.
    pub(super) name: String,
    bytes: &'a mut dyn Read,
    state: &'a RefCell<State>,
    /// Length of the whole file in bytes.
    packed_len: u64,
}

impl Member<'_> {
    /// How many bytes of the file have been unpacked, and of how many.
    pub(super) fn unpacked(&self) -> (u64, u64) {
        (self.state.borrow().unpacked, self.packed_len)
    }

    /// Takes its length from `budget`, and checks that the file can hold so long a member at all.
    ///
    /// # Errors
    /// `Limit` or `Corrupt` if not, before anything is unpacked for it.
    pub(super) fn admit(&self, budget: &Budget) -> Result<()> {
        budget.unpack(self.len, "VHD in the tar")?;
        let most = self.packed_len.saturating_mul(RATIO);
        if self.len <= most {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "{}.vhd is said to have {} bytes; the {} bytes of the gzip'ed tar can hold {most} at most",
            self.number, self.len, self.packed_len
        )))
    }

    /// Fills `buf` with the next bytes, which are not behind the end.
    pub(super) fn read_exact(&mut self, buf: &mut [u8]) -> Result<()> {
        let read = self.bytes.read_exact(buf);
        read.map_err(|error| State::told(self.state, error))
    }
}

/// Calls `each` with every VHD in the tar, in its order, as long as the thread has not had more than `time` of
/// its processor; gives what came of them in the order of
/// their numbers.
///
/// # Errors
/// Those of `each`; `Unsupported` if the tar holds anything else; `Corrupt` if it is truncated, one of
/// them is missing or there twice, or it claims more than can be in it; `Limit` if there are too many,
/// too much stands between them or the time is over; `Io` if it cannot be read.
///
/// # Cost
/// All of the file is read and unpacked: only at its end stands whether all of it was right.
pub(super) fn walk<T>(
    storage: &dyn Storage,
    time: Option<Duration>,
    mut each: impl FnMut(&mut Member<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let state = RefCell::new(State::default());
    let packed = Packed {
        storage,
        at: 0,
        time,
        state: &state,
    };
    let unpacked = Gunzip::new(BufReader::with_capacity(PIECE, packed));
    let mut archive = tar::Archive::new(Allowed {
        inside: unpacked,
        state: &state,
    });
    let told = |error| State::told(&state, error);
    let mut members: Vec<(u32, T)> = Vec::new();
    let mut entries = archive.entries().map_err(told)?;
    let mut seen = 0;
    loop {
        state.borrow_mut().allow(BETWEEN, "between its members");
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(told)?;
        seen += 1;
        if seen > ENTRIES {
            let text = format!("the tar has more than {ENTRIES} entries");
            return Err(Error::new(ErrorKind::Limit, text));
        }
        let path = entry.path_bytes().into_owned();
        let kind = entry.header().entry_type();
        if kind.is_dir() && is_directory(&path) {
            continue;
        }
        let shown = String::from_utf8_lossy(&path).into_owned();
        let Some(number) = number(&path).filter(|_| kind.is_file()) else {
            let what = match kind {
                kind if kind.is_file() => "",
                kind if kind.is_symlink() || kind.is_hard_link() => "the link ",
                kind if kind.is_gnu_sparse() => "the sparse file ",
                _ => "the special file ",
            };
            let text =
                format!("the tar holds {what}'{shown}', which is none of 0.vhd, 1.vhd and so on");
            return Err(Error::unsupported(text));
        };
        if number >= MEMBERS {
            let text = format!("the tar holds {shown}; at most {MEMBERS} VHDs are allowed");
            return Err(Error::new(ErrorKind::Limit, text));
        }
        if members.iter().any(|(known, _)| *known == number) {
            return Err(Error::corrupt(format!("the tar holds {number}.vhd twice")));
        }
        let extensions = entry.pax_extensions().map_err(told)?.into_iter().flatten();
        for extension in extensions {
            let extension = extension.map_err(told)?;
            // [GNU tar] What stands there are the parts that are no holes, under the name of the whole.
            if extension.key_bytes().starts_with(b"GNU.sparse.") {
                let text = format!("the tar holds the sparse file '{shown}'; pack it as it is");
                return Err(Error::unsupported(text));
            }
        }
        let len = entry.size();
        state.borrow_mut().allowed = len.saturating_add(BETWEEN);
        let came = each(&mut Member {
            number,
            len,
            name: format!("{}: {number}.vhd", storage.name()),
            bytes: &mut entry,
            state: &state,
            packed_len: storage.len(),
        })?;
        members.push((number, came));
    }
    state.borrow_mut().allow(BEHIND, "behind its members");
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

/// Reads on to the end.
fn drain(rest: &mut impl Read, told: impl Fn(io::Error) -> Error) -> Result<()> {
    let mut buf = [0; 4096];
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
#[derive(Default)]
struct State {
    /// Bytes that may still be unpacked.
    allowed: u64,
    /// What stands too much of where, if more is.
    too_much: String,
    failure: Option<Error>,
    /// Bytes of the file that were taken to be unpacked.
    unpacked: u64,
}

impl State {
    /// Lets `bytes` of the tar be unpacked, which stand `there`.
    fn allow(&mut self, bytes: u64, there: &str) {
        self.allowed = bytes;
        self.too_much = format!("more than {bytes} bytes of the tar stand {there}");
    }

    fn fail(state: &RefCell<Self>, error: Error) -> io::Error {
        state.borrow_mut().failure = Some(error);
        io::Error::other("it failed")
    }

    /// Why reading failed, whatever the libraries make of it.
    fn told(state: &RefCell<Self>, error: io::Error) -> Error {
        let failure = state.borrow_mut().failure.take();
        failure.unwrap_or_else(|| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::corrupt("the gzip'ed tar is truncated"),
            _ => Error::corrupt(error),
        })
    }
}

/// The file, from its first byte to its last.
struct Packed<'a> {
    storage: &'a dyn Storage,
    at: u64,
    time: Option<Duration>,
    state: &'a RefCell<State>,
}

impl Read for Packed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(time) = self.time
            && thread_time().is_some_and(|taken| taken > time)
        {
            let text = format!(
                "a look at the image may take {} s of the processor's time, and to unpack it takes longer \
                 (--unpack-limit lifts that)",
                time.as_secs_f32()
            );
            let error = Error::new(ErrorKind::Limit, text);
            return Err(State::fail(self.state, error));
        }
        // At most the buffer.
        let len = (self.storage.len() - self.at).min(buf.len() as u64) as usize;
        let read = self.storage.read_at(self.at, &mut buf[..len]);
        read.map_err(|error| State::fail(self.state, error))?;
        self.at += len as u64;
        self.state.borrow_mut().unpacked = self.at;
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
            let text = self.state.borrow().too_much.clone();
            let error = Error::new(ErrorKind::Limit, text);
            return Err(State::fail(self.state, error));
        }
        let len = allowed.min(buf.len() as u64) as usize;
        let len = self.inside.read(&mut buf[..len])?;
        self.state.borrow_mut().allowed -= len as u64;
        Ok(len)
    }
}
