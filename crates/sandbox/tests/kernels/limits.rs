//! What the ends of the address space and of messages must not lead to.

use vellum_sandbox::{ErrorKind, Sandbox};

use super::support::{
    Kernel, PAGE, address_of, call, limited, peb, with_each_kernel, with_kernels,
};

/// The last page of the address space.
const LAST_PAGE: u64 = 0xFFFF_FFFF_FFFF_F000;

fn word(sandbox: &mut Sandbox, address: u64) -> u64 {
    let mut bytes = [0; 8];
    sandbox.read_memory(address, &mut bytes).expect("mapped");
    u64::from_le_bytes(bytes)
}

#[test]
fn a_range_that_reaches_the_end_of_the_address_space_is_refused_even_where_it_is_mapped() {
    with_kernels(
        |kernel| kernel == Kernel::Amd64,
        |lab| {
            let mut sandbox = lab.sandbox();
            let peb = peb(&mut sandbox);
            let mut table: u64 = call(&mut sandbox, "read_cr3", ());
            for shift in [39, 30, 21] {
                let entry = address_of(&peb, table & !0xFFF) + (LAST_PAGE >> shift & 511) * 8;
                table = word(&mut sandbox, entry) & 0x000F_FFFF_FFFF_F000;
            }
            // The kernel's tables map scratch up to the page before; a hostile kernel maps the last one, too.
            let entry = address_of(&peb, table) + 511 * 8;
            sandbox
                .write_memory(entry, &(peb.scratch_gpa | 0x63).to_le_bytes())
                .expect("mapped");
            let mut page = vec![0; 4096];
            let error = sandbox
                .read_memory(LAST_PAGE, &mut page)
                .expect_err("its end is no address");
            assert_eq!(error.kind(), ErrorKind::GuestMemory, "{error:?}");
            sandbox
                .read_memory(LAST_PAGE, &mut page[..4095])
                .expect("mapped");
            let error = sandbox
                .write_memory(LAST_PAGE + 1, &page)
                .expect_err("it wraps around");
            assert_eq!(error.kind(), ErrorKind::GuestMemory, "{error:?}");
        },
    );
}

#[test]
fn what_a_snapshot_wipes_is_wiped_in_its_copies_too() {
    with_each_kernel(|lab| {
        let mut sandbox = lab.sandbox();
        sandbox.keep_checkpoints();
        let peb = peb(&mut sandbox);
        let old_reply = peb.output_ptr + 2 * PAGE;
        sandbox
            .write_memory(old_reply, b"OLDREPLY")
            .expect("mapped");
        let _: u64 = call(&mut sandbox, "checkpoint", (1_u32,));
        let checkpoint = sandbox.take_checkpoint().expect("kept");
        sandbox.restore(checkpoint.snapshot()).expect("restored");
        let _: u64 = sandbox.resume(&limited()).expect("resumed");
        let snapshot = sandbox.snapshot().expect("taken");
        assert_eq!(word(&mut sandbox, old_reply), 0);
        let mut copy = lab.fork(&snapshot);
        assert_eq!(word(&mut copy, old_reply), 0);
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(word(&mut sandbox, old_reply), 0);
    });
}
