//! How bytes go through the system's cache.

/// What becomes of a file's bytes in memory: QEMU's cache modes, by what they promise.
///
/// Direct I/O is not used: it would force every table and every odd end of a disk into aligned
/// buffers. Where QEMU uses it the pages are dropped from the cache after use instead, so they do not
/// crowd out other people's; pages of the same file that others use go as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Written when the system likes, and stored safely when that is asked for.
    #[default]
    Writeback,
    /// Each write is stored before the next one.
    Writethrough,
    /// As [`Writeback`](Self::Writeback), and what was read or stored is dropped from memory.
    None,
    /// As [`Writethrough`](Self::Writethrough), and what was read or stored is dropped from memory.
    Directsync,
    /// Written when the system likes: a power cut soon after may take anything.
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

    /// Whether pages go after use.
    pub(crate) fn drops(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }
}
