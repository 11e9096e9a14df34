//! How bytes go through the system's cache.

/// What becomes of a file's bytes in memory: QEMU's cache modes, by what they promise.
///
/// Direct I/O, as QEMU's `none` and `directsync` have it, is done for whole blocks of 4096 bytes (on
/// Linux). What is odd about a write, before the first of them and after the last, goes through the
/// cache and is dropped from it, and so does all where the file system knows no direct I/O: it crowds
/// nobody out either way. (QEMU fails there.) Pages of the same file that others use go as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Written when the system likes, and stored safely when that is asked for.
    #[default]
    Writeback,
    /// Each write is stored before the next one.
    Writethrough,
    /// As [`Writeback`](Self::Writeback), but past the cache.
    None,
    /// As [`Writethrough`](Self::Writethrough), but past the cache.
    Directsync,
    /// Written when the system likes: a power cut soon after may take anything. What the system knows to
    /// be lost is an error all the same.
    Unsafe,
}

impl Cache {
    /// Whether what is asked to be stored is waited for.
    pub(crate) fn is_lasting(self) -> bool {
        self != Self::Unsafe
    }

    /// Whether each write is waited for.
    pub(crate) fn stores_at_once(self) -> bool {
        matches!(self, Self::Writethrough | Self::Directsync)
    }

    /// Whether nothing is kept in it.
    pub fn is_passed(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }
}
