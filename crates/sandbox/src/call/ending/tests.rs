use vellum_backend::{Access, Exit, IoWidth};

use super::{Failure, end_of};

#[test]
fn every_exit_that_ends_a_call_has_its_failure() {
    let byte = IoWidth::Byte;
    let memory = |mapped| Exit::MemoryFault {
        gpa: 0x1234_5000,
        access: Access::Write,
        mapped,
    };
    let cases = [
        (
            Exit::IoOut {
                port: 0xE0,
                width: byte,
                data: 0,
            },
            "port 0xe0",
        ),
        (
            Exit::IoIn {
                port: 0x60,
                width: byte,
            },
            "port 0x60",
        ),
        (Exit::IoString { port: 0x3F8 }, "port 0x3f8"),
        (Exit::Halt, "halted"),
        (
            memory(true),
            "Write access to protected guest-physical memory at 0x12345000",
        ),
        (
            memory(false),
            "Write access to absent guest-physical memory at 0x12345000",
        ),
        (
            Exit::MemoryLost { gpa: Some(0x5000) },
            "behind guest-physical memory at 0x5000",
        ),
        (
            Exit::MemoryLost { gpa: None },
            "behind guest-physical memory",
        ),
        (Exit::TripleFault, "triple fault"),
        (
            Exit::InvalidState {
                reason: 0x8000_0021,
            },
            "0x80000021",
        ),
        (Exit::EmulationFailure, "instruction"),
        (Exit::Unhandled { reason: 99 }, "exit 99"),
    ];
    for (exit, says) in cases {
        let failure = end_of(exit);
        assert!(failure.to_string().contains(says), "{exit:?}: {failure}");
        assert!(
            matches!(
                failure,
                Failure::ForbiddenPort { .. } | Failure::Halted | Failure::Crashed(_)
            ),
            "{exit:?}: {failure:?}"
        );
    }
}
