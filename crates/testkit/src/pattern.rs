//! Disks as pictures: `"64k:A 128k:- 64k:0 512:b"`.
//!
//! Each word is a size and what fills it, from the start of the disk:
//!
//! | letter | fill |
//! |---|---|
//! | `A` to `Z` | data that packs well: text lines of 16 bytes with the letter and their offset |
//! | `a` to `z` | data that does not pack: noise made of the letter and the offset |
//! | `0` | zeros that somebody wrote |
//! | `-` | a hole: nobody ever wrote there |
//!
//! All data depends on the letter and on its place, so a byte that turns up elsewhere shows.

use goldsmith_block::parse_size;

use crate::model::{Fill, ModelDisk};

/// The disk that `picture` shows.
///
/// # Panics
/// If `picture` is none: a test has a typing error.
pub fn disk(picture: &str) -> ModelDisk {
    let runs = picture.split_whitespace().map(|word| match parse(word) {
        Some(run) => run,
        None => panic!("'{word}' is no piece of a disk; write for example 64k:A, 1M:- or 512:0"),
    });
    ModelDisk::new(runs)
}

fn parse(word: &str) -> Option<(u64, Fill)> {
    let (size, fill) = word.split_once(':')?;
    let fill = match fill.as_bytes() {
        b"-" => Fill::Hole,
        b"0" => Fill::Zero,
        [letter] if letter.is_ascii_alphabetic() => Fill::Data(*letter),
        _ => return None,
    };
    Some((parse_size(size)?, fill))
}

/// Fills `buf` with what `letter` stands for at `offset` of a disk.
pub fn fill(letter: u8, offset: u64, buf: &mut [u8]) {
    let mut at = offset;
    let mut rest = buf;
    while !rest.is_empty() {
        let line = line(letter, at / LINE);
        let line = &line[(at % LINE) as usize..];
        let len = line.len().min(rest.len());
        rest[..len].copy_from_slice(&line[..len]);
        rest = &mut rest[len..];
        at += len as u64;
    }
}

const LINE: u64 = 16;

/// The sixteen bytes at `16 * index`.
fn line(letter: u8, index: u64) -> [u8; LINE as usize] {
    if letter.is_ascii_lowercase() {
        let low = noise(index << 8 | u64::from(letter));
        return (u128::from(noise(low)) << 64 | u128::from(low)).to_le_bytes();
    }
    let mut line = *b"?............../";
    line[0] = letter;
    line[15] = b'\n';
    let mut offset = index * LINE;
    for digit in line[1..15].iter_mut().rev() {
        *digit = b"0123456789abcdef"[(offset % 16) as usize];
        offset /= 16;
    }
    line
}

/// Well mixed bits that depend on `seed` alone. [SplitMix64]
pub(crate) fn noise(seed: u64) -> u64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_becomes_runs_and_bytes() {
        let disk = disk("32:A 16:- 16:0 20:b");
        assert_eq!(disk.len(), 84);
        assert_eq!(&disk.bytes()[..32], b"A00000000000000\nA00000000000010\n");
        assert_eq!(&disk.bytes()[32..64], [0; 32]);
        assert!(disk.bytes()[64..].iter().any(|byte| *byte != 0));
        let fills: Vec<_> = disk.runs().iter().map(|run| run.fill).collect();
        assert_eq!(
            fills,
            [Fill::Data(b'A'), Fill::Hole, Fill::Zero, Fill::Data(b'b')]
        );
    }

    #[test]
    fn same_letter_elsewhere_is_other_data() {
        for letter in [b'A', b'a'] {
            let (mut here, mut there) = ([0; 512], [0; 512]);
            fill(letter, 0, &mut here);
            fill(letter, 512, &mut there);
            assert_ne!(here, there);
        }
    }

    #[test]
    fn pieces_of_a_fill_join_into_the_whole() {
        let (mut whole, mut pieces) = ([0; 100], [0; 100]);
        fill(b'q', 1000, &mut whole);
        for (at, piece) in pieces.chunks_mut(7).enumerate() {
            fill(b'q', 1000 + 7 * at as u64, piece);
        }
        assert_eq!(whole, pieces);
    }

    #[test]
    #[should_panic(expected = "'64q:A' is no piece of a disk")]
    fn typing_error_is_shown() {
        disk("64k:B 64q:A");
    }
}
