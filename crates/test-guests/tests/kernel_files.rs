//! What the files of the Rust kernels are: for which machine, where, and of which instructions.

use std::collections::BTreeMap;

use iced_x86::{CpuidFeature, Decoder, DecoderOptions, Mnemonic};
use object::{
    Architecture, File, Object, ObjectKind, ObjectSection, ObjectSegment, SectionKind, SegmentFlags,
};
use vellum_abi::function::{FunctionEntry, Signature};
use vellum_abi::note::GuestNote;
use vellum_layout::GuestKind;
use vellum_test_guests::{amd64_kernel, i686_paged, i686_rust};

/// A kernel's file and what it should be.
struct Kernel {
    name: &'static str,
    file: File<'static>,
    kind: GuestKind,
    architecture: Architecture,
    bits: u32,
    first_address: u64,
}

/// The kernels that there are, and notes on the terminal about those that there are not.
fn kernels() -> Vec<Kernel> {
    let i686 = (Architecture::I386, 32, 0x10_0000);
    let amd64 = (Architecture::X86_64, 64, 0x40_0000);
    [
        ("i686 identity", i686_rust(), GuestKind::I686Identity, i686),
        ("i686 paged", i686_paged(), GuestKind::I686Paged, i686),
        ("amd64", amd64_kernel(), GuestKind::Amd64Kernel, amd64),
    ]
    .into_iter()
    .filter_map(|(name, elf, kind, (architecture, bits, first_address))| {
        if elf.is_none() {
            eprintln!("SKIPPED: no toolchain for the {name} kernel in Rust");
        }
        Some(Kernel {
            name,
            file: File::parse(elf?).expect("a sound ELF"),
            kind,
            architecture,
            bits,
            first_address,
        })
    })
    .collect()
}

impl Kernel {
    fn section(&self, name: &str) -> &'static [u8] {
        let section = self.file.section_by_name(name);
        section.and_then(|it| it.data().ok()).unwrap_or_default()
    }

    /// The bytes at an address of the image.
    fn bytes_at(&self, address: u64, len_bytes: u64) -> &'static [u8] {
        self.file
            .segments()
            .find_map(|segment| segment.data_range(address, len_bytes).ok().flatten())
            .expect("inside of a segment")
    }

    /// What it exports, by name.
    fn functions(&self) -> BTreeMap<String, Signature> {
        FunctionEntry::parse_table(self.section("vellum_functions"))
            .expect("whole entries")
            .map(|entry| {
                let name = self.bytes_at(entry.name_ptr, entry.name_len_bytes.into());
                let name = vellum_abi::function::check_name(name).expect("a sound name");
                (name.to_owned(), entry.signature().expect("a sound entry"))
            })
            .collect()
    }
}

#[test]
fn each_kernel_is_for_its_machine_and_says_so() {
    for kernel in kernels() {
        let Kernel { name, kind, .. } = kernel;
        assert_eq!(kernel.file.kind(), ObjectKind::Executable, "{name}");
        assert_eq!(kernel.file.architecture(), kernel.architecture, "{name}");
        let note = GuestNote::parse(kernel.section(".note.vellum"));
        assert_eq!(note, Ok(GuestNote { kind }), "{name}");
    }
}

#[test]
fn segments_begin_at_the_link_address_and_none_is_writable_code() {
    for kernel in kernels() {
        let mut next = kernel.first_address;
        for segment in kernel.file.segments() {
            let name = kernel.name;
            let SegmentFlags::Elf { p_flags, .. } = segment.flags() else {
                panic!("{name} is no ELF");
            };
            // PF_X is 1, PF_W is 2 (System V gABI, chapter 5, "Segment Permissions").
            assert_ne!(p_flags.0 & 3, 3, "{name}: {:#x}", segment.address());
            let start = segment.address();
            assert!(start >= next, "{name}: {start:#x} shares a page");
            assert!(start < next + 0x10_0000, "{name}: {start:#x} leaves a hole");
            next = (start + segment.size()).next_multiple_of(0x1000);
        }
    }
}

#[test]
fn the_paged_kernels_export_the_same_functions_on_both_architectures() {
    let functions: Vec<_> = kernels()
        .iter()
        .filter(|kernel| kernel.kind != GuestKind::I686Identity)
        .map(Kernel::functions)
        .collect();
    for pair in functions.windows(2) {
        assert_eq!(pair[0], pair[1]);
    }
}

#[test]
fn every_kernel_exports_what_tests_of_all_kinds_call() {
    for kernel in kernels() {
        let functions = kernel.functions();
        for name in [
            "null",
            "add",
            "greet",
            "counter_add",
            "counter_get",
            "touch_pages",
            "peek",
            "poke",
            "checkpoint",
            "checkpoint_then_count",
            "generation",
            "mapping_gpa",
            "heap_word",
        ] {
            assert!(functions.contains_key(name), "{name} in {}", kernel.name);
        }
    }
}

/// Features whose instructions compiled code of a kernel may use: every processor of its architecture has them, they use no
/// vector or floating-point registers, and hypervisors that emulate ring 0 know them.
const ALLOWED: [CpuidFeature; 11] = [
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CPUID,
    CpuidFeature::CMOV,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PAUSE,
    CpuidFeature::CX8,
];

/// Instructions that only the assembly of the test kernels holds, for the tests of what a restore puts back: they run where ring 0 is the
/// processor's, and a compiler does not choose them by itself.
const ASSEMBLY: [Mnemonic; 8] = [
    Mnemonic::Fxsave,
    Mnemonic::Fxsave64,
    Mnemonic::Fxrstor,
    Mnemonic::Fxrstor64,
    Mnemonic::Xgetbv,
    Mnemonic::Xsetbv,
    Mnemonic::Rdmsr,
    Mnemonic::Wrmsr,
];

#[test]
fn no_kernel_uses_vector_or_floating_point_instructions() {
    for kernel in kernels() {
        let code = kernel
            .file
            .sections()
            .filter(|section| section.kind() == SectionKind::Text);
        let mut count = 0;
        for section in code {
            let bytes = section.data().expect("in the file");
            let address = section.address();
            let decoder = Decoder::with_ip(kernel.bits, bytes, address, DecoderOptions::NONE);
            for instruction in decoder {
                count += 1;
                // An older processor executes TZCNT as BSF, and compilers choose it where the two do the same.
                let is_allowed = instruction.mnemonic() == Mnemonic::Tzcnt
                    || ASSEMBLY.contains(&instruction.mnemonic())
                    || instruction
                        .cpuid_features()
                        .iter()
                        .all(|feature| ALLOWED.contains(feature));
                assert!(
                    is_allowed && !instruction.is_invalid(),
                    "{}: {:?} at {:#x}",
                    kernel.name,
                    instruction.mnemonic(),
                    instruction.ip()
                );
            }
        }
        assert!(count > 1000, "{} has {count} instructions", kernel.name);
    }
}
