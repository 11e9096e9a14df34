//! What the qcow2 format promises, seen from outside.
#![allow(missing_docs)]

goldsmith_testkit::conformance!(
    &goldsmith_qcow2::QCOW2,
    format,
    [
        (&[], false),
        (&[], true),
        (&[("cluster_size", "512"), ("refcount_bits", "64")], false),
        (
            &[("cluster_size", "4k"), ("compression_type", "zstd")],
            true
        ),
        (&[("cluster_size", "1k"), ("refcount_bits", "1")], true),
        (&[("cluster_size", "2M"), ("compat", "0.10")], true),
    ]
);
