#![forbid(unsafe_code)]
// A failed assertion here is a failed test, and says so at the caller's line.
#![allow(clippy::unwrap_used)]
//! What goldsmith's tests share: patterns, model disks, conformance suites, the outside judge.
//!
//! ```text
//! pattern "64k:A 128k:- 64k:0" ─► ModelDisk ─┬─► image::write ─► bytes ─┬─► image::read ──► equal?
//!                                            ├─► ModelLayer             ├─► qemu ─────────► equal?
//!                                            └─► ModelStorage           └─► hostile, fuzz ► an answer?
//! ```
//!
//! Nothing here is fast or clever: these are the pieces that must be right at first sight, so that
//! a difference points at the code under test.
//!
//! ```
//! use goldsmith_testkit::{image, pattern, record::Recording};
//!
//! let disk = pattern::disk("64k:A 128k:- 64k:0 512:b");
//! let recording = Recording::new(Recording::profile(disk.len(), 4096));
//! image::drive(recording.sink(), &disk)?;
//! assert!(recording.bytes() == disk.bytes());
//! # Ok::<(), goldsmith_block::Error>(())
//! ```

pub mod build;
pub mod conformance;
pub mod crash;
pub mod device;
pub mod fault;
pub mod fuzz;
pub mod hostile;
pub mod image;
pub mod model;
pub mod mount;
pub mod pattern;
pub mod qemu;
pub mod record;
pub mod slow;
pub mod sparse;
pub mod testdata;
pub mod trace;

pub use model::{ModelDisk, ModelLayer, ModelStorage};

/// Tells a figure of `docs/trust.md`.
pub fn figure(text: std::fmt::Arguments<'_>) {
    tell(format_args!("figure: {text}"));
}

/// Tells what is not tested, and why.
pub fn left_out(text: std::fmt::Arguments<'_>) {
    tell(format_args!("LEFT OUT: {text}"));
}

/// Past the test harness, which keeps to itself what a test prints that does not fail.
fn tell(text: std::fmt::Arguments<'_>) {
    use std::io::Write;
    // If nobody listens there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{text}");
}
