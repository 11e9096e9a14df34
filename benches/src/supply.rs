//! Memory that the host of a virtual machine has supplied already, and does not take back.
//!
//! Such a host may take back what is free for a few seconds, in huge pages, and to supply it again
//! takes longer than to copy into it: whoever happens to come upon such memory pays for it, and times
//! double. So a program that does nothing else touches memory before the first contender starts and
//! keeps one page of each huge one: what lies between them is free for a run, and after it free again, but
//! never in pieces that a host can take.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use memmap2::MmapMut;

/// Free beside what a run takes, in bytes.
const MARGIN: u64 = 1 << 30;

/// A page, or as near to one as it matters, in bytes.
const KEPT: usize = 4 << 10;

/// Bytes that are given back for each that are [`KEPT`]: with them a huge page, of which one half stays
/// whole, for file systems that keep a file in large pieces.
const FREE: usize = (2 << 20) - KEPT;

pub(crate) struct Supply {
    holder: Child,
}

impl Supply {
    /// Has memory for runs that take `bytes`, in pieces of up to 1 MiB; `this` is the program that runs.
    pub(crate) fn keep(this: &Path, bytes: u64) -> Result<Self, String> {
        let fail = |error: io::Error| format!("cannot hold memory: {error}");
        let holder = Command::new(this)
            .args(["touch", &(2 * bytes + MARGIN).to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(fail)?;
        let mut supply = Self { holder };
        let said = supply.holder.stdout.as_mut();
        let said = said.ok_or_else(|| fail(io::ErrorKind::BrokenPipe.into()))?;
        said.read_exact(&mut [0]).map_err(fail)?;
        Ok(supply)
    }
}

impl Drop for Supply {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Touches `bytes` of memory, gives back most, says so with one byte, and keeps the rest until its
/// input ends.
pub(crate) fn touch(bytes: usize) -> io::Result<()> {
    let touched = |len| -> io::Result<MmapMut> {
        let mut memory = MmapMut::map_anon(len)?;
        memory.fill(1);
        Ok(memory)
    };
    let pairs = (0..bytes.div_ceil(FREE)).map(|_| Ok((touched(FREE)?, touched(KEPT)?)));
    let (free, kept): (Vec<_>, Vec<_>) = pairs.collect::<io::Result<Vec<_>>>()?.into_iter().unzip();
    drop(free);
    let mut out = io::stdout();
    out.write_all(b"\n")?;
    out.flush()?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    drop(std::hint::black_box(kept));
    Ok(())
}
