//! Tables that very many entries name: legal, and the work of somebody who wants ours to take long.

use std::sync::Arc;

use goldsmith_block::{Edit, Format, HostRange, Repair, StorageMut};
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::qemu;
use goldsmith_testkit::trace::{Call, TraceStorage};

use super::{editor, resize, snapshot};
use crate::bench::{Bench, budget};
use crate::forge::{COPIED, Forge};

const BITS: u32 = 16;
const CLUSTER: u64 = 1 << BITS;
/// Entries that name the one L2 table.
const TIMES: u64 = CLUSTER / 8;
/// Where that stands.
const L2: HostRange = HostRange::new(3 * CLUSTER, CLUSTER);

/// 4 TiB, of which all parts of 512 MiB are the same, as the refcounts say.
fn crowded() -> Forge {
    let mut forge = Forge::new(3, BITS, 1 << 29);
    forge.put_u64(24, TIMES << 29);
    // TIMES entries; counters of 64 bits.
    forge.put_u32(36, TIMES as u32);
    forge.put_u32(96, 6);
    for index in 0..TIMES as usize {
        forge.put_u64(forge.l1() + 8 * index, L2.offset);
    }
    let block = forge.append(&vec![0; CLUSTER as usize]);
    let data = forge.append(&vec![7; CLUSTER as usize]);
    forge.put_u64(CLUSTER as usize, block);
    forge.entry(0, data);
    for (cluster, count) in [1, 1, 1, TIMES, 1, TIMES].into_iter().enumerate() {
        forge.put_u64(block as usize + 8 * cluster, count);
    }
    forge
}

/// How often the L2 table is read while `work` is done.
fn reads(storage: &Arc<MemoryStorage>, work: &[Edit]) -> usize {
    let trace = Arc::new(TraceStorage::new(Arc::clone(storage)));
    let mut editor = editor(Arc::clone(&trace) as Arc<dyn StorageMut>);
    for edit in work {
        editor.edit(edit).unwrap();
    }
    let touches = |call: &Call| match call {
        Call::Read(range) => range.offset < L2.end() && L2.offset < range.end(),
        _ => false,
    };
    trace.calls().iter().filter(|call| touches(call)).count()
}

fn judged(bench: &Bench, storage: &MemoryStorage) {
    let path = bench.path("image");
    std::fs::write(&path, storage.to_vec()).unwrap();
    qemu::check(&path);
}

#[test]
fn table_that_all_entries_name_is_read_a_few_times_for_a_change() {
    let bench = Bench::new();
    let storage = Arc::new(MemoryStorage::holding("image", crowded().bytes));
    judged(&bench, &storage);
    let changes = [
        vec![snapshot("one"), snapshot("two")],
        vec![Edit::ApplySnapshot(0)],
        vec![Edit::DeleteSnapshot(1), Edit::DeleteSnapshot(0)],
        vec![resize((TIMES - 9) << 29)],
    ];
    for work in changes {
        let reads = reads(&storage, &work);
        assert!(reads <= 12 * work.len(), "{work:?}: {reads}");
        judged(&bench, &storage);
        let layer = QCOW2.open(Arc::clone(&storage) as _, &budget()).unwrap();
        for part in [0, 1, TIMES - 10] {
            let mut byte = [0];
            layer.read_at(part << 29, &mut byte).unwrap();
            assert_eq!(byte, [7]);
        }
    }
}

/// Flags that say that each is used once: a table for each entry would take as much space as there
/// are entries.
#[test]
fn repair_leaves_one_table_one() {
    let bench = Bench::new();
    let mut forge = crowded();
    for index in 0..TIMES as usize {
        forge.put_u64(forge.l1() + 8 * index, COPIED | L2.offset);
    }
    let data = 5 * CLUSTER;
    forge.entry(0, COPIED | data);
    let before = forge.bytes.len();
    let storage = Arc::new(MemoryStorage::holding("image", forge.bytes));
    let reads = reads(&storage, &[Edit::Repair(Repair::All)]);
    assert!(reads <= 30, "{reads}");
    assert!(storage.to_vec().len() <= before + 10 * CLUSTER as usize);
    judged(&bench, &storage);
}
