//! What the fuzz targets do, as ordinary functions, so that stable tests replay every finding.

mod edit;
mod whole;

use std::sync::Arc;

use goldsmith_block::{Budget, Codec, Format, Layer, OptionKind};
use goldsmith_codec::{Packer, Unpacker};
use goldsmith_storage::MemoryStorage;

use crate::hostile::{
    SECRET, assert_blames_image, assert_extent, assert_zeros_are_zero, budget, check, open, probe,
    walk,
};
use crate::image;
use crate::model::{Fill, ModelDisk};
use crate::pattern::noise;

pub use edit::edit;
pub use whole::{chain, check as check_whole, convert, differential, in_one_pass, map, repair};

/// Memory that an image may want for its metadata.
const METADATA: u64 = 16 << 20;
/// Extents that are looked at.
const EXTENTS: usize = 300;
/// Values for options that are sizes. Mostly small: large units make a fuzzer slow.
const SIZES: [&str; 8] = ["512", "1k", "2k", "3k", "4k", "8k", "64k", "512k"];
/// Bytes of a unit that are enough for several blocks and for more than one segment of 64 KiB.
const PACKED: usize = 100_000;
/// Bitmaps and snapshots that are looked at.
const FEW: usize = 4;
/// Extents whose bytes are read.
const READS: usize = 40;

/// Opens `data` as an image, looks around in it and checks it.
///
/// # Panics
/// If the format panics, breaks the contract of [`Layer`], or blames anything but the image.
pub fn open_read(format: &dyn Format, data: &[u8]) {
    let _ = probe(format, data);
    if let Err(error) = check(format, data.to_vec(), METADATA) {
        assert_blames_image(&error);
    }
    let layer = match open(format, data.to_vec(), METADATA) {
        Ok(layer) => layer,
        Err(error) => return assert_blames_image(&error),
    };
    if let Err(error) = layer.symptoms() {
        assert_blames_image(&error);
    }
    for index in 0..layer.info().bitmaps.len().min(FEW) {
        look_at_bitmap(&*layer, index, &budget(METADATA));
    }
    for index in 0..layer.info().snapshots.len().min(FEW) {
        match layer.snapshot(index, &budget(METADATA)) {
            Ok(snapshot) => look_around(&*snapshot, 0, snapshot.info().virtual_size),
            Err(error) => assert_blames_image(&error),
        }
    }
    if layer.info().data_file.is_some() {
        let guest = MemoryStorage::holding("data", data.to_vec());
        let layer = layer.with_data(Arc::new(guest)).expect("it names a file");
        look_around(&*layer, 0, layer.info().virtual_size);
    }
    let size = layer.info().virtual_size;
    // Tables of different parts of the disk, whatever its size.
    for start in [0, size / 3, size / 2, size.saturating_sub(1 << 20)] {
        look_around(&*layer, start, size);
    }
    // Ranges that cross extents, at places that the image itself has no say in.
    for seed in 0..4 {
        let len = noise(seed) % 100_000;
        let start = noise(seed ^ size) % size.max(1);
        read(&*layer, start, len.min(size - start));
    }
}

fn look_at_bitmap(layer: &dyn Layer, index: usize, budget: &Budget) {
    match layer.dirty_ranges(index, budget) {
        Ok(ranges) => {
            let size = layer.info().virtual_size;
            let mut end = None;
            for range in ranges {
                assert!(range.start < range.end && range.end <= size, "{range}");
                assert!(end < Some(range.start), "{range} touches what is before it");
                end = Some(range.end);
            }
        }
        Err(error) => assert_blames_image(&error),
    }
}

/// Walks over extents from `start`, past broken ones, and reads some.
fn look_around(layer: &dyn Layer, start: u64, end: u64) {
    let mut at = start;
    for nth in 0..EXTENTS {
        if at >= end {
            return;
        }
        match layer.extent_at(at, end) {
            Ok(extent) => {
                assert_extent(layer, &extent, at, end);
                let len = extent.range.len().min(1 << 16);
                if nth < READS
                    && let Some(bytes) = read(layer, at, len)
                {
                    let piece = layer.extent_at(at, at + len);
                    let mut piece = piece.expect("the same range was fine before");
                    assert_extent(layer, &piece, at, at + len);
                    piece.range.end -= at;
                    piece.range.start = 0;
                    assert_zeros_are_zero(&[piece], &bytes);
                }
                at = extent.range.end;
            }
            Err(error) => {
                assert_blames_image(&error);
                let unit = layer.info().unit.unwrap_or(4096);
                at = at.saturating_add(unit);
            }
        }
    }
}

fn read(layer: &dyn Layer, start: u64, len: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0xaa; len as usize];
    match layer.read_at(start, &mut bytes) {
        Ok(()) => Some(bytes),
        Err(error) => {
            assert_blames_image(&error);
            None
        }
    }
}

/// Takes `data` as the description of a disk and of creation options, writes that image and reads
/// it again.
///
/// # Panics
/// If the image does not read as the disk.
pub fn write_read(format: &dyn Format, data: &[u8]) {
    let mut input = data;
    let mut byte = || input.split_off_first().copied().unwrap_or(0);
    let compress = byte() & 1 == 1;
    let mut options = Vec::new();
    for option in format.options() {
        let pick = byte();
        let value = match option.kind {
            // By default seconds, and more if it were a size like others.
            _ if option.name == "encrypt.iter-time" => "1".to_owned(),
            // Half of all inputs leave an option alone.
            _ if pick & 1 == 0 => continue,
            OptionKind::Flag if pick & 2 == 0 => "off".to_owned(),
            OptionKind::Flag => "on".to_owned(),
            OptionKind::Size => SIZES[usize::from(pick >> 1) % SIZES.len()].to_owned(),
            OptionKind::Text => String::new(),
            OptionKind::Secret => SECRET.to_owned(),
            OptionKind::Choice(words) => words[usize::from(pick >> 1) % words.len()].to_owned(),
        };
        options.push((option.name, value));
    }
    // 73 bytes where a format counts in bytes: a multiple of nothing.
    let step = if format.size_unit() == 1 {
        73
    } else {
        format.size_unit()
    };
    let pieces = input.chunks_exact(3).take(24).map(|piece| {
        let steps = u64::from(u16::from_le_bytes([piece[1], piece[2]]) % 96);
        let fill = match piece[0] % 4 {
            0 => Fill::Hole,
            1 => Fill::Zero,
            2 => Fill::Data(b'A' + piece[0] / 4 % 26),
            _ => Fill::Data(b'a' + piece[0] / 4 % 26),
        };
        (steps * step, fill)
    });
    let disk = ModelDisk::new(pieces);
    let pairs: Vec<_> = options
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    let image = match image::write(format, &disk, &pairs, compress) {
        Ok(image) => image,
        Err(error) => {
            let usage = goldsmith_block::ErrorKind::Usage;
            assert_eq!(error.kind(), usage, "{error:?}");
            return;
        }
    };
    let layer = open(format, image, METADATA).expect("an image of our own opens");
    let bytes = image::read(&*layer).expect("an image of our own can be read");
    let (same, more) = bytes.split_at(disk.bytes().len());
    assert!(
        same == disk.bytes() && goldsmith_block::is_zero(more),
        "{disk:?} with {pairs:?} reads as something else"
    );
    let extents = walk(&*layer, 0, disk.len(), usize::MAX).expect("an image of our own is whole");
    assert_zeros_are_zero(&extents, &bytes);
}

/// Packs each part of `data` with one packer and unpacks it again. The first bytes say how the rest
/// is cut, stretched and repeated, because a fuzzer does not come upon long units by itself.
///
/// # Panics
/// If a unit is not as it was, its packed form is not shorter, or depends on the unit before.
pub fn deflate_pack(data: &[u8]) {
    let mut input = data;
    let mut byte = || input.split_off_first().copied().unwrap_or(0);
    let (parts, times, step) = (byte() % 3 + 1, byte(), byte());
    let mut packer = Packer::new(Codec::Deflate);
    let part = input.len().div_ceil(parts.into()).max(1);
    for bytes in input.chunks(part) {
        let mut unit = Vec::new();
        for time in 0..=times {
            if unit.len() > PACKED {
                break;
            }
            // The same bytes again, changed a little more each time.
            let shift = time.wrapping_mul(step);
            unit.extend(bytes.iter().map(|byte| byte.wrapping_add(shift)));
        }
        let mut packed = Vec::new();
        let len = packer.pack(&unit, &mut packed);
        let len = len.expect("packing does not fail");
        assert_eq!(packed.len(), len.unwrap_or(0));
        let mut fresh = Vec::new();
        let again = Packer::new(Codec::Deflate).pack(&unit, &mut fresh);
        assert_eq!(again.expect("packing does not fail"), len);
        assert!(packed == fresh, "the packed form depends on earlier units");
        if len.is_some() {
            assert!(packed.len() < unit.len());
            let mut back = vec![0; unit.len()];
            let unpacked = Unpacker::new().unpack(Codec::Deflate, &packed, &mut back);
            unpacked.expect("what was packed can be unpacked");
            assert!(back == unit, "unpacked bytes differ");
        }
    }
}
