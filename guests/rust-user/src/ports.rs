//! Raw port I/O and raw messages, for tests of the host's checks.

use alloc::vec::Vec;
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use vellum_guest::abi::line::{EAX_OFFSET, PORT_OFFSET, STATE_OFFSET, State};
use vellum_guest::abi::port::{IDLE_REPLY, Port};
use vellum_guest::{guest_function, rt};

/// Writes to a port of the caller's choice.
#[guest_function]
fn out_port(port: u32, value: u32) {
    out(port, value);
}

/// Reads from a port of the caller's choice.
#[guest_function]
fn in_port(port: u32) -> u32 {
    let value;
    // SAFETY: touches no memory; a port that is not allowed raises #GP.
    unsafe {
        asm!("in eax, dx", in("edx") port, out("eax") value, options(nomem, nostack, preserves_flags));
    };
    value
}

/// Sends these bytes, whatever they are, in place of a reply.
#[guest_function]
fn raw_reply(bytes: &[u8]) {
    raw_exit(u32::from(Port::Idle.number()), bytes);
}

/// Puts these bytes into the output buffer and writes to this port.
#[guest_function]
fn raw_output(port: u32, bytes: &[u8]) {
    raw_exit(port, bytes);
}

/// Puts `bytes`, cut to its length, at the start of the output buffer, and leaves through `port`.
fn raw_exit(port: u32, bytes: &[u8]) {
    let peb = rt::peb();
    let output: *mut u8 =
        core::ptr::with_exposed_provenance_mut(usize::try_from(peb.output_ptr).unwrap_or(0));
    let len_bytes =
        usize::try_from(peb.output_len_bytes).map_or(0, |room_bytes| bytes.len().min(room_bytes));
    // SAFETY: the host maps the buffer that the PEB names, writable; the library holds no reference to it while a
    // guest function runs.
    unsafe { output.copy_from_nonoverlapping(bytes.as_ptr(), len_bytes) };
    if port == u32::from(Port::Idle.number()) {
        out(port, IDLE_REPLY);
        // Resumed with a new call: the one that brought us here has been answered, so do not return from it.
        rt::serve();
    }
    out(port, 0);
}

/// Puts these bytes at the start of the outbox, header included, cut to its length, and returns.
#[guest_function]
fn raw_outbox(bytes: &[u8]) {
    let peb = rt::peb();
    let outbox: *mut u8 =
        core::ptr::with_exposed_provenance_mut(usize::try_from(peb.outbox_ptr).unwrap_or(0));
    let room_bytes = usize::try_from(peb.outbox_len_bytes).unwrap_or(0);
    // SAFETY: as for the output buffer.
    unsafe { outbox.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len().min(room_bytes)) };
}

/// What lies in the outbox, from the first byte on; the last call's secrets, should there be any.
#[guest_function]
fn read_outbox() -> Vec<u8> {
    let peb = rt::peb();
    let outbox: *const u8 =
        core::ptr::with_exposed_provenance(usize::try_from(peb.outbox_ptr).unwrap_or(0));
    let room_bytes = usize::try_from(peb.outbox_len_bytes).unwrap_or(0);
    // SAFETY: the host maps the outbox that the PEB names, readable; nobody writes it meanwhile.
    unsafe { core::slice::from_raw_parts(outbox, room_bytes) }.to_vec()
}

/// Writes nonsense to the words by which guest and host wait for each other, `count` times, and returns.
#[guest_function]
fn spoil_line(count: u32) {
    for value in 0..count {
        line_word(STATE_OFFSET).store(value.wrapping_mul(0x9E37_79B9), Ordering::Relaxed);
        line_word(STATE_OFFSET).store(value % 8, Ordering::Relaxed);
    }
}

/// Posts that these bytes are its reply, and goes on for ever.
#[guest_function]
fn reply_and_go_on(bytes: &[u8]) {
    let output: *mut u8 =
        core::ptr::with_exposed_provenance_mut(usize::try_from(rt::peb().output_ptr).unwrap_or(0));
    // SAFETY: as in `raw_exit`; the test sends fewer bytes than the buffer has.
    unsafe { output.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    line_word(PORT_OFFSET).store(Port::Idle.number().into(), Ordering::Relaxed);
    line_word(EAX_OFFSET).store(IDLE_REPLY, Ordering::Relaxed);
    line_word(STATE_OFFSET).store(State::Posted as u32, Ordering::Release);
    loop {
        core::hint::spin_loop();
    }
}

fn line_word(offset: usize) -> &'static AtomicU32 {
    let outbox = usize::try_from(rt::peb().outbox_ptr).unwrap_or(0);
    // SAFETY: the host maps the outbox that the PEB names, writable and for ever; both sides use these words atomically.
    unsafe { AtomicU32::from_ptr(core::ptr::with_exposed_provenance_mut(outbox + offset)) }
}

fn out(port: u32, value: u32) {
    // SAFETY: `out` changes no memory of this guest's own accord; what the host changes lies in its buffers, to which
    // no reference exists here. A port that is not allowed raises #GP.
    unsafe {
        asm!("out dx, eax", in("edx") port, in("eax") value, options(nostack, preserves_flags));
    };
}
