//! Variables of the environment that speak where options do not.
//!
//! clap would take an empty one for a value, and say that the option is wrong which nobody gave.

use crate::exit::{self, Failure};

/// The time of what is made, in seconds since 1970; whatever it is if another one is `stated`, it is no reason
/// to fail.
pub(crate) fn source_date_epoch(stated: Option<u64>) -> Result<Option<u64>, Failure> {
    let seconds = |text: &str| text.parse().ok();
    let said = variable("SOURCE_DATE_EPOCH", seconds, "seconds since 1970");
    match stated {
        Some(_) => Ok(said.unwrap_or_default()),
        None => said,
    }
}

/// What the variable `name` says, as `read` understands it; an empty one says nothing. Any other must
/// be `wanted`.
pub(crate) fn variable<T>(
    name: &str,
    read: impl FnOnce(&str) -> Option<T>,
    wanted: &str,
) -> Result<Option<T>, Failure> {
    let text = std::env::var_os(name).filter(|text| !text.is_empty());
    let Some(text) = text else {
        return Ok(None);
    };
    let value = text.to_str().and_then(read);
    value.map(Some).ok_or_else(|| {
        let text = text.to_string_lossy();
        exit::bad_value(format!(
            "the environment variable {name} is '{text}'; it must be {wanted}"
        ))
    })
}
