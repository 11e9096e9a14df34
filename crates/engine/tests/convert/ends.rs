//! Failures, cancellation, progress and rate.

use super::*;

#[test]
fn source_that_fails_anywhere_stops_the_conversion() {
    let disk = disk("6M:A 2M:- 6M:B 512:C");
    for count in [1, 3] {
        let mut nth = 0;
        loop {
            let storage: Arc<dyn Storage> = Arc::new(ModelStorage::new(disk.clone()));
            let faulty = Arc::new(FaultStorage::new(storage, Op::Read, nth));
            let layer = Arc::new(ModelLayer::over(disk.clone(), faulty.clone()));
            let recording = Recording::new(Recording::profile(disk.len(), 65536));
            let result = convert(&Chain::new(layer, []), recording.sink(), &threads(count));
            if !faulty.fired() {
                assert!(result.is_ok() && recording.is_committed());
                break;
            }
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Io);
            assert!(!recording.is_committed());
            nth += 1;
        }
        assert!(nth >= 7, "only {nth} reads failed");
    }
}

#[test]
fn sink_that_fails_anywhere_stops_the_conversion() {
    let disk = disk("6M:A 2M:- 6M:B 512:C");
    for step in [Step::Reserve, Step::Write, Step::WriteZeroes, Step::Commit] {
        for count in [1, 3] {
            let profile = Recording::profile(disk.len(), 65536);
            let profile = SinkProfile {
                zeroes: ZeroPolicy::Written,
                ..profile
            };
            let mut nth = 0;
            loop {
                let recording = Recording::failing(profile.clone(), step, nth);
                let result = convert(&chain(&disk), recording.sink(), &threads(count));
                if recording.calls(step) <= nth {
                    assert!(result.is_ok() && recording.is_committed());
                    break;
                }
                assert_eq!(result.unwrap_err().kind(), ErrorKind::Io);
                assert!(!recording.is_committed());
                nth += 1;
            }
            assert!(nth >= 1, "{step:?} was never called");
        }
    }
}

/// A layer to which something happens before each read, of which it is told the offset.
struct Before<F>(ModelLayer, F);

impl<F: Fn(u64) + Send + Sync> Layer for Before<F> {
    fn info(&self) -> &LayerInfo {
        self.0.info()
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        self.0.storage()
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.0.extent_at(offset, limit)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.1(offset);
        self.0.read_at(offset, buf)
    }
}

#[test]
fn panic_of_one_worker_does_not_leave_the_others_waiting() {
    let bug = |offset| assert!(offset < 2 << 20, "as the test wants it");
    let source = Chain::new(Arc::new(Before(ModelLayer::new(disk("8M:A")), bug)), []);
    let recording = Recording::new(Recording::profile(8 << 20, 65536));
    let sink = recording.sink();
    let result = catch_unwind(AssertUnwindSafe(|| convert(&source, sink, &threads(4))));
    assert!(result.is_err());
    assert!(!recording.is_committed());
}

#[test]
fn cancelled_conversion_does_not_commit() {
    let cancel = Cancel::new();
    let progress = |_: Progress| cancel.cancel();
    let job = Job {
        cancel: Some(&cancel),
        progress: Some(&progress),
        ..threads(2)
    };
    let recording = Recording::new(Recording::profile(64 << 20, 65536));
    let error = convert(&chain(&disk("64M:A")), recording.sink(), &job).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(!recording.is_committed());
    assert!(recording.reserves().len() < 64, "it went on");
}

#[test]
fn progress_ends_at_the_whole_disk() {
    let disk = disk("1M:A 1G:- 3M:B");
    let (most, data) = (AtomicU64::new(0), AtomicU64::new(0));
    let totals = Mutex::new(Vec::new());
    let progress = |progress: Progress| {
        most.fetch_max(progress.done, Ordering::Relaxed);
        data.fetch_max(progress.data, Ordering::Relaxed);
        totals.lock().unwrap().push(progress.total);
    };
    let job = Job {
        progress: Some(&progress),
        ..threads(3)
    };
    let recording = Recording::new(Recording::profile(disk.len(), 65536));
    convert(&chain(&disk), recording.sink(), &job).unwrap();
    assert_eq!(most.into_inner(), disk.len());
    assert_eq!(data.into_inner(), 4 << 20);
    assert!(
        totals
            .into_inner()
            .unwrap()
            .iter()
            .all(|total| *total == disk.len())
    );
}

/// At this rate it would take a month. What is not paid for is not written, and who waits for that
/// hears that the job is stopped.
#[test]
fn rate_holds_back_what_is_written_until_the_job_is_stopped() {
    for (rate, written) in [(None, 1), (NonZeroU64::new(1), 0)] {
        let cancel = Cancel::new();
        let disk = disk("3M:a");
        let raise = cancel.clone();
        let layer = Before(ModelLayer::new(disk.clone()), move |_| raise.cancel());
        let recording = Recording::new(Recording::profile(disk.len(), 65536));
        let job = Job {
            rate,
            cancel: Some(&cancel),
            ..threads(1)
        };
        let source = Chain::new(Arc::new(layer), []);
        let error = convert(&source, recording.sink(), &job).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(recording.calls(Step::Write), written);
    }
}

/// A rate that is never reached changes nothing.
#[test]
fn rate_above_what_there_is_gives_the_same() {
    let disk = disk("1M:a 1M:- 1M:B");
    let recording = Recording::new(Recording::profile(disk.len(), 65536));
    let job = Job {
        rate: NonZeroU64::new(u64::MAX),
        ..threads(2)
    };
    convert(&chain(&disk), recording.sink(), &job).unwrap();
    assert!(recording.bytes() == disk.bytes());
}
