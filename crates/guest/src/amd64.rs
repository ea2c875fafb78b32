//! What a guest in ring 3 of an amd64 machine needs of its own: note, entry point, memory routines.

mod memory_routines;
mod start;
