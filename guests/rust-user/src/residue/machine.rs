//! General registers, flags and segments, and leaving with all of them filled.

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use vellum_guest::rt;

/// What the general registers held when [`leave`] was resumed, in the order of their numbers, then RFLAGS.
static RESUMED_WITH: [AtomicU64; 17] = [const { AtomicU64::new(0) }; 17];

/// The stack pointer with which [`leave`] goes on when it is resumed.
static STACK: AtomicU64 = AtomicU64::new(0);

/// CF, PF, AF, ZF, SF, IF, OF, AC, ID (Intel SDM volume 1, section 3.4.3). Not NT, which some hypervisors lose at a page fault.
const FLAGS: u64 = 0x0024_0AD5;
/// The direction flag, which compiled code counts on.
const DIRECTION: u64 = 1 << 10;

pub(super) fn resumed_with() -> [u64; 17] {
    RESUMED_WITH
        .each_ref()
        .map(|word| word.load(Ordering::Relaxed))
}

pub(super) fn stack_pointer() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

pub(super) fn flags() -> u64 {
    let value;
    // SAFETY: pushes and pops one word; `nostack` is absent.
    unsafe { asm!("pushfq", "pop {}", out(reg) value) };
    value
}

pub(super) fn set_flags(value: u64) {
    // SAFETY: pushes and pops one word. What the flags mean for the code behind is the host's affair.
    unsafe { asm!("push {}", "popfq", in(reg) value & FLAGS | 2) };
}

/// DS, ES, FS, GS, SS and CS.
pub(super) fn selectors() -> [u64; 6] {
    macro_rules! selector {
        ($register:literal) => {{
            let value: u64;
            // SAFETY: reads a register.
            unsafe {
                asm!(concat!("mov {:e}, ", $register), out(reg) value, options(nomem, nostack, preserves_flags));
            };
            value
        }};
    }
    [
        selector!("ds"),
        selector!("es"),
        selector!("fs"),
        selector!("gs"),
        selector!("ss"),
        selector!("cs"),
    ]
}

/// Loads DS, ES, FS or GS with a null selector or that of the stack.
pub(super) fn load_segment(register: u8, value: u64) {
    macro_rules! load {
        ($register:literal, $value:expr) => {
            // SAFETY: segments other than those of code and stack have no part in 64-bit addressing, but for FS and GS, which
            // this guest does not use.
            unsafe {
                asm!(concat!("mov ", $register, ", {:e}"), in(reg) $value, options(nostack, preserves_flags));
            }
        };
    }
    let value = match value % 5 {
        4 => selectors()[4],
        null => null,
    };
    match register {
        0 => load!("ds", value),
        1 => load!("es", value),
        2 => load!("fs", value),
        _ => load!("gs", value),
    }
}

/// The bases of FS and GS. Raises #UD where CR4.FSGSBASE is off.
pub(super) fn bases() -> [u64; 2] {
    let (fs, gs);
    // SAFETY: reads registers.
    unsafe {
        asm!("rdfsbase {}", "rdgsbase {}", out(reg) fs, out(reg) gs, options(nomem, nostack, preserves_flags));
    };
    [fs, gs]
}

/// Sets the base of FS or GS, to an address of the lower half.
pub(super) fn set_base(register: u8, value: u64) {
    let value = value >> 17;
    // SAFETY: this guest uses neither segment.
    unsafe {
        if register == 0 {
            asm!("wrfsbase {}", in(reg) value, options(nomem, nostack, preserves_flags));
        } else {
            asm!("wrgsbase {}", in(reg) value, options(nomem, nostack, preserves_flags));
        }
    }
}

/// What `smsw` shows of CR0. Raises #GP where CR4.UMIP is on, as the next two.
pub(super) fn status_word() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("smsw {:r}", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// GDTR and IDTR.
pub(super) fn descriptor_tables() -> [u8; 20] {
    let mut bytes = [0_u8; 20];
    // SAFETY: each instruction writes ten bytes.
    unsafe {
        asm!("sgdt [{0}]", "sidt [{0} + 10]", in(reg) bytes.as_mut_ptr(), options(nostack, preserves_flags));
    };
    bytes
}

/// The selectors in LDTR and TR.
pub(super) fn system_selectors() -> [u64; 2] {
    let (table, task): (u64, u64);
    // SAFETY: reads registers.
    unsafe {
        asm!("sldt {:e}", "str {:e}", out(reg) table, out(reg) task, options(nomem, nostack, preserves_flags));
    };
    [table, task]
}

/// PKRU. Raises #UD where CR4.PKE is off.
pub(super) fn protection_keys() -> u64 {
    let value: u32;
    // SAFETY: reads a register.
    unsafe {
        asm!("rdpkru", in("ecx") 0, out("eax") value, out("edx") _, options(nomem, nostack, preserves_flags));
    };
    value.into()
}

/// Sets the rights of every key but the first, which all pages of this guest have.
pub(super) fn set_protection_keys(value: u64) {
    #[expect(clippy::cast_possible_truncation, reason = "a register of 32 bits")]
    let value = value as u32 & !3;
    // SAFETY: no page has another key than the first.
    unsafe {
        asm!("wrpkru", in("eax") value, in("ecx") 0, in("edx") 0, options(nostack, preserves_flags));
    };
}

/// Leaves with `reply` in the output buffer and every register full of `value`: an end of the call like any other, for the host.
/// Bit 0 of `kind` sets the direction flag; bits 1 and 2 leave in the shadow of `mov ss` or of `sti`.
pub(super) fn leave(kind: u8, value: u64, reply: &[u8]) {
    let peb = rt::peb();
    let room_bytes = crate::faults::length(peb.output_len_bytes);
    let output: *mut u8 =
        core::ptr::with_exposed_provenance_mut(crate::faults::length(peb.output_ptr));
    // SAFETY: the host maps the buffer that the PEB names, writable; the library holds no reference to it while a guest function
    // runs.
    unsafe { output.copy_from_nonoverlapping(reply.as_ptr(), reply.len().min(room_bytes)) };
    let direction = if kind & 1 == 0 { 0 } else { DIRECTION };
    let flags = value & FLAGS | direction | 2;
    // SAFETY: they save the stack pointer, and go on from there in a call of their own when they are resumed.
    unsafe {
        match kind >> 1 & 3 {
            0 => leave_plainly(flags, value),
            1 => leave_after_mov_ss(flags, value),
            _ => leave_after_sti(flags, value),
        }
    }
}

/// Makes a function that loads the registers, executes `$last`, and leaves. When it is resumed it writes down what the registers
/// hold before anything else, and waits for the next call.
macro_rules! leaving {
    ($name:ident, $($last:literal),*) => {
        #[unsafe(naked)]
        unsafe extern "sysv64" fn $name(flags: u64, value: u64) {
            naked_asm!(
                // The stack is aligned to 16 before a call, so that it is 8 off here.
                "mov [rip + {stack}], rsp",
                "push rdi",
                "mov rbx, rsi",
                "not rbx",
                // For RSP as well, an address of the lower half: some hypervisors emulate instructions when it is none, and not
                // all instructions.
                "shr rbx, 17",
                "lea rcx, [rsi + 1]",
                "mov rdx, rsi",
                "bswap rdx",
                "lea rbp, [rsi + 3]",
                "lea rdi, [rdx + 5]",
                "lea r8, [rsi + 8]",
                "lea r9, [rdx + 9]",
                "lea r10, [rbx + 10]",
                "lea r11, [rsi + 11]",
                "lea r12, [rdx + 12]",
                "lea r13, [rbx + 13]",
                "lea r14, [rsi + 14]",
                "lea r15, [rdx + 15]",
                "popfq",
                "mov rsp, rbx",
                "mov eax, {reply}",
                $($last,)*
                "out {port}, eax",
                "mov [rip + {saved}], rax",
                "mov [rip + {saved} + 8], rcx",
                "mov [rip + {saved} + 16], rdx",
                "mov [rip + {saved} + 24], rbx",
                "mov [rip + {saved} + 32], rsp",
                "mov [rip + {saved} + 40], rbp",
                "mov [rip + {saved} + 48], rsi",
                "mov [rip + {saved} + 56], rdi",
                "mov [rip + {saved} + 64], r8",
                "mov [rip + {saved} + 72], r9",
                "mov [rip + {saved} + 80], r10",
                "mov [rip + {saved} + 88], r11",
                "mov [rip + {saved} + 96], r12",
                "mov [rip + {saved} + 104], r13",
                "mov [rip + {saved} + 112], r14",
                "mov [rip + {saved} + 120], r15",
                "mov rsp, [rip + {stack}]",
                "pushfq",
                "pop qword ptr [rip + {saved} + 128]",
                "cld",
                // Aligned to 16 for the call.
                "and rsp, -16",
                "call {serve}",
                "ud2",
                stack = sym STACK,
                saved = sym RESUMED_WITH,
                reply = const vellum_guest::abi::port::IDLE_REPLY,
                port = const vellum_guest::abi::port::Port::Idle as u8,
                serve = sym serve,
            )
        }
    };
}

leaving!(leave_plainly,);
leaving!(leave_after_mov_ss, "mov ecx, ss", "mov ss, ecx");
leaving!(leave_after_sti, "sti");

extern "sysv64" fn serve() {
    rt::serve();
}
