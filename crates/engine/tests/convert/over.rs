//! Targets before another disk.

use super::*;

/// What a guest reads from a target that stands before `behind`, and the digests of the source.
fn over<'a>(
    source: &Chain,
    behind: &'a Chain,
    how: impl FnOnce(&'a Chain) -> Behind<'a>,
    shape: &Shape,
) -> (Vec<u8>, Vec<Digest>) {
    let len = source.virtual_size();
    let profile = SinkProfile {
        zeroes: ZeroPolicy::Covering,
        ..shape.recording(len).sink().profile().clone()
    };
    let recording = Recording::new(profile);
    let job = Job {
        sparse: shape.sparse,
        behind: how(behind),
        digests: Algorithm::ALL,
        ..threads(shape.threads)
    };
    let digests = convert(source, recording.sink(), &job).unwrap().digests;
    let mut bytes = vec![0; len as usize];
    let there = behind.virtual_size().min(len) as usize;
    behind.read_at(0, &mut bytes[..there]).unwrap();
    recording.lay_over(&mut bytes);
    (bytes, digests)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever stands behind the target, the guest finds the source in it.
    #[test]
    fn any_disk_over_any_other_reads_as_itself(
        disk in any_disk(3 << 20, 512),
        behind in any_disk(3 << 20, 512),
        mut shape in any_shape(),
    ) {
        shape.identity = false;
        let behind = chain(&behind);
        for how in [Behind::Disk, Behind::Unread] {
            let (bytes, found) = over(&chain(&disk), &behind, how, &shape);
            prop_assert!(bytes == disk.bytes());
            prop_assert_eq!(found, digests(disk.bytes()));
        }
        let blank = chain(&ModelDisk::new([(disk.len(), Fill::Hole)]));
        let (bytes, _) = over(&chain(&disk), &blank, |_| Behind::Zeros, &shape);
        prop_assert!(bytes == disk.bytes());
    }
}

/// What the target has is written over without a look at it, and its holes stay.
#[test]
fn data_of_the_target_is_not_read_before_it_is_written_over() {
    let source = chain(&disk("64k:A 64k:- 64k:- 64k:0 1M:-"));
    let below = Arc::new(TraceLayer::new(Arc::new(ModelLayer::new(disk(
        "64k:A 64k:B 64k:- 64k:- 1M:-",
    )))));
    let behind = Chain::new(Arc::clone(&below) as Arc<dyn Layer>, []);
    for (how, zeros) in [(Behind::Unread(&behind), 1), (Behind::Zeros, 0)] {
        let recording = Recording::new(SinkProfile {
            zeroes: ZeroPolicy::Covering,
            ..Recording::profile(source.virtual_size(), 4096)
        });
        let job = Job {
            behind: how,
            ..threads(2)
        };
        convert(&source, recording.sink(), &job).unwrap();
        assert_eq!(demanded(&recording), [(0, 64 << 10)]);
        assert_eq!(recording.calls(Step::ReserveZeroes), zeros);
    }
    assert_eq!(below.reads(), 0);
}

/// As [`chain`], with layers of these disks behind the first one.
fn layers(disks: &[&Arc<ModelLayer>]) -> Chain {
    let mut layers = disks
        .iter()
        .map(|layer| Arc::clone(layer) as Arc<dyn Layer>);
    Chain::new(layers.next().unwrap(), layers)
}

#[test]
fn what_both_disks_are_made_of_is_not_read() {
    let [top, base] = ["64k:B 8M:- 64k:C", "8M:A 128k:-"].map(disk);
    let top = Arc::new(ModelLayer::new(top));
    let base = Arc::new(ModelLayer::new(base));
    let source = layers(&[&top, &base]);
    let behind = layers(&[&base]);
    let recording = Recording::new(SinkProfile {
        zeroes: ZeroPolicy::Covering,
        ..Recording::profile(source.virtual_size(), 65536)
    });
    let job = Job {
        behind: Behind::Disk(&behind),
        ..threads(2)
    };
    let outcome = convert(&source, recording.sink(), &job).unwrap();
    let size = source.virtual_size();
    assert_eq!(demanded(&recording), [(0, 65536), (size - 65536, size)]);
    assert!(outcome.data <= 3 << 20, "{}", outcome.data);
}

/// What a sink that covers is told when `source` comes before `behind`, and the bytes read for it.
fn told(source: &Chain, behind: &Chain) -> (Arc<Recording>, u64) {
    let recording = Recording::new(SinkProfile {
        zeroes: ZeroPolicy::Covering,
        ..Recording::profile(source.virtual_size(), 4096)
    });
    let job = Job {
        behind: Behind::Disk(behind),
        ..threads(2)
    };
    let outcome = convert(source, recording.sink(), &job).unwrap();
    (recording, outcome.data)
}

/// A rebase: what the image holds itself is never read, whatever it is based on.
#[test]
fn image_over_another_base_says_only_where_the_bases_differ() {
    let layer = |picture: &str| Arc::new(ModelLayer::new(disk(picture)));
    let top = layer("64k:T 192k:- 8M:T");
    let (old, new) = (layer("128k:A 64k:B 1M:-"), layer("128k:A 128k:N 9M:n"));
    let (source, behind) = (layers(&[&top, &old]), layers(&[&top, &new]));
    let (recording, data) = told(&source, &behind);
    assert_eq!(demanded(&recording), [(128 << 10, 192 << 10)]);
    assert_eq!(
        data,
        128 << 10,
        "what stands in the old base beside the image"
    );
    let mut bytes = vec![0; source.virtual_size() as usize];
    behind.read_at(0, &mut bytes).unwrap();
    recording.lay_over(&mut bytes);
    let mut expected = bytes.clone();
    source.read_at(0, &mut expected).unwrap();
    assert!(bytes == expected);
}

/// A rebase onto a deeper image of the chain, which reads only what it leaves out.
#[test]
fn image_over_a_deeper_base_says_what_lay_between() {
    let layer = |picture: &str| Arc::new(ModelLayer::new(disk(picture)));
    let (top, middle) = (layer("64k:T 2M:-"), layer("128k:M 512k:- 4k:0 2M:-"));
    let base = layer("8M:B");
    let source = layers(&[&top, &middle, &base]);
    let (recording, data) = told(&source, &layers(&[&top, &base]));
    assert_eq!(demanded(&recording), [(64 << 10, 128 << 10)]);
    assert_eq!(data, 64 << 10);
    let mut bytes = vec![7; source.virtual_size() as usize];
    recording.lay_over(&mut bytes);
    let zeros = bytes.iter().filter(|byte| **byte == 0).count();
    assert_eq!(zeros, 4096);
}

/// The base may be longer than another one, or end inside the image: what none has is zeros.
#[test]
fn bases_of_any_length_make_the_image_what_it_was() {
    let layer = |picture: &str| Arc::new(ModelLayer::new(disk(picture)));
    let top = layer("64k:- 64k:T 128k:-");
    for (old, new) in [
        ("32k:A", "256k:B"),
        ("256k:A", "32k:B"),
        ("256k:A", "200k:A"),
        ("4k:-", "256k:B"),
        ("256k:-", "256k:B"),
    ] {
        let source = layers(&[&top, &layer(old)]);
        let behind = layers(&[&top, &layer(new)]);
        let (recording, _) = told(&source, &behind);
        let mut bytes = vec![0; source.virtual_size() as usize];
        behind.read_at(0, &mut bytes).unwrap();
        recording.lay_over(&mut bytes);
        let mut expected = bytes.clone();
        source.read_at(0, &mut expected).unwrap();
        assert!(bytes == expected, "{old} to {new}");
    }
}

#[test]
fn target_that_covers_needs_to_know_what() {
    let source = chain(&disk("64k:A"));
    let covering = || {
        Recording::new(SinkProfile {
            zeroes: ZeroPolicy::Covering,
            ..Recording::profile(65536, 4096)
        })
    };
    let error = convert(&source, covering().sink(), &Job::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    let job = Job {
        behind: Behind::Disk(&source),
        ..Job::default()
    };
    let plain = Recording::new(Recording::profile(65536, 4096));
    assert_eq!(
        convert(&source, plain.sink(), &job).unwrap_err().kind(),
        ErrorKind::Usage
    );
    let same = covering();
    convert(&source, same.sink(), &job).unwrap();
    assert!(demanded(&same).is_empty() && same.is_committed());
}
