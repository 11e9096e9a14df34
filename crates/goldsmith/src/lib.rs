#![forbid(unsafe_code)]
//! Convert disk images between RAW, qcow2 and VHD, without losing a byte.
