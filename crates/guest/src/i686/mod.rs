//! What a kernel on a 32-bit machine needs of its own: note, entry point, memory routines, and with paging the
//! processor's tables.

pub(crate) mod kernel;
mod memory_routines;
mod start;
