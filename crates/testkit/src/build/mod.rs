//! Images put together byte by byte, with every peculiarity that a test asks for.
//!
//! Written from the specifications and not from goldsmith's own formats, so that both can be wrong
//! only in different ways.

pub mod ovf;
pub mod qcow2;
pub mod vhd;
