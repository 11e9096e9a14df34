//! What all work that several threads share has in common.

/// The methods of every builder whose field `job` is a job of the engine, for which somebody may look
/// on, and which may be stopped.
macro_rules! work_methods {
    () => {
        /// Sets the number of workers. Default: one per core. It never changes the result.
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
