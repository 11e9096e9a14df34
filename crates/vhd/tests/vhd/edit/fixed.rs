//! Fixed images: the footer moves.

use goldsmith_block::{Edit, Preallocation, Repair};
use goldsmith_testkit::{pattern, qemu};

use super::{check, edited, nothing, resize, resize_with, survives_cuts};
use crate::forge::Forge;

fn fixed() -> Vec<u8> {
    let disk = pattern::disk("3k:a 2k:- 5k:B");
    Forge::new(disk.len(), 0).fixed(disk.bytes())
}

#[test]
fn cut_at_any_point_leaves_the_old_or_the_new_disk() {
    let disk = pattern::disk("3k:a 2k:- 5k:B");
    let mut short = Forge::new(disk.len(), 0);
    short.footer_len = 511;
    // Bytes behind the disk that are none of its own.
    let rubbish = pattern::disk("10k:a 4k:x");
    let behind = Forge::new(10 << 10, 0).fixed(rubbish.bytes());
    for image in [fixed(), short.fixed(disk.bytes()), behind] {
        for change in [
            resize(disk.len() + 512),
            resize(disk.len() + 3072),
            resize(disk.len() + (200 << 10)),
            resize_with(disk.len() + 9216, Preallocation::Full),
            resize_with(disk.len() + 9216, Preallocation::Falloc),
            resize(disk.len() - 512),
            resize(512),
            resize(0),
        ] {
            survives_cuts(&image, &nothing(), &change);
        }
    }
}

#[test]
fn zeros_behind_the_footer_are_cut_off() {
    let image = fixed();
    for more in [512, 700, 4096, 300_000] {
        let mut longer = image.clone();
        longer.resize(image.len() + more, 0);
        assert_eq!(check(&longer).corruptions, 1);
        assert!(edited(&longer, &Edit::Repair(Repair::All)) == image);
    }
}

#[test]
fn qemu_reads_the_disk_of_the_new_size() {
    let disk = pattern::disk("1M:a 512:b");
    let image = qemu::write("vpc", &disk, &["-o", "subformat=fixed,force_size=on"]);
    for len in [1 << 20, (1 << 20) + 1024, 5 << 20] {
        let after = edited(&image, &resize(len));
        let mut expected = disk.bytes().to_vec();
        expected.resize(len as usize, 0);
        assert!(qemu::read("vpc", &after) == expected);
        assert_eq!(after.len() as u64, len + 512);
    }
}
