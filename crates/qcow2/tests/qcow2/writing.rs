//! How a new image is laid out, and what cannot be made.

use std::sync::Arc;

use goldsmith_block::{
    Codec, Demand, ErrorKind, Format, GuestRange, Packing, Placement, Sink, Slot, Storage,
    StorageMut, ZeroPolicy,
};
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::{MemoryStorage, VoidStorage};
use goldsmith_testkit::trace::{Call, TraceStorage};
use goldsmith_testkit::{image, pattern};
use proptest::prelude::*;

fn create(
    size: u64,
    options: &[(&str, &str)],
    storage: Arc<MemoryStorage>,
) -> goldsmith_block::Result<Box<dyn Sink>> {
    QCOW2.create(storage, &image::spec(&QCOW2, size, options, true)?)
}

/// The places of packed clusters of these lengths (0: left plain), one after the other, and the
/// finished file.
fn pack(options: &[(&str, &str)], cluster_size: u64, lens: &[u64]) -> (Vec<u64>, Vec<u8>) {
    let storage = Arc::new(MemoryStorage::new("new"));
    let size = cluster_size * lens.len() as u64;
    let sink = create(size, options, storage.clone()).unwrap();
    let mut slots = Vec::new();
    for (nth, len) in lens.iter().enumerate() {
        let start = nth as u64 * cluster_size;
        let range = GuestRange::new(start, start + cluster_size);
        let packed = (*len > 0).then_some(*len);
        sink.reserve(&[Demand { range, packed }], &mut slots)
            .unwrap();
    }
    let hosts = slots.iter().map(|slot| slot.host).collect();
    for slot in slots {
        let data = vec![0x51; slot.packed.unwrap_or(cluster_size) as usize];
        sink.write(slot, &data).unwrap();
    }
    let committed = sink.commit().unwrap();
    assert_eq!(committed.file_len, storage.len());
    (hosts, storage.to_vec())
}

fn u64_at(image: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(image[at as usize..][..8].try_into().unwrap())
}

/// The 16 bit refcounts of the first clusters, which the first refcount block counts.
fn refcounts(image: &[u8]) -> Vec<u16> {
    let block = u64_at(image, u64_at(image, 48)) as usize;
    let (entries, _) = image[block..].as_chunks::<2>();
    entries
        .iter()
        .map(|entry| u16::from_be_bytes(*entry))
        .collect()
}

/// The first L2 entries.
fn l2(image: &[u8], count: u64) -> Vec<u64> {
    let table = u64_at(image, u64_at(image, 40)) & !(1 << 63);
    (0..count)
        .map(|index| u64_at(image, table + index * 8))
        .collect()
}

#[test]
fn packed_clusters_stand_byte_by_byte_and_count_their_users() {
    let (hosts, image) = pack(&[("cluster_size", "4k")], 4096, &[1000, 3000, 200, 4000, 1]);
    // The third and the fourth go on into the next cluster. Behind the last one is the L2 table.
    assert_eq!(hosts, [4096, 5096, 8096, 8296, 12296]);
    assert_eq!(refcounts(&image)[..5], [1, 3, 2, 2, 1]);
    let packed = |further: u64, host: u64| 1 << 62 | further << 58 | host;
    assert_eq!(
        l2(&image, 5),
        [
            packed(1, 4096),
            packed(6, 5096),
            packed(1, 8096),
            packed(8, 8296),
            packed(0, 12296),
        ]
    );
    assert!(image.len().is_multiple_of(4096));
}

#[test]
fn plain_cluster_leaves_the_rest_of_a_packed_one_in_use() {
    let (hosts, image) = pack(
        &[("cluster_size", "4k")],
        4096,
        &[1000, 0, 2000, 2000, 0, 96],
    );
    // The fourth does not fit behind the third, and what follows that is taken.
    assert_eq!(hosts, [4096, 8192, 5096, 12288, 16384, 14288]);
    assert_eq!(refcounts(&image)[..5], [1, 2, 1, 2, 1]);
    let entries = l2(&image, 6);
    let copied = |entry: &u64| entry >> 63 == 1;
    let flags: Vec<_> = entries.iter().map(copied).collect();
    assert_eq!(flags, [false, true, false, false, true, false]);
}

#[test]
fn refcounts_of_one_bit_let_no_two_packed_clusters_share() {
    let options = [("cluster_size", "4k"), ("refcount_bits", "1")];
    let (hosts, _) = pack(&options, 4096, &[10, 10, 4000, 10]);
    assert_eq!(hosts, [4096, 8192, 12288, 16384]);
}

#[test]
fn refcounts_of_two_bits_let_three_packed_clusters_share() {
    let options = [("cluster_size", "4k"), ("refcount_bits", "2")];
    let (hosts, _) = pack(&options, 4096, &[10, 10, 10, 10, 4085, 10]);
    // The fifth goes on into the next cluster, and counts in both.
    assert_eq!(hosts, [4096, 4106, 4116, 8192, 8202, 12287]);
}

#[test]
fn last_packed_sector_is_in_the_file() {
    let (hosts, image) = pack(
        &[("cluster_size", "512"), ("compat", "0.10")],
        512,
        &[300, 300],
    );
    assert_eq!(hosts, [512, 812]);
    assert!(image.len() >= 1536);
    assert!(image[1112..1536].iter().all(|byte| *byte == 0));
}

#[test]
fn profile_asks_for_clusters_in_order() {
    let options = [("compression_type", "zstd"), ("cluster_size", "32k")];
    let sink = create(1 << 30, &options, Arc::new(MemoryStorage::new("new"))).unwrap();
    let profile = sink.profile();
    assert_eq!(profile.grain, 32768);
    assert_eq!(profile.placement, Placement::Allocated);
    assert_eq!(profile.zeroes, ZeroPolicy::Implied);
    let (codec, unit) = (Codec::Zstd, 32768);
    assert_eq!(profile.packing, Some(Packing { codec, unit }));
}

#[test]
fn impossible_images_are_refused_with_the_reason() {
    let refused = |size, options: &[(&str, &str)]| {
        let storage = Arc::new(MemoryStorage::new("new"));
        let error = create(size, options, storage).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Usage);
        error.report()
    };
    assert_eq!(
        refused(1 << 40, &[("cluster_size", "512")]),
        "virtual size 1099511627776 needs an L1 table of 268435456 bytes, over the 33554432 \
         allowed; with cluster_size=512 a disk has at most 137438953472 bytes"
    );
    assert!(refused((1 << 61) + 1, &[("cluster_size", "2M")]).contains("2305843009213693952"));
    assert!(refused(u64::MAX, &[]).contains("virtual size 18446744073709551615"));
    for size in ["256", "4M", "65000", "0"] {
        let text = refused(1, &[("cluster_size", size)]);
        assert!(text.contains("power of two between 512"), "{text}");
    }
    let v2 = |name, value| refused(1, &[("compat", "0.10"), (name, value)]);
    let zstd = v2("compression_type", "zstd");
    assert_eq!(zstd, "the option compression_type needs compat=1.1");
    for (option, value) in [
        ("refcount_bits", "8"),
        ("extended_l2", "on"),
        ("lazy_refcounts", "on"),
        ("data_file", "data"),
    ] {
        assert_eq!(
            v2(option, value),
            format!("the option {option} needs compat=1.1")
        );
    }
    assert!(refused(1, &[("refcount_bits", "3")]).contains("only 1, 2, 4"));
}

#[test]
fn options_that_exclude_each_other_are_refused_with_the_reason() {
    let refused = |compress, options: &[(&str, &str)]| {
        let storage = Arc::new(MemoryStorage::new("new"));
        let spec = image::spec(&QCOW2, 1 << 20, options, compress).unwrap();
        let error = QCOW2.create(storage, &spec).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Usage, "{options:?}");
        error.report()
    };
    let backing = [("backing_file", "b"), ("backing_fmt", "raw")];
    let with = |more: &[(&'static str, &'static str)]| [&backing[..], more].concat();
    let full = "x".repeat(1024);
    for (compress, options, why) in [
        (false, vec![("backing_file", "b")], "needs backing_fmt"),
        (false, vec![("backing_fmt", "raw")], "needs backing_file"),
        (false, vec![("data_file_raw", "on")], "needs data_file"),
        (
            false,
            with(&[("data_file", "d"), ("data_file_raw", "on")]),
            "backing file cannot",
        ),
        (
            false,
            with(&[("preallocation", "metadata")]),
            "needs extended_l2=on",
        ),
        (
            false,
            vec![("extended_l2", "on"), ("cluster_size", "8k")],
            "needs cluster_size=16k",
        ),
        (true, vec![("data_file", "d")], "compressed image cannot"),
        (
            true,
            vec![("preallocation", "full")],
            "compressed image cannot",
        ),
        (
            false,
            vec![("data_file", &*full)],
            "data_file has 1024 bytes; at most 1023",
        ),
        (
            false,
            vec![("data_file", &full[..500]), ("cluster_size", "512")],
            "take 624 bytes, but with cluster_size=512",
        ),
    ] {
        let report = refused(compress, &options);
        assert!(report.contains(why), "{report}");
    }
    // The longest names that every reader takes.
    let name = &full[..1023];
    let longest = [
        ("backing_file", name),
        ("backing_fmt", "raw"),
        ("data_file", name),
    ];
    for cluster_size in ["4k", "8k"] {
        let options = [&longest[..], &[("cluster_size", cluster_size)]].concat();
        let mut spec = image::spec(&QCOW2, 1 << 20, &options, false).unwrap();
        spec.data = Some(Arc::new(MemoryStorage::new("data")));
        let storage = Arc::new(MemoryStorage::new("new"));
        QCOW2
            .create(storage.clone(), &spec)
            .unwrap()
            .commit()
            .unwrap();
        let layer = image::open(&QCOW2, storage.to_vec()).unwrap();
        let info = layer.info();
        assert_eq!(info.backing.as_ref().unwrap().name, name);
        assert_eq!(info.data_file.as_deref(), Some(name));
    }
}

#[test]
fn largest_disk_of_the_smallest_clusters_can_be_made() {
    let storage = Arc::new(MemoryStorage::new("new"));
    let sink = create(137_438_953_472, &[("cluster_size", "512")], storage.clone()).unwrap();
    sink.commit().unwrap();
    let layer = image::open(&QCOW2, storage.to_vec()).unwrap();
    assert_eq!(layer.info().virtual_size, 137_438_953_472);
    let extent = layer.extent_at(0, 137_438_953_472).unwrap();
    assert_eq!(extent.range.end, 137_438_953_472);
}

#[test]
fn broken_agreements_are_reported_as_bugs() {
    let storage = Arc::new(MemoryStorage::new("new"));
    let sink = create(1 << 20, &[("cluster_size", "4k")], storage).unwrap();
    let range = GuestRange::new(40960, 45056);
    let kind = |result: goldsmith_block::Result<()>| result.unwrap_err().kind();
    for len in [0, 4096, u64::MAX] {
        let packed = Some(len);
        let result = sink.reserve(&[Demand { range, packed }], &mut Vec::new());
        assert_eq!(kind(result), ErrorKind::Bug);
    }
    let behind = GuestRange::new(1 << 30, (1 << 30) + 4096);
    let packed = None;
    let demand = Demand {
        range: behind,
        packed,
    };
    let result = sink.reserve(&[demand], &mut Vec::new());
    assert_eq!(kind(result), ErrorKind::Bug);
    let slot = Slot {
        range,
        host: 4096,
        packed,
    };
    assert_eq!(kind(sink.write(slot, &[0; 100])), ErrorKind::Bug);
    assert_eq!(kind(sink.write_zeroes(range)), ErrorKind::Bug);
}

#[test]
fn options_hold_what_was_chosen() {
    let disk = pattern::disk("100k:A 1k:-");
    for (name, value, at, found) in [
        ("compat", "0.10", 7, 2),
        ("compat", "1.1", 7, 3),
        ("cluster_size", "512", 23, 9),
        ("cluster_size", "2M", 23, 21),
        ("refcount_bits", "1", 99, 0),
        ("refcount_bits", "64", 99, 6),
        ("compression_type", "zstd", 104, 1),
        ("compression_type", "zstd", 79, 8),
        ("extended_l2", "on", 79, 16),
        ("lazy_refcounts", "on", 87, 1),
    ] {
        let image = image::write(&QCOW2, &disk, &[(name, value)], false).unwrap();
        assert_eq!(image[at], found, "{name}={value}");
    }
}

/// A table that is written when it is complete needs no second write.
#[test]
fn no_byte_is_written_twice() {
    let disk = pattern::disk("100k:A 40k:- 300k:b 200k:- 70k:C 512:d");
    for compress in [false, true] {
        let memory = Arc::new(MemoryStorage::new("new"));
        let traced = Arc::new(TraceStorage::new(memory));
        let options = [("cluster_size", "512"), ("refcount_bits", "64")];
        let spec = image::spec(&QCOW2, disk.len(), &options, compress).unwrap();
        let sink = QCOW2.create(traced.clone(), &spec).unwrap();
        let file_len = image::drive(sink, &disk).unwrap().file_len;
        let mut written = vec![false; file_len as usize];
        let mut flushed = 0;
        for call in traced.calls() {
            match call {
                Call::Write(range) => {
                    let range = range.offset as usize..range.end() as usize;
                    assert_eq!(range.start == 0, flushed == 1, "the header is last");
                    for byte in &mut written[range] {
                        assert!(!std::mem::replace(byte, true));
                    }
                }
                Call::Flush => flushed += 1,
                Call::SetLen(len) => assert_eq!(len, file_len),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(flushed, 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Where every cluster has its place in advance, whatever is written and in whatever file it stands.
    #[test]
    fn length_of_a_preallocated_image_is_known_before_it_is_laid_out(
        cluster_bits in 9u32..22,
        refcount_bits in prop::sample::select(vec!["1", "2", "4", "8", "16", "32", "64"]),
        how in prop::sample::select(vec!["metadata", "falloc"]),
        extended: bool,
        in_data_file: bool,
        clusters in 0u64..9000,
        rest: u64,
        data in prop::option::of((any::<prop::sample::Index>(), 1u64..1 << 30)),
    ) {
        let cluster_size = 1u64 << cluster_bits;
        let size = (clusters << cluster_bits) + rest % cluster_size;
        let cluster_text = cluster_size.to_string();
        let mut options = vec![
            ("cluster_size", &*cluster_text),
            ("refcount_bits", refcount_bits),
            ("preallocation", how),
        ];
        if extended && cluster_bits >= 14 {
            options.push(("extended_l2", "on"));
        }
        if in_data_file {
            options.push(("data_file", "data"));
        }
        let mut spec = image::spec(&QCOW2, size, &options, false).unwrap();
        let void = || Arc::new(VoidStorage::new("void", 0));
        spec.data = in_data_file.then(|| void() as Arc<dyn StorageMut>);
        let known = QCOW2.len_of_any(&spec).unwrap();
        let sink = QCOW2.create(void(), &spec).unwrap();
        if let Some((start, len)) = data.filter(|_| clusters > 0) {
            let start = start.index(clusters as usize) as u64 * cluster_size;
            let end = size.min((start + len).next_multiple_of(cluster_size));
            let range = GuestRange::new(start, end);
            sink.reserve(&[Demand { range, packed: None }], &mut Vec::new()).unwrap();
        }
        prop_assert_eq!(known, Some(sink.commit().unwrap().file_len));
    }
}

#[test]
fn length_that_hangs_on_what_is_written_is_not_known_before() {
    for options in [&[][..], &[("cluster_size", "512")]] {
        let spec = image::spec(&QCOW2, 1 << 30, options, false).unwrap();
        assert_eq!(QCOW2.len_of_any(&spec).unwrap(), None);
    }
    let spec = image::spec(&QCOW2, 1 << 62, &[("preallocation", "full")], false).unwrap();
    assert_eq!(
        QCOW2.len_of_any(&spec).unwrap_err().kind(),
        ErrorKind::Usage
    );
}
