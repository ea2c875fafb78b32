//! What the host tells and gives: generations of snapshots, mapped files and memories.

use alloc::vec::Vec;
use alloc::{format, vec};

use vellum_guest::abi::mapping::MappingEntry;
use vellum_guest::{GuestError, guest_function};

use crate::faults::length;

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
    generation * 1000 + crate::counter_add(by)
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

/// Where a mapping is.
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

/// The bytes at an address.
#[guest_function]
fn peek(address: u64, len_bytes: u32) -> Vec<u8> {
    let mut bytes = vec![0; length(len_bytes.into())];
    let from = core::ptr::with_exposed_provenance::<u8>(length(address));
    // SAFETY: none that this function could check: the caller answers for what lies at the address. The copy is fresh.
    unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
    bytes
}

/// Writes bytes to an address.
#[guest_function]
fn poke(address: u64, bytes: &[u8]) {
    let to = core::ptr::with_exposed_provenance_mut::<u8>(length(address));
    // SAFETY: none that this function could check: the caller answers for what lies at the address.
    unsafe { bytes.as_ptr().copy_to(to, bytes.len()) };
}

fn find(label: &str) -> Result<MappingEntry, GuestError> {
    vellum_guest::find_mapping(label)
        .ok_or_else(|| GuestError::new(format!("no mapping is labelled {label:?}")))
}
