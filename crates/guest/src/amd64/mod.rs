//! What a guest on an amd64 machine needs of its own: note, entry point, memory routines, and for kernels the
//! processor's tables.

pub(crate) mod kernel;
mod memory_routines;
mod start;
