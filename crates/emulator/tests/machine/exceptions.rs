//! Exceptions, exceptions inside exceptions, and page tables that lead nowhere, in ring 0 of 64-bit code.

use vellum_backend::boot;
use vellum_backend::{Access, Exit, VcpuState, Vm};

use crate::{CODE, Guest, MEMORY_LEN_BYTES, ROOT, guest, machine, start};

/// A page that is not there; every other one of the first 128 KiB is.
const ABSENT: u64 = 0x1_2000;
/// The stack of handlers, by the interrupt stack table.
const HANDLER_STACK: u64 = 0xF000;
const HANDLERS: u64 = 0x7000;
const IDT: u64 = 0x9000;
const TSS: u64 = 0xA000;
const HANDLER_PORT: u8 = 0xE1;

/// What becomes of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// A handler: its vector, the error code where there is one, CR2.
    Handler(u8, Option<u64>, u64),
    Shutdown,
    Fault(u64),
}

/// A guest with a handler for each vector but those in `absent`, which runs `code` at `at`.
fn kernel(at: u64, code: &[u8], absent: &[u64]) -> Guest {
    let mut guest = guest(&[]);
    let memory = &guest.memory;
    let write = |at, value| memory.write_u64(at, value).expect("in bounds");
    write(0x3000, 0x4067);
    for page in 0..MEMORY_LEN_BYTES / 0x1000 {
        let present = u64::from(page << 12 != ABSENT);
        write(0x4000 + page * 8, page << 12 | 0x66 | present);
    }
    write(0x8000 + 8, 0x00AF_9B00_0000_FFFF);
    for vector in 0..32_u8 {
        let number = u64::from(vector);
        let address = HANDLERS + number * 16;
        let kind = if absent.contains(&number) {
            0x0E01
        } else {
            0x8E01
        };
        write(IDT + number * 16, address | 8 << 16 | kind << 32);
        write(IDT + number * 16 + 8, 0);
        // mov al, vector; out HANDLER_PORT, eax
        memory
            .write(address, &[0xB0, vector, 0xE7, HANDLER_PORT])
            .expect("in bounds");
    }
    memory
        .write(TSS + 0x24, &HANDLER_STACK.to_le_bytes())
        .expect("in bounds");
    memory.write(at, code).expect("in bounds");
    let mut state = boot::amd64_kernel(&machine(), &start());
    state.general.rip = at;
    state.restore(&mut guest.vm).expect("restored");
    guest
}

fn end_of(guest: &mut Guest) -> End {
    match guest.vm.run().expect("ran") {
        Exit::IoOut { port, data, .. } if port == u16::from(HANDLER_PORT) => {
            let state = VcpuState::save(&mut guest.vm).expect("saved");
            let rsp = state.general.rsp;
            // Without an error code five words are pushed.
            let error =
                (HANDLER_STACK - rsp == 48).then(|| guest.memory.read_u64(rsp).expect("in bounds"));
            End::Handler(data.to_le_bytes()[0], error, state.special.cr2)
        }
        Exit::TripleFault => End::Shutdown,
        Exit::MemoryFault {
            gpa,
            access: Access::Read | Access::Execute,
            ..
        } => End::Fault(gpa),
        exit => panic!("{exit:?}"),
    }
}

/// mov rcx, address; mov rax, [rcx]
fn load(address: u64) -> Vec<u8> {
    [
        &[0x48, 0xB9],
        &address.to_le_bytes()[..],
        &[0x48, 0x8B, 0x01],
    ]
    .concat()
}

/// mov rsp, address; push rax
fn push_at(address: u64) -> Vec<u8> {
    [&[0x48, 0xBC], &address.to_le_bytes()[..], &[0x50]].concat()
}

#[test]
fn each_exception_finds_its_handler() {
    let cases: [(&str, u64, Vec<u8>, End); 12] = [
        ("ud2", CODE, vec![0x0F, 0x0B], End::Handler(6, None, 0)),
        (
            "no instruction",
            CODE,
            vec![0x0F, 0xFF, 0xC0],
            End::Handler(6, None, 0),
        ),
        (
            "15 prefixes",
            CODE,
            [&[0x66; 15][..], &[0x90]].concat(),
            End::Handler(13, Some(0), 0),
        ),
        // mov eax, imm32, of which only the first byte is there.
        (
            "into an absent page",
            ABSENT - 1,
            vec![0xB8],
            End::Handler(14, Some(0x10), ABSENT),
        ),
        (
            "load of an absent page",
            CODE,
            load(ABSENT + 8),
            End::Handler(14, Some(0), ABSENT + 8),
        ),
        // The part that faults is the second one.
        (
            "load across the edge",
            CODE,
            load(ABSENT - 4),
            End::Handler(14, Some(0), ABSENT),
        ),
        (
            "load above the lower half",
            CODE,
            load(1 << 47),
            End::Handler(13, Some(0), 0),
        ),
        (
            "load below the upper half",
            CODE,
            load(0xFFFF_7FFF_FFFF_FFF8),
            End::Handler(13, Some(0), 0),
        ),
        (
            "push above the lower half",
            CODE,
            push_at((1 << 47) + 16),
            End::Handler(12, Some(0), 0),
        ),
        (
            "jump above the lower half",
            CODE,
            [&push_at(0x6000)[..10], &[0x48, 0xC1, 0xE4, 40, 0xFF, 0xE4]].concat(),
            End::Handler(13, Some(0), 0),
        ),
        (
            "division by zero",
            CODE,
            vec![0x31, 0xC9, 0xF7, 0xF1],
            End::Handler(0, None, 0),
        ),
        (
            "interrupt beyond the table",
            CODE,
            vec![0xCD, 0xFF],
            End::Handler(13, Some(0xFF * 8 + 2), 0),
        ),
    ];
    for (name, at, code, expected) in cases {
        let mut guest = kernel(at, &code, &[]);
        guest
            .memory
            .write(IDT + 0xFF0, &[0; 16])
            .expect("in bounds");
        assert_eq!(end_of(&mut guest), expected, "{name}");
    }
}

#[test]
fn an_exception_inside_an_exception_is_what_the_manual_says() {
    // Intel SDM volume 3, tables 7-4 and 7-5.
    let cases: [(&str, Vec<u8>, &[u64], End); 6] = [
        (
            "benign, then a fault",
            vec![0x0F, 0x0B],
            &[6],
            End::Handler(11, Some(6 * 8 + 3), 0),
        ),
        (
            "contributory, then contributory",
            load(1 << 47),
            &[13],
            End::Handler(8, Some(0), 0),
        ),
        (
            "page fault, then contributory",
            load(ABSENT),
            &[14],
            End::Handler(8, Some(0), ABSENT),
        ),
        (
            "and the double fault has no handler",
            load(1 << 47),
            &[13, 8],
            End::Shutdown,
        ),
        (
            "nothing has a handler",
            vec![0x0F, 0x0B],
            &[6, 8, 11],
            End::Shutdown,
        ),
        (
            "an interrupt without a handler",
            vec![0xCD, 9],
            &[9],
            End::Handler(11, Some(9 * 8 + 2), 0),
        ),
    ];
    for (name, code, absent, expected) in cases {
        let mut guest = kernel(CODE, &code, absent);
        assert_eq!(end_of(&mut guest), expected, "{name}");
    }
}

#[test]
fn a_handler_without_a_stack_ends_in_a_shutdown() {
    for stack in [ABSENT + 0x800, 1 << 47, 0xFFFF_7FFF_FFFF_F800] {
        let mut guest = kernel(CODE, &[0x0F, 0x0B], &[]);
        guest
            .memory
            .write(TSS + 0x24, &u64::to_le_bytes(stack))
            .expect("in bounds");
        assert_eq!(end_of(&mut guest), End::Shutdown, "{stack:#x}");
    }
}

#[test]
fn hostile_page_tables_harm_nobody() {
    const BEYOND: u64 = 0x50_0000;
    let cases: [(&str, u64, u64, End); 6] = [
        (
            "a table in absent memory",
            ROOT,
            BEYOND | 0x67,
            End::Fault(BEYOND),
        ),
        (
            "a page in absent memory",
            0x4000 + (CODE >> 12) * 8,
            BEYOND | 0x67,
            End::Fault(BEYOND),
        ),
        // 63 bits of address are none: the handlers cannot be fetched either.
        (
            "reserved bits at the top",
            ROOT,
            0x2067 | 1 << 51,
            End::Shutdown,
        ),
        (
            "a size bit where none can be",
            ROOT,
            0x2067 | 1 << 7,
            End::Shutdown,
        ),
        (
            "reserved bits of a large page",
            0x3000,
            0xE7 | 1 << 13,
            End::Shutdown,
        ),
        // Each level is the same table: the page of address 0 is the table itself.
        ("a table that is its own", ROOT, ROOT | 0x67, End::Shutdown),
    ];
    for (name, at, entry, expected) in cases {
        let mut guest = kernel(CODE, &[0x0F, 0x0B], &[]);
        guest.memory.write_u64(at, entry).expect("in bounds");
        assert_eq!(end_of(&mut guest), expected, "{name}");
    }
}

#[test]
fn the_frame_of_a_fault_has_the_resume_flag_and_that_of_a_trap_has_not() {
    /// RFLAGS.RF.
    const RESUME: u64 = 1 << 16;
    for (code, expected) in [(&[0x0F, 0x0B][..], RESUME), (&[0xCC], 0), (&[0xCD, 9], 0)] {
        let mut guest = kernel(CODE, code, &[]);
        end_of(&mut guest);
        let flags = guest
            .memory
            .read_u64(HANDLER_STACK - 24)
            .expect("in bounds");
        assert_eq!(flags & RESUME, expected, "{code:x?}");
    }
}

#[test]
fn a_task_descriptor_that_ends_behind_its_table_is_refused() {
    // mov eax, 0x78; ltr ax
    let mut guest = kernel(CODE, &[0xB8, 0x78, 0, 0, 0, 0x0F, 0x00, 0xD8], &[]);
    // Its lower half is the last entry of the table.
    let descriptor = 0x0000_8900_0000_0067;
    guest
        .memory
        .write_u64(0x8000 + 0x78, descriptor)
        .expect("in bounds");
    assert_eq!(end_of(&mut guest), End::Handler(13, Some(0x78), 0));
}

#[test]
fn a_return_from_an_interrupt_to_an_absent_stack_is_a_segment_not_present() {
    // push 0x10; push 0xe000; push 2; push 8; push 0x5100; iretq
    let code = [
        0x6A, 0x10, 0x68, 0, 0xE0, 0, 0, 0x6A, 2, 0x6A, 8, 0x68, 0, 0x51, 0, 0, 0x48, 0xCF,
    ];
    for (descriptor, expected) in [(0x00CF_1300_0000_FFFF, 11), (0x00CF_9100_0000_FFFF, 13)] {
        let mut guest = kernel(CODE, &code, &[]);
        guest
            .memory
            .write_u64(0x8000 + 0x10, descriptor)
            .expect("in bounds");
        assert_eq!(end_of(&mut guest), End::Handler(expected, Some(0x10), 0));
    }
}
