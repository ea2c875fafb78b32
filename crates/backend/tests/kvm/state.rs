//! State that is saved and restored.

use vellum_backend::msr;
use vellum_backend::state::{XsaveArea, cr0};
use vellum_backend::{Exit, Protection, StateGroup, VcpuState, Vm, VmError};

use crate::support::{
    CODE, PRESENT_WRITE_USER_USED, PT, flat_state, guest, kvm, out_data, user_state,
};

#[test]
fn a_settled_state_stands_behind_the_out_and_resumes_there() {
    let Some(kvm) = kvm() else { return };
    // out 0xe0, eax; inc eax; out 0xe0, eax; hlt
    let mut guest = guest(
        &kvm,
        &[0xE7, 0xE0, 0x40, 0xE7, 0xE0, 0xF4],
        Protection::Write,
    );
    flat_state().restore(&mut guest.vm).expect("restored");
    assert_eq!(out_data(guest.vm.run().expect("ran")), 40);
    let saved = VcpuState::save(&mut guest.vm).expect("saved");
    assert_eq!(saved.general.rip, CODE + 2);
    assert_eq!(out_data(guest.vm.run().expect("ran")), 41);
    assert_eq!(guest.vm.run().expect("ran"), Exit::Halt);
    saved.restore(&mut guest.vm).expect("restored");
    assert_eq!(
        out_data(guest.vm.run().expect("ran")),
        41,
        "the out before the snapshot is not repeated"
    );
}

#[test]
fn every_state_group_round_trips() {
    let Some(kvm) = kvm() else { return };
    let mut guest = guest(&kvm, &[0xF4], Protection::Write);
    let mut wanted = VcpuState::save(&mut guest.vm).expect("saved");
    let user = user_state();
    wanted.special = user.special;
    wanted.special.cr2 = 0x1234_5000;
    wanted.general = user.general;
    wanted.general.r15 = 0xDEAD_BEEF;
    wanted.debug.dr[0] = 0x7000;
    let values = [
        0x10,
        0x1000,
        0x2000,
        0x10 << 32,
        0x3000,
        0x4000,
        0x200,
        0x5000,
    ];
    for (index, value) in msr::DECLARED.into_iter().zip(values) {
        assert!(wanted.msrs.set(index, value));
    }
    let mut xsave = *wanted.xsave.as_bytes();
    xsave[160] = 0x5A; // XMM0
    xsave[512] = 3;
    wanted.xsave = XsaveArea::from_bytes(xsave);
    wanted.restore(&mut guest.vm).expect("restored");
    let read = VcpuState::save(&mut guest.vm).expect("saved");
    assert_eq!(read.general, wanted.general);
    assert_eq!(read.special.cr0, wanted.special.cr0);
    assert_eq!(read.special.cr2, wanted.special.cr2);
    assert_eq!(read.special.cr3, wanted.special.cr3);
    assert_eq!(read.debug, wanted.debug);
    assert_eq!(read.msrs, wanted.msrs);
    assert_eq!(read.xsave.as_bytes()[160], 0x5A);
    // What was read back is a fixed point.
    read.restore(&mut guest.vm).expect("restored");
    let again = VcpuState::save(&mut guest.vm).expect("saved");
    assert_eq!(again.differences(&read).collect::<Vec<_>>(), []);
}

#[test]
fn a_state_that_hyper_v_refuses_is_refused_here() {
    let Some(kvm) = kvm() else { return };
    let mut guest = guest(&kvm, &[0xF4], Protection::Write);
    let mut state = flat_state();
    state.special.cr0 &= !cr0::ET;
    let result = guest.vm.set_state(StateGroup::Special, &state);
    assert!(
        matches!(result, Err(VmError::InvalidState(_))),
        "{result:?}"
    );
}

#[test]
fn what_an_exit_left_undone_does_not_reach_the_restored_state() {
    let Some(kvm) = kvm() else { return };
    // out 0xe0, eax: the restored state begins at this very instruction.
    let output: &[u8] = &[0xE7, 0xE0];
    // in eax, 0x10
    let input: &[u8] = &[0xE5, 0x10];
    // mov eax, [0x200000] and mov [0x200000], eax: no memory there.
    let (load, store): (&[u8], &[u8]) = (&[0xA1, 0, 0, 0x20, 0], &[0xA3, 0, 0, 0x20, 0]);
    for unfinished in [output, input, load, store] {
        let mut guest = guest(&kvm, unfinished, Protection::Write);
        // out 0xe0, eax
        let after = CODE + 0x100;
        guest.memory.write(after, &[0xE7, 0xE0]).expect("in bounds");
        for rip in [CODE, after] {
            let mut state = flat_state();
            state.restore(&mut guest.vm).expect("restored");
            let first = guest.run();
            state.general.rip = rip;
            state.general.rax = 7;
            state.restore(&mut guest.vm).expect("restored");
            let read = guest.settled();
            assert_eq!(
                (read.general.rip, read.general.rax),
                (rip, 7),
                "{unfinished:x?}"
            );
            let second = guest.run();
            if rip == CODE && unfinished != output {
                assert_eq!(second, first, "{unfinished:x?}");
            } else {
                assert_eq!(out_data(second), 7, "{unfinished:x?}");
            }
        }
    }
}

#[test]
fn a_boot_state_leaves_nothing_of_another_state_behind() {
    let Some(kvm) = kvm() else { return };
    let mut guest = guest(&kvm, &[0xF4], Protection::Write);
    let mut dirty = user_state();
    dirty.general.r8 = 1;
    dirty.debug.dr = [0x1000; 4];
    dirty.special.cr2 = 0x5000;
    for index in [msr::IA32_LSTAR, msr::IA32_KERNEL_GS_BASE] {
        assert!(dirty.msrs.set(index, 0x1000));
    }
    let mut xsave = *dirty.xsave.as_bytes();
    xsave[160..176].fill(0x5A); // XMM0
    dirty.xsave = XsaveArea::from_bytes(xsave);
    let fresh = flat_state();
    fresh.restore(&mut guest.vm).expect("restored");
    let expected = guest.settled();
    dirty.restore(&mut guest.vm).expect("restored");
    assert!(guest.settled().differences(&expected).count() >= 5);
    fresh.restore(&mut guest.vm).expect("restored");
    assert_eq!(
        guest.settled().differences(&expected).collect::<Vec<_>>(),
        []
    );
}

#[test]
fn an_access_to_absent_memory_in_many_parts_can_be_settled() {
    let Some(kvm) = kvm() else { return };
    let absent_page = 0x8_0000;
    // Wide accesses, which KVM hands out 8 bytes at a time, and repeated ones, which it hands out item by item.
    let cases: [&[u8]; 5] = [
        &[0xF3, 0x0F, 0x6F, 0x07], // movdqu xmm0, [rdi]
        &[0xF3, 0x0F, 0x7F, 0x07], // movdqu [rdi], xmm0
        &[0xF3, 0xAA],             // rep stosb
        &[0xF3, 0xA4],             // rep movsb
        &[0xF3, 0x48, 0xA5],       // rep movsq
    ];
    for code in cases {
        let mut guest = guest(&kvm, code, Protection::Write);
        guest
            .memory
            .write_u64(
                PT + (absent_page >> 12) * 8,
                0x20_0000 | PRESENT_WRITE_USER_USED,
            )
            .expect("in bounds");
        let mut state = user_state();
        (state.general.rsi, state.general.rdi) = (absent_page, absent_page);
        state.general.rcx = 0x1_0000;
        state.restore(&mut guest.vm).expect("restored");
        let exit = guest.run();
        assert!(
            matches!(
                exit,
                Exit::MemoryFault {
                    gpa: 0x20_0000,
                    mapped: false,
                    ..
                }
            ),
            "{code:x?}: {exit:?}"
        );
        // out 0xe0, eax
        guest.memory.write(CODE, &[0xE7, 0xE0]).expect("in bounds");
        user_state()
            .restore(&mut guest.vm)
            .expect("settled and restored");
        assert_eq!(out_data(guest.run()), 0, "{code:x?}");
    }
}
