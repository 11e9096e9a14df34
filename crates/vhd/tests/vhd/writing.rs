//! What can be asked of a new image, and what it then costs.

use std::sync::Arc;

use goldsmith_block::{
    Budget, CreateSpec, Demand, ErrorKind, Format, GuestRange, HostRange, Limits, Storage,
    ZeroPolicy,
};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::device::DeviceStorage;
use goldsmith_testkit::sparse::SparseStorage;
use goldsmith_testkit::trace::{Call, TraceStorage};
use goldsmith_testkit::{image, pattern};
use goldsmith_vhd::VHD;
use uuid::Uuid;

const MAX_DYNAMIC: u64 = 2_190_433_320_960;

fn spec(virtual_size: u64, options: &[(&str, &str)]) -> CreateSpec {
    image::spec(&VHD, virtual_size, options, false).unwrap()
}

fn refused(spec: &CreateSpec) -> (ErrorKind, String) {
    match VHD.create(Arc::new(SparseStorage::new()), spec) {
        Ok(_) => panic!("{spec:?} was accepted"),
        Err(error) => (error.kind(), error.report()),
    }
}

#[test]
fn size_that_is_no_multiple_of_512_is_refused() {
    let (kind, report) = refused(&spec(1_000_001, &[]));
    assert_eq!(kind, ErrorKind::Usage);
    assert_eq!(
        report,
        "size 1000001 is no multiple of 512; a VHD holds whole sectors of 512 bytes"
    );
}

#[test]
fn dynamic_disk_over_2040_gib_is_refused_and_a_fixed_one_is_not() {
    let over = MAX_DYNAMIC + 512;
    let (kind, report) = refused(&spec(over, &[]));
    assert_eq!(kind, ErrorKind::Usage);
    assert_eq!(
        report,
        "size 2190433321472 is over 2190433320960 (2040 GiB), the most that a dynamic VHD holds; \
         subformat=fixed has no such limit"
    );
    let storage = Arc::new(SparseStorage::new());
    let sink = VHD
        .create(storage.clone(), &spec(over, &[("subformat", "fixed")]))
        .unwrap();
    assert_eq!(sink.commit().unwrap().file_len, over + 512);
    let layer = VHD.open(storage, &Budget::new(&Limits::default())).unwrap();
    assert_eq!(layer.info().virtual_size, over);
    assert_eq!(layer.info().unit, None);
}

/// An entry names one of 2^32 sectors, and alignment costs seven of them in each block.
#[test]
fn largest_dynamic_disk_has_a_place_for_each_of_its_blocks() {
    for (block_size, alignment) in [("512k", 512), ("1M", 4096), ("2M", 4096)] {
        let options = [("block_size", block_size)];
        let storage = Arc::new(SparseStorage::new());
        let sink = VHD.create(storage, &spec(MAX_DYNAMIC, &options)).unwrap();
        let whole = Demand {
            range: GuestRange::new(0, MAX_DYNAMIC),
            packed: None,
        };
        let mut slots = Vec::new();
        sink.reserve(&[whole], &mut slots).unwrap();
        let hosts = || slots.iter().map(|slot| slot.host);
        let last_bitmap = hosts().max().unwrap() - 512;
        assert!(last_bitmap / 512 < u64::from(u32::MAX), "{block_size}");
        assert!(hosts().all(|host| host.is_multiple_of(alignment)));
    }
}

#[test]
fn largest_dynamic_disk_is_read_in_one_step_while_it_is_empty() {
    for block_size in ["512k", "2M"] {
        let storage = Arc::new(SparseStorage::new());
        let spec = spec(MAX_DYNAMIC, &[("block_size", block_size)]);
        VHD.create(storage.clone(), &spec)
            .unwrap()
            .commit()
            .unwrap();
        let layer = VHD.open(storage, &Budget::new(&Limits::default())).unwrap();
        assert_eq!(layer.info().virtual_size, MAX_DYNAMIC);
        let extent = layer.extent_at(512, MAX_DYNAMIC).unwrap();
        assert_eq!(extent.range.end, MAX_DYNAMIC);
    }
}

#[test]
fn block_sizes_that_some_readers_refuse_are_refused() {
    for (value, bytes) in [
        ("4k", 4096),
        ("256k", 1 << 18),
        ("4M", 4 << 20),
        ("3M", 3 << 20),
    ] {
        let (kind, report) = refused(&spec(1 << 20, &[("block_size", value)]));
        assert_eq!(kind, ErrorKind::Usage);
        assert!(
            report.starts_with(&format!("block_size {bytes} is")),
            "{report}"
        );
    }
}

#[test]
fn compression_and_a_null_uuid_are_refused() {
    let compressed = image::spec(&VHD, 1 << 20, &[], true).unwrap();
    assert_eq!(
        refused(&compressed),
        (
            ErrorKind::Usage,
            "Compression not supported for this file format (vpc)".into()
        )
    );
    let nameless = CreateSpec {
        uuid: Uuid::nil(),
        ..spec(1 << 20, &[])
    };
    assert_eq!(
        refused(&nameless),
        (
            ErrorKind::Usage,
            "the uuid of a VHD must not be null".into()
        )
    );
}

#[test]
fn batmap_of_a_fixed_image_is_refused() {
    let (kind, report) = refused(&spec(1 << 20, &[("subformat", "fixed"), ("batmap", "on")]));
    assert_eq!(kind, ErrorKind::Usage);
    assert_eq!(
        report,
        "batmap=on maps the blocks of a dynamic VHD; a fixed one has none"
    );
}

#[test]
fn device_is_refused_and_keeps_its_bytes() {
    let device = Arc::new(DeviceStorage::holding(vec![7; 8192]));
    for subformat in ["dynamic", "fixed"] {
        let spec = spec(4096, &[("subformat", subformat)]);
        let error = VHD.create(device.clone(), &spec).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.report().contains("a device of 8192 bytes"));
        assert_eq!(device.to_vec(), vec![7; 8192]);
    }
}

#[test]
fn time_before_2000_is_2000_and_time_after_2136_is_refused() {
    // date -u -d @5241652095: 2136-02-07 06:28:15
    for (unix, field) in [
        (0, Some(0)),
        (946_684_799, Some(0)),
        (946_684_801, Some(1)),
        (5_241_652_095, Some(u32::MAX)),
        (5_241_652_096, None),
        (u64::MAX, None),
    ] {
        let storage = Arc::new(MemoryStorage::new("image"));
        let spec = CreateSpec {
            timestamp: unix,
            ..spec(4096, &[])
        };
        match (field, VHD.create(storage.clone(), &spec)) {
            (Some(field), sink) => {
                sink.unwrap().commit().unwrap();
                assert_eq!(storage.to_vec()[24..28], u32::to_be_bytes(field));
            }
            (None, Ok(_)) => panic!("{unix} was taken"),
            (None, Err(error)) => assert_eq!(error.kind(), ErrorKind::Usage, "{unix}"),
        }
    }
}

#[test]
fn zeros_cost_nothing_and_nobody_is_asked_to_write_them() {
    for subformat in ["dynamic", "fixed"] {
        let storage = Arc::new(MemoryStorage::holding("image", vec![9; 100_000]));
        let sink = VHD
            .create(storage, &spec(1 << 20, &[("subformat", subformat)]))
            .unwrap();
        assert_eq!(sink.profile().zeroes, ZeroPolicy::Implied);
    }
}

#[test]
fn head_follows_the_data_and_the_tail_follows_the_head() {
    let disk = pattern::disk("64k:A 4M:- 64k:b");
    let storage = Arc::new(TraceStorage::new(Arc::new(MemoryStorage::new("image"))));
    let sink = VHD.create(storage.clone(), &spec(disk.len(), &[])).unwrap();
    image::drive(sink, &disk).unwrap();
    let end = storage.len() - 512;
    let calls = storage.calls();
    assert_eq!(
        calls[calls.len() - 5..],
        [
            Call::Flush,
            Call::Write(HostRange::new(0, 1536)),
            Call::Flush,
            Call::Write(HostRange::new(end, 512)),
            Call::Flush,
        ]
    );
    let early = &calls[..calls.len() - 5];
    assert!(!early.iter().any(|call| matches!(
        call,
        Call::Write(range) if range.offset < 1536 || range.end() > end
    )));
}
