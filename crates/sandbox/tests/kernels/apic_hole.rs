//! Kernels without paging whose scratch lies on either side of the pages of interrupt controllers.
//!
//! Scratch ends below the local APIC's page at 0xFEE0_0000. With interrupt controllers the I/O APIC has a page at 0xFEC0_0000 as well,
//! and scratch that would cover it ends below.

use std::time::Duration;

use vellum_sandbox::{CallOptions, EngineKind, ErrorKind, Gpa, GpaRange, Irqchip, Sandbox};

use super::support::{Lab, MIB, PAGE, assert_sizes_refused, call, peb, with_each_identity};

const LOCAL_APIC: u64 = 0xFEE0_0000;
const IO_APIC: u64 = 0xFEC0_0000;
/// The longest scratch between the two.
const BETWEEN_LEN_BYTES: u64 = LOCAL_APIC - IO_APIC - PAGE;
/// Why the emulator cannot run a test.
const NO_IRQCHIP: &str = "the emulator has no interrupt controllers";

fn sandbox(lab: &Lab, irqchip: Irqchip, scratch_len_bytes: u64) -> Sandbox {
    lab.builder()
        .interrupt_controllers(irqchip)
        .scratch_len_bytes(scratch_len_bytes)
        .build(&lab.engine)
        .expect("a sandbox can be built")
}

/// Writes through each pointer of the PEB, at both ends of what it points to, and finds it there, from both sides.
fn writes_through_its_pointers(sandbox: &mut Sandbox) {
    let peb_address: u64 = call(sandbox, "peb_address", ());
    assert_eq!(
        call::<_, u64>(sandbox, "read_address", (peb_address,)),
        u64::from(u32::from_le_bytes(*b"VELL")),
        "the block's magic number, read without translation"
    );
    let peb = peb(sandbox);
    assert_eq!(
        peb.scratch_ptr, peb.scratch_gpa,
        "addresses are guest-physical"
    );
    let places = [
        ("input", peb.input_ptr + peb.input_len_bytes - 4),
        ("output", peb.output_ptr + peb.output_len_bytes - 4),
        ("heap", peb.heap_ptr + peb.heap_len_bytes - 4),
        ("stack", peb.stack_top - peb.stack_len_bytes),
        // Frames: the first behind the block, and the last below the bookkeeping.
        ("frame", peb_address + PAGE),
        (
            "last frame",
            peb.scratch_ptr + peb.scratch_len_bytes - vellum_layout::SCRATCH_TOP_LEN_BYTES - 4,
        ),
    ];
    for (what, place) in places {
        assert!(
            place < LOCAL_APIC && place & !0xFFF != IO_APIC,
            "{what} at {place:#x}"
        );
        let () = call(sandbox, "write_address", (place, 0x5EED_u64));
        assert_eq!(
            call::<_, u64>(sandbox, "read_address", (place,)),
            0x5EED,
            "{what} at {place:#x}"
        );
        let mut word = [0; 4];
        sandbox.read_memory(place, &mut word).expect("it is mapped");
        assert_eq!(u32::from_le_bytes(word), 0x5EED, "{what} at {place:#x}");
    }
}

#[test]
fn a_kernel_writes_through_its_pointers_at_scratch_sizes_on_both_sides_of_the_hole() {
    with_each_identity(|lab| {
        if lab.engine.kind() == Some(EngineKind::Emulator) {
            return Err(NO_IRQCHIP);
        }
        let sizes = [
            MIB,
            BETWEEN_LEN_BYTES - PAGE,
            BETWEEN_LEN_BYTES,
            BETWEEN_LEN_BYTES + PAGE,
            LOCAL_APIC - IO_APIC,
            LOCAL_APIC - IO_APIC + PAGE,
            64 * MIB,
            2048 * MIB,
            3072 * MIB,
        ];
        for irqchip in [Irqchip::None, Irqchip::InKernel] {
            for len_bytes in sizes {
                let mut sandbox = sandbox(lab, irqchip, len_bytes);
                let peb = peb(&mut sandbox);
                let end = match irqchip {
                    Irqchip::InKernel if len_bytes > BETWEEN_LEN_BYTES => IO_APIC,
                    _ => LOCAL_APIC,
                };
                assert_eq!(
                    peb.scratch_ptr + peb.scratch_len_bytes,
                    end,
                    "{irqchip:?}, scratch of {len_bytes:#x} bytes"
                );
                writes_through_its_pointers(&mut sandbox);
            }
        }
        Ok(())
    });
}

#[test]
fn a_sandbox_with_interrupt_controllers_has_no_snapshots_and_waits_in_hlt() {
    with_each_identity(|lab| {
        if lab.engine.kind() == Some(EngineKind::Emulator) {
            let builder = lab.builder().interrupt_controllers(Irqchip::InKernel);
            let error = builder.build(&lab.engine).expect_err("refused");
            let text = format!("{error:?}");
            assert!(text.contains("interrupt controllers"), "{text}");
            return Err(NO_IRQCHIP);
        }
        let mut sandbox = sandbox(lab, Irqchip::InKernel, MIB);
        let error = sandbox.snapshot().expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error:?}");
        assert_eq!(call::<_, i32>(&mut sandbox, "add", (40, 2)), 42);
        let deadline = CallOptions::new().timeout(Duration::from_millis(20));
        let error = sandbox
            .call_dynamic("halt", &[], &deadline)
            .expect_err("no interrupt ever comes");
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error:?}");
        Ok(())
    });
}

#[test]
fn scratch_moves_below_a_range_that_the_guest_reserves() {
    with_each_identity(|lab| {
        let range =
            GpaRange::new(Gpa::new(0xFE00_0000).expect("an address"), 16 * PAGE).expect("a range");
        let mut sandbox = lab
            .builder()
            .reserve("user stack", range)
            .scratch_len_bytes(64 * MIB)
            .build(&lab.engine)
            .expect("a sandbox can be built");
        let peb = peb(&mut sandbox);
        assert_eq!(peb.scratch_ptr + peb.scratch_len_bytes, 0xFE00_0000);
        writes_through_its_pointers(&mut sandbox);
        let error = lab
            .builder()
            .reserve("user stack", range)
            .scratch_len_bytes(0xFE00_0000 - MIB)
            .build(&lab.engine)
            .expect_err("no room below");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error:?}");
    });
}

#[test]
fn sizes_that_do_not_fit_below_4_gib_are_refused() {
    with_each_identity(|lab| {
        assert_sizes_refused(lab, &[4096 * MIB, 4077 * MIB, !0xFFF]);
    });
}

#[test]
fn an_image_that_would_cover_a_hole_is_refused() {
    with_each_identity(|lab| {
        // The heap lies behind the segments: this one would reach the I/O APIC's page, with scratch above.
        let build = |irqchip| {
            lab.builder()
                .interrupt_controllers(irqchip)
                .heap_len_bytes(IO_APIC - MIB)
                .scratch_len_bytes(MIB)
                .build(&lab.engine)
        };
        let error = build(Irqchip::InKernel).expect_err("over the hole");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error:?}");
    });
}
