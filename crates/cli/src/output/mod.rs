//! What the command says: for people, and for programs. The words are qemu-img's.

mod beyond;
pub(crate) mod human;
pub(crate) mod json;
pub(crate) mod manual;
mod plain;
pub(crate) mod style;
pub(crate) mod svg;
