//! Contexts and buffers that are used again.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Things that are dear to make, lent to one user at a time.
///
/// Holds as many as were ever in use at once. Safe to use from many threads.
pub struct Pool<T> {
    make: fn() -> T,
    idle: Mutex<Vec<T>>,
}

impl<T> Pool<T> {
    /// A pool that holds nothing yet and uses `make` for what it lacks.
    pub const fn new(make: fn() -> T) -> Self {
        Self {
            make,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// One that nobody else uses, in the state its last user left it in; it returns when dropped.
    pub fn take(&self) -> Pooled<'_, T> {
        self.take_suited(|_| true)
    }

    /// As [`take`](Self::take): of those that lie idle the one that was used last of all that suit, if
    /// there is any, or else of all.
    pub fn take_suited(&self, suits: impl FnMut(&T) -> bool) -> Pooled<'_, T> {
        let mut idle = self.idle();
        let at = idle.iter().rposition(suits);
        let item = match at {
            Some(at) => Some(idle.remove(at)),
            None => idle.pop(),
        };
        drop(idle);
        Pooled {
            item: Some(item.unwrap_or_else(self.make)),
            pool: self,
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<T>> {
        // Only whole items are pushed and popped, so a panic elsewhere spoils nothing.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} idle)", self.idle().len())
    }
}

/// One thing of a [`Pool`], returned to it when dropped.
pub struct Pooled<'a, T> {
    /// Empty only while it is being dropped.
    item: Option<T>,
    pool: &'a Pool<T>,
}

impl<T> Deref for Pooled<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // Proven by the field's note: nobody can deref during the drop.
        self.item.as_ref().expect("taken only when dropped")
    }
}

impl<T> DerefMut for Pooled<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.item.as_mut().expect("taken only when dropped")
    }
}

impl<T> Drop for Pooled<'_, T> {
    fn drop(&mut self) {
        if let Some(item) = self.item.take() {
            self.pool.idle().push(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_returned_is_lent_again() {
        let pool = Pool::new(Vec::<u8>::new);
        pool.take().push(7);
        let first = pool.take();
        assert_eq!(*first, [7]);
        assert_eq!(*pool.take(), [], "the first one is in use");
        drop(first);
        assert_eq!(pool.idle().len(), 2);
    }

    #[test]
    fn one_that_suits_is_lent_before_another() {
        let pool = Pool::new(|| 0);
        let both = [pool.take(), pool.take()];
        for (mut item, number) in both.into_iter().zip([1, 2]) {
            *item = number;
        }
        assert_eq!(*pool.take_suited(|item| *item == 1), 1);
        assert_eq!(*pool.take_suited(|item| *item == 2), 2);
        assert_eq!(*pool.take_suited(|item| *item == 3), 2, "none does");
        let _used = pool.take_suited(|item| *item == 1);
        assert_eq!(*pool.take_suited(|item| *item == 1), 2, "it is in use");
    }

    #[test]
    fn threads_never_share_one() {
        let pool = Pool::new(|| 0u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| *pool.take() += 1));
            }
        });
        let total: u64 = pool.idle().iter().sum();
        assert_eq!(total, 4000);
        assert!(pool.idle().len() <= 4);
    }
}
