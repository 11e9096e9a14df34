//! Moves the bytes of a [`Chain`](goldsmith_block::Chain) into a
//! [`Sink`](goldsmith_block::Sink), compares two chains, makes digests of
//! one, and measures.
//!
//! ```text
//!            claim          read, scan, pack      reserve            write          commit
//! chain ──► next range ──► on any worker ─────► in guest order ──► in any order ──► once
//!            (holes are     (holes cost           (sequencer)
//!             stepped over)  nothing)
//! ```
//!
//! Work is a few large positioned reads and writes plus CPU time, so it runs on threads of its own
//! and nothing below is asynchronous. Workers claim ranges from one counter; each keeps one range
//! in memory, so memory is bounded by the number of threads, never by the disk. Places are
//! reserved in guest order, so the target's bytes do not depend on the number of threads. The
//! first error stops everybody.
//!
//! Bytes that nobody has to see do not come here. Where the file system can do it the target shares
//! them with the source. A worker that is alone has the kernel copy those that stand in a row and
//! fill large units of the target, when the first bytes of a unit show that it is no zeros: one copy
//! instead of two (and all workers do, where a server copies). Of several workers some read while
//! another writes, which takes less time (and more of the processor): a file takes one write after
//! the other, and what the kernel copies is read inside of that.
//!
//! A source that passes by once, in an order of its own, is not asked for ranges: it is
//! [poured](Pour) into a sink that takes it so.
//!
//! Not here, because it was measured and found no better: memory maps (a tenth less time for one
//! thread and none for two, which wait for each other's page tables; and a source that is cut short
//! would be a signal, not an error), a thread of its own for writing (what one core has read is not
//! in the cache of the other), and claims and writes of other lengths. `benches/LIMITS.md` has the
//! figures.
#![forbid(unsafe_code)]

mod cancel;
mod checksum;
mod claim;
mod compare;
mod convert;
mod cover;
pub mod crew;
mod digest;
mod glimpse;
mod layout;
mod measure;
mod milestone;
mod packed;
mod pour;
mod progress;
mod rate;
mod said;
mod sequencer;
mod source;
mod worker;

pub use cancel::Cancel;
pub use checksum::{ChecksumJob, checksum};
pub use compare::{CompareError, CompareJob, Comparison, compare};
pub use convert::{Behind, Job, Outcome, convert};
pub use crew::{MOST_THREADS, cores};
pub use digest::{Algorithm, Crc32, Digest};
pub use measure::{data_ranges, lay_out};
pub use milestone::Milestones;
pub use pour::Pour;
pub use progress::{Phase, Progress};
pub use rate::Bucket;
pub use said::Said;
