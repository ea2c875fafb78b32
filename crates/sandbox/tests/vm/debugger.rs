//! Reading and writing guest memory by guest-virtual address.

use vellum_layout::amd64::user;
use vellum_sandbox::{ErrorKind, Sandbox};

use super::support::{HEAP_LEN_BYTES, host, in_each_mode, refused};

/// Four bytes before the end of a page, in a part of the heap that the guest itself makes no use of.
const PLACE: u64 = user::HEAP_BASE.as_u64() + HEAP_LEN_BYTES / 2 - 4;

fn read(sandbox: &mut Sandbox, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xEE; len];
    sandbox
        .read_memory(address, &mut bytes)
        .unwrap_or_else(|error| panic!("{address:#x}: {error:?}"));
    bytes
}

/// What the guest itself finds at an address.
fn seen_by_guest(sandbox: &mut Sandbox, address: u64, len: u32) -> Vec<u8> {
    sandbox.call("peek", (address, len)).expect("called")
}

#[test]
fn the_host_sees_what_the_guest_has_written_and_zeroes_where_it_has_not() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let address = PLACE;
        assert_eq!(read(&mut sandbox, address, 0x2000), vec![0; 0x2000]);
        let bytes = vec![1_u8, 2, 3, 4, 5, 6, 7, 8];
        sandbox
            .call::<_, ()>("poke", (address, &bytes[..]))
            .expect("called");
        assert_eq!(read(&mut sandbox, address, 8), bytes);
        assert_eq!(read(&mut sandbox, address + 8, 4), [0; 4]);
        assert!(read(&mut sandbox, address, 0).is_empty());
    });
}

#[test]
fn what_the_host_writes_is_seen_by_the_guest_kept_by_snapshots_and_undone_by_a_restore() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let address = PLACE;
        sandbox
            .call::<_, ()>("poke", (address, &[9_u8; 8][..]))
            .expect("called");
        let before = sandbox.snapshot().expect("taken");
        // The guest makes the pages its own again, which copies them where it is the guest that copies.
        sandbox
            .call::<_, ()>("poke", (address, &[8_u8; 8][..]))
            .expect("called");
        sandbox
            .write_memory(address, &[7; 8])
            .expect("private pages can be written");
        assert_eq!(seen_by_guest(&mut sandbox, address, 8), [7; 8]);
        let after = sandbox.snapshot().expect("taken");
        sandbox.restore(&before).expect("restored");
        assert_eq!(seen_by_guest(&mut sandbox, address, 8), [9; 8]);
        sandbox.restore(&after).expect("restored");
        assert_eq!(seen_by_guest(&mut sandbox, address, 8), [7; 8]);
    });
}

#[test]
fn code_and_shared_pages_can_be_written_without_reaching_other_sandboxes() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("taken");
        let mut other =
            Sandbox::from_snapshot(&lab.engine, &snapshot, &host()).expect("a sandbox can be made");
        let entry = entry_of(vellum_test_guests::rust_user());
        let code = read(&mut sandbox, entry, 16);
        let patch: Vec<u8> = code.iter().map(|byte| !byte).collect();
        for round in 0..2 {
            sandbox.write_memory(entry, &patch).expect("written");
            assert_eq!(
                seen_by_guest(&mut sandbox, entry, 16),
                patch,
                "round {round}"
            );
            assert_eq!(seen_by_guest(&mut other, entry, 16), code);
            let patched = sandbox.snapshot().expect("taken");
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(seen_by_guest(&mut sandbox, entry, 16), code);
            other.restore(&patched).expect("restored");
            assert_eq!(seen_by_guest(&mut other, entry, 16), patch);
            other.restore(&snapshot).expect("restored");
            sandbox.write_memory(entry, &patch).expect("written");
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(seen_by_guest(&mut sandbox, entry, 16), code);
        }
    });
}

/// The entry point of a 64-bit ELF file.
fn entry_of(elf: &[u8]) -> u64 {
    u64::from_le_bytes(elf[24..32].try_into().expect("eight bytes"))
}

#[test]
fn addresses_that_are_not_mapped_are_named_and_nothing_is_lost() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let mut bytes = [0; 16];
        let last_of_heap = user::HEAP_BASE.as_u64() + HEAP_LEN_BYTES - 8;
        for address in [
            0,
            0xFFF,
            last_of_heap,
            0x0000_7FFF_FFFF_FFF8,
            0x8000_0000_0000,
            0xFFFF_FFFF_FFFF_FFF8,
            u64::MAX,
        ] {
            let error = refused("reading", sandbox.read_memory(address, &mut bytes));
            assert_eq!(error.kind(), ErrorKind::GuestMemory, "{address:#x}");
            let error = refused("writing", sandbox.write_memory(address, &[1; 16]));
            assert_eq!(error.kind(), ErrorKind::GuestMemory, "{address:#x}");
        }
        // Nothing was written before the first address that could not be.
        assert_ne!(read(&mut sandbox, last_of_heap, 8), [1; 8]);
    });
}

#[test]
fn the_monitor_can_be_read_but_not_written() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let monitor = user::MONITOR_CODE_AREA.start().as_u64();
        assert_ne!(read(&mut sandbox, monitor, 64), [0; 64]);
        let error = refused("writing", sandbox.write_memory(monitor, &[0xCC]));
        assert_eq!(error.kind(), ErrorKind::GuestMemory);
    });
}

#[test]
fn memory_can_be_read_after_a_call_that_went_wrong() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let address = PLACE;
        sandbox
            .call::<_, ()>("poke", (address, &[3_u8; 8][..]))
            .expect("called");
        let error = refused(
            "a panic",
            sandbox.call::<_, ()>("do_panic", ("on purpose",)),
        );
        assert_eq!(error.kind(), ErrorKind::GuestPanic);
        assert_eq!(read(&mut sandbox, address, 8), [3; 8]);
    });
}
