//! Files and memories of the host in guests of every kind, in each mode of copy-on-write. What a machine cannot run is a visible skip.

#[path = "../vm/engines.rs"]
mod engines;
mod files;
mod places;
mod refusals;
mod regions;
mod restores;
mod support;
