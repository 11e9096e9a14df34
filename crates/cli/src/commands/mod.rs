//! The subcommands: what was typed, and what is done about it.

pub(crate) mod amend;
pub(crate) mod bench;
pub(crate) mod bitmap;
pub(crate) mod check;
pub(crate) mod checksum;
pub(crate) mod commit;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod create;
pub(crate) mod dd;
pub(crate) mod info;
pub(crate) mod lint;
pub(crate) mod man;
pub(crate) mod map;
pub(crate) mod measure;
pub(crate) mod rebase;
pub(crate) mod resize;
pub(crate) mod snapshot;

/// The name of a cloud, for clap.
pub(crate) fn cloud(name: &str) -> Result<&'static goldsmith::Cloud, String> {
    goldsmith::cloud_named(name).map_err(|error| error.report())
}
