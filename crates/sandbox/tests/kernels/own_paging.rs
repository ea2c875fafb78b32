//! A kernel that the host boots without paging and that turns on its own, later.

use std::time::Duration;

use vellum_sandbox::{CallOptions, ErrorKind, Sandbox};

use super::support::{Kernel, Lab, call, count, counter, refused, with_kernels};

const CR0_PE_AND_ET: u32 = 0x11;
const CR0_PG: u32 = 1 << 31;

/// Runs `test` with the kernel that can do it, where the machine can.
fn with_own_paging(test: impl Fn(&Lab)) {
    let rust = |kernel| kernel == Kernel::IdentityRust;
    with_kernels(rust, |lab| {
        if lab.engine.capabilities().two_level_paging {
            test(lab);
            Ok(())
        } else {
            Err("this hypervisor does not know 2-level paging, which the guest turns on")
        }
    });
}

fn expect_alias(sandbox: &mut Sandbox, value: u32) {
    assert_ne!(
        call::<_, u32>(sandbox, "get_cr0", ()) & CR0_PG,
        0,
        "paging is on"
    );
    assert_eq!(call::<_, u32>(sandbox, "alias_read", ()), value);
    let page: u64 = call(sandbox, "alias_page", ());
    let seen: u64 = call(sandbox, "read_address", (page,));
    assert_eq!(seen, u64::from(value), "the page behind the alias");
}

#[test]
fn its_paging_survives_snapshot_restore_and_fork() {
    with_own_paging(|lab| {
        let mut sandbox = lab.sandbox();
        let before = sandbox.snapshot().expect("a snapshot");
        let cr0: u32 = call(&mut sandbox, "enable_paging", ());
        assert_eq!(cr0, CR0_PE_AND_ET | CR0_PG);
        let () = call(&mut sandbox, "alias_write", (7_u32,));
        count(&mut sandbox, 1);
        let paging = sandbox.snapshot().expect("a snapshot");
        expect_alias(&mut sandbox, 7);
        let () = call(&mut sandbox, "alias_write", (8_u32,));
        expect_alias(&mut sandbox, 8);
        sandbox.restore(&paging).expect("restored");
        expect_alias(&mut sandbox, 7);
        expect_alias(&mut lab.fork(&paging), 7);

        sandbox.restore(&before).expect("restored to before paging");
        assert_eq!(call::<_, u32>(&mut sandbox, "get_cr0", ()), CR0_PE_AND_ET);
        let error = refused(&mut sandbox, "alias_read", &[]);
        assert_eq!(
            error.kind(),
            ErrorKind::Crashed,
            "no such memory: {error:?}"
        );
        sandbox.restore(&paging).expect("restored to paging again");
        expect_alias(&mut sandbox, 7);
        assert_eq!(counter(&mut sandbox), 1);
    });
}

#[test]
fn values_reach_it_through_its_own_translation() {
    with_own_paging(|lab| {
        let mut sandbox = lab.sandbox();
        let _: u32 = call(&mut sandbox, "enable_paging", ());
        let bytes = vec![3_u8; 1_000_000];
        let sum: u64 = call(&mut sandbox, "sum_bytes", (&bytes[..],));
        assert_eq!(sum, 3_000_000);
        let () = call(&mut sandbox, "alias_write", (0x1234_u32,));
        let mut word = [0; 4];
        // The address of the alias means something under the guest's translation only.
        sandbox.read_memory(0xB000_0000, &mut word).expect("mapped");
        assert_eq!(u32::from_le_bytes(word), 0x1234);
        sandbox
            .write_memory(0xB000_0000, &[1, 0, 0, 0])
            .expect("mapped");
        expect_alias(&mut sandbox, 1);
    });
}

#[test]
fn a_hypervisor_that_cannot_do_it_fails_by_name_and_a_restore_heals() {
    let rust = |kernel| kernel == Kernel::IdentityRust;
    with_kernels(rust, |lab| {
        if lab.engine.capabilities().two_level_paging {
            return;
        }
        let mut sandbox = lab.sandbox();
        count(&mut sandbox, 3);
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let deadline = CallOptions::new().timeout(Duration::from_secs(1));
        let error = sandbox
            .call_dynamic("enable_paging", &[], &deadline)
            .expect_err("this hypervisor does not know it");
        // It may also try the refused instruction for ever.
        let kinds = [ErrorKind::Crashed, ErrorKind::DeadlineExceeded];
        assert!(kinds.contains(&error.kind()), "{error:?}");
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(counter(&mut sandbox), 3);
    });
}
