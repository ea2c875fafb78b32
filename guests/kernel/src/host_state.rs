//! What the host tells and gives: generations of snapshots, mapped files and memories.

use alloc::format;

use vellum_guest::abi::mapping::MappingEntry;
use vellum_guest::{GuestError, guest_function};

use crate::calls::counter_add;

/// Asks the host for a snapshot and returns the generation afterwards.
#[guest_function]
fn checkpoint(tag: u32) -> u64 {
    vellum_guest::checkpoint(tag)
}

/// Asks for a snapshot, then adds to the counter: both copies go on behind the request. Returns a thousand times the
/// generation plus the counter.
#[guest_function]
fn checkpoint_then_count(tag: u32, by: u64) -> u64 {
    let generation = vellum_guest::checkpoint(tag);
    generation * 1000 + counter_add(by)
}

#[guest_function]
fn generation() -> u64 {
    vellum_guest::generation()
}

/// The number of mappings.
#[guest_function]
fn mapping_count() -> u64 {
    vellum_guest::mappings().count() as u64
}

/// The address of a mapping; 0 when the kernel must map it itself.
#[guest_function]
fn mapping_address(label: &str) -> Result<u64, GuestError> {
    Ok(find(label)?.ptr)
}

/// The guest-physical address of a mapping.
#[guest_function]
fn mapping_gpa(label: &str) -> Result<u64, GuestError> {
    Ok(find(label)?.gpa)
}

#[guest_function]
fn mapping_len(label: &str) -> Result<u64, GuestError> {
    Ok(find(label)?.len_bytes)
}

#[guest_function]
fn mapping_is_writable(label: &str) -> Result<bool, GuestError> {
    Ok(find(label)?.is_writable())
}

fn find(label: &str) -> Result<MappingEntry, GuestError> {
    vellum_guest::find_mapping(label)
        .ok_or_else(|| GuestError::new(format!("no mapping is labelled {label:?}")))
}
