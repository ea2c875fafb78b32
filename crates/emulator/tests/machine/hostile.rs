//! Hostile code: whatever bytes a guest runs, the host goes on.

use proptest::prelude::*;
use vellum_backend::boot;
use vellum_backend::{Access, Exit, VcpuState, Vm};
use vellum_layout::Gpa;

use crate::{CODE, FUEL, MEMORY_LEN_BYTES, STACK_TOP, flat, guest, run, states, user};

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_harm_nobody(
        code in prop::collection::vec(any::<u8>(), 1..256),
        tables in prop::collection::vec(any::<u8>(), 0x800),
        registers in prop::collection::vec(any::<u64>(), 15),
    ) {
        for state in states() {
            let mut guest = guest(&code);
            for at in [0x8000, 0x9000, 0xA000, 0xB000] {
                guest.memory.write(at, &tables).expect("in bounds");
            }
            let mut state = state;
            let general = &mut state.general;
            (general.rax, general.rbx, general.rcx) = (registers[0], registers[1], registers[2]);
            (general.rdx, general.rsi, general.rdi) = (registers[3], registers[4], registers[5]);
            (general.rbp, general.r8, general.r9) = (registers[6], registers[7], registers[8]);
            state.restore(&mut guest.vm).expect("restored");
            run(&mut guest);
            VcpuState::save(&mut guest.vm).expect("saved");
            guest.vm.take_dirty(&mut |_| {}).expect("taken");
        }
    }

    #[test]
    fn any_registers_harm_nobody(
        special in prop::collection::vec(any::<u64>(), 12),
        code in prop::collection::vec(any::<u8>(), 64),
    ) {
        for mut state in states() {
            let mut guest = guest(&code);
            state.special.cr3 = special[0] & 0x7F_FFFF_FFFF;
            state.special.gdtr.base = special[1] & 0x7FFF_FFFF_FFFF;
            state.special.idtr.base = special[2] & 0x7FFF_FFFF_FFFF;
            state.special.tr.base = special[3] & 0x7FFF_FFFF_FFFF;
            state.general.rip = special[4];
            state.general.rsp = special[5];
            state.general.rflags = special[6];
            if state.restore(&mut guest.vm).is_ok() {
                run(&mut guest);
            }
        }
    }
}

#[test]
fn fuel_ends_a_loop_at_the_same_instruction_each_time() {
    let counts: Vec<(u64, u64)> = (0..3)
        .map(|_| {
            // inc eax; jmp to it
            let mut guest = flat(&[0x40, 0xEB, 0xFD]);
            assert_eq!(guest.vm.run().expect("ran"), Exit::OutOfFuel);
            let state = VcpuState::save(&mut guest.vm).expect("saved");
            (guest.vm.retired_instructions(), state.general.rax)
        })
        .collect();
    assert_eq!(counts, [(FUEL, 40 + FUEL / 2); 3]);
}

#[test]
fn a_trace_names_the_blocks_that_ran() {
    // jmp +1; int3; out 0xe0, eax
    let mut guest = flat(&[0xEB, 0x01, 0xCC, 0xE7, 0xE0]);
    guest.vm.trace_blocks();
    guest.vm.run().expect("ran");
    assert_eq!(guest.vm.traced_blocks(), [CODE, CODE + 3]);
}

#[test]
fn code_that_rewrites_itself_runs_as_written() {
    // mov byte [next + 1], 7; next: mov eax, 1 (then 7); out 0xe0, eax
    let code = [
        0xC6, 0x05, 0x08, 0x50, 0, 0, 7, 0xB8, 1, 0, 0, 0, 0xE7, 0xE0,
    ];
    let mut guest = flat(&code);
    let exit = guest.vm.run().expect("ran");
    assert!(matches!(exit, Exit::IoOut { data: 7, .. }), "{exit:?}");
}

#[test]
fn an_instruction_that_runs_into_absent_memory_is_a_fault_of_the_fetch() {
    let mut guest = flat(&[]);
    // The first byte of mov eax, imm32 is the last one of memory.
    let last = MEMORY_LEN_BYTES - 1;
    guest.memory.write(last, &[0xB8]).expect("in bounds");
    let mut state = boot::flat32(Gpa::literal(last), Gpa::literal(STACK_TOP), 0, 0);
    state.general.rip = last;
    state.restore(&mut guest.vm).expect("restored");
    let expected = Exit::MemoryFault {
        gpa: MEMORY_LEN_BYTES,
        access: Access::Execute,
        mapped: false,
    };
    assert_eq!(guest.vm.run().expect("ran"), expected);
}

#[test]
fn what_is_not_emulated_is_named() {
    // fsin
    let mut guest = user(&[0xD9, 0xFE]);
    assert_eq!(guest.vm.run().expect("ran"), Exit::TripleFault);
    let names: Vec<_> = guest
        .vm
        .unsupported()
        .iter()
        .map(|it| it.name.as_str())
        .collect();
    assert_eq!(names, ["fsin"]);
}

#[test]
fn an_over_long_instruction_is_refused() {
    // 15 prefixes before a nop
    let mut code = vec![0x66; 15];
    code.push(0x90);
    let mut guest = flat(&code);
    assert_eq!(guest.vm.run().expect("ran"), Exit::TripleFault);
}
