use vellum_abi::fault::FaultRecord;
use vellum_layout::amd64::user;
use vellum_layout::{Gva, GvaRange};

use super::{Fault, FaultKind, Privileged, classify};

fn guard() -> GvaRange {
    user::stack_guard(1 << 20).expect("a stack of 1 MiB")
}

fn record(vector: u64, error_code: u64, cr2: u64) -> FaultRecord {
    FaultRecord {
        vector,
        error_code,
        cr2,
        rip: 0x20_1000,
        ..FaultRecord::default()
    }
}

fn kind(vector: u64, error_code: u64, cr2: u64) -> FaultKind {
    Fault::from_record(&record(vector, error_code, cr2), guard()).kind()
}

#[test]
fn vectors_are_named_as_in_the_manual() {
    let named = [
        (0, FaultKind::DivideError),
        (1, FaultKind::Debug),
        (3, FaultKind::Breakpoint),
        (6, FaultKind::InvalidOpcode),
        (13, FaultKind::GeneralProtection),
        (16, FaultKind::FloatingPoint),
        (19, FaultKind::FloatingPoint),
    ];
    for vector in (0..=255)
        .chain([256, 256 + 14, u64::MAX])
        .filter(|vector| *vector != 14)
    {
        let expected = named
            .iter()
            .find(|(named, _)| *named == vector)
            .map_or(FaultKind::Other, |(_, kind)| *kind);
        assert_eq!(kind(vector, 0, 0), expected, "vector {vector}");
    }
}

#[test]
fn page_faults_are_told_apart_by_address_and_error_code() {
    let guard_start = guard().start().as_u64();
    let somewhere = 0x1234_5000;
    let supervisor = user::BOOKKEEPING.start().as_u64();
    // Bits of the error code: present 1, write 2, user 4, fetch 16.
    let cases = [
        (4, somewhere, FaultKind::UnmappedAccess),
        (6, somewhere, FaultKind::UnmappedAccess),
        (7, somewhere, FaultKind::WriteToReadOnly),
        (5, somewhere, FaultKind::SupervisorAccess),
        (20, somewhere, FaultKind::ExecuteNonExecutable),
        (21, somewhere, FaultKind::ExecuteNonExecutable),
        (4, 0, FaultKind::NullAccess),
        (6, 0xFFFF, FaultKind::NullAccess),
        (20, 8, FaultKind::NullAccess),
        (4, 0x1_0000, FaultKind::UnmappedAccess),
        (4, supervisor, FaultKind::SupervisorAccess),
        (7, supervisor, FaultKind::SupervisorAccess),
        (20, 1 << 63, FaultKind::SupervisorAccess),
        (4, u64::MAX, FaultKind::SupervisorAccess),
        (6, guard_start, FaultKind::StackOverflow),
        (6, guard_start + 4095, FaultKind::StackOverflow),
        (4, guard_start + 8, FaultKind::StackOverflow),
        // A large frame that stepped over the guard page.
        (6, guard_start - 0x8_0000, FaultKind::StackOverflow),
        (6, guard_start + 4096 - 0x10_0000, FaultKind::StackOverflow),
        (6, guard_start + 4095 - 0x10_0000, FaultKind::UnmappedAccess),
        // The lowest page of the stack itself.
        (7, guard_start + 4096, FaultKind::WriteToReadOnly),
    ];
    for (error_code, address, expected) in cases {
        assert_eq!(
            kind(14, error_code, address),
            expected,
            "address {address:#x}, error code {error_code:#x}"
        );
    }
}

#[test]
fn a_guard_page_near_the_bottom_of_the_address_space_is_handled() {
    let low = GvaRange::new(Gva::literal(0x2000), 0x1000).expect("a range");
    let fault = Fault::from_record(&record(14, 6, 0x2800), low);
    assert_eq!(fault.kind(), FaultKind::StackOverflow);
}

#[test]
fn only_page_faults_have_an_address() {
    let fault = Fault::from_record(&record(14, 6, 0x1234_5678), guard());
    assert_eq!(
        (fault.address(), fault.vector(), fault.error_code()),
        (Some(0x1234_5678), 14, 6)
    );
    assert_eq!(fault.instruction(), 0x20_1000);
    let fault = Fault::from_record(&record(13, 0x18, 0x1234_5678), guard());
    assert_eq!(
        (fault.address(), fault.vector(), fault.error_code()),
        (None, 13, 0x18)
    );
}

#[test]
fn numbers_that_no_processor_gives_are_cut_and_not_refused() {
    let fault = Fault::from_record(&record(u64::MAX, u64::MAX, u64::MAX), guard());
    assert_eq!(
        (fault.kind(), fault.vector(), fault.error_code()),
        (FaultKind::Other, u8::MAX, u32::MAX)
    );
}

#[test]
fn a_fault_inside_the_monitor_is_called_that_whatever_it_was() {
    for vector in [0, 6, 14] {
        let fault = Fault::in_monitor(&record(vector, 0, 0x40));
        assert_eq!(
            (fault.kind(), fault.address()),
            (FaultKind::Monitor, Some(0x40))
        );
    }
}

#[test]
fn the_text_names_what_where_and_which_vector() {
    let fault = Fault::from_record(&record(14, 6, guard().start().as_u64()), guard());
    let expected = format!(
        "stack overflow at instruction 0x201000, address {:#x} (vector 14, error code 0x6)",
        guard().start().as_u64()
    );
    assert_eq!(fault.to_string(), expected);
    let fault = Fault::from_record(&record(6, 0, 0), guard());
    assert_eq!(
        fault.to_string(),
        "invalid opcode at instruction 0x201000 (vector 6, error code 0x0)"
    );
}

#[test]
fn port_accesses_and_hlt_are_known_by_their_bytes() {
    let cases: [(&[u8], Privileged); 24] = [
        (&[0xF4], Privileged::Halt),
        (&[0x66, 0xF4], Privileged::Halt),
        (&[0xE4, 0x60], Privileged::Port(Some(0x60))),
        (&[0xE5, 0x60], Privileged::Port(Some(0x60))),
        (&[0xE6, 0xFF], Privileged::Port(Some(0xFF))),
        (&[0xE7, 0], Privileged::Port(Some(0))),
        (&[0x66, 0xE7, 0x20], Privileged::Port(Some(0x20))),
        (&[0xEC], Privileged::Port(None)),
        (&[0xED], Privileged::Port(None)),
        (&[0xEE], Privileged::Port(None)),
        (&[0xEF], Privileged::Port(None)),
        (&[0xF3, 0x6C], Privileged::Port(None)),
        (&[0xF3, 0x66, 0x6F], Privileged::Port(None)),
        (&[0x6D], Privileged::Port(None)),
        (&[0x6E], Privileged::Port(None)),
        (&[], Privileged::Other),
        (&[0x66], Privileged::Other),
        (&[0x66, 0x66, 0x66, 0x66], Privileged::Other),
        (&[0xE4], Privileged::Other),
        (&[0xFA], Privileged::Other),
        (&[0x0F, 0x01, 0xF4], Privileged::Other),
        (&[0x0F, 0x30], Privileged::Other),
        (&[0x48, 0x8B, 0xEC], Privileged::Other),
        (&[0xF5], Privileged::Other),
    ];
    for (bytes, expected) in cases {
        assert_eq!(classify(bytes), expected, "{bytes:x?}");
    }
}
