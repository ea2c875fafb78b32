//! Kernels that write garbage over their own page tables: whatever they write ends in a value or in a typed error, on both sides,
//! and a restore heals.

use std::time::Duration;

use vellum_sandbox::{CallOptions, ErrorKind, RingZero, Sandbox, Value};

use super::support::{Kernel, Lab, address_of, call, count, counter, peb, with_each_paged};

/// Bytes of a table.
const TABLE_LEN_BYTES: usize = 4096;

/// So long may a kernel without sound tables fault in circles, as it may where ring 0 is emulated.
fn limited() -> CallOptions {
    CallOptions::new().timeout(Duration::from_millis(500))
}

/// Where the kernel sees its root, and the root's guest-physical address.
fn root(sandbox: &mut Sandbox) -> (u64, u64) {
    let gpa: u64 = call(sandbox, "root_gpa", (0_u32,));
    let peb = peb(sandbox);
    (address_of(&peb, gpa), gpa)
}

fn entry_len_bytes(lab: &Lab) -> usize {
    if lab.kernel == Kernel::Amd64 { 8 } else { 4 }
}

/// A table all of whose entries are this number.
fn filled(lab: &Lab, entry: u64) -> Vec<u8> {
    let len_bytes = entry_len_bytes(lab);
    entry.to_le_bytes()[..len_bytes].repeat(TABLE_LEN_BYTES / len_bytes)
}

/// Any outcome but a crash of the host: a value, or an error that the guest or the processor has made of it. A kernel that executes its own
/// tables may do whatever their bytes say.
fn expect_typed<T>(result: Result<T, vellum_sandbox::Error>) {
    if let Err(error) = result {
        let kind = error.kind();
        let expected = [
            ErrorKind::Crashed,
            ErrorKind::GuestPanic,
            ErrorKind::GuestError,
            ErrorKind::GuestAbort,
            ErrorKind::Fault,
            ErrorKind::ForbiddenPort,
            ErrorKind::Halted,
            ErrorKind::DeadlineExceeded,
            ErrorKind::Protocol,
            ErrorKind::NeedsRestore,
            ErrorKind::GuestMemory,
        ];
        assert!(expected.contains(&kind), "{error:?}");
    }
}

#[test]
fn garbage_over_the_whole_root_ends_the_kernel_and_a_restore_heals() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        count(&mut sandbox, 7);
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let (address, gpa) = root(&mut sandbox);
        // Nothing; every bit; itself; a large page at 0; memory that is not there.
        for entry in [0, u64::MAX, gpa | 0x67, 0xE7, 0x8000_0067] {
            let args = [Value::U64(address), Value::Bytes(filled(lab, entry))];
            expect_typed(sandbox.call_dynamic("poke", &args, &limited()));
            // The processor may remember translations until CR3 is loaded again, which this does.
            expect_typed(sandbox.call_dynamic(
                "root_read_at",
                &[Value::U32(0), Value::U64(address)],
                &limited(),
            ));
            expect_typed(sandbox.read_memory(address, &mut [0; 64]));
            expect_typed(sandbox.write_memory(address, &[0; 64]));
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(counter(&mut sandbox), 7, "after {entry:#x}");
        }
    });
}

#[test]
fn a_snapshot_of_broken_tables_is_one_like_any_other() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        count(&mut sandbox, 7);
        let sound = sandbox.snapshot().expect("a snapshot");
        let (address, gpa) = root(&mut sandbox);
        let args = [Value::U64(address), Value::Bytes(filled(lab, gpa | 0x67))];
        expect_typed(sandbox.call_dynamic("poke", &args, &limited()));
        // The kernel may have got as far as its reply with what the processor remembers.
        if let Ok(broken) = sandbox.snapshot() {
            let mut fork = lab.fork(&broken);
            expect_typed(fork.call_dynamic("counter_get", &[], &limited()));
            expect_typed(fork.read_memory(address, &mut [0; 64]));
            expect_typed(fork.restore(&broken));
            fork.restore(&sound).expect("restored to sound tables");
            assert_eq!(counter(&mut fork), 7);
            sandbox.restore(&broken).expect("restored to broken tables");
        }
        sandbox.restore(&sound).expect("restored");
        assert_eq!(counter(&mut sandbox), 7);
    });
}

#[test]
fn entries_that_lead_nowhere_or_in_circles_do_not_mislead_the_host() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let (address, gpa) = root(&mut sandbox);
        let width = entry_len_bytes(lab);
        // An entry that nothing else uses, and an address below it.
        let (index, hostile) = if lab.kernel == Kernel::Amd64 {
            (100, 100_u64 << 39)
        } else {
            (0xAF0_usize >> 2, 0xAF00_0000_u64)
        };
        for entry in [
            gpa | 0x67,
            u64::MAX,
            0x8000_0067,
            0x000F_FFFF_FFFF_F067,
            gpa | 0xE7,
        ] {
            let entry = &entry.to_le_bytes()[..width];
            let at = address + (index * width) as u64;
            let () = call(&mut sandbox, "poke", (at, entry));
            let mut bytes = vec![0; 3 * TABLE_LEN_BYTES];
            expect_typed(sandbox.read_memory(hostile, &mut bytes));
            expect_typed(sandbox.read_memory(hostile + 0xFFC, &mut bytes));
            count(&mut sandbox, 1);
            let broken = sandbox.snapshot().expect("the kernel itself is well");
            let mut fork = lab.fork(&broken);
            assert_eq!(counter(&mut fork), 1);
            expect_typed(fork.read_memory(hostile, &mut bytes));
            sandbox.restore(&snapshot).expect("restored");
        }
        assert_eq!(counter(&mut sandbox), 0);
    });
}

#[test]
fn a_kernel_that_rewrites_tables_in_bulk_while_it_dirties_memory_can_always_be_restored() {
    /// Pages that are written for the first time in each round: a log of first writes gets nearly full at some time.
    const NEW_PAGES: u64 = 300;
    with_each_paged(|lab| {
        if lab.copies_itself() && lab.engine.capabilities().ring_zero == RingZero::Emulated {
            // Thousands of faults in emulated code.
            return;
        }
        let mut sandbox = lab
            .builder()
            .heap_len_bytes(48 << 20)
            .build(&lab.engine)
            .expect("a sandbox can be built");
        count(&mut sandbox, 7);
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let (address, _) = root(&mut sandbox);
        for round in 1..=24 {
            let dirtied: Result<u64, _> = sandbox.call("touch_pages", (round * NEW_PAGES,));
            // The same bytes as before, by string instructions, which some hypervisors emulate store by store.
            let rewritten = dirtied.and_then(|_| {
                let bytes: Vec<u8> = sandbox.call("peek", (address, 4096_u32))?;
                sandbox.call::<_, ()>("poke", (address, &bytes[..]))
            });
            if let Err(error) = rewritten {
                // A hypervisor's log of writes may be overrun, but not in silence.
                assert_eq!(
                    error.kind(),
                    ErrorKind::Hypervisor,
                    "round {round}: {error:?}"
                );
                sandbox.restore(&snapshot).expect("restored");
                assert_eq!(counter(&mut sandbox), 7, "round {round}");
            }
        }
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(counter(&mut sandbox), 7);
    });
}
