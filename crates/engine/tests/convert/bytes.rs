//! Which bytes the sink is told of.

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The sink gets the guest's bytes, whatever it asks for and however many work.
    #[test]
    fn sink_gets_the_bytes_of_the_chain(
        top in any_disk(6 << 20, 512),
        back in any_disk(6 << 20, 512),
        shape in any_shape(),
        step in prop::sample::select(vec![512u64, 70_000, u64::MAX]),
    ) {
        let layer = ModelLayer::new(top.clone()).in_steps_of(step);
        let source = Chain::new(Arc::new(layer), [Arc::new(ModelLayer::new(back)) as Arc<dyn Layer>]);
        let mut expected = vec![0; top.len() as usize];
        source.read_at(0, &mut expected).unwrap();

        let recording = shape.recording(top.len());
        let outcome = convert(&source, recording.sink(), &shape.job()).unwrap();
        prop_assert!(recording.is_committed());
        prop_assert!(recording.bytes() == expected);
        prop_assert_eq!(outcome.digests, digests(&expected));
    }

    /// What decides the target's bytes, the demands and their order, is the same for any crew.
    #[test]
    fn demands_do_not_depend_on_threads(disk in any_disk(6 << 20, 512), shape in any_shape()) {
        let source = chain(&disk);
        let demands = |threads| {
            let shape = Shape { threads, identity: false, ..shape.clone() };
            let recording = shape.recording(disk.len());
            convert(&source, recording.sink(), &shape.job()).unwrap();
            recording.reserves()
        };
        prop_assert_eq!(demands(1), demands(4));
    }
}

#[test]
fn zeros_are_left_out_to_the_grain() {
    let source = chain(&disk("4k:A 4k:0 8k:B 64k:- 4k:0 4k:C"));
    let recording = Recording::new(Recording::profile(source.virtual_size(), 4096));
    convert(&source, recording.sink(), &threads(2)).unwrap();
    assert_eq!(
        demanded(&recording),
        [(0, 4096), (8192, 16384), (86016, 90112)]
    );
}

#[test]
fn runs_of_zeros_below_the_sparse_size_are_stored() {
    let source = chain(&disk("4k:A 8k:0 4k:B 8k:- 4k:C 12k:0 4k:D 12k:- 4k:E"));
    let recording = Recording::new(Recording::profile(source.virtual_size(), 4096));
    let job = Job {
        sparse: 12 << 10,
        ..threads(1)
    };
    convert(&source, recording.sink(), &job).unwrap();
    let k = |kib: u64| kib << 10;
    assert_eq!(
        demanded(&recording),
        [(0, k(28)), (k(40), k(44)), (k(56), k(60))]
    );
}

#[test]
fn sparse_size_zero_stores_every_byte() {
    let source = chain(&disk("4k:A 3M:- 4k:0"));
    let recording = Recording::new(Recording::profile(source.virtual_size(), 65536));
    convert(
        &source,
        recording.sink(),
        &Job {
            sparse: 0,
            ..threads(2)
        },
    )
    .unwrap();
    let stored: u64 = demanded(&recording)
        .iter()
        .map(|(start, end)| end - start)
        .sum();
    assert_eq!(stored, source.virtual_size());
}

#[test]
fn unit_that_does_not_shrink_is_stored_as_it_is() {
    // Lower-case letters are noise.
    let source = chain(&disk("64k:A 64k:a"));
    let packing = Some(Packing {
        codec: Codec::Deflate,
        unit: 65536,
    });
    let profile = Recording::profile(source.virtual_size(), 65536);
    let recording = Recording::new(SinkProfile { packing, ..profile });
    convert(&source, recording.sink(), &threads(1)).unwrap();
    let packed: Vec<_> = recording
        .reserves()
        .iter()
        .map(|Demand { packed, .. }| packed.is_some())
        .collect();
    assert_eq!(packed, [true, false]);
}

#[test]
fn sink_larger_than_the_source_ends_in_zeros() {
    let disk = disk("1000:A 1:B");
    for written in [ZeroPolicy::Implied, ZeroPolicy::Written] {
        let profile = SinkProfile {
            zeroes: written,
            ..Recording::profile(1 << 22, 512)
        };
        let recording = Recording::new(profile);
        let job = Job {
            digests: Algorithm::ALL,
            ..threads(2)
        };
        let outcome = convert(&chain(&disk), recording.sink(), &job).unwrap();
        let mut expected = disk.bytes().to_vec();
        expected.resize(1 << 22, 0);
        assert!(recording.bytes() == expected);
        // They are the target's, with which they can be compared.
        assert_eq!(outcome.digests, digests(&expected));
    }
}

#[test]
fn sink_smaller_than_the_source_is_refused() {
    let recording = Recording::new(Recording::profile(512, 512));
    let error = convert(&chain(&disk("1k:A")), recording.sink(), &threads(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert_eq!(
        error.report(),
        "the source has 1024 bytes, the target only 512"
    );
    assert!(!recording.is_committed());
}

#[test]
fn empty_disk_commits() {
    let recording = Recording::new(Recording::profile(0, 512));
    convert(&chain(&disk("")), recording.sink(), &threads(2)).unwrap();
    assert!(recording.is_committed());
}

/// 64 TiB with 1 MiB of data must cost what the data costs.
#[test]
fn hole_of_any_length_is_one_step() {
    let disk = disk("512k:A 32T:- 256k:B 31T:- 256k:C");
    let layer = Arc::new(TraceLayer::new(Arc::new(ModelLayer::new(disk.clone()))));
    let source = Chain::new(layer.clone(), []);
    let recording = Recording::new(Recording::profile(disk.len(), 65536));
    let outcome = convert(&source, recording.sink(), &threads(2)).unwrap();
    assert_eq!(outcome.data, 1 << 20);
    assert_eq!(layer.read_bytes(), 1 << 20);
    assert!(
        layer.extents() < 30,
        "{} calls of extent_at",
        layer.extents()
    );
    assert_eq!(recording.reserves().len(), 3);
}
