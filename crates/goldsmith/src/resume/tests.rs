//! Conversions that are cut off by a power cut and gone on with, again and again.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use goldsmith_block::{BackingReference, Options};
use goldsmith_engine::{Behind, Cancel};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::crash::CrashStorage;
use goldsmith_testkit::figure;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::{ModelDisk, ModelLayer};
use uuid::Uuid;

use super::*;
use crate::registry::format_named;

/// A target: format, options, whether it is packed, and the disk behind it.
type Case = (
    &'static str,
    &'static [(&'static str, &'static str)],
    bool,
    Option<&'static str>,
);

const BEHIND: &str = "1M:A 1M:- 2M:B 1M:x";

const CASES: [Case; 12] = [
    ("raw", &[], false, None),
    ("qcow2", &[], false, None),
    (
        "qcow2",
        &[("cluster_size", "512"), ("refcount_bits", "64")],
        false,
        None,
    ),
    (
        "qcow2",
        &[("cluster_size", "16k"), ("extended_l2", "on")],
        false,
        None,
    ),
    ("qcow2", &[("preallocation", "metadata")], false, None),
    ("qcow2", &[], true, None),
    (
        "qcow2",
        &[("cluster_size", "4k"), ("compression_type", "zstd")],
        true,
        None,
    ),
    (
        "qcow2",
        &[("backing_file", "b"), ("backing_fmt", "raw")],
        false,
        Some(BEHIND),
    ),
    (
        "qcow2",
        &[("backing_file", "b"), ("backing_fmt", "raw")],
        true,
        Some(BEHIND),
    ),
    (
        "vpc",
        &[("block_size", "512k"), ("batmap", "on")],
        false,
        None,
    ),
    ("vpc", &[("subformat", "fixed")], false, None),
    (
        "vpc",
        &[
            ("backing_file", "b"),
            ("backing_fmt", "raw"),
            ("block_size", "512k"),
        ],
        false,
        Some(BEHIND),
    ),
];

/// Four claims of up to 1 MiB, with all that a disk has.
const PICTURE: &str = "700k:A 4k:0 320k:b 424k:C 600k:- 64k:0 96k:d 700k:- 500k:e";

/// One conversion, over and over.
struct Bench {
    case: Case,
    opener: Opener,
    proof: Proof,
    source: Chain,
    behind: Option<Chain>,
}

fn chain(disk: ModelDisk) -> Chain {
    Chain::new(Arc::new(ModelLayer::new(disk)), [])
}

impl Bench {
    fn new(case: Case) -> Self {
        Self {
            case,
            opener: Opener::new(),
            proof: Proof::default(),
            source: chain(disk(PICTURE)),
            behind: case.3.map(|picture| chain(disk(picture))),
        }
    }

    fn work<'a>(
        &'a self,
        source: &'a Chain,
        threads: usize,
        cancel: Option<&'a Cancel>,
    ) -> Work<'a> {
        let (name, options, compress, _) = self.case;
        let format = format_named(name).unwrap();
        Work {
            target: Path::new("target"),
            format,
            source,
            disks: std::slice::from_ref(source),
            behind: self.behind.as_ref(),
            cache: Cache::default(),
            spec: CreateSpec {
                virtual_size: source.virtual_size(),
                data: None,
                backing: self.behind.as_ref().map(|_| BackingReference {
                    name: "b".into(),
                    format: Some("raw".into()),
                    ..BackingReference::default()
                }),
                options: Options::parse(format.options(), options.iter().copied()).unwrap(),
                compress,
                uuid: Uuid::from_u128(7),
                timestamp: 1_000_000_000,
            },
            job: Job {
                threads: NonZeroUsize::new(threads),
                behind: self.behind.as_ref().map_or(Behind::Nothing, Behind::Disk),
                cancel,
                ..Job::default()
            },
            proof: &self.proof,
            wishes: Vec::new(),
            opener: &self.opener,
            cloud: None,
        }
    }

    /// What an uninterrupted run without a journal makes.
    fn whole(&self) -> Vec<u8> {
        let work = self.work(&self.source, 2, None);
        let storage = Arc::new(MemoryStorage::new("target"));
        let sink = work.create(Arc::clone(&storage) as _).unwrap();
        goldsmith_engine::convert(work.source, sink, &work.job).unwrap();
        storage.to_vec()
    }

    /// Begins with an empty `target`, with milestones that are `every` bytes apart.
    fn begin(&self, target: Arc<dyn StorageMut>, journal: Arc<dyn StorageMut>, every: u64) {
        let work = self.work(&self.source, 1, None);
        let sink = work.create(Arc::clone(&target)).unwrap();
        must_be_plain(&*sink).unwrap();
        let (_, mut journal) = Journal::open(journal, FILE).unwrap();
        pour(&work, sink, &*target, &mut journal, every).unwrap();
    }

    /// Goes on with what is left; gives what the journal had said was done, and what came of it.
    fn go_on(
        &self,
        source: &Chain,
        target: &Arc<dyn StorageMut>,
        journal: Arc<dyn StorageMut>,
        cancel: Option<&Cancel>,
    ) -> (u64, Result<Outcome>) {
        let work = self.work(source, 2, cancel);
        let (_, mut journal) = Journal::open(journal, FILE).unwrap();
        let done = journal.done;
        let unfinished = Arc::new(Unfinished::new(Arc::clone(target)));
        let sink = work.create(Arc::clone(&unfinished) as _).unwrap();
        retrace(&*sink, &unfinished, &journal).unwrap();
        (done, pour(&work, sink, &*unfinished, &mut journal, 1 << 20))
    }
}

fn new_journal() -> Vec<u8> {
    header(&["file 7".to_owned()]).into_bytes()
}

/// A power cut leaves any part of what was not flushed, of the journal too.
#[test]
fn whatever_a_power_cut_leaves_is_gone_on_with_to_the_same_bytes() {
    let (mut cuts, mut with_done) = (0, 0);
    for case in CASES {
        let bench = Bench::new(case);
        let whole = bench.whole();
        let target = Arc::new(CrashStorage::new("target", Vec::new()));
        let journal = Arc::new(target.beside("journal", new_journal()));
        bench.begin(Arc::clone(&target) as _, journal, 1 << 20);
        assert!(
            target.to_vec() == whole,
            "{case:?}: the journal makes a difference"
        );
        let mut nth = 0;
        target.each_states(|what, files| {
            nth += 1;
            // Each takes a conversion; some dozens of each case are enough.
            if nth % 9 != 0 {
                return;
            }
            let left: Arc<dyn StorageMut> = Arc::clone(&files[0]) as _;
            let (done, outcome) =
                bench.go_on(&bench.source, &left, Arc::clone(&files[1]) as _, None);
            outcome.unwrap_or_else(|error| panic!("{case:?}, {what}: {error:?}"));
            assert!(files[0].to_vec() == whole, "{case:?}, {what}: other bytes");
            cuts += 1;
            with_done += usize::from(done > 0);
        });
    }
    figure(format_args!(
        "{cuts} power cuts gone on with, {with_done} of them in the middle of the disk"
    ));
    assert!(cuts >= 300 && with_done >= 100, "{cuts}, {with_done}");
}

/// Who can write to the journal can have anything taken for the target's bytes, but that is all.
#[test]
fn forged_journal_is_refused_or_believed() {
    let (mut refused, mut believed) = (0, 0);
    let numbers = [0, 511, 1 << 20, 2 << 20, 1 << 63, u64::MAX];
    let pairs = numbers.map(|a| numbers.map(|b| (a, b)));
    for case in CASES {
        let bench = Bench::new(case);
        for (a, b) in pairs.into_iter().flatten() {
            for lines in [
                vec![format!("done {a} {b}")],
                vec![format!("data {a} {b}"), format!("done {b} 0")],
                vec![format!("zeros {a} {b}"), format!("done {b} 0")],
                vec![format!("packed {a} 4096 {b}"), "done 4194304 0".into()],
                vec![format!("packed 0 {a} {b}"), "done 4194304 0".into()],
            ] {
                let facts = [vec!["file 7".into()], lines].concat();
                let journal = MemoryStorage::holding("journal", header(&facts).into_bytes());
                let Ok((_, mut journal)) = Journal::open(Arc::new(journal), FILE) else {
                    continue;
                };
                let work = bench.work(&bench.source, 1, None);
                let target = Arc::new(MemoryStorage::new("target"));
                let unfinished = Arc::new(Unfinished::new(target));
                let sink = work.create(Arc::clone(&unfinished) as _).unwrap();
                let done = retrace(&*sink, &unfinished, &journal)
                    .and_then(|()| pour(&work, sink, &*unfinished, &mut journal, 1 << 20));
                match done.map_err(|error| error.kind()) {
                    Ok(_) => believed += 1,
                    Err(ErrorKind::Corrupt | ErrorKind::Usage) => refused += 1,
                    Err(kind) => panic!("{case:?}: {facts:?}: {kind:?}"),
                }
            }
        }
    }
    assert!(refused > 100 && believed > 100, "{refused}, {believed}");
}

/// Cut off after every claim, gone on with, and cut off again, until it is done.
#[test]
fn conversion_that_is_cut_off_again_and_again_ends_with_the_same_bytes() {
    for case in CASES {
        let bench = Bench::new(case);
        let whole = bench.whole();
        let target = Arc::new(MemoryStorage::new("target"));
        let left: Arc<dyn StorageMut> = Arc::clone(&target) as _;
        let journal = Arc::new(MemoryStorage::holding("journal", new_journal()));
        let (mut runs, mut before) = (0, 0);
        loop {
            runs += 1;
            let cancel = Cancel::new();
            let claims = AtomicUsize::new(0);
            let stop = |_| {
                // One claim is enough to reach the next milestone.
                if claims.fetch_add(1, Ordering::Relaxed) >= 1 {
                    cancel.cancel();
                }
            };
            let mut work = bench.work(&bench.source, 1, Some(&cancel));
            work.job.progress = Some(&stop);
            let (_, mut opened) = Journal::open(Arc::clone(&journal) as _, FILE).unwrap();
            assert!(
                opened.done > before || runs == 1,
                "{case:?}: nothing was kept"
            );
            before = opened.done;
            let unfinished = Arc::new(Unfinished::new(Arc::clone(&left)));
            let sink = work.create(Arc::clone(&unfinished) as _).unwrap();
            retrace(&*sink, &unfinished, &opened).unwrap();
            match pour(&work, sink, &*unfinished, &mut opened, 1) {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}"),
            }
        }
        assert!(target.to_vec() == whole, "{case:?}");
        assert!(runs >= 2, "{case:?}: it was never cut off");
    }
}

/// What is done is not read again, nor is it asked what it is.
#[test]
fn what_is_done_is_not_read_again() {
    for case in CASES {
        let bench = Bench::new(case);
        let target = Arc::new(CrashStorage::new("target", Vec::new()));
        let journal = Arc::new(target.beside("journal", new_journal()));
        bench.begin(Arc::clone(&target) as _, journal, 1 << 20);
        let mut seen = Vec::new();
        target.each_states(|what, files| {
            if !what.ends_with(": nothing") {
                return;
            }
            let layer = Arc::new(Watched::new(disk(PICTURE)));
            let source = Chain::new(Arc::clone(&layer) as _, []);
            let left: Arc<dyn StorageMut> = Arc::clone(&files[0]) as _;
            let (done, outcome) = bench.go_on(&source, &left, Arc::clone(&files[1]) as _, None);
            outcome.unwrap();
            let first = layer.first.load(Ordering::Relaxed) as u64;
            assert!(
                first >= done,
                "{case:?}: byte {first} was read again, {done} were done"
            );
            seen.push(done);
        });
        seen.dedup();
        assert!(seen.len() >= 3 && seen[0] == 0, "{case:?}: {seen:?}");
    }
}

/// A disk that knows the first byte that somebody looked at.
struct Watched {
    layer: ModelLayer,
    first: AtomicUsize,
}

impl Watched {
    fn new(disk: ModelDisk) -> Self {
        Self {
            layer: ModelLayer::new(disk),
            first: AtomicUsize::new(usize::MAX),
        }
    }
}

impl Layer for Watched {
    fn info(&self) -> &goldsmith_block::LayerInfo {
        self.layer.info()
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        self.layer.storage()
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<goldsmith_block::Extent> {
        self.first.fetch_min(offset as usize, Ordering::Relaxed);
        self.layer.extent_at(offset, limit)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.first.fetch_min(offset as usize, Ordering::Relaxed);
        self.layer.read_at(offset, buf)
    }
}
