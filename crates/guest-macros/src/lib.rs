//! Procedural macros of the Vellum guest library.
