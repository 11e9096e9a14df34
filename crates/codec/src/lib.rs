#![forbid(unsafe_code)]
//! One compressed unit in, one unit out.
