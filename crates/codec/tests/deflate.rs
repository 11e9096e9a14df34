//! Deflate units, judged by a decoder of our own, by libdeflate, and by zlib-rs with a window of 12
//! bits.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use goldsmith_block::{Codec, Error, ErrorKind};
use goldsmith_codec::{CodecError, Packer, Unpacker};
use libdeflater::Decompressor;
use proptest::prelude::*;
use support::{any_unit, counters, mixed, noise, periodic, skewed, text, walk};

/// The packed form, or nothing where there is none.
fn pack(packer: &mut Packer, unit: &[u8]) -> Option<Vec<u8>> {
    let mut out = b"before".to_vec();
    let len = packer.pack(unit, &mut out).unwrap();
    assert_eq!(&out[..6], b"before");
    let packed = out.split_off(6);
    assert_eq!(packed.len(), len.unwrap_or(0));
    len.map(|_| packed)
}

fn unpack(packed: &[u8], len: usize) -> Result<Vec<u8>, CodecError> {
    let mut unit = vec![0xee; len];
    Unpacker::new().unpack(Codec::Deflate, packed, &mut unit)?;
    Ok(unit)
}

/// Deflate with the full window, as a writer other than QEMU might.
fn deflate_15(unit: &[u8]) -> Vec<u8> {
    let mut out = vec![0; unit.len() + 1000];
    let mut deflate = Compress::new(Compression::new(6), false);
    let status = deflate.compress(unit, &mut out, FlushCompress::Finish);
    assert_eq!(status.unwrap(), Status::StreamEnd);
    out.truncate(deflate.total_out() as usize);
    out
}

/// Inflates in small pieces, so that every match must lie in a window of 12 bits.
fn inflate_12(packed: &[u8], len: usize) -> Vec<u8> {
    let mut inflate = Decompress::new_with_window_bits(false, 12);
    let mut unit = vec![0; len];
    for piece in unit.chunks_mut(100) {
        let at = inflate.total_in() as usize;
        let before = inflate.total_out();
        inflate
            .decompress(&packed[at..], piece, FlushDecompress::None)
            .unwrap();
        assert_eq!(inflate.total_out() - before, piece.len() as u64);
    }
    unit
}

/// Packs `unit`, has the packed form judged, and says how long it is.
fn judged(packer: &mut Packer, unit: &[u8]) -> Option<usize> {
    let packed = pack(packer, unit)?;
    assert!(packed.len() < unit.len());
    let walk = walk(&packed);
    assert!(walk.bytes == unit, "the walk gives other bytes");
    assert!(walk.farthest < 4096, "{}", walk.farthest);
    assert!(inflate_12(&packed, unit.len()) == unit, "zlib-rs differs");
    let mut again = vec![0xee; unit.len()];
    let len = Decompressor::new().deflate_decompress(&packed, &mut again);
    assert_eq!(len, Ok(unit.len()));
    assert!(again == unit, "libdeflate differs");
    assert!(unpack(&packed, unit.len()).unwrap() == unit);
    Some(packed.len())
}

proptest! {
    #[test]
    fn matches_reach_back_less_than_4096_bytes(units in prop::collection::vec(any_unit(), 1..4)) {
        let mut packer = Packer::new(Codec::Deflate);
        for unit in units {
            judged(&mut packer, &unit);
        }
    }

    #[test]
    fn length_of_the_packed_form_is_found(unit in any_unit(), rest in prop::collection::vec(any::<u8>(), 0..600)) {
        for packed in [pack(&mut Packer::new(Codec::Deflate), &unit), Some(deflate_15(&unit))] {
            let Some(packed) = packed else { continue };
            let mut again = vec![0; unit.len()];
            let len = Unpacker::new()
                .unpack_measured(Codec::Deflate, &[&packed[..], &rest].concat(), &mut again)
                .unwrap();
            prop_assert_eq!(len, Some(packed.len()));
            prop_assert!(again == unit);
        }
    }

    #[test]
    fn packed_bytes_do_not_depend_on_earlier_units(before in any_unit(), unit in any_unit()) {
        let mut used = Packer::new(Codec::Deflate);
        pack(&mut used, &before);
        prop_assert_eq!(pack(&mut used, &unit), pack(&mut Packer::new(Codec::Deflate), &unit));
    }

    #[test]
    fn any_bytes_get_an_answer(
        packed in prop::collection::vec(any::<u8>(), 0..2000),
        len in 0..5000usize,
    ) {
        let _ = unpack(&packed, len);
    }

    #[test]
    fn flipped_bits_get_an_answer(unit in any_unit(), at: prop::sample::Index, bit in 0..8u32) {
        let mut packed = deflate_15(&unit);
        let at = at.index(packed.len());
        packed[at] ^= 1u8 << bit;
        let _ = unpack(&packed, unit.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn units_of_any_length_are_packed(bits in 0..21u32, part: u32, seed: u64) {
        let len = (1usize << bits) + (part as usize & ((1 << bits) - 1)) + 1;
        judged(&mut Packer::new(Codec::Deflate), &mixed(len.min(2 << 20), seed));
    }

    #[test]
    fn symbols_of_any_frequency_are_packed(
        weights in prop::collection::vec(prop_oneof![Just(0), 1..9u32, 1..100_000u32], 1..=256),
        len in 1..100_000usize,
        seed: u64,
    ) {
        judged(&mut Packer::new(Codec::Deflate), &skewed(&weights, len, seed));
    }
}

#[test]
fn the_largest_units_are_packed() {
    let mut packer = Packer::new(Codec::Deflate);
    for unit in [mixed(2 << 20, 1), text(2 << 20), vec![7; 2 << 20]] {
        assert!(judged(&mut packer, &unit).is_some());
    }
}

/// Lengths around those at which segments and blocks end, and all small ones.
#[test]
fn units_end_anywhere() {
    let mut packer = Packer::new(Codec::Deflate);
    let edges = [4096, 8192, 16384, 61440, 65536, 69632, 131_072, 262_144];
    let edges = edges.into_iter().flat_map(|edge| edge - 3..=edge + 5);
    for len in (0..700).chain(edges) {
        judged(&mut packer, &mixed(len, len as u64));
        judged(&mut packer, &vec![b'x'; len]);
        judged(&mut packer, &periodic(len, 5));
        judged(&mut packer, &text(len));
    }
}

/// Each symbol as often as the two before it together: no tree is deeper.
#[test]
fn frequencies_like_fibonacci_numbers_are_packed() {
    let mut weights = [0u32; 24];
    let (mut a, mut b) = (1, 1);
    for weight in &mut weights {
        *weight = a;
        (a, b) = (b, a + b);
    }
    let mut packer = Packer::new(Codec::Deflate);
    for symbols in 2..=24 {
        // Every symbol exactly so often, in an order without matches to speak of.
        let bytes = weights[..symbols].iter().enumerate();
        let bytes = bytes.flat_map(|(n, weight)| vec![n as u8 * 10; *weight as usize]);
        let mut unit: Vec<u8> = bytes.collect();
        let places = noise(8 * unit.len(), symbols as u64);
        for (n, place) in places.chunks(8).enumerate().skip(1) {
            let place = u64::from_le_bytes(place.try_into().unwrap());
            unit.swap(n, place as usize % (n + 1));
        }
        let len = judged(&mut packer, &unit);
        assert!(len.is_some() || unit.len() < 80, "{symbols} symbols");
    }
}

#[test]
fn blocks_end_where_the_bytes_change() {
    // Apart, each half takes six bits a byte; together, both take seven.
    let half = |low, seed| {
        noise(32768, seed)
            .into_iter()
            .map(move |byte| byte % 64 + low)
    };
    let unit: Vec<u8> = half(0, 1).chain(half(100, 2)).collect();
    let len = judged(&mut Packer::new(Codec::Deflate), &unit).unwrap();
    assert!(len < 50_000, "{len}");
}

#[test]
fn noise_between_other_bytes_is_stored() {
    let unit = [text(20_000), noise(100_000, 2), text(20_000)].concat();
    let len = judged(&mut Packer::new(Codec::Deflate), &unit).unwrap();
    assert!(len < 115_000, "{len}");
}

#[test]
fn matches_are_found_up_to_the_edge_of_the_window() {
    let mut packer = Packer::new(Codec::Deflate);
    for (period, found) in [(2000, true), (3800, true), (4096, false), (5000, false)] {
        let len = judged(&mut packer, &periodic(65536, period)).unwrap_or(65536);
        // Without matches there is only the luck with which some bytes occur more often.
        assert_eq!(len < 60_000, found, "{period}: {len}");
    }
    let farthest = walk(&pack(&mut packer, &periodic(65536, 3800)).unwrap()).farthest;
    assert_eq!(farthest, 3800, "the judge sees far matches");
}

#[test]
fn judge_sees_matches_beyond_the_window() {
    let unit = periodic(65536, 5000);
    let walk = walk(&deflate_15(&unit));
    assert!(walk.bytes == unit);
    assert!(walk.farthest >= 5000, "{}", walk.farthest);
}

/// Lengths that python3 gives for the same units with
/// `zlib.compressobj(6, zlib.DEFLATED, -12, 9)`, which is what QEMU does. The noise that repeats
/// itself is the worst case of a search that gives up where two places share a hash by chance.
#[test]
fn units_are_packed_as_tightly_as_qemu_packs_them() {
    for (name, unit, qemu) in [
        ("text", text(65536), 17034),
        ("counters", counters(65536), 22640),
        ("periodic", periodic(65536, 1000), 1454),
        ("zeros", vec![0; 65536], 78),
    ] {
        let len = pack(&mut Packer::new(Codec::Deflate), &unit).unwrap().len();
        assert!(len <= qemu + qemu / 100 + 1, "{name}: {len}, QEMU {qemu}");
    }
}

/// zlib-rs at its highest level is a little tighter than zlib as QEMU uses it.
#[test]
fn real_units_are_packed_as_tightly_as_by_zlib_rs() {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let mut packer = Packer::new(Codec::Deflate);
    let mut deflate = Compress::new_with_window_bits(Compression::new(9), false, 12);
    let (mut ours, mut theirs) = (0, 0);
    for unit in program.chunks(65536).take(40) {
        ours += judged(&mut packer, unit).unwrap_or(unit.len());
        let mut out = vec![0; 70_000];
        deflate.reset();
        let status = deflate.compress(unit, &mut out, FlushCompress::Finish);
        assert_eq!(status.unwrap(), Status::StreamEnd);
        theirs += unit.len().min(deflate.total_out() as usize);
    }
    assert!(ours <= theirs + theirs / 100, "{ours}, zlib-rs {theirs}");
}

#[test]
fn unit_that_does_not_shrink_is_left_alone() {
    let mut packer = Packer::new(Codec::Deflate);
    for len in [0, 1, 2, 512, 65536] {
        assert_eq!(pack(&mut packer, &noise(len, 3)), None, "{len}");
    }
    assert!(pack(&mut packer, &text(65536)).is_some());
}

#[test]
fn packer_outlives_any_number_of_units_that_do_not_shrink() {
    let mut packer = Packer::new(Codec::Deflate);
    let mut state = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(512)
    .collect();
    let zeros = pack(&mut Packer::new(Codec::Deflate), &[0; 512]);
    for _ in 0..1000 {
        assert_eq!(pack(&mut packer, &noise), None);
    }
    assert_eq!(pack(&mut packer, &[0; 512]), zeros);
}

#[test]
fn bytes_behind_the_stream_are_ignored() {
    let unit = text(4096);
    let mut packed = deflate_15(&unit);
    packed.extend(noise(700, 1));
    assert_eq!(unpack(&packed, 4096).unwrap(), unit);
}

#[test]
fn stream_that_goes_on_is_cut_where_the_unit_is_full() {
    let long = text(10_000);
    let packed = deflate_15(&long);
    for len in [0, 1, 4096, 9999] {
        assert_eq!(unpack(&packed, len).unwrap(), &long[..len]);
    }
}

#[test]
fn far_matches_of_other_writers_are_read() {
    let unit = periodic(65536, 20_000);
    assert_eq!(unpack(&deflate_15(&unit), 65536).unwrap(), unit);
}

#[test]
fn damage_behind_a_full_unit_is_no_damage() {
    let long = noise(100_000, 5);
    let mut packed = deflate_15(&long);
    packed[90_000..].fill(0xff);
    assert_eq!(unpack(&packed, 4096).unwrap(), &long[..4096]);
}

#[test]
fn stream_that_ends_early_is_refused_at_every_length() {
    let unit = text(3000);
    let packed = deflate_15(&unit);
    for len in 0..packed.len() {
        // The last bits hold only the mark of the end, which QEMU does not miss either.
        match unpack(&packed[..len], 3000) {
            Ok(found) => {
                assert!(found == unit, "{len} of {}", packed.len());
                assert!(len + 2 >= packed.len(), "{len} of {}", packed.len());
            }
            Err(CodecError::Short { found, unit: 3000 }) => assert!(found < 3000),
            Err(error) => panic!("{len}: {error}"),
        }
    }
}

#[test]
fn finished_stream_shorter_than_the_unit_is_refused_with_both_numbers() {
    let error = unpack(&deflate_15(&text(4000)), 4096).unwrap_err();
    let (found, unit) = (4000, 4096);
    assert_eq!(error, CodecError::Short { found, unit });
    assert_eq!(
        Error::from(error).report(),
        "corrupt image: the packed data gives only 4000 of the unit's 4096 bytes"
    );
}

#[test]
fn bytes_that_are_no_deflate_are_corrupt() {
    let error = Error::from(unpack(&[0xff; 100], 4096).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn unpacker_is_usable_after_damage() {
    let unit = text(4096);
    let mut unpacker = Unpacker::new();
    let mut again = vec![0; 4096];
    for packed in [vec![0xff; 9], deflate_15(&text(9000)), deflate_15(&unit)] {
        let _ = unpacker.unpack(Codec::Deflate, &packed, &mut again);
    }
    assert_eq!(again, unit);
}

#[test]
fn stream_that_goes_on_has_no_length() {
    let packed = deflate_15(&text(5000));
    let mut unit = vec![0; 3000];
    let len = Unpacker::new().unpack_measured(Codec::Deflate, &packed, &mut unit);
    assert_eq!(len.unwrap(), None);
    assert!(unit == text(5000)[..3000]);
}
