//! Errors in other words.

use goldsmith_block::Error;

/// `error` in other words, made of its own.
pub(crate) fn told(error: &Error, words: impl FnOnce(&str) -> String) -> Error {
    let mut told = Error::new(error.kind(), words(&why(error)));
    if let Some(path) = error.path() {
        told = told.in_file(path);
    }
    match error.guest() {
        Some(range) => told.at_guest(range),
        None => told,
    }
}

/// What is wrong, without where.
pub(crate) fn why(error: &Error) -> String {
    let mut why = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        why.push(error.to_string());
        source = error.source();
    }
    why.join(": ")
}
