//! Programs of small operations, for tests that compare a kernel that was restored with one that is new: those of ring 0.

mod control;
mod endings;
#[cfg(target_arch = "x86_64")]
#[path = "residue/amd64.rs"]
mod machine;
#[cfg(target_arch = "x86")]
#[path = "residue/i686.rs"]
mod machine;
mod segments;

use core::sync::atomic::{AtomicUsize, Ordering};

use alloc::vec::Vec;

use vellum_guest::{GuestError, guest_function, log, rt};
use vellum_guest_residue::{Arena, KERNEL, Operation, leave, resumed_with, run};

use crate::memory::{read, write};

/// Few, because some hypervisors emulate each instruction that reads them.
static WORDS: [AtomicUsize; 32] = [const { AtomicUsize::new(0x5EED) }; 32];

static ARENA: Arena<8> = Arena::new();

/// Runs a program and returns what it has seen. An operation that leaves at once, without coming back here, leaves with `reply`.
#[guest_function]
fn run_operations(program: &[u8], reply: &[u8]) -> Result<Vec<u8>, GuestError> {
    run(program, |operation, seen| execute(operation, reply, seen))
}

fn execute(operation: Operation, reply: &[u8], seen: &mut Vec<u8>) -> Option<()> {
    let (selector, value) = (operation.selector, operation.value);
    match operation.letter {
        b'o' => observe(value, seen),
        b'c' => control::set(selector, narrow(value)),
        b'd' => control::set_debug(selector, narrow(value)),
        b'w' => control::set_msr(selector, value),
        b'X' => control::set_extended_control(value),
        b'x' => control::patch_legacy(selector, value),
        b'f' => control::set_flags(narrow(value)),
        b'g' => segments::load_tables(selector),
        b's' => segments::load_segment(selector, value),
        b'm' => change_memory(selector, value),
        b'h' => call_host(value, seen),
        b'l' => log::info!("a record of {value:#x}"),
        b'e' => endings::end(selector, value),
        b'a' => {
            let value = narrow(value);
            leave(&KERNEL, selector, value & control::FLAGS, value, reply);
        }
        _ => return None,
    }
    Some(())
}

/// As many low bits of a number as a register has.
#[expect(clippy::cast_possible_truncation, reason = "that is the point")]
const fn narrow(value: u64) -> usize {
    value as usize
}

/// Appends what the bits of `parts` ask for. The registers come first, before any code can have changed much.
fn observe(parts: u64, seen: &mut Vec<u8>) {
    let is_wanted = |bit: u32| parts & 1 << bit != 0;
    if is_wanted(0) {
        seen.extend_from_slice(&control::legacy_image());
    }
    for (bit, number) in [(1, 0), (2, 2), (3, 3), (4, 4), (5, 8)] {
        if is_wanted(bit) {
            put(seen, &[control::get(number)]);
        }
    }
    if is_wanted(6) {
        put(seen, &control::debug());
    }
    if is_wanted(7) {
        put(seen, &[control::flags()]);
    }
    if is_wanted(8) {
        seen.extend_from_slice(&segments::tables());
    }
    if is_wanted(9) {
        put(seen, &segments::selectors());
    }
    if is_wanted(10) {
        seen.extend_from_slice(&control::extended_control().to_le_bytes());
    }
    if is_wanted(11) {
        observe_memory(seen);
    }
    for (bit, number) in (12..).zip(control::MSRS) {
        if is_wanted(bit) {
            seen.extend_from_slice(&control::msr(number).to_le_bytes());
        }
    }
}

fn observe_memory(seen: &mut Vec<u8>) {
    put(seen, &resumed_with());
    for word in &WORDS {
        put(seen, &[word.load(Ordering::Relaxed)]);
    }
    let peb = rt::peb();
    for start in [peb.output_ptr, peb.outbox_ptr] {
        for offset in (8..256).step_by(16) {
            seen.extend_from_slice(&read(narrow(start + offset)).to_le_bytes());
        }
    }
    let arena = ARENA.address();
    put(seen, &[arena]);
    if arena != 0 {
        seen.extend_from_slice(&read(arena).to_le_bytes());
    }
}

/// Changes one word, of the kind of memory that `selector` names.
fn change_memory(selector: u8, value: u64) {
    let [low, ..] = value.to_le_bytes();
    let word = u32::from_le_bytes([low, 1, 2, 3]);
    let peb = rt::peb();
    match selector {
        0 => WORDS[usize::from(low) % WORDS.len()].store(narrow(value), Ordering::Relaxed),
        1 => {
            let page = ARENA.page(low.into());
            write(page + narrow(value >> 32 & 0xFFC), word);
        }
        2 => fill_stack(value),
        3 => write(narrow(peb.output_ptr + 8 * u64::from(low)), word),
        // Behind the header, which the host takes for records.
        _ => write(narrow(peb.outbox_ptr + 8 + 8 * u64::from(low)), word),
    }
}

/// Leaves a word on the stack below.
#[inline(never)]
fn fill_stack(value: u64) {
    core::hint::black_box([value; 32]);
}

fn call_host(value: u64, seen: &mut Vec<u8>) {
    let [a, b, ..] = value.to_le_bytes();
    let sum = crate::calls::call_host_add(a.into(), b.into());
    put(
        seen,
        &[sum.map_or(usize::MAX, |sum| sum.unsigned_abs() as usize)],
    );
}

fn put(seen: &mut Vec<u8>, words: &[usize]) {
    for word in words {
        seen.extend_from_slice(&word.to_le_bytes());
    }
}
