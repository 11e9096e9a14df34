//! Where image bytes live: files, devices, memory.

mod memory;

pub use memory::MemoryStorage;
