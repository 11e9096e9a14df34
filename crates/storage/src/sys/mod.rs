//! What only the operating system's own calls can do.
//!
//! Each function fails with [`Unsupported`](std::io::ErrorKind::Unsupported) where the system, the
//! file system or the device cannot do it; callers then do without.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;

#[cfg(any(test, not(target_os = "linux")))]
mod other;
#[cfg(not(target_os = "linux"))]
pub(crate) use other::*;
