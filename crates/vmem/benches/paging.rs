//! Micro-benchmarks of page-table operations.

fn main() {}
