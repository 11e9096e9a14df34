//! How fast goldsmith is, part by part: `cargo bench -p goldsmith-bench`.
//!
//! `benches/parts.rs` measures what the engine does to each byte, `benches/convert.rs` whole
//! conversions in memory, where no disk adds its noise.
#![forbid(unsafe_code)]
