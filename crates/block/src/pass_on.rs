//! For storages that stand before another one.

/// Methods of [`Storage`](crate::Storage) or [`StorageMut`](crate::StorageMut) that do what they do in the
/// storage of a field: for one that stands before another and has nothing to add to these.
///
/// Only what is named is passed on. The compiler misses what is forgotten, but for what the traits provide:
/// `file`, `span_at`, `best_transfer` and `transfer`. Where all bytes stay what they are, these belong to
/// it, or nobody finds a hole or shares a block any more; where they do not, as here, these must not.
///
/// ```
/// use std::sync::Arc;
///
/// use goldsmith_block::{Result, Storage, pass_on};
///
/// /// A file of which every bit is turned round.
/// #[derive(Debug)]
/// struct Inverted {
///     file: Arc<dyn Storage>,
/// }
///
/// impl Storage for Inverted {
///     pass_on!(file: name, id, len);
///
///     fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
///         self.file.read_at(offset, buf)?;
///         buf.iter_mut().for_each(|byte| *byte = !*byte);
///         Ok(())
///     }
/// }
/// ```
#[macro_export]
macro_rules! pass_on {
    ($field:ident: $($method:ident),+) => { $($crate::pass_on!(@$method $field);)+ };

    (@name $at:ident) => { $crate::pass_on!(@@ $at name() -> &str); };
    (@id $at:ident) => { $crate::pass_on!(@@ $at id() -> $crate::StorageId); };
    (@len $at:ident) => { $crate::pass_on!(@@ $at len() -> u64); };
    (@read_at $at:ident) => {
        $crate::pass_on!(@@ $at read_at(offset: u64, buf: &mut [u8]) -> $crate::Result<()>);
    };
    (@offset $at:ident) => { $crate::pass_on!(@@ $at offset() -> u64); };
    (@lockable $at:ident) => {
        $crate::pass_on!(@@ $at lockable() -> Option<&std::fs::File>);
    };
    (@file $at:ident) => { $crate::pass_on!(@@ $at file() -> Option<&std::fs::File>); };
    (@span_at $at:ident) => {
        $crate::pass_on!(@@ $at span_at(offset: u64, limit: u64) -> $crate::Result<$crate::Span>);
    };

    (@write_at $at:ident) => {
        $crate::pass_on!(@@ $at write_at(offset: u64, data: &[u8]) -> $crate::Result<()>);
    };
    (@set_len $at:ident) => { $crate::pass_on!(@@ $at set_len(len: u64) -> $crate::Result<()>); };
    (@zero $at:ident) => {
        $crate::pass_on!(
            @@ $at zero(range: $crate::HostRange, zeroing: $crate::Zeroing) -> $crate::Result<()>
        );
    };
    (@best_transfer $at:ident) => {
        $crate::pass_on!(
            @@ $at best_transfer(source: &dyn $crate::Storage) -> Option<$crate::Transfer>
        );
    };
    (@transfer $at:ident) => {
        $crate::pass_on!(
            @@ $at transfer(
                source: &dyn $crate::Storage,
                from: $crate::HostRange,
                to: u64,
                transfer: $crate::Transfer
            ) -> bool
        );
    };
    (@flush $at:ident) => { $crate::pass_on!(@@ $at flush() -> $crate::Result<()>); };
    (@fixed_len $at:ident) => { $crate::pass_on!(@@ $at fixed_len() -> Option<u64>); };
    (@is_blank $at:ident) => { $crate::pass_on!(@@ $at is_blank() -> bool); };

    (@@ $at:ident $method:ident($($with:ident: $of:ty),*) -> $gives:ty) => {
        fn $method(&self, $($with: $of),*) -> $gives {
            self.$at.$method($($with),*)
        }
    };
}
