//! What a kernel on a 32-bit machine needs of its own: note, entry point, memory routines.

mod memory_routines;
mod start;
