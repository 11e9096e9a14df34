//! The subcommands: what was typed, and what is done about it.

pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod info;
pub(crate) mod map;
