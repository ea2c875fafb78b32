//! Guests that misbehave. One table for all of it: what the guest does, the error that says so, and for each row that the
//! sandbox then asks for a restore, that the restore heals it, and that its neighbour did not notice.

use vellum_layout::amd64::user;
use vellum_sandbox::{CallOptions, CowMode, ErrorKind, FaultKind, Sandbox, Value};

use super::support::{Lab, add_to_counter, counter, in_each_mode, in_mode, refused};

/// One misdeed.
struct Row {
    name: &'static str,
    function: &'static str,
    args: Vec<Value>,
    expected: Expected,
    /// A part of the error's text.
    says: &'static str,
}

#[derive(Clone, Copy)]
enum Expected {
    Kind(ErrorKind),
    Fault(FaultKind),
}

impl Expected {
    fn kind(self) -> ErrorKind {
        match self {
            Self::Kind(kind) => kind,
            Self::Fault(_) => ErrorKind::Fault,
        }
    }

    fn fault(self) -> Option<FaultKind> {
        match self {
            Self::Kind(_) => None,
            Self::Fault(fault) => Some(fault),
        }
    }
}

fn row(
    name: &'static str,
    function: &'static str,
    args: &[Value],
    expected: Expected,
    says: &'static str,
) -> Row {
    Row {
        name,
        function,
        args: args.to_vec(),
        expected,
        says,
    }
}

/// Ends that the guest brings about by itself.
#[rustfmt::skip]
fn giving_up() -> Vec<Row> {
    use ErrorKind::{GuestAbort, GuestPanic};
    use Expected::Kind;
    let text = |text: &str| [Value::String(text.into())];
    vec![
        row("panic", "do_panic", &text("out of luck"), Kind(GuestPanic), "out of luck"),
        row("panic says where", "do_panic", &text("x"), Kind(GuestPanic), "faults.rs:"),
        row("panic with escapes", "do_panic", &text("\u{1b}[2J"), Kind(GuestPanic), "\\u{1b}[2J"),
        row("panic with 1 MiB of text", "do_panic", &text(&"p".repeat(1 << 20)), Kind(GuestPanic), "pppp"),
        row("abort", "do_abort", &[Value::U32(7)], Kind(GuestAbort), "0x7"),
        row("abort with the largest code", "do_abort", &[Value::U32(u32::MAX)], Kind(GuestAbort), "0xffffffff"),
        row("heap exhaustion", "exhaust_heap", &[], Kind(GuestPanic), "allocation"),
        row("allocation beyond the heap", "allocate", &[Value::U64(1 << 30)], Kind(GuestPanic), "allocation"),
        row("allocation of everything", "allocate", &[Value::U64(u64::MAX)], Kind(GuestPanic), "allocation"),
        row("arena beyond the heap", "reserve", &[Value::U64(1 << 40)], Kind(GuestPanic), "allocation"),
    ]
}

/// Exceptions that the processor raises.
#[rustfmt::skip]
fn exceptions() -> Vec<Row> {
    use Expected::Fault;
    use FaultKind::{Breakpoint, DivideError, InvalidOpcode, StackOverflow};
    vec![
        row("invalid opcode", "invalid_opcode", &[], Fault(InvalidOpcode), "invalid opcode"),
        row("division by zero", "divide", &[Value::I32(1), Value::I32(0)], Fault(DivideError), "divide error"),
        row("quotient overflow", "divide", &[Value::I32(i32::MIN), Value::I32(-1)], Fault(DivideError), "divide error"),
        row("breakpoint", "int3", &[], Fault(Breakpoint), "breakpoint"),
        row("infinite recursion", "overflow_stack", &[], Fault(StackOverflow), "stack overflow"),
        row("deep recursion", "recurse", &[Value::U64(1 << 40)], Fault(StackOverflow), "stack overflow"),
    ]
}

/// Reads of memory that is not the guest's.
#[rustfmt::skip]
fn reads() -> Vec<Row> {
    use FaultKind::{GeneralProtection, NullAccess, StackOverflow, SupervisorAccess, UnmappedAccess};
    let io = io_area();
    let guard = user::stack_guard(1 << 20).expect("the default size").start();
    let rows = [
        ("read near null", 0xFFF8, NullAccess, "0xfff8"),
        ("read below the image", 0x1_0000, UnmappedAccess, "unmapped"),
        ("read behind the heap", heap_end(), UnmappedAccess, "unmapped"),
        ("read behind the buffers", io.output.end().as_u64(), UnmappedAccess, "unmapped"),
        ("read behind the stack", user::STACK_TOP.as_u64(), UnmappedAccess, "unmapped"),
        ("read of the guard page", guard.as_u64(), StackOverflow, "stack overflow"),
        ("read of the last lower address", (1 << 47) - 8, UnmappedAccess, "unmapped"),
        ("read of a non-canonical address", 1 << 47, GeneralProtection, "general protection"),
        ("read of the monitor's window", user::PHYSICAL_WINDOW.start().as_u64(), SupervisorAccess, "supervisor"),
        ("read of the monitor", user::MONITOR_CODE_AREA.start().as_u64(), SupervisorAccess, "supervisor"),
        ("read of the descriptor tables", user::MACHINE_AREA.start().as_u64(), SupervisorAccess, "supervisor"),
        ("read of the exception stack", user::EXCEPTION_STACK.start().as_u64(), SupervisorAccess, "supervisor"),
        ("read of the last address", u64::MAX - 7, SupervisorAccess, "supervisor"),
    ];
    rows.into_iter()
        .map(|(name, address, fault, says)| row(name, "read_address", &[Value::U64(address)], Expected::Fault(fault), says))
        .collect()
}

/// Writes, and jumps, to memory that is not the guest's to write or to execute.
#[rustfmt::skip]
fn writes_and_jumps() -> Vec<Row> {
    use Expected::Fault;
    use FaultKind::{ExecuteNonExecutable, NullAccess, SupervisorAccess, UnmappedAccess, WriteToReadOnly};
    let io = io_area();
    let rows = [
        ("write of the monitor", user::MONITOR_CODE_AREA.start().as_u64(), SupervisorAccess, "supervisor"),
        ("write of bookkeeping", user::BOOKKEEPING.start().as_u64(), SupervisorAccess, "supervisor"),
        ("write of the exception stack", user::EXCEPTION_STACK.start().as_u64(), SupervisorAccess, "supervisor"),
        ("write through the monitor's window", user::PHYSICAL_WINDOW.end().as_u64() - 8, SupervisorAccess, "supervisor"),
        ("write of the PEB", io.peb.start().as_u64(), WriteToReadOnly, "read-only"),
        ("write of the input buffer", io.input.start().as_u64(), WriteToReadOnly, "read-only"),
        ("write of the resume page", io.resume.start().as_u64(), WriteToReadOnly, "read-only"),
        ("write behind the input buffer", io.input.end().as_u64(), UnmappedAccess, "unmapped"),
        ("write behind the heap", heap_end(), UnmappedAccess, "unmapped"),
    ];
    let mut rows: Vec<Row> = rows.into_iter()
        .map(|(name, address, fault, says)| {
            row(name, "write_address", &[Value::U64(address), Value::U64(1)], Fault(fault), says)
        })
        .collect();
    rows.extend([
        row("read of null", "read_null", &[], Fault(NullAccess), "null pointer"),
        row("write of null", "write_null", &[], Fault(NullAccess), "null pointer"),
        row("write to a constant", "write_read_only", &[], Fault(WriteToReadOnly), "read-only"),
        row("read of bookkeeping", "read_supervisor", &[], Fault(SupervisorAccess), "supervisor"),
        row("jump to the stack", "jump_to_nx", &[], Fault(ExecuteNonExecutable), "non-executable"),
    ]);
    rows
}

fn io_area() -> user::IoArea {
    user::io_area(16 << 10, (16 + 8) << 10).expect("the default sizes")
}

fn heap_end() -> u64 {
    user::HEAP_BASE.as_u64() + super::support::HEAP_LEN_BYTES
}

/// Instructions that are not the guest's to execute.
#[rustfmt::skip]
fn privileged() -> Vec<Row> {
    use ErrorKind::{ForbiddenPort, Halted, Protocol};
    use Expected::Kind;
    let out = |name, port: u32, says| row(name, "out_port", &[Value::U32(port), Value::U32(0)], Kind(ForbiddenPort), says);
    let read = |name, port: u32, says| row(name, "in_port", &[Value::U32(port)], Kind(ForbiddenPort), says);
    vec![
        row("halt", "halt", &[], Kind(Halted), "halted"),
        out("out to the first port", 0, "0x0"),
        out("out to a serial port", 0x3F8, "0x3f8"),
        out("out to the interrupt controller", 0x20, "0x20"),
        out("out to the PCI configuration", 0xCF8, "0xcf8"),
        out("out just below the ABI's ports", 0xDF, "0xdf"),
        out("out to the monitor's port", 0xE7, "0xe7"),
        out("out just above the ABI's ports", 0xE7, "0xe7"),
        out("out to the last port", 0xFFFF, "0xffff"),
        read("in from the first port", 0, "0x0"),
        read("in from the keyboard", 0x60, "0x60"),
        read("in from a port of the ABI", 0xE0, "0xe0"),
        read("in from the last port", 0xFFFF, "0xffff"),
        row("idle with a status that is none", "out_port", &[Value::U32(0xE0), Value::U32(2)], Kind(Protocol), "idle"),
        row("idle as if not yet called", "out_port", &[Value::U32(0xE0), Value::U32(0)], Kind(Protocol), "reply"),
        row("text that is not UTF-8", "invalid_utf8", &[], Kind(Protocol), "message"),
    ]
}

/// A deadline that no row needs: a guest that hangs instead is an error of another kind.
fn patience() -> CallOptions {
    CallOptions::new().timeout(std::time::Duration::from_secs(20))
}

/// Does what the row says and checks everything that must follow.
fn check(
    row: &Row,
    sandbox: &mut Sandbox,
    neighbour: &mut Sandbox,
    snapshot: &vellum_sandbox::Snapshot,
) {
    let name = row.name;
    println!("{name}");
    // Something to heal, besides.
    add_to_counter(sandbox, 1000);
    let error = refused(
        name,
        sandbox.call_dynamic(row.function, &row.args, &patience()),
    );
    assert_eq!(error.kind(), row.expected.kind(), "{name}: {error:?}");
    assert_eq!(
        error.fault().map(vellum_sandbox::Fault::kind),
        row.expected.fault(),
        "{name}: {error:?}"
    );
    let text = format!("{error:?}");
    assert!(text.contains(row.says), "{name}: {text}");
    assert!(
        text.len() < 20_000,
        "{name}: an error of {} bytes",
        text.len()
    );

    assert!(!sandbox.is_ready(), "{name}");
    let again = refused(name, sandbox.call::<_, i32>("add", (1, 2)));
    assert_eq!(again.kind(), ErrorKind::NeedsRestore, "{name}: {again:?}");
    assert_eq!(
        refused(name, sandbox.snapshot()).kind(),
        ErrorKind::NeedsRestore,
        "{name}"
    );

    assert_eq!(counter(neighbour), 70, "{name}");
    sandbox
        .restore(snapshot)
        .unwrap_or_else(|error| panic!("restore after {name}: {error:?}"));
    assert!(sandbox.is_ready(), "{name}");
    assert_eq!(counter(sandbox), 5, "{name}");
    assert_eq!(
        sandbox
            .call::<_, i32>("call_host_add", (40, 2))
            .expect("called"),
        42,
        "{name}"
    );
}

fn check_all(lab: &Lab, rows: &[Row]) {
    let (mut sandbox, mut neighbour) = (lab.sandbox(), lab.sandbox());
    add_to_counter(&mut sandbox, 5);
    add_to_counter(&mut neighbour, 70);
    let snapshot = sandbox.snapshot().expect("taken");
    for row in rows {
        check(row, &mut sandbox, &mut neighbour, &snapshot);
    }
}

#[test]
fn every_misdeed_has_its_own_error_and_is_healed_by_a_restore() {
    in_each_mode(|lab| {
        let rows = [
            giving_up(),
            exceptions(),
            reads(),
            writes_and_jumps(),
            privileged(),
        ];
        let rows: Vec<Row> = rows.into_iter().flatten().collect();
        check_all(lab, &rows);
    });
}

#[test]
fn a_scratch_that_is_too_small_is_its_own_error() {
    in_mode(CowMode::GuestSide, |lab| {
        let mut sandbox = lab
            .builder()
            .scratch_len_bytes(2 << 20)
            .build(&lab.engine)
            .expect("built");
        add_to_counter(&mut sandbox, 5);
        let snapshot = sandbox.snapshot().expect("taken");
        let mut neighbour = lab.sandbox();
        add_to_counter(&mut neighbour, 70);
        let pages = [Value::U64(1000)];
        let expected = Expected::Kind(ErrorKind::ScratchExhausted);
        let row = row(
            "scratch exhaustion",
            "touch_pages",
            &pages,
            expected,
            "give the sandbox more scratch",
        );
        for _ in 0..3 {
            check(&row, &mut sandbox, &mut neighbour, &snapshot);
        }
        // What fits still works.
        assert_eq!(
            sandbox
                .call::<_, u64>("touch_pages", (50_u64,))
                .expect("called"),
            50
        );
    });
}

#[test]
fn a_fault_tells_where_it_was() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("taken");
        let error = refused(
            "read",
            sandbox.call::<_, u64>("read_address", (0x1234_5678_u64,)),
        );
        let fault = *error.fault().expect("a fault");
        assert_eq!((fault.vector(), fault.address()), (14, Some(0x1234_5678)));
        assert!(
            user::ELF_AREA
                .contains(vellum_layout::Gva::new(fault.instruction()).expect("canonical"))
        );
        // Present 0, write 0, user 1.
        assert_eq!(fault.error_code() & 0b111, 0b100);
        sandbox.restore(&snapshot).expect("restored");
        let error = refused("ud2", sandbox.call::<_, ()>("invalid_opcode", ()));
        let fault = error.fault().expect("a fault");
        assert_eq!(
            (fault.vector(), fault.address(), fault.error_code()),
            (6, None, 0)
        );
    });
}

#[test]
fn a_thousand_faults_and_restores_leave_a_sandbox_that_works() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        add_to_counter(&mut sandbox, 5);
        let snapshot = sandbox.snapshot().expect("taken");
        let misdeeds = [
            "invalid_opcode",
            "read_null",
            "int3",
            "halt",
            "write_read_only",
        ];
        for name in misdeeds.iter().cycle().take(1000) {
            refused(name, sandbox.call::<_, ()>(name, ()));
            sandbox.restore(&snapshot).expect("restored");
        }
        assert_eq!(counter(&mut sandbox), 5);
    });
}

#[test]
fn a_sandbox_that_was_not_restored_can_be_dropped_and_its_snapshot_used() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("taken");
        refused("halt", sandbox.call::<_, ()>("halt", ()));
        drop(sandbox);
        let mut next =
            Sandbox::from_snapshot(&lab.engine, &snapshot, &super::support::host()).expect("made");
        assert_eq!(counter(&mut next), 0);
    });
}
