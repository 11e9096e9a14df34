#![forbid(unsafe_code)]
//! Moves a chain of images into a sink: claims, workers, order, commit.
