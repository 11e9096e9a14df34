//! What the qcow2 format promises, seen from outside.
// Helpers of tests assert with it as tests do.
#![allow(missing_docs, clippy::unwrap_used)]

mod bench;
mod forge;

mod bitmaps;
mod check;
mod damage;
mod directories;
mod editing;
mod encryption;
mod features;
mod golden;
mod hostile;
mod judges;
mod overlooked;
mod reading;
mod tangled;
mod writing;

goldsmith_testkit::conformance!(
    &goldsmith_qcow2::QCOW2,
    format,
    [
        (&[], true),
        (&[("cluster_size", "512"), ("refcount_bits", "64")], false),
        (
            &[("cluster_size", "4k"), ("compression_type", "zstd")],
            true
        ),
        (&[("cluster_size", "1k"), ("refcount_bits", "1")], true),
        (&[("cluster_size", "128k"), ("compat", "0.10")], false),
        (&[("cluster_size", "16k"), ("extended_l2", "on")], true),
        (
            &[("cluster_size", "4k"), ("preallocation", "metadata")],
            false
        ),
    ]
);
