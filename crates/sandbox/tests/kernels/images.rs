//! Files that say one thing and are another, or that are linked where something else must be.

use vellum_sandbox::{ErrorKind, GuestImage, GuestKind, Sandbox, SandboxBuilder};

use super::support::{
    Kernel, Lab, MIB, PAGE, assert_sizes_refused, host, with_each_identity, with_each_paged,
    with_kernels,
};

/// Offset of the guest kind in a file: the last word of its note. The owner and the ABI version stand before it.
fn kind_offset(elf: &[u8]) -> usize {
    let note = [&b"Vellum\0\0"[..], &vellum_abi::ABI_VERSION.to_le_bytes()].concat();
    let at = elf.windows(note.len()).position(|window| window == note);
    at.expect("the file has its note") + note.len()
}

fn refusal(elf: &[u8]) -> String {
    let error = GuestImage::from_bytes(elf).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::InvalidImage, "{error:?}");
    format!("{error:?}")
}

/// Every guest of the repository that was built.
fn files() -> Vec<(GuestKind, &'static [u8])> {
    let files = [
        Some(vellum_test_guests::rust_user()),
        vellum_test_guests::c_user(),
        vellum_test_guests::i686_c(),
        vellum_test_guests::i686_rust(),
        vellum_test_guests::i686_paged(),
        vellum_test_guests::amd64_kernel(),
    ];
    let valid = |elf| GuestImage::from_bytes(elf).expect("valid").kind();
    files
        .into_iter()
        .flatten()
        .map(|elf| (valid(elf), elf))
        .collect()
}

fn is_32_bit(kind: GuestKind) -> bool {
    matches!(kind, GuestKind::I686Identity | GuestKind::I686Paged)
}

#[test]
fn a_note_of_the_other_architecture_is_refused() {
    for (kind, elf) in files() {
        for (number, claimed) in [
            (1, GuestKind::Amd64User),
            (2, GuestKind::Amd64Kernel),
            (3, GuestKind::I686Identity),
            (4, GuestKind::I686Paged),
        ] {
            let mut patched = elf.to_vec();
            patched[kind_offset(elf)] = number;
            if is_32_bit(kind) != is_32_bit(claimed) {
                let says = refusal(&patched);
                assert!(
                    says.contains("other architecture"),
                    "{kind} as {claimed}: {says}"
                );
            }
        }
        for number in [0, 5, 255] {
            let mut patched = elf.to_vec();
            patched[kind_offset(elf)] = number;
            let says = refusal(&patched);
            assert!(
                says.contains(&format!("unknown guest kind {number}")),
                "{says}"
            );
        }
    }
}

#[test]
fn a_file_whose_header_says_another_width_or_machine_is_refused() {
    /// Offsets in the ELF header, the same in both classes (System V gABI, chapter 4).
    const CLASS: usize = 4;
    const MACHINE: usize = 18;
    const AMD64: u8 = 62;
    const I386: u8 = 3;
    for (kind, elf) in files() {
        let (other_class, other_machine) = if is_32_bit(kind) {
            (2, AMD64)
        } else {
            (1, I386)
        };
        let patches: [&[(usize, u8)]; 3] = [
            &[(CLASS, other_class)],
            &[(MACHINE, other_machine)],
            &[(CLASS, other_class), (MACHINE, other_machine)],
        ];
        for patch in patches {
            let mut patched = elf.to_vec();
            for (offset, byte) in patch {
                patched[*offset] = *byte;
            }
            let says = refusal(&patched);
            assert!(says.contains("elf"), "{kind} with {patch:?}: {says}");
        }
    }
}

/// The 32-bit file with the address of its last segment changed by `edit`; its header keeps everything else.
fn with_last_segment_at(elf: &[u8], address: u32) -> Vec<u8> {
    /// Offsets in the header and in a program header of class 32 (System V gABI, chapters 4 and 5).
    const PHOFF: usize = 28;
    const PHNUM: usize = 44;
    const PHENTSIZE: usize = 32;
    const P_VADDR: usize = 8;
    const PT_LOAD: u32 = 1;
    let word = |at: usize| u32::from_le_bytes(elf[at..at + 4].try_into().expect("four bytes"));
    let count = usize::from(u16::from_le_bytes([elf[PHNUM], elf[PHNUM + 1]]));
    let headers = (0..count).map(|index| word(PHOFF) as usize + index * PHENTSIZE);
    let last = headers
        .filter(|at| word(*at) == PT_LOAD)
        .max_by_key(|at| word(at + P_VADDR));
    let at = last.expect("a segment") + P_VADDR;
    // The place in the page stays, as the file's offset demands.
    let address = address | word(at) & 0xFFF;
    let mut patched = elf.to_vec();
    patched[at..at + 4].copy_from_slice(&address.to_le_bytes());
    patched
}

/// A guest whose last segment lies at `address` is refused, as an image or when a sandbox is built as `configure` says.
fn assert_refused_at(
    lab: &Lab,
    elf: &[u8],
    address: u32,
    configure: impl Fn(SandboxBuilder) -> SandboxBuilder,
) {
    let result = GuestImage::from_bytes(&with_last_segment_at(elf, address)).and_then(|image| {
        let builder = Sandbox::builder(&image).heap_len_bytes(MIB);
        configure(builder.host_functions(&host())).build(&lab.engine)
    });
    let error = result.expect_err("refused");
    let kinds = [ErrorKind::InvalidImage, ErrorKind::InvalidConfig];
    assert!(kinds.contains(&error.kind()), "{address:#x}: {error:?}");
}

#[test]
fn a_kernel_without_paging_that_is_linked_over_scratch_or_a_hole_is_refused() {
    with_each_identity(|lab| {
        let elf = match lab.kernel {
            Kernel::IdentityC => vellum_test_guests::i686_c(),
            _ => vellum_test_guests::i686_rust(),
        };
        let elf = elf.expect("it has a lab");
        // Over the buffers, the frames and the bookkeeping of 1 MiB of scratch; a page below scratch, which leaves no room for the
        // heap; the local APIC; the end of the address space.
        for address in [
            0xFED0_0000,
            0xFED8_0000,
            0xFEDF_F000,
            0xFECF_F000,
            0xFEE0_0000,
            0xFFFF_F000,
        ] {
            assert_refused_at(lab, elf, address, |it| it.scratch_len_bytes(MIB));
        }
    });
}

#[test]
fn a_kernel_with_paging_that_is_linked_over_scratch_is_refused() {
    let paged = |kernel| kernel == Kernel::Paged;
    with_kernels(paged, |lab| {
        let elf = vellum_test_guests::i686_paged().expect("it has a lab");
        for address in [0xFFFF_F000, 0xFFF0_0000, 0xFFEF_F000] {
            assert_refused_at(lab, elf, address, |it| it);
        }
    });
}

#[test]
fn sizes_that_a_kernel_with_paging_has_no_room_for_are_refused() {
    with_each_paged(|lab| {
        assert_sizes_refused(lab, &[1, PAGE + 1, !0xFFF]);
    });
}

#[test]
fn a_kernel_with_2_level_paging_runs_or_is_refused_by_name() {
    with_kernels(
        |kernel| kernel == Kernel::IdentityRust,
        |lab| {
            let Some(elf) = vellum_test_guests::i686_paged() else {
                return Err("no compiler for it when the guests were built");
            };
            let image = GuestImage::from_bytes(elf).expect("the file is valid");
            let built = vellum_sandbox::Sandbox::builder(&image)
                .host_functions(&super::support::host())
                .build(&lab.engine);
            match (built, lab.engine.capabilities().two_level_paging) {
                (Ok(_), true) => {}
                (Err(error), false) => {
                    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
                    assert!(error.to_string().contains("2-level paging"), "{error}");
                }
                (built, _) => panic!("{built:?}"),
            }
            Ok(())
        },
    );
}
