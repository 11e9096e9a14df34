#![forbid(unsafe_code)]
//! What goldsmith's tests share: patterns, model disks, conformance suites, the outside judge.
