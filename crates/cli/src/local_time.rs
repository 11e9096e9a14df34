//! Which time it is where the command runs.

use std::sync::OnceLock;

use jiff::tz::TimeZone;

static ZONE: OnceLock<TimeZone> = OnceLock::new();

/// The zone, found out once: later the files that say it may be out of reach.
pub(crate) fn zone() -> TimeZone {
    ZONE.get_or_init(find).clone()
}

fn find() -> TimeZone {
    let is_named = std::env::var_os("TZ").is_some_and(|name| !name.is_empty());
    // The one file, where that is all there is to it; for names, all files are looked through.
    let file = match is_named {
        true => None,
        false => std::fs::read("/etc/localtime").ok(),
    };
    let zone = file.and_then(|bytes| TimeZone::tzif("Local", &bytes).ok());
    zone.unwrap_or_else(TimeZone::system)
}
