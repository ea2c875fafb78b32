//! Programs of small operations, for tests that compare a guest that was restored with one that is new: those of ring 3.

mod endings;
mod machine;
mod vector;

use core::sync::atomic::{AtomicU64, Ordering};

use alloc::vec::Vec;

use vellum_guest::{GuestError, guest_function, log, rt};
use vellum_guest_residue::{Arena, Operation, PAGE_LEN_BYTES, USER, leave, resumed_with, run};

use crate::faults::{length, read, write};

static WORDS: [AtomicU64; 1024] = [const { AtomicU64::new(0x5EED) }; 1024];

/// Sixteen pages: one that is written costs a copy or a page of zeroes.
static ARENA: Arena<16> = Arena::new();

/// Runs a program and returns what it has seen. An operation that leaves at once, without coming back here, leaves with `reply`.
#[guest_function]
fn run_operations(program: &[u8], reply: &[u8]) -> Result<Vec<u8>, GuestError> {
    run(program, |operation, seen| execute(operation, reply, seen))
}

fn execute(operation: Operation, reply: &[u8], seen: &mut Vec<u8>) -> Option<()> {
    let (selector, value) = (operation.selector, operation.value);
    match operation.letter {
        b'o' => observe(value, seen),
        b'x' => vector::patch_legacy(selector, value),
        b'y' => vector::patch_avx(selector, value),
        b'7' => vector::execute_x87(selector, value),
        b'f' => machine::set_flags(value),
        b's' => machine::load_segment(selector, value),
        b'b' => machine::set_base(selector, value),
        b'k' => machine::set_protection_keys(value),
        b'm' => change_memory(selector, value),
        b'h' => call_host(selector, value, seen),
        b'l' => log::info!("a record of {value:#x}"),
        b'e' => endings::end(selector, value),
        b'a' => leave(
            &USER,
            selector,
            length(value & machine::FLAGS),
            length(value),
            reply,
        ),
        _ => return None,
    }
    Some(())
}

/// Appends what the bits of `parts` ask for. The registers come first, before any code can have changed much.
fn observe(parts: u64, seen: &mut Vec<u8>) {
    let is_wanted = |bit: u32| parts & 1 << bit != 0;
    if is_wanted(0) {
        seen.extend_from_slice(&vector::legacy_image());
    }
    if is_wanted(1) {
        seen.extend_from_slice(&vector::extended_image());
    }
    for (bit, index) in [(2, 0), (3, 1)] {
        if is_wanted(bit) {
            put(seen, &[vector::extended_control(index)]);
        }
    }
    if is_wanted(4) {
        put(seen, &[machine::flags()]);
    }
    if is_wanted(5) {
        put(seen, &machine::selectors());
    }
    if is_wanted(6) {
        put(seen, &machine::bases());
    }
    if is_wanted(7) {
        put(seen, &[machine::status_word()]);
    }
    if is_wanted(8) {
        seen.extend_from_slice(&machine::descriptor_tables());
    }
    if is_wanted(9) {
        put(seen, &machine::system_selectors());
    }
    if is_wanted(10) {
        put(seen, &[machine::protection_keys()]);
    }
    if is_wanted(11) {
        observe_memory(seen);
    }
}

fn observe_memory(seen: &mut Vec<u8>) {
    put(seen, &resumed_with().map(|word| word as u64));
    // What earlier frames left on the stack, a word of each cache line.
    let below = machine::stack_pointer() - 2 * PAGE_LEN_BYTES as u64;
    put(seen, &[digest(below, 2 * PAGE_LEN_BYTES as u64 - 256)]);
    put(
        seen,
        &[digest(WORDS.as_ptr() as u64, size_of_val(&WORDS) as u64)],
    );
    let peb = rt::peb();
    put(
        seen,
        &[
            digest(peb.output_ptr, peb.output_len_bytes),
            digest(peb.outbox_ptr, peb.outbox_len_bytes),
        ],
    );
    let arena = ARENA.address() as u64;
    put(seen, &[arena]);
    if arena != 0 {
        put(seen, &[read(arena), read(arena + 8)]);
    }
}

/// FNV-1a over the words of a range of memory, read as they are.
fn digest(start: u64, len_bytes: u64) -> u64 {
    const OFFSET_BASIS: u64 = 0xCBF2_9CE4_8422_2325;
    const PRIME: u64 = 0x100_0000_01B3;
    (start..start + len_bytes)
        .step_by(8)
        .fold(OFFSET_BASIS, |hash, address| {
            (hash ^ read(address)).wrapping_mul(PRIME)
        })
}

/// Changes one word, of the kind of memory that `selector` names.
fn change_memory(selector: u8, value: u64) {
    let peb = rt::peb();
    match selector {
        0 => WORDS[length(value) % WORDS.len()].store(value, Ordering::Relaxed),
        1 => {
            let page = ARENA.page(length(value >> 32)) as u64;
            write(page + (value & 0xFF8), value);
        }
        2 => fill_stack(value),
        3 => write(
            peb.output_ptr + 8 * (value % (peb.output_len_bytes / 8)),
            value,
        ),
        // Behind the header, which the host takes for records.
        _ => write(
            peb.outbox_ptr + 8 + 8 * (value % (peb.outbox_len_bytes / 8 - 1)),
            value,
        ),
    }
}

/// Leaves a word all over the next page of the stack.
#[inline(never)]
fn fill_stack(value: u64) {
    core::hint::black_box([value; PAGE_LEN_BYTES / 8]);
}

fn call_host(selector: u8, value: u64, seen: &mut Vec<u8>) {
    let [a, b, ..] = value.to_le_bytes();
    if selector == 0 {
        let sum = crate::host::call_host_add(a.into(), b.into());
        put(
            seen,
            &[sum.map_or(u64::MAX, |sum| u64::from(sum.unsigned_abs()))],
        );
    } else {
        let is_error = crate::host::pass_host_error("on purpose").is_err();
        put(seen, &[u64::from(is_error)]);
    }
}

fn put(seen: &mut Vec<u8>, words: &[u64]) {
    for word in words {
        seen.extend_from_slice(&word.to_le_bytes());
    }
}
