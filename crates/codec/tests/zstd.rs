//! Zstandard units, against frames made by hand and by the library's other entrances.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use goldsmith_block::{Codec, Error, ErrorKind};
use goldsmith_codec::{CodecError, Packer, Unpacker};
use proptest::prelude::*;
use support::{any_unit, noise, text};
use zstd::zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, zstd_sys::ZSTD_EndDirective};

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

fn unpack(packed: &[u8], len: usize) -> Result<Vec<u8>, CodecError> {
    let mut unit = vec![0xee; len];
    Unpacker::new().unpack(Codec::Zstd, packed, &mut unit)?;
    Ok(unit)
}

fn pack(packer: &mut Packer, unit: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![];
    let len = packer.pack(unit, &mut out).unwrap();
    assert_eq!(out.len(), len.unwrap_or(0));
    len.map(|_| out)
}

/// One frame of any writer: `parameters` as it likes, its size unknown when it began.
fn stream(unit: &[u8], parameters: &[CParameter]) -> Vec<u8> {
    let mut context = CCtx::create();
    for parameter in parameters {
        context.set_parameter(*parameter).unwrap();
    }
    let mut packed = vec![0; unit.len() + 1000];
    let mut output = OutBuffer::around(&mut packed[..]);
    for piece in unit.chunks(1000) {
        let mut input = InBuffer::around(piece);
        let go_on = ZSTD_EndDirective::ZSTD_e_continue;
        context
            .compress_stream2(&mut output, &mut input, go_on)
            .unwrap();
        assert_eq!(input.pos(), piece.len());
    }
    let end = ZSTD_EndDirective::ZSTD_e_end;
    let left = context.compress_stream2(&mut output, &mut InBuffer::around(&[]), end);
    assert_eq!(left, Ok(0));
    let len = output.pos();
    packed.truncate(len);
    packed
}

/// A frame without a content size whose window is `2^window_log` bytes: one block of five bytes
/// as they are. [RFC 8878 3.1.1]
fn by_hand(window_log: u8) -> Vec<u8> {
    let descriptor = 0;
    let window = (window_log - 10) << 3;
    let last_raw_block = [1 | 5 << 3, 0, 0];
    [&MAGIC[..], &[descriptor, window], &last_raw_block, b"hello"].concat()
}

/// A frame of one block that repeats `byte` `len` times. [RFC 8878 3.1.1.2]
fn repeated(byte: u8, len: u32) -> Vec<u8> {
    let header = (1 | 1 << 1 | len << 3).to_le_bytes();
    [&MAGIC[..], &[0, 11 << 3], &header[..3], &[byte]].concat()
}

proptest! {
    #[test]
    fn packed_units_are_read_by_the_plain_library(units in prop::collection::vec(any_unit(), 1..4)) {
        let mut packer = Packer::new(Codec::Zstd);
        for unit in units {
            if let Some(packed) = pack(&mut packer, &unit) {
                prop_assert!(packed.len() < unit.len());
                prop_assert!(zstd::stream::decode_all(&packed[..]).unwrap() == unit);
                prop_assert!(unpack(&packed, unit.len()).unwrap() == unit);
            }
        }
    }

    #[test]
    fn packed_bytes_do_not_depend_on_earlier_units(before in any_unit(), unit in any_unit()) {
        let mut used = Packer::new(Codec::Zstd);
        pack(&mut used, &before);
        let mut room = vec![0; 1 << 20];
        room.clear();
        let len = used.pack(&unit, &mut room).unwrap();
        prop_assert_eq!(len.map(|_| room), pack(&mut Packer::new(Codec::Zstd), &unit));
    }

    #[test]
    fn any_bytes_behind_the_magic_get_an_answer(
        rest in prop::collection::vec(any::<u8>(), 0..2000),
        len in 0..5000usize,
    ) {
        let _ = unpack(&[&MAGIC[..], &rest].concat(), len);
        let _ = unpack(&rest, len);
    }

    #[test]
    fn flipped_bits_get_an_answer(unit in any_unit(), at: prop::sample::Index, bit in 0..8u32) {
        let mut packed = stream(&unit, &[]);
        let at = at.index(packed.len());
        packed[at] ^= 1u8 << bit;
        let _ = unpack(&packed, unit.len());
    }
}

#[test]
fn frame_made_by_hand_is_read() {
    assert_eq!(unpack(&by_hand(10), 5).unwrap(), b"hello");
    assert_eq!(
        unpack(&repeated(7, 100_000), 100_000).unwrap(),
        [7; 100_000]
    );
}

#[test]
fn several_frames_make_one_unit_and_what_follows_is_ignored() {
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"any"].concat();
    let mut packed = [&by_hand(10)[..], &skippable, &repeated(b'o', 3)].concat();
    let len = packed.len();
    for rest in [vec![], noise(500, 1), vec![0; 500], by_hand(10)] {
        packed.extend(rest);
        assert_eq!(unpack(&packed, 8).unwrap(), b"helloooo");
        let measured = Unpacker::new().unpack_measured(Codec::Zstd, &packed, &mut [0; 8]);
        assert_eq!(measured.unwrap(), Some(len));
    }
}

#[test]
fn frames_of_every_writer_are_read() {
    for len in [1, 512, 65536, 128 << 10, (128 << 10) + 1, 2 << 20] {
        let unit = [text(len / 2), noise(len - len / 2, 9)].concat();
        for level in [-5, 1, 3, 19] {
            for checksum in [false, true] {
                let level = CParameter::CompressionLevel(level);
                let packed = stream(&unit, &[level, CParameter::ChecksumFlag(checksum)]);
                assert!(unpack(&packed, len).unwrap() == unit, "{len} {level:?}");
            }
        }
    }
}

#[test]
fn frame_that_ends_early_is_refused_at_every_length() {
    let unit = text(3000);
    let packed = stream(&unit, &[CParameter::ChecksumFlag(true)]);
    for len in 0..packed.len() {
        let error = unpack(&packed[..len], 3000).unwrap_err();
        // Without all of its checksum the frame has not ended, though the unit is full.
        let missing = packed.len() - len;
        match error {
            CodecError::Short { found, unit: 3000 } => assert!(found < 3000),
            CodecError::Long { unit: 3000 } => assert!(missing <= 4, "{missing}"),
            error => panic!("{error}"),
        }
    }
}

#[test]
fn frames_that_give_too_little_are_refused_with_both_numbers() {
    let (found, unit) = (5, 6);
    let error = unpack(&by_hand(10), 6).unwrap_err();
    assert_eq!(error, CodecError::Short { found, unit });
}

#[test]
fn frame_that_goes_on_is_refused() {
    let error = unpack(&repeated(7, 100_000), 65536).unwrap_err();
    assert_eq!(error, CodecError::Long { unit: 65536 });
    let damaged = Error::from(error);
    assert_eq!(damaged.kind(), ErrorKind::Corrupt);
}

#[test]
fn window_far_above_a_unit_is_refused() {
    assert_eq!(unpack(&by_hand(23), 5).unwrap(), b"hello");
    let error = unpack(&by_hand(24), 5).unwrap_err();
    assert_eq!(error, CodecError::Window { limit: 8 << 20 });
    assert_eq!(Error::from(error).kind(), ErrorKind::Limit);
}

#[test]
fn damaged_checksum_is_corrupt() {
    let mut packed = stream(&text(3000), &[CParameter::ChecksumFlag(true)]);
    *packed.last_mut().unwrap() ^= 1;
    let error = Error::from(unpack(&packed, 3000).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

/// Less room than the worst case needs makes the library pack block by block, as it does for QEMU;
/// that must not cost more than a few bytes.
#[test]
fn units_are_packed_as_tightly_as_with_room_to_spare() {
    let unit = text(65536);
    let mut whole = vec![];
    let mut packer = CCtx::create();
    packer
        .set_parameter(CParameter::CompressionLevel(3))
        .unwrap();
    whole.reserve(zstd::zstd_safe::compress_bound(unit.len()));
    packer.compress2(&mut whole, &unit).unwrap();
    let packed = pack(&mut Packer::new(Codec::Zstd), &unit).unwrap();
    assert!(packed.len() <= whole.len() + 16);
}

#[test]
fn unit_that_does_not_shrink_is_left_alone() {
    let mut packer = Packer::new(Codec::Zstd);
    for len in [0, 1, 2, 512, 65536] {
        assert_eq!(pack(&mut packer, &noise(len, 3)), None, "{len}");
    }
    assert!(pack(&mut packer, &text(65536)).is_some());
}

#[test]
fn unpacker_is_usable_after_damage() {
    let mut unpacker = Unpacker::new();
    let mut unit = vec![0; 5];
    for packed in [vec![0xff; 9], repeated(7, 9), by_hand(30), by_hand(20)] {
        let _ = unpacker.unpack(Codec::Zstd, &packed, &mut unit);
    }
    assert_eq!(unit, b"hello");
}
