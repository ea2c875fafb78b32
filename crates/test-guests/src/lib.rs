//! Builds the guests of this repository for tests, examples and benchmarks.
