//! Images that other people's tools wrote, read where they are at hand: they are not ours to
//! republish, and `testdata` holds images of our own with the same peculiarities.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::path::Path;
use std::process::Command;

use goldsmith::{ErrorKind, Opener};
use goldsmith_testkit::left_out;
use support::{Folder, convert, open, sha256};

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/samples");

/// Hashing more zeros than this proves nothing for its time.
const WORTH_HASHING: u64 = 1 << 30;

#[test]
fn samples_read_as_their_manifest_says() {
    let Ok(manifest) = std::fs::read_to_string(Path::new(SAMPLES).join("manifest.tsv")) else {
        // Whoever clones the project alone does not have them.
        left_out(format_args!(
            "samples of other programs, which are not here"
        ));
        return;
    };
    let folder = Folder::new();
    for line in manifest.lines().skip(1) {
        let columns: Vec<_> = line.split('\t').collect();
        let [file, format, size, _, file_sha, content_sha, ..] = columns[..] else {
            panic!("a line of {} columns: {line}", columns.len());
        };
        let image = folder.path(file.strip_suffix(".bz2").unwrap());
        let packed = Path::new(SAMPLES).join(file);
        let unpacked = Command::new("bzip2")
            .arg("-dc")
            .arg(packed)
            .output()
            .unwrap();
        assert!(unpacked.status.success());
        std::fs::write(&image, unpacked.stdout).unwrap();
        assert_eq!(sha256(&image), file_sha);

        if !["raw", "qcow2", "vpc"].contains(&format) {
            let error = Opener::new().open(&image, None).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.report().contains(format), "{}", error.report());
            continue;
        }
        let chain = open(&image, format);
        assert_eq!(chain.virtual_size(), size.parse::<u64>().unwrap(), "{file}");
        let raw = folder.path("content.raw");
        let done = convert((&image, format), (&raw, "raw"))
            .digest(goldsmith::Algorithm::Crc32)
            .run()
            .unwrap();
        if done.virtual_size <= WORTH_HASHING {
            assert_eq!(sha256(&raw), content_sha, "{file}");
        } else {
            // What is left is one disk of zeros, for which a checksum need not read them.
            let crc32 = goldsmith::Crc32::of_zeros(done.virtual_size).value();
            assert_eq!(
                done.digests[0].to_string(),
                format!("{crc32:08x}"),
                "{file}"
            );
        }
    }
}
