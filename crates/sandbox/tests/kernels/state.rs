//! What ring 0 has beside memory: control registers and descriptor tables come back as they were. And what the host sees of a
//! guest's memory is what the guest sees.

use vellum_sandbox::Sandbox;

use super::support::{
    HEAP_LEN_BYTES, Kernel, PAGE, address_of, call, count, peb, refused, with_each_identity,
    with_each_paged, with_kernels,
};

/// CR0 bits (Intel SDM volume 3, section 2.5).
const CR0_PE: u32 = 1 << 0;
const CR0_ET: u32 = 1 << 4;
const CR0_WP: u32 = 1 << 16;
const CR0_PG: u32 = 1 << 31;

/// Control registers and descriptor tables, as the guest reads them.
fn registers(sandbox: &mut Sandbox) -> (u32, [u64; 2], Vec<u8>) {
    (
        call(sandbox, "get_cr0", ()),
        [call(sandbox, "read_cr3", ()), call(sandbox, "read_cr4", ())],
        call(sandbox, "descriptor_tables", ()),
    )
}

#[test]
fn control_registers_and_descriptor_tables_are_the_same_after_a_restore_and_in_a_fork() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let before = registers(&mut sandbox);
        let expected = CR0_PE | CR0_ET | CR0_WP | CR0_PG;
        assert_eq!(before.0 & expected, expected, "cr0 {:#x}", before.0);
        count(&mut sandbox, 1);
        assert_eq!(registers(&mut sandbox), before, "after a snapshot");
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(registers(&mut sandbox), before, "after a restore");
        assert_eq!(registers(&mut lab.fork(&snapshot)), before, "in a fork");
        // After a crash everything is written anew.
        let error = refused(&mut sandbox, "triple_fault", &[]);
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(registers(&mut sandbox), before, "after {error}");
    });
}

#[test]
fn a_kernel_without_paging_begins_in_protected_mode_and_stays_there() {
    with_each_identity(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let expected = CR0_PE | CR0_ET;
        assert_eq!(call::<_, u32>(&mut sandbox, "get_cr0", ()), expected);
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(call::<_, u32>(&mut sandbox, "get_cr0", ()), expected);
        let mut fork = lab.fork(&snapshot);
        assert_eq!(call::<_, u32>(&mut fork, "get_cr0", ()), expected);
    });
}

#[test]
fn a_kernel_without_paging_keeps_the_descriptor_tables_that_it_loads() {
    let rust = |kernel| kernel == Kernel::IdentityRust;
    with_kernels(rust, |lab| {
        let mut sandbox = lab.sandbox();
        let at_boot = sandbox.snapshot().expect("a snapshot");
        let empty: Vec<u8> = call(&mut sandbox, "descriptor_tables", ());
        let () = call(&mut sandbox, "load_descriptor_tables", ());
        let own: Vec<u8> = call(&mut sandbox, "descriptor_tables", ());
        assert_ne!(own, empty);
        let loaded = sandbox.snapshot().expect("a snapshot");
        for (snapshot, expected) in [(&at_boot, &empty), (&loaded, &own), (&at_boot, &empty)] {
            sandbox.restore(snapshot).expect("restored");
            let tables: Vec<u8> = call(&mut sandbox, "descriptor_tables", ());
            assert_eq!(&tables, expected);
        }
        let tables: Vec<u8> = call(&mut lab.fork(&loaded), "descriptor_tables", ());
        assert_eq!(tables, own, "in a fork");
    });
}

#[test]
fn the_host_maps_a_heap_that_it_copies_itself_with_large_pages() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        let large: u32 = call(&mut sandbox, "large_pages", ());
        let span = if lab.kernel == Kernel::Amd64 {
            2 << 20
        } else {
            4 << 20
        };
        if !lab.copies_itself() {
            assert!(
                u64::from(large) >= HEAP_LEN_BYTES / span,
                "{large} large pages"
            );
        }
        let snapshot = sandbox.snapshot().expect("a snapshot");
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(call::<_, u32>(&mut sandbox, "large_pages", ()), large);
        assert_eq!(
            call::<_, u32>(&mut lab.fork(&snapshot), "large_pages", ()),
            large
        );
    });
}

#[test]
fn every_pointer_that_a_kernel_gets_leads_to_the_right_byte() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        let peb = peb(&mut sandbox);
        let physical = |sandbox: &mut Sandbox, address: u64| -> u64 {
            call(sandbox, "physical_address", (address,))
        };
        // All of scratch lies at one distance from its guest-physical addresses, and the buffers and the stack in it.
        for address in [
            peb.scratch_ptr,
            peb.scratch_ptr + (peb.scratch_len_bytes - 1),
            peb.input_ptr,
            peb.output_ptr + (peb.output_len_bytes - 1),
        ] {
            let gpa = physical(&mut sandbox, address);
            assert_eq!(address_of(&peb, gpa), address, "{address:#x}");
        }
        let stack = physical(&mut sandbox, peb.stack_top - 1);
        address_of(&peb, stack);
        let data: u64 = call(&mut sandbox, "data_address", ());
        for (address, value) in [(data, 0x1234_u64), (peb.output_ptr + PAGE, 0x5678)] {
            let () = call(&mut sandbox, "write_address", (address, value));
            let mut word = [0; 4];
            sandbox.read_memory(address, &mut word).expect("mapped");
            assert_eq!(u64::from(u32::from_le_bytes(word)), value);
            sandbox
                .write_memory(address, &[9, 0, 0, 0])
                .expect("mapped");
            assert_eq!(call::<_, u64>(&mut sandbox, "read_address", (address,)), 9);
        }
    });
}
