//! Memory that the host of a virtual machine has supplied already.
//!
//! Such a host may take back what is free for a few seconds, and to supply it again takes longer than
//! to copy into it: whoever happens to come upon such memory pays for it, and times double. So while
//! contenders run, most of the free memory is held by a program that does nothing, and the rest is
//! touched before each of them starts: it is what a run gets.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::machine::free_pages;
use crate::measure::Step;

/// Left free beside what a run takes, in bytes.
const MARGIN: u64 = 1 << 30;

pub(crate) struct Supply {
    this: PathBuf,
    /// Bytes that are left free.
    bytes: u64,
    holder: Option<Child>,
}

impl Supply {
    /// Leaves free what is needed for runs that take `bytes`; `this` is the program that runs.
    pub(crate) fn keep(this: &Path, bytes: u64) -> Result<Self, String> {
        let fail = |error: io::Error| format!("cannot hold memory: {error}");
        let mut supply = Self {
            this: this.to_owned(),
            bytes: bytes + MARGIN,
            holder: None,
        };
        let held = free_pages().map_err(fail)?.saturating_sub(supply.bytes);
        if held > 0 {
            let mut holder = Command::new(this)
                .args(["touch", &held.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(fail)?;
            let said = holder.stdout.take();
            supply.holder = Some(holder);
            let mut done = [0];
            let mut said = said.ok_or_else(|| fail(io::ErrorKind::BrokenPipe.into()))?;
            said.read_exact(&mut done).map_err(fail)?;
        }
        Ok(supply)
    }

    /// Touches what is free.
    pub(crate) fn renew(&self) -> Result<(), String> {
        // A little less, so that nothing useful is driven out.
        let bytes = (self.bytes - MARGIN / 4).to_string();
        let step = Step::new(&self.this, "touch").words(&bytes);
        step.run().map(drop)
    }
}

impl Drop for Supply {
    fn drop(&mut self) {
        if let Some(mut holder) = self.holder.take() {
            // It may be gone already.
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

/// Touches `bytes` of memory, says so with one byte, and holds them until its input ends.
pub(crate) fn touch(bytes: usize) -> io::Result<()> {
    let held = vec![1_u8; bytes];
    let mut out = io::stdout();
    out.write_all(b"\n")?;
    out.flush()?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    drop(std::hint::black_box(held));
    Ok(())
}
