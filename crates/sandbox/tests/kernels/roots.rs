//! Several address spaces of one kernel: what they share stays shared, what each has of its own stays its own, through snapshot,
//! restore and fork.

use vellum_sandbox::{ErrorKind, Sandbox, Value};

use super::support::{call, refused, with_each_paged};

/// Makes two roots, with the numbers 1 and 2, and gives each a word of its own.
fn make_roots(sandbox: &mut Sandbox) {
    for root in [1_u32, 2] {
        assert_eq!(call::<_, u32>(sandbox, "make_root", ()), root);
        let () = call(sandbox, "root_write", (root, 100 + u64::from(root)));
    }
}

/// Everything that is said of a root.
fn describe(sandbox: &mut Sandbox, root: u32) -> [u64; 3] {
    [
        call(sandbox, "root_gpa", (root,)),
        call(sandbox, "root_user_gpa", (root,)),
        call(sandbox, "root_read", (root,)),
    ]
}

/// That both roots see the kernel's memory through the same tables, and each its own page.
fn expect_sharing(sandbox: &mut Sandbox, word: u64) {
    let kernel: u64 = call(sandbox, "data_address", ());
    let user: u64 = call(sandbox, "user_address", ());
    let () = call(sandbox, "root_write_at", (1_u32, kernel, word));
    for root in [0_u32, 1, 2] {
        let seen: u64 = call(sandbox, "root_read_at", (root, kernel));
        assert_eq!(seen, word, "root {root}");
        assert!(
            call::<_, bool>(sandbox, "root_shares_kernel", (root,)),
            "root {root}"
        );
        assert!(
            !call::<_, bool>(sandbox, "is_user_in_root", (root, kernel)),
            "root {root}"
        );
    }
    for root in [1_u32, 2] {
        assert!(
            call::<_, bool>(sandbox, "is_user_in_root", (root, user)),
            "root {root}"
        );
        let () = call(sandbox, "root_write", (root, word + u64::from(root)));
    }
    for root in [1_u32, 2] {
        let seen: u64 = call(sandbox, "root_read", (root,));
        assert_eq!(seen, word + u64::from(root), "root {root}");
    }
}

#[test]
fn roots_stay_where_they_are_and_keep_sharing_through_snapshot_restore_and_fork() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        make_roots(&mut sandbox);
        let made = [1, 2].map(|root| describe(&mut sandbox, root));
        assert_eq!(made.map(|it| it[2]), [101, 102]);
        assert_ne!(made[0][0], made[1][0], "two roots");
        assert_ne!(made[0][1], made[1][1], "two user pages");
        let snapshot = sandbox.snapshot().expect("a snapshot");
        expect_sharing(&mut sandbox, 1000);
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(
            [1, 2].map(|root| describe(&mut sandbox, root)),
            made,
            "restored"
        );
        expect_sharing(&mut sandbox, 2000);

        let mut fork = lab.fork(&snapshot);
        assert_eq!(
            [1, 2].map(|root| describe(&mut fork, root)),
            made,
            "in a fork"
        );
        expect_sharing(&mut fork, 3000);
        let own: u64 = call(&mut sandbox, "root_read", (1_u32,));
        assert_eq!(own, 2001, "a fork has pages of its own");
    });
}

#[test]
fn a_second_snapshot_after_a_restore_keeps_roots_that_were_made_in_between() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        let before = sandbox.snapshot().expect("a snapshot");
        make_roots(&mut sandbox);
        sandbox.restore(&before).expect("restored");
        let error = refused(&mut sandbox, "root_read", &[Value::U32(1)]);
        assert_eq!(error.kind(), ErrorKind::GuestError, "{error:?}");
        make_roots(&mut sandbox);
        let after = sandbox.snapshot().expect("a second snapshot");
        let made = [1, 2].map(|root| describe(&mut sandbox, root));
        sandbox.restore(&before).expect("restored");
        sandbox.restore(&after).expect("restored");
        assert_eq!([1, 2].map(|root| describe(&mut sandbox, root)), made);
        expect_sharing(&mut sandbox, 4000);
    });
}

#[test]
fn what_one_root_copies_on_write_every_root_sees() {
    with_each_paged(|lab| {
        let mut sandbox = lab.sandbox();
        make_roots(&mut sandbox);
        let address: u64 = call(&mut sandbox, "data_address", ());
        let before: u64 = call(&mut sandbox, "fault_count", ());
        // Nobody has written to this page yet: the first write comes from a root that is not the host's.
        let () = call(&mut sandbox, "root_write_at", (2_u32, address, 7_u64));
        let faults = call::<_, u64>(&mut sandbox, "fault_count", ()) - before;
        assert_eq!(faults, u64::from(lab.copies_itself()));
        for root in [0_u32, 1, 2] {
            let seen: u64 = call(&mut sandbox, "root_read_at", (root, address));
            assert_eq!(seen, 7, "root {root}");
        }
    });
}
