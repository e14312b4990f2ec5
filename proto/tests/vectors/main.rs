//! The published test vectors: what `vectors/*.txt` say is what this crate writes and reads.
//!
//! Every file is built from Rust values, compared byte for byte, then read back. `MILLRACE_BLESS=1`
//! writes the files again; do so only for additions, because other implementations test against them.

mod cluster;
mod format;
mod frames;
mod job;
mod refused;
mod ring;
mod rules;
mod text;
mod write;
