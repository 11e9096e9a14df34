//! The threads that make the requests.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use goldsmith_block::{Chain, Demand, Error, ErrorKind, GuestRange, Result, Sink, StorageMut};

use super::place::{Places, Taken};
use super::{Load, Writing};
use crate::Cancel;

/// What is done with each request.
pub(super) enum Way<'a> {
    /// It is read.
    Read(&'a Chain),
    /// It is written where each byte has its place from the start.
    InPlace {
        sink: &'a dyn Sink,
        storages: Vec<Arc<dyn StorageMut>>,
    },
    /// It is written where the tables of the image say.
    Placed {
        places: Box<Mutex<Places>>,
        storages: Vec<Arc<dyn StorageMut>>,
    },
}

/// All requests, and who makes them.
pub(super) struct Crew<'a> {
    load: &'a Load,
    size: u64,
    way: Way<'a>,
    writing: Writing,
    cancel: Option<&'a Cancel>,
    /// What every write writes.
    pattern: Vec<u8>,
    state: Mutex<State>,
    turned: Condvar,
}

struct State {
    next: u64,
    /// Where the requests end that are made before all of them are done, and stored perhaps.
    end: u64,
    under_way: u64,
    done: u64,
    failed: Option<Error>,
}

/// A request that somebody makes.
struct Claim {
    range: GuestRange,
    /// Where it goes, if tables say that.
    taken: Option<Taken>,
}

impl<'a> Crew<'a> {
    pub(super) fn new(
        load: &'a Load,
        size: u64,
        way: Way<'a>,
        cancel: Option<&'a Cancel>,
    ) -> Result<Self> {
        let writing = load.writing.unwrap_or_default();
        let mut pattern = Vec::new();
        if load.writing.is_some() {
            pattern = buffer(load.len)?;
            pattern.fill(writing.pattern);
        }
        Ok(Self {
            load,
            size,
            way,
            writing,
            cancel,
            pattern,
            state: Mutex::new(State {
                next: 0,
                end: 0,
                under_way: 0,
                done: 0,
                failed: None,
            }),
            turned: Condvar::new(),
        })
    }

    /// Makes all requests; gives the time that took.
    pub(super) fn run(self) -> Result<Duration> {
        let start = Instant::now();
        let threads = self.load.count.min(self.load.depth as u64);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let thread = std::thread::Builder::new().name("bench".into());
                if let Err(error) = thread.spawn_scoped(scope, || self.work()) {
                    self.fail(Error::new(ErrorKind::Io, error));
                    break;
                }
            }
        });
        let state = self.state.into_inner();
        if let Some(error) = state.unwrap_or_else(PoisonError::into_inner).failed {
            return Err(error);
        }
        if let Way::Placed { places, .. } = self.way {
            let places = places.into_inner();
            places.unwrap_or_else(PoisonError::into_inner).commit()?;
        }
        Ok(start.elapsed())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in between is a bug already reported.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: Error) {
        self.state().failed.get_or_insert(error);
        self.turned.notify_all();
    }

    /// Makes one request after the other, until there are no more.
    fn work(&self) {
        if let Err(error) = self.requests() {
            self.fail(error);
        }
    }

    fn requests(&self) -> Result<()> {
        let mut read = match self.load.writing {
            None => buffer(self.load.len)?,
            Some(_) => Vec::new(),
        };
        while let Some(claim) = self.claim()? {
            self.make(claim, &mut read)?;
            let mut state = self.state();
            state.under_way -= 1;
            state.done += 1;
            let done = state.done;
            if state.under_way == 0 && state.next == state.end {
                self.turned.notify_all();
            }
            drop(state);
            if self.writing.no_drain && self.load.to_flush(done - 1) == 1 {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// The next request; none if all are claimed, or one has failed.
    fn claim(&self) -> Result<Option<Claim>> {
        if self.cancel.is_some_and(Cancel::is_cancelled) {
            return Err(Error::new(ErrorKind::Cancelled, "stopped on request"));
        }
        let mut state = self.state();
        loop {
            if state.failed.is_some() || state.next == self.load.count {
                return Ok(None);
            }
            if state.next < state.end {
                break;
            }
            if state.under_way > 0 {
                state = self
                    .turned
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if state.next > 0 {
                self.turn(state.next)?;
            }
            state.end = self.end_from(state.next);
            self.turned.notify_all();
        }
        let range = self.load.request(state.next, self.size)?;
        let taken = match &self.way {
            Way::Placed { places, .. } => {
                let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
                Some(places.take(range)?)
            }
            _ => None,
        };
        state.next += 1;
        state.under_way += 1;
        Ok(Some(Claim { range, taken }))
    }

    /// Where the requests from `index` on end that need not wait for each other.
    fn end_from(&self, index: u64) -> u64 {
        let run = match &self.way {
            Way::Read(_) => u64::MAX,
            Way::InPlace { .. } if self.writing.no_drain => u64::MAX,
            Way::InPlace { .. } => self.load.to_flush(index),
            Way::Placed { .. } => {
                let ascending = self.load.ascending(index, self.size);
                ascending.min(self.load.to_flush(index))
            }
        };
        self.load.count.min(index.saturating_add(run))
    }

    /// What is to be done between requests, `index` being the next.
    fn turn(&self, index: u64) -> Result<()> {
        match &self.way {
            Way::Placed { places, .. } => {
                let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
                places.commit()
            }
            Way::InPlace { .. } if self.load.to_flush(index - 1) == 1 => self.flush(),
            _ => Ok(()),
        }
    }

    fn make(&self, claim: Claim, read: &mut [u8]) -> Result<()> {
        let Claim { range, taken } = claim;
        match (&self.way, taken) {
            (Way::Read(chain), _) => return chain.read_at(range.start, read),
            (Way::InPlace { sink, .. }, _) => {
                let demand = Demand {
                    range,
                    packed: None,
                };
                sink.write(demand.in_place(), &self.pattern)?;
            }
            (Way::Placed { .. }, Some(taken)) => taken.write(&self.pattern)?,
            (Way::Placed { .. }, None) => {}
        }
        match self.writing.sync_each {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&self) -> Result<()> {
        match &self.way {
            Way::InPlace { storages, .. } | Way::Placed { storages, .. } => {
                storages.iter().try_for_each(|storage| storage.flush())
            }
            Way::Read(_) => Ok(()),
        }
    }
}

/// `len` bytes, if there is room for them.
fn buffer(len: usize) -> Result<Vec<u8>> {
    let mut buffer = Vec::new();
    let reserved = buffer.try_reserve_exact(len);
    reserved.map_err(|error| Error::new(ErrorKind::Limit, error))?;
    buffer.resize(len, 0);
    Ok(buffer)
}
