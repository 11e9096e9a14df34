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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::{linux, other};

    /// Who calls one of them is compiled for one system alone.
    macro_rules! must_be_alike {
        ($($name:ident),*) => {
            $(let _ = [linux::$name, other::$name];)*
        };
    }

    #[test]
    fn both_systems_are_called_in_the_same_way() {
        must_be_alike!(
            acl,
            below_device,
            close,
            copy,
            create_unnamed,
            drop_cached,
            is_locked,
            is_of_process,
            is_read_only,
            is_remote,
            is_taken,
            label,
            link_unnamed,
            lock_shared,
            may_copy,
            next_data,
            next_hole,
            open_beneath,
            owns_all_of,
            pass_cache,
            passes_cache,
            punch,
            rename_new,
            set_acl,
            set_label,
            share,
            start_writeback,
            thread_time,
            unlock,
            zero_allocated
        );
    }
}
