//! Random edits, one after the other, some by QEMU, against a model of the disk.

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::Edit;
use goldsmith_storage::FileStorage;
use goldsmith_testkit::qemu;
use proptest::prelude::*;

use super::{Head, amend, edit, editor, resize, snapshot, states, write_over};
use crate::bench::{Bench, open, qemu_reads};

/// One thing that happens to an image.
#[derive(Clone, Debug)]
enum Op {
    /// QEMU writes a pattern; offset and length in 512ths of the disk.
    Write(u64, u64, u8),
    /// QEMU writes zeros.
    Zero(u64, u64),
    /// QEMU gives up a part.
    Discard(u64, u64),
    /// We make the disk this long, in sectors.
    Resize(u64),
    /// A snapshot is taken, by QEMU if it says so.
    Take(bool),
    /// A snapshot is applied.
    Apply(usize, bool),
    /// A snapshot is forgotten.
    Delete(usize, bool),
    /// Everything is given up.
    Empty,
    /// We write over parts of the disk; a byte of 0 stands for zeros.
    Over(Vec<(u64, u64, u8)>),
    /// We give the image other options.
    Amend(&'static str, &'static str),
}

fn op() -> impl Strategy<Value = Op> {
    let part = || (0u64..512, 1u64..96);
    prop_oneof![
        4 => (part(), 1u8..255).prop_map(|((at, len), byte)| Op::Write(at, len, byte)),
        1 => part().prop_map(|(at, len)| Op::Zero(at, len)),
        1 => part().prop_map(|(at, len)| Op::Discard(at, len)),
        2 => (1u64..3000).prop_map(Op::Resize),
        3 => any::<bool>().prop_map(Op::Take),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(nth, qemu)| Op::Apply(nth, qemu)),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(nth, qemu)| Op::Delete(nth, qemu)),
        1 => Just(Op::Empty),
        3 => prop::collection::vec((0u64..512, 1u64..96, 0u8..4), 1..4).prop_map(Op::Over),
        2 => prop::sample::select(vec![
            ("compat", "0.10"),
            ("compat", "1.1"),
            ("refcount_bits", "64"),
            ("refcount_bits", "16"),
            ("refcount_bits", "8"),
            ("lazy_refcounts", "on"),
            ("lazy_refcounts", "off"),
        ])
        .prop_map(|(key, value)| Op::Amend(key, value)),
    ]
}

/// Bytes per cluster.
fn unit(path: &Path) -> u64 {
    open(path).info().unit.unwrap()
}

/// The disk and its snapshots, as they should be.
struct Model {
    disk: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
}

fn run(options: &str, ops: &[Op]) {
    let bench = Bench::new();
    let path = bench.image("image", options, "600k", &[]);
    let text = path.to_str().unwrap();
    let mut model = Model {
        disk: vec![0; 600 << 10],
        snapshots: Vec::new(),
    };
    for (nth, op) in ops.iter().enumerate() {
        let size = model.disk.len() as u64;
        let part = |at: u64, len: u64| {
            let unit = (size / 512).next_multiple_of(512);
            let start = (at * unit).min(size - 512);
            (start, (len * unit).min(size - start))
        };
        let range = |at: u64, len: u64| at as usize..(at + len) as usize;
        match *op {
            Op::Write(at, len, byte) => {
                let (at, len) = part(at, len);
                qemu::io_ok(&path, "qcow2", &[&format!("write -P {byte} {at} {len}")]);
                model.disk[range(at, len)].fill(byte);
            }
            Op::Zero(at, len) => {
                let (at, len) = part(at, len);
                qemu::io_ok(&path, "qcow2", &[&format!("write -z {at} {len}")]);
                model.disk[range(at, len)].fill(0);
            }
            Op::Discard(at, len) => {
                // Only whole clusters are given up for certain; what a part becomes is QEMU's choice.
                let (at, len) = part(at, len);
                qemu::io_ok(&path, "qcow2", &[&format!("write -z -u {at} {len}")]);
                model.disk[range(at, len)].fill(0);
            }
            Op::Resize(sectors) => {
                let old_version = Head::read(&path).version < 3;
                let result = edit(&path, &resize(sectors * 512));
                if old_version && !model.snapshots.is_empty() {
                    assert!(result.is_err());
                    continue;
                }
                result.unwrap();
                model.disk.resize(sectors as usize * 512, 0);
            }
            Op::Take(by_qemu) => {
                let name = format!("s{nth}");
                match by_qemu {
                    true => _ = qemu::img_ok(&["snapshot", "-c", &name, text]),
                    false => edit(&path, &snapshot(&name)).unwrap(),
                }
                model.snapshots.push((name, model.disk.clone()));
            }
            Op::Apply(which, by_qemu) => {
                let Some(index) = which.checked_rem(model.snapshots.len()) else {
                    continue;
                };
                let (name, disk) = &model.snapshots[index];
                match by_qemu {
                    true => _ = qemu::img_ok(&["snapshot", "-a", name, text]),
                    false => edit(&path, &Edit::ApplySnapshot(index)).unwrap(),
                }
                model.disk.clone_from(disk);
            }
            Op::Delete(which, by_qemu) => {
                let Some(index) = which.checked_rem(model.snapshots.len()) else {
                    continue;
                };
                let (name, _) = model.snapshots.remove(index);
                match by_qemu {
                    true => _ = qemu::img_ok(&["snapshot", "-d", &name, text]),
                    false => edit(&path, &Edit::DeleteSnapshot(index)).unwrap(),
                }
            }
            Op::Over(ref parts) => {
                let unit = unit(&path);
                let mut parts: Vec<_> = parts
                    .iter()
                    .map(|&(at, len, byte)| {
                        let (at, len) = part(at, len);
                        let start = at / unit * unit;
                        (start, (at + len).next_multiple_of(unit).min(size), byte)
                    })
                    .collect();
                parts.sort_unstable();
                parts.dedup_by(|later, first| later.0 < first.1);
                let storage = Arc::new(FileStorage::edit(&path).unwrap());
                write_over(editor(storage), size, &parts);
                for (start, end, byte) in parts {
                    model.disk[start as usize..end as usize].fill(byte);
                }
            }
            Op::Amend(key, value) => {
                let head = Head::read(&path);
                // QEMU's rules, tested one by one elsewhere.
                let same = model.snapshots.iter();
                let same = same.fold(true, |same, (_, disk)| same && disk.len() as u64 == size);
                let (new, zlib) = (head.version == 3, head.incompatible == 0);
                let allowed = match (key, value) {
                    ("compat", "0.10") => same && zlib && head.refcount_order == 4,
                    ("compat", _) | ("lazy_refcounts", "off") => true,
                    ("refcount_bits", "16") => true,
                    _ => new,
                };
                assert_eq!(edit(&path, &amend(&[(key, value)])).is_ok(), allowed);
            }
            Op::Empty => {
                edit(&path, &Edit::Empty).unwrap();
                model.disk.fill(0);
            }
        }
        qemu::check(&path);
        let layer = open(&path);
        let expected = std::iter::once(&model.disk);
        let expected = expected.chain(model.snapshots.iter().map(|(_, disk)| disk));
        assert!(states(&*layer).iter().eq(expected), "after {op:?}");
    }
    assert!(qemu_reads(&path) == model.disk);
    for (name, disk) in &model.snapshots {
        qemu::img_ok(&["snapshot", "-a", name, text]);
        assert!(qemu_reads(&path) == *disk, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// After each step QEMU finds neither errors nor leaks, and disk and snapshots hold what they
    /// should.
    #[test]
    fn edits_and_writes_of_qemu_go_together(
        options in prop::sample::select(vec![
            "cluster_size=64k",
            "cluster_size=4k",
            "cluster_size=512,refcount_bits=64",
            "cluster_size=1k,refcount_bits=8",
            "cluster_size=4k,compat=0.10",
            "cluster_size=16k,extended_l2=on",
            "cluster_size=64k,refcount_bits=4,lazy_refcounts=on",
        ]),
        ops in prop::collection::vec(op(), 1..14),
    ) {
        run(options, &ops);
    }
}
