//! One pass against unpacked VHDs, and both against a slow model: the same disks, the same refusals.

mod family;

use std::collections::BTreeMap;
use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use goldsmith_block::{Format, HostRange, Layer, Options, Sink};
use goldsmith_engine::{Job, convert};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::fault::{FaultStorage, Op};
use goldsmith_testkit::image::spec;
use goldsmith_testkit::model::ModelLayer;
use goldsmith_testkit::trace::{Call, TraceStorage};
use goldsmith_testkit::{pattern, qemu};

use super::*;
use crate::ovf::{OVF, skim};
use crate::registry::format_named;
use family::{Family, Random};

/// What comes of a container.
#[derive(Debug, PartialEq)]
enum Verdict {
    Disk(Vec<u8>),
    Refused(ErrorKind, String),
}

fn target(format: &str, size: u64) -> (Arc<MemoryStorage>, Box<dyn Sink>) {
    let storage = Arc::new(MemoryStorage::new("target"));
    let format = format_named(format).unwrap();
    let spec = spec(format, size, &[], false).unwrap();
    let sink = format.create(Arc::clone(&storage) as _, &spec).unwrap();
    (storage, sink)
}

fn job() -> Job<'static> {
    Job {
        threads: NonZeroUsize::new(1),
        ..Job::default()
    }
}

fn container(bytes: Vec<u8>, limits: &Limits) -> Container {
    Container::new(Arc::new(MemoryStorage::holding("disk.tgz", bytes)), limits)
}

/// In one pass into an image of `format`, if one does.
fn poured(container: &Container, format: &str) -> Option<(Verdict, u64)> {
    let size = container.virtual_size()?;
    let (storage, sink) = target(format, size);
    let pour = Pour::new(sink, &job(), &Budget::new(&Limits::default()));
    let done = container.pour(pour.unwrap().unwrap(), size);
    Some(match done {
        Ok(done) => {
            let (outcome, disk) = done?;
            assert_eq!(disk.virtual_size(), size);
            let file = storage.to_vec();
            assert_eq!(outcome.committed.file_len, file.len() as u64);
            (Verdict::Disk(file), outcome.data)
        }
        Err(error) => (refused(&error), 0),
    })
}

/// With the VHDs unpacked, into a RAW image.
fn unpacked(container: &Container) -> (Verdict, u64) {
    let scratch = FileStorage::scratch("disk.tgz").unwrap();
    let made = container.unpack(scratch).and_then(|disk| {
        let (storage, sink) = target("raw", disk.virtual_size());
        let outcome = convert(&disk, sink, &job())?;
        Ok((Verdict::Disk(storage.to_vec()), outcome.data))
    });
    made.unwrap_or_else(|error| (refused(&error), 0))
}

/// By whom and why, but not where on the disk it was noticed.
fn refused(error: &Error) -> Verdict {
    let place = error.guest().map(|guest| format!("guest range {guest}: "));
    let report = error.report().replace(&place.unwrap_or_default(), "");
    Verdict::Refused(error.kind(), report)
}

/// The disk in an image of `format`.
fn disk_in(format: &str, file: Vec<u8>) -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::holding("target", file));
    let format = format_named(format).unwrap();
    let layer: Arc<dyn Layer> = format
        .open(storage, &Budget::new(&Limits::default()))
        .unwrap();
    let mut bytes = vec![0; layer.info().virtual_size as usize];
    layer.read_at(0, &mut bytes).unwrap();
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[test]
fn every_sound_chain_is_poured_in_one_pass_and_is_the_disk_that_a_slow_model_finds() {
    for seed in 0..150 {
        let family = Family::random(seed);
        let packed = gzip(&family.tar());
        let container = container(packed, &Limits::default());
        let expected = family.disk();
        assert!(
            unpacked(&container).0 == Verdict::Disk(expected.clone()),
            "{seed}: {family:?}"
        );
        for format in ["raw", "vpc", "qcow2"] {
            let Some((Verdict::Disk(file), data)) = poured(&container, format) else {
                panic!("{seed}: {:?}", poured(&container, format).map(|it| it.0));
            };
            assert!(
                disk_in(format, file.clone()) == expected,
                "{seed}: {format}: {family:?}"
            );
            assert_eq!(data, family.data(), "{seed}: {family:?}");
            // The outside judge of what is laid out in another order than the disk's.
            if seed % 50 == 7 && format != "raw" {
                assert!(qemu::read(format, &file) == expected, "{seed}: {format}");
            }
        }
    }
}

/// In every way that a stranger could think of.
#[test]
fn whatever_is_wrong_is_refused_in_the_same_words_whichever_way_it_is_read() {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for seed in 0..1000 {
        let mut random = Random::new(seed ^ 0xbad);
        let mut family = Family::random(seed);
        let what = family.spoil(&mut random);
        let mut packed = gzip(&family.tar());
        let spoiled = match random.below(12) {
            0 => {
                let len = packed.len() as u64;
                packed.truncate(random.below(len) as usize);
                true
            }
            1 => {
                let len = packed.len() as u64;
                packed[random.below(len) as usize] ^= 1 << random.below(8);
                true
            }
            2 => {
                packed.extend(gzip(b"rubbish"));
                true
            }
            _ => false,
        };
        let container = container(packed, &Limits::default());
        let (slow, _) = unpacked(&container);
        let fast = poured(&container, "raw").map(|(verdict, _)| verdict);
        let way = match &fast {
            None => "unpacked",
            Some(fast) => {
                assert!(
                    *fast == slow,
                    "{seed}: {what}, {spoiled}: {family:?}: {} and {}",
                    shown(fast),
                    shown(&slow)
                );
                "poured"
            }
        };
        let verdict = match &slow {
            Verdict::Disk(_) => "a disk".into(),
            Verdict::Refused(kind, _) => format!("{kind:?}"),
        };
        *seen.entry(format!("{way}: {verdict}")).or_default() += 1;
    }
    // It was about something, in each of these ways.
    for (case, least) in [
        ("poured: a disk", 100),
        ("poured: Corrupt", 200),
        ("unpacked: a disk", 100),
        ("unpacked: Corrupt", 100),
    ] {
        let found = seen.get(case).copied().unwrap_or(0);
        assert!(found >= least, "{case}: {found} of {seen:?}");
    }
}

/// Few zeros are stored with what is around them, in whichever way the disk comes.
#[test]
fn poured_disk_is_written_in_the_runs_in_which_a_converted_one_is() {
    let disk = pattern::disk("16k:A 12k:0 16k:b 16k:0 16k:C 512:0 7680:D 40k:0");
    let job = Job {
        sparse: 16 << 10,
        ..job()
    };
    let written = |write: &dyn Fn(Box<dyn Sink>)| {
        let storage = Arc::new(TraceStorage::new(Arc::new(MemoryStorage::new("target"))));
        let raw = format_named("raw").unwrap();
        let spec = spec(raw, disk.len(), &[], false).unwrap();
        write(raw.create(Arc::clone(&storage) as _, &spec).unwrap());
        let mut calls = storage.calls();
        calls.retain(|call| matches!(call, Call::Write(_)));
        calls
    };
    let poured = written(&|sink| {
        let pour = Pour::new(sink, &job, &Budget::new(&Limits::default()));
        let mut pour = pour.unwrap().unwrap();
        pour.put(0, disk.bytes()).unwrap();
        pour.finish().unwrap();
    });
    let converted = written(&|sink| {
        let source = Chain::new(Arc::new(ModelLayer::new(disk.clone())), []);
        convert(&source, sink, &job).unwrap();
    });
    let runs = [
        HostRange::new(0, 44 << 10),
        HostRange::new(60 << 10, 24 << 10),
    ];
    assert_eq!(poured, runs.map(Call::Write));
    assert_eq!(converted, poured);
}

/// Whichever call fails, of the container's or the target's file, somebody hears of it.
#[test]
fn failing_file_is_an_io_error_on_either_side() {
    let family = Family::random(11);
    let (packed, disk) = (gzip(&family.tar()), family.disk());
    let size = disk.len() as u64;
    let limits = Limits::default();
    let read = |nth| {
        let memory = Arc::new(MemoryStorage::holding("disk.tgz", packed.clone()));
        let source = Arc::new(FaultStorage::new(memory, Op::Read, nth));
        let (_, sink) = target("raw", size);
        let pour = Pour::new(sink, &job(), &Budget::new(&limits)).unwrap();
        let done = Container::new(Arc::clone(&source) as _, &limits).pour(pour.unwrap(), size);
        (source.fired(), done.map(|done| done.is_some()))
    };
    let write = |format: &str, op, nth| {
        let memory = Arc::new(MemoryStorage::new("target"));
        let storage = Arc::new(FaultStorage::new(memory, op, nth));
        let spec = spec(format_named(format).unwrap(), size, &[], false).unwrap();
        let sink = format_named(format).unwrap();
        let made = sink
            .create(Arc::clone(&storage) as _, &spec)
            .and_then(|sink| {
                let pour = Pour::new(sink, &job(), &Budget::new(&limits))?.unwrap();
                let container = container(packed.clone(), &limits);
                Ok(container.pour(pour, size)?.is_some())
            });
        (storage.fired(), made)
    };
    type Try<'a> = Box<dyn Fn(u64) -> (bool, Result<bool>) + 'a>;
    let mut tries: Vec<Try<'_>> = vec![Box::new(read)];
    for format in ["raw", "vpc", "qcow2"] {
        for op in [Op::Write, Op::SetLen, Op::Flush] {
            tries.push(Box::new(move |nth| write(format, op, nth)));
        }
    }
    for attempt in &tries {
        let mut fired = 0;
        for nth in 0.. {
            match attempt(nth) {
                (true, Err(error)) => assert_eq!(error.kind(), ErrorKind::Io, "{error:?}"),
                (true, Ok(_)) => panic!("failure of call {nth} was not reported"),
                (false, done) => {
                    assert!(done.unwrap());
                    break;
                }
            }
            fired += 1;
        }
        assert!(fired > 0);
    }
}

/// A child that says every other sector of a disk of 8 MiB takes a bitmap for each of four chunks.
#[test]
fn chain_of_which_too_much_must_be_known_is_left_to_be_unpacked() {
    let family = Family::striped(8 << 20);
    let packed = gzip(&family.tar());
    let with = |bytes| {
        let mut limits = Limits::default();
        limits.metadata_bytes = bytes;
        container(packed.clone(), &limits)
    };
    let expected = Verdict::Disk(family.disk());
    // All that is kept of both VHDs, and that.
    let needed = (1..).map(|step| step << 12).find(|bytes| {
        let poured = poured(&with(*bytes), "raw");
        assert!(
            poured
                .as_ref()
                .is_none_or(|(verdict, _)| *verdict == expected)
        );
        poured.is_some()
    });
    let needed = needed.unwrap();
    assert!((128 << 10..512 << 10).contains(&needed), "{needed}");
    let (slow, _) = unpacked(&with(needed - (4 << 10)));
    assert!(slow == expected, "{}", shown(&slow));
}

/// Where nobody stores anything it is the same map, unless a fixed VHD has holes.
#[test]
fn map_of_what_is_not_stored_is_the_map_of_what_is() {
    let mut told = 0;
    for seed in 0..300 {
        let mut random = Random::new(seed ^ 0x3a9);
        let mut family = Family::random(seed);
        if seed >= 100 {
            family.spoil(&mut random);
        }
        let packed = gzip(&family.tar());
        let storage = || Arc::new(MemoryStorage::holding("disk.tgz", packed.clone()));
        let budget = Budget::new(&Limits::default());
        let surveyed = skim::survey(&*storage(), &budget);
        if let Ok(None) = surveyed {
            continue;
        }
        told += 1;
        let map = |layer: Result<Arc<dyn Layer>>| {
            let chain = Chain::new(layer?, []);
            crate::map(&chain).collect::<Result<Vec<_>>>()
        };
        let options = Options::defaults(OVF.open_options());
        let found = map(OVF.survey(storage(), &budget.afresh(), &options));
        let expected = map(OVF.open(storage(), &budget.afresh()));
        let words = |error: Error| error.report();
        assert_eq!(
            found.map_err(words),
            expected.map_err(words),
            "{seed}: {family:?}"
        );
    }
    assert!(told > 150, "{told}");
}

fn shown(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Disk(bytes) => format!("a disk of {} bytes", bytes.len()),
        Verdict::Refused(kind, report) => format!("{kind:?}: {report}"),
    }
}
