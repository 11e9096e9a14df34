#![forbid(unsafe_code)]
//! Microsoft's VHD images (vpc): fixed and dynamic.
