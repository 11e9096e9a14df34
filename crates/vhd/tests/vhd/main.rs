//! What the VHD format promises, seen from outside.
#![allow(missing_docs, clippy::unwrap_used)]

mod check;
mod child;
mod edit;
mod forge;

mod golden;
mod hostile;
mod judges;
mod reading;
mod recovery;
mod samples;
mod writing;

goldsmith_testkit::conformance!(
    &goldsmith_vhd::VHD,
    format,
    [
        (&[], false),
        (&[("subformat", "fixed")], false),
        (&[("block_size", "512k")], false),
        (&[("batmap", "on")], false),
    ]
);
