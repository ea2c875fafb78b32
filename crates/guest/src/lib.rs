//! Guest library of Vellum: entry point, allocator, guest and host functions.
