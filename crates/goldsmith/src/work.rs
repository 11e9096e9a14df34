//! What all work that several threads share has in common.

/// The methods of every builder whose field `job` is a job of the engine, for which somebody may look
/// on, and which may be stopped.
macro_rules! work_methods {
    () => {
        /// Sets the number of workers, at most [`MOST_THREADS`](crate::MOST_THREADS), and fewer where the
        /// process has no room for so many. Default: one per core. It never changes the result.
        #[must_use]
        pub fn threads(mut self, threads: std::num::NonZeroUsize) -> Self {
            self.job.threads = Some(threads);
            self
        }

        /// Sets whom to tell how far the work has come; called often, from any worker.
        #[must_use]
        pub fn progress(mut self, listener: &'a (dyn Fn(crate::Progress) + Sync)) -> Self {
            self.job.progress = Some(listener);
            self
        }

        /// Sets the flag that stops the work.
        #[must_use]
        pub fn cancel(mut self, cancel: &'a crate::Cancel) -> Self {
            self.job.cancel = Some(cancel);
            self
        }
    };
}
pub(crate) use work_methods;

/// Shows a builder by what it is about, without those who look on.
macro_rules! shown_by {
    ($builder:ident: $($field:ident),+) => {
        impl std::fmt::Debug for $builder<'_> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($builder))
                    $(.field(stringify!($field), &self.$field))+
                    .finish_non_exhaustive()
            }
        }
    };
}
pub(crate) use shown_by;
