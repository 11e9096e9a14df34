#![forbid(unsafe_code)]
//! RAW disk images: the golden format, no metadata at all.
