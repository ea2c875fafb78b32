//! What makes a guest stop, and where it goes on.
#![expect(unsafe_code, reason = "lends memory to test guests")]

use vellum_backend::{Access, Exit, HostMemory, IoWidth, Protection, Vm, VmError};

use crate::support::{CODE, flat_state, guest, kvm, out_data, range};

#[test]
fn a_run_continues_behind_an_out_instruction() {
    let Some(kvm) = kvm() else { return };
    // add eax, ebx; out 0xe0, eax; inc eax; out 0xe0, eax; hlt
    let mut guest = guest(
        &kvm,
        &[0x01, 0xD8, 0xE7, 0xE0, 0x40, 0xE7, 0xE0, 0xF4],
        Protection::Write,
    );
    flat_state().restore(&mut guest.vm).expect("restored");
    assert_eq!(out_data(guest.vm.run().expect("ran")), 42);
    assert_eq!(out_data(guest.vm.run().expect("ran")), 43);
    assert_eq!(guest.vm.run().expect("ran"), Exit::Halt);
}

#[test]
fn an_in_instruction_reads_what_the_host_gives() {
    let Some(kvm) = kvm() else { return };
    // mov eax, -1; in al, 0x10; out 0xe0, eax; in eax, 0x10; out 0xe0, eax
    let code = [
        0xB8, 0xFF, 0xFF, 0xFF, 0xFF, 0xE4, 0x10, 0xE7, 0xE0, 0xE5, 0x10, 0xE7, 0xE0,
    ];
    let mut guest = guest(&kvm, &code, Protection::Write);
    flat_state().restore(&mut guest.vm).expect("restored");
    assert_eq!(
        guest.vm.run().expect("ran"),
        Exit::IoIn {
            port: 0x10,
            width: IoWidth::Byte
        }
    );
    assert!(
        matches!(guest.vm.run(), Err(VmError::InputPending)),
        "the input must be given first"
    );
    guest
        .vm
        .complete_io_in(0xAABB_CC12)
        .expect("an input is pending");
    assert_eq!(out_data(guest.vm.run().expect("ran")), 0xFFFF_FF12);
    assert_eq!(
        guest.vm.run().expect("ran"),
        Exit::IoIn {
            port: 0x10,
            width: IoWidth::Dword
        }
    );
    guest.vm.complete_io_in(7).expect("an input is pending");
    assert_eq!(out_data(guest.vm.run().expect("ran")), 7);
    assert!(matches!(
        guest.vm.complete_io_in(0),
        Err(VmError::NoPendingInput)
    ));
}

#[test]
fn unbacked_and_protected_memory_fault_with_address_and_direction() {
    let Some(kvm) = kvm() else { return };
    // mov [0x200000], eax
    let write_absent = [0xA3, 0, 0, 0x20, 0];
    // mov eax, [0x200000]
    let read_absent = [0xA1, 0, 0, 0x20, 0];
    // mov [0x300000], eax
    let write_read_only = [0xA3, 0, 0, 0x30, 0];
    let cases = [
        (write_absent, 0x20_0000, Access::Write, false),
        (read_absent, 0x20_0000, Access::Read, false),
        (write_read_only, 0x30_0000, Access::Write, true),
    ];
    for (code, gpa, access, mapped) in cases {
        let mut guest = guest(&kvm, &code, Protection::Write);
        let rom = HostMemory::zeroed(0x1000).expect("memory");
        // SAFETY: `rom` lives until the end of this block, where `guest` was dropped before it.
        unsafe {
            guest
                .vm
                .map(range(0x30_0000, 0x1000), rom.hva(), Protection::ReadOnly)
        }
        .expect("mapped");
        flat_state().restore(&mut guest.vm).expect("restored");
        assert_eq!(
            guest.vm.run().expect("ran"),
            Exit::MemoryFault {
                gpa,
                access,
                mapped
            }
        );
        drop(guest);
        drop(rom);
    }
}

#[test]
fn a_fault_without_handlers_is_a_triple_fault() {
    let Some(kvm) = kvm() else { return };
    // ud2, without an interrupt table
    let mut guest = guest(&kvm, &[0x0F, 0x0B], Protection::Write);
    flat_state().restore(&mut guest.vm).expect("restored");
    let exit = guest.vm.run().expect("ran");
    assert!(
        matches!(exit, Exit::TripleFault | Exit::EmulationFailure),
        "{exit:?}"
    );
}

#[test]
fn every_width_of_port_access_is_told_apart() {
    let Some(kvm) = kvm() else { return };
    let out = |port, width, data| Exit::IoOut { port, width, data };
    let input = |port, width| Exit::IoIn { port, width };
    // mov eax, 0x80818283, then the instruction; port 0x21 as an immediate, port 0xF123 in DX.
    let cases: [(&[u8], Exit); 12] = [
        (&[0xE6, 0x21], out(0x21, IoWidth::Byte, 0x83)),
        (&[0x66, 0xE7, 0x21], out(0x21, IoWidth::Word, 0x8283)),
        (&[0xE7, 0x21], out(0x21, IoWidth::Dword, 0x8081_8283)),
        (&[0xEE], out(0xF123, IoWidth::Byte, 0x83)),
        (&[0x66, 0xEF], out(0xF123, IoWidth::Word, 0x8283)),
        (&[0xEF], out(0xF123, IoWidth::Dword, 0x8081_8283)),
        (&[0xE4, 0x21], input(0x21, IoWidth::Byte)),
        (&[0x66, 0xE5, 0x21], input(0x21, IoWidth::Word)),
        (&[0xE5, 0x21], input(0x21, IoWidth::Dword)),
        (&[0xEC], input(0xF123, IoWidth::Byte)),
        (&[0x66, 0xED], input(0xF123, IoWidth::Word)),
        (&[0xED], input(0xF123, IoWidth::Dword)),
    ];
    for (instruction, expected) in cases {
        let code = [&[0xB8, 0x83, 0x82, 0x81, 0x80], instruction].concat();
        let mut guest = guest(&kvm, &code, Protection::Write);
        let mut state = flat_state();
        state.general.rdx = 0xF123;
        state.restore(&mut guest.vm).expect("restored");
        assert_eq!(guest.run(), expected, "{instruction:x?}");
    }
}

#[test]
fn an_input_changes_only_the_bytes_of_its_width() {
    let Some(kvm) = kvm() else { return };
    // in al, 0x10; in ax, 0x10; in eax, 0x10; each followed by out 0xe0, eax
    let cases: [(&[u8], u64); 3] = [
        (&[0xE4, 0x10], 0x8081_8244),
        (&[0x66, 0xE5, 0x10], 0x8081_3344),
        (&[0xE5, 0x10], 0x1122_3344),
    ];
    for (instruction, rax) in cases {
        let mut guest = guest(
            &kvm,
            &[instruction, &[0xE7, 0xE0]].concat(),
            Protection::Write,
        );
        let mut state = flat_state();
        state.general.rax = 0x8081_8283;
        state.restore(&mut guest.vm).expect("restored");
        assert!(matches!(guest.run(), Exit::IoIn { .. }), "{instruction:x?}");
        guest
            .vm
            .complete_io_in(0x1122_3344)
            .expect("an input is pending");
        let state = guest.settled();
        assert_eq!(state.general.rax, rax, "{instruction:x?}");
        assert_eq!(state.general.rip, CODE + instruction.len() as u64);
        assert_eq!(u64::from(out_data(guest.run())), rax, "{instruction:x?}");
    }
}

#[test]
fn a_repeated_input_is_a_string_access_whatever_its_bytes_add_up_to() {
    let Some(kvm) = kvm() else { return };
    // insb and insd, repeated: 2 and 4 bytes look like a wide input, 3 and 8 like nothing else.
    for (count, instruction) in [(2, 0x6C), (3, 0x6C), (4, 0x6C), (2, 0x6D)] {
        let mut guest = guest(&kvm, &[0xF3, instruction, 0xF4], Protection::Write);
        let mut state = flat_state();
        state.general.rdx = 0x10;
        state.general.rdi = 0x8000;
        state.general.rcx = count;
        state.restore(&mut guest.vm).expect("restored");
        let exit = guest.run();
        assert_eq!(
            exit,
            Exit::IoString { port: 0x10 },
            "{count} of {instruction:#x}"
        );
    }
}

#[test]
fn a_string_output_is_seen_item_by_item_or_as_a_whole() {
    let Some(kvm) = kvm() else { return };
    // rep outsb; hlt
    let mut guest = guest(&kvm, &[0xF3, 0x6E, 0xF4], Protection::Write);
    guest.memory.write(0x8000, b"ab").expect("in bounds");
    let mut state = flat_state();
    state.general.rdx = 0x10;
    state.general.rsi = 0x8000;
    state.general.rcx = 2;
    state.restore(&mut guest.vm).expect("restored");
    let item = |byte: u8| Exit::IoOut {
        port: 0x10,
        width: IoWidth::Byte,
        data: byte.into(),
    };
    let first = guest.run();
    if first == item(b'a') {
        assert_eq!(guest.run(), item(b'b'));
    } else {
        assert_eq!(first, Exit::IoString { port: 0x10 });
    }
    assert_eq!(guest.run(), Exit::Halt);
}

#[test]
fn a_halted_guest_stands_behind_the_hlt_and_can_go_on() {
    let Some(kvm) = kvm() else { return };
    // hlt; hlt; out 0xe0, eax
    let mut guest = guest(&kvm, &[0xF4, 0xF4, 0xE7, 0xE0], Protection::Write);
    flat_state().restore(&mut guest.vm).expect("restored");
    for halts in 1..=2 {
        assert_eq!(guest.run(), Exit::Halt);
        assert_eq!(guest.settled().general.rip, CODE + halts);
    }
    assert_eq!(out_data(guest.run()), 40);
}

#[test]
fn a_settled_guest_stands_behind_its_port_access() {
    let Some(kvm) = kvm() else { return };
    let cases: [&[u8]; 4] = [&[0xE7, 0xE0], &[0x66, 0xE7, 0xE0], &[0xEF], &[0xE5, 0x10]];
    for instruction in cases {
        let mut guest = guest(&kvm, instruction, Protection::Write);
        flat_state().restore(&mut guest.vm).expect("restored");
        guest.run();
        assert_eq!(
            guest.settled().general.rip,
            CODE + instruction.len() as u64,
            "{instruction:x?}"
        );
        assert_eq!(
            guest.settled().general.rip,
            CODE + instruction.len() as u64,
            "again"
        );
    }
}
