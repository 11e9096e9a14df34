//! The first inputs of the fuzz targets.

use std::fs;

use goldsmith_block::Codec;
use goldsmith_testkit::build::qcow2::{Cluster, Qcow2};
use goldsmith_testkit::build::vhd::Vhd;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;
use goldsmith_testkit::testdata::{folder, sha256};

use crate::File;

/// Inputs longer than this slow a fuzzer down more than they teach it.
const LONGEST: usize = 8 << 10;

/// Writes small images as seeds for the targets that open them.
pub(crate) fn write(files: &[File]) {
    let corpus = folder().join("../fuzz/corpus");
    let put_image = |format: &str, bytes: &[u8]| {
        let targets: &[&str] = match format {
            "qcow2" => &["qcow2_open_read", "qcow2_fixed_up"],
            "vpc" => &["vhd_open_read", "vhd_fixed_up"],
            _ => return,
        };
        for target in targets.iter().filter(|_| bytes.len() <= LONGEST) {
            put(&corpus.join(target), bytes);
        }
    };
    for file in files {
        put_image(file.format, &file.bytes);
    }
    let text = disk("1k:A 512:- 1k:B 1k:-");
    for version in [2, 3] {
        put_image("qcow2", &Qcow2::holding(version, 9, text.bytes()).bytes());
        let packed = Qcow2::packed(version, 9, text.bytes(), Codec::Deflate);
        put_image("qcow2", &packed.bytes());
    }
    let packed = Qcow2::packed(3, 9, text.bytes(), Codec::Zstd);
    put_image("qcow2", &packed.bytes());
    let zeros = Qcow2::holding(3, 9, text.bytes());
    let zeros = zeros
        .cluster(1, Cluster::Zero)
        .cluster(3, Cluster::ZeroAllocated);
    put_image("qcow2", &zeros.bytes());
    let from_qemu = qemu::write("qcow2", &text, &["-c", "-o", "cluster_size=512"]);
    put_image("qcow2", &from_qemu);
    put_image("vpc", &Vhd::fixed(text.bytes()).bytes());
    put_image("vpc", &Vhd::fixed(text.bytes()).footer_len(511).bytes());
    put_image(
        "vpc",
        &Vhd::dynamic(disk("5k:- 512:A").bytes(), 4096).bytes(),
    );
    put_image("vpc", &Vhd::dynamic(disk("1M:-").bytes(), 4096).bytes());
    let locators: [(&[u8; 4], &str); 2] = [(b"W2ru", r".\p.vhd"), (b"MacX", "file:///p.vhd")];
    let child = Vhd::dynamic(disk("5k:- 512:A").bytes(), 4096);
    put_image(
        "vpc",
        &child.child_of([7; 16], 3600, "p.vhd", &locators).bytes(),
    );
    // The length of the one on top, that one, and the one behind it.
    let (top, behind) = (disk("1k:A 512:- 1k:B 1k:-"), disk("512:C 1k:- 2k:D"));
    let pair = |target: &str, top: &[u8], behind: &[u8]| {
        let len = (top.len() as u16).to_le_bytes();
        put(&corpus.join(target), &[&len[..], top, behind].concat());
    };
    for version in [2, 3] {
        let over = Qcow2::holding(version, 9, top.bytes()).bytes();
        let packed = Qcow2::packed(version, 9, behind.bytes(), Codec::Deflate).bytes();
        pair("qcow2_chain", &over, &packed);
        pair("qcow2_chain", &packed, &over);
    }
    let over = Vhd::dynamic(top.bytes(), 512).child_of([7; 16], 3600, "p.vhd", &[]);
    pair(
        "vhd_chain",
        &over.bytes(),
        &Vhd::fixed(behind.bytes()).bytes(),
    );
    let under = Vhd::dynamic(behind.bytes(), 4096);
    pair("vhd_chain", &over.bytes(), &under.bytes());
    // Options, then pieces of three bytes: fill, and how many sectors of it.
    for (nth, options) in [0, 1, 3, 5, 9, 17].into_iter().enumerate() {
        let mut input = vec![options; 8];
        for piece in 0..8_u8 {
            input.extend([piece * 7 + nth as u8, piece * 5 + 1, 0]);
        }
        for target in ["qcow2_write_read", "vhd_write_read", "raw_write_read"] {
            put(&corpus.join(target), &input);
        }
    }
    // How often the units are repeated, how much they change each time, and what they are made of.
    let words =
        b"the unit, the same unit, and then the same again; 0123456789 0123456789".as_slice();
    let noise = disk("512:a");
    for (nth, (times, step)) in [(0, 0), (20, 0), (255, 0), (40, 1), (255, 7)]
        .into_iter()
        .enumerate()
    {
        for units in [words, noise.bytes(), &[0; 300]] {
            put(
                &corpus.join("deflate_pack"),
                &[&[nth as u8, times, step], units].concat(),
            );
        }
    }
}

fn put(folder: &std::path::Path, bytes: &[u8]) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join(&sha256(bytes)[..16]), bytes).unwrap();
}
