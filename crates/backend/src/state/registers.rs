//! Register sets, as the manuals name them.

use std::fmt;

use crate::msr;

/// Bits of CR0 (Intel SDM volume 3, section 2.5).
pub mod cr0 {
    /// Protection enable.
    pub const PE: u64 = 1 << 0;
    /// Monitor coprocessor.
    pub const MP: u64 = 1 << 1;
    /// Extension type: hard-wired to 1.
    pub const ET: u64 = 1 << 4;
    /// Native x87 error reporting.
    pub const NE: u64 = 1 << 5;
    /// Supervisor writes honour read-only pages.
    pub const WP: u64 = 1 << 16;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// Bits of CR4 (Intel SDM volume 3, section 2.5).
pub mod cr4 {
    /// 4 MiB pages under 2-level paging.
    pub const PSE: u64 = 1 << 4;
    /// Physical address extension.
    pub const PAE: u64 = 1 << 5;
    /// Global pages.
    pub const PGE: u64 = 1 << 7;
    /// FXSAVE, FXRSTOR and SSE.
    pub const OSFXSR: u64 = 1 << 9;
    /// Unmasked SSE exceptions raise #XM.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// Virtual-machine extensions.
    pub const VMXE: u64 = 1 << 13;
    /// XSAVE and XCR0.
    pub const OSXSAVE: u64 = 1 << 18;
    /// Supervisor code is never fetched from user pages.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor code does not access user pages.
    pub const SMAP: u64 = 1 << 21;
    /// What protects supervisor code, where the processor has it.
    pub const SUPERVISOR_PROTECTION: u64 = SMEP | SMAP;
}

/// Bits of IA32_EFER (Intel SDM volume 3, section 2.2.1).
pub mod efer {
    /// `syscall` and `sysret`.
    pub const SCE: u64 = 1 << 0;
    /// Long mode enable.
    pub const LME: u64 = 1 << 8;
    /// Long mode active.
    pub const LMA: u64 = 1 << 10;
    /// No-execute enable.
    pub const NXE: u64 = 1 << 11;
}

/// Bits of RFLAGS (Intel SDM volume 1, section 3.4.3).
pub mod rflags {
    /// Bit 1 is always 1.
    pub const FIXED: u64 = 1 << 1;
    /// Direction flag.
    pub const DF: u64 = 1 << 10;
    /// I/O privilege level 3: ring 3 may use ports.
    pub const IOPL_3: u64 = 3 << 12;
}

/// General-purpose registers, RIP and RFLAGS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub struct Gprs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

impl Gprs {
    /// The general registers in the order in which instructions encode them: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15 (Intel SDM
    /// volume 2, table 2-2, with REX.B for the upper eight).
    pub const fn in_encoding_order(&self) -> [u64; 16] {
        [
            self.rax, self.rcx, self.rdx, self.rbx, self.rsp, self.rbp, self.rsi, self.rdi,
            self.r8, self.r9, self.r10, self.r11, self.r12, self.r13, self.r14, self.r15,
        ]
    }

    /// From general registers in [that order](Self::in_encoding_order), RIP and RFLAGS.
    pub const fn from_encoding_order(general: [u64; 16], rip: u64, rflags: u64) -> Self {
        let [
            rax,
            rcx,
            rdx,
            rbx,
            rsp,
            rbp,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
        ] = general;
        Self {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        }
    }
}

impl Default for Gprs {
    fn default() -> Self {
        Self {
            rax: 0,
            rbx: 0,
            rcx: 0,
            rdx: 0,
            rsi: 0,
            rdi: 0,
            rsp: 0,
            rbp: 0,
            r8: 0,
            r9: 0,
            r10: 0,
            r11: 0,
            r12: 0,
            r13: 0,
            r14: 0,
            r15: 0,
            rip: 0,
            rflags: rflags::FIXED,
        }
    }
}

/// A segment register with its hidden part (Intel SDM volume 3, section 3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Limit in bytes, as expanded by the granularity flag.
    pub limit: u32,
    /// Visible selector.
    pub selector: u16,
    /// Type, S, DPL, P, AVL, L, D/B and G.
    pub attributes: SegmentType,
}

/// The access bits of a segment, in the layout that VMX, SVM and Hyper-V share once bits 8 to 11 of the descriptor are cut out:
/// type in bits 0 to 3, S 4, DPL 5 to 6, P 7, AVL 12, L 13, D/B 14, G 15 (Intel SDM volume 3, table 26-2).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct SegmentType(u16);

impl SegmentType {
    /// A segment that cannot be used: a null selector.
    pub const ABSENT: Self = Self(0);
    /// 64-bit ring-0 code: execute/read, accessed.
    pub const CODE64: Self = Self(0xA09B);
    /// Ring-0 data: read/write, accessed, 32-bit, page granularity.
    pub const DATA: Self = Self(0xC093);
    /// 32-bit ring-0 code: execute/read, accessed, page granularity.
    pub const CODE32: Self = Self(0xC09B);
    /// 16-bit code, execute/read, accessed.
    pub const CODE16: Self = Self(0x009B);
    /// 16-bit data, read/write, accessed.
    pub const DATA16: Self = Self(0x0093);
    /// A busy 64-bit (or 32-bit) TSS.
    pub const TSS_BUSY: Self = Self(0x008B);
    /// A local descriptor table.
    pub const LDT: Self = Self(0x0082);

    /// From the bit layout described above.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The bit layout described above.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// The same segment for privilege level `dpl` (0 to 3).
    #[must_use]
    pub const fn with_dpl(self, dpl: u16) -> Self {
        Self(self.0 & !(3 << 5) | (dpl & 3) << 5)
    }

    /// The type field.
    pub const fn type_(self) -> u8 {
        (self.0 & 0xF) as u8
    }

    /// Whether it is a code or data segment (S).
    pub const fn is_code_or_data(self) -> bool {
        self.0 & (1 << 4) != 0
    }

    /// Descriptor privilege level.
    pub const fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }

    /// Whether the segment is present.
    pub const fn is_present(self) -> bool {
        self.0 & (1 << 7) != 0
    }

    /// The bit that is left to the operating system (AVL).
    pub const fn is_available(self) -> bool {
        self.0 & (1 << 12) != 0
    }

    /// Whether it is 64-bit code (L).
    pub const fn is_long(self) -> bool {
        self.0 & (1 << 13) != 0
    }

    /// Default operation size 32 bits (D/B).
    pub const fn is_default_32(self) -> bool {
        self.0 & (1 << 14) != 0
    }

    /// Limit in pages (G).
    pub const fn is_page_granular(self) -> bool {
        self.0 & (1 << 15) != 0
    }
}

impl fmt::Debug for SegmentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentType({:#06x})", self.0)
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Size in bytes minus 1.
    pub limit: u16,
}

/// Segments, descriptor tables, control registers and EFER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub struct SpecialRegs {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldtr: Segment,
    pub gdtr: DescriptorTable,
    pub idtr: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
}

impl Default for SpecialRegs {
    /// Every segment absent but a busy TSS, and CR0.ET set: the least that a hypervisor accepts.
    fn default() -> Self {
        let absent = Segment::default();
        Self {
            cs: absent,
            ds: absent,
            es: absent,
            fs: absent,
            gs: absent,
            ss: absent,
            tr: Segment {
                limit: 0xFFFF,
                attributes: SegmentType::TSS_BUSY,
                ..absent
            },
            ldtr: absent,
            gdtr: DescriptorTable::default(),
            idtr: DescriptorTable::default(),
            cr0: cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            apic_base: 0,
        }
    }
}

/// DR0 to DR3, DR6 and DR7 (Intel SDM volume 3, section 18.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub struct DebugRegs {
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

impl Default for DebugRegs {
    /// The values after a reset.
    fn default() -> Self {
        Self {
            dr: [0; 4],
            dr6: 0xFFFF_0FF0,
            dr7: 0x400,
        }
    }
}

/// One model-specific register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msr {
    /// Its index, as in ECX of `rdmsr`.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

/// The values of the registers that [`crate::msr::DECLARED`] names, in its order. `Default` is their state after a reset: zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msrs([Msr; msr::DECLARED.len()]);

impl Msrs {
    /// The registers, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Msr> {
        self.0.iter()
    }

    /// The value of a declared register.
    pub fn get(&self, index: u32) -> Option<u64> {
        self.0
            .iter()
            .find(|msr| msr.index == index)
            .map(|msr| msr.value)
    }

    /// Changes a declared register; says whether there is one of this index.
    pub fn set(&mut self, index: u32, value: u64) -> bool {
        let found = self.0.iter_mut().find(|msr| msr.index == index);
        found.map(|msr| msr.value = value).is_some()
    }
}

impl Default for Msrs {
    fn default() -> Self {
        Self(msr::DECLARED.map(|index| Msr { index, value: 0 }))
    }
}

/// What the vCPU will do before its next instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingEvents {
    /// An exception that was raised but not yet delivered: its vector and error code.
    pub exception: Option<(u8, Option<u32>)>,
    /// `sti` or `mov ss` just executed: interrupts wait for one more instruction.
    pub interrupt_shadow: u8,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// NMIs are blocked until `iret`.
    pub nmi_masked: bool,
}

/// Bytes of an [`XsaveArea`].
pub const XSAVE_LEN_BYTES: usize = 4096;

/// x87, SSE and AVX registers in the standard (non-compacted) format of `XSAVE` (Intel SDM volume 1, section 13.4).
///
/// The CPU profiles expose no component whose state would end past 4096 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct XsaveArea {
    bytes: Box<[u8; XSAVE_LEN_BYTES]>,
}

impl XsaveArea {
    /// Offset of the x87 control word.
    const FCW: usize = 0;
    /// Offset of MXCSR.
    const MXCSR: usize = 24;
    /// Offset of MXCSR_MASK: the bits of MXCSR that the processor has, which `XSAVE` writes and `XRSTOR` ignores (Intel SDM volume 1,
    /// sections 11.6.6 and 13.5.2).
    const MXCSR_MASK: usize = 28;
    /// Offset of XSTATE_BV.
    const XSTATE_BV: usize = 512;

    /// The state after `fninit` and a reset of MXCSR; every component marked as in its initial configuration but x87 and
    /// SSE, which are written out.
    pub fn reset() -> Self {
        let mut bytes = Box::new([0; XSAVE_LEN_BYTES]);
        bytes[Self::FCW..Self::FCW + 2].copy_from_slice(&0x037F_u16.to_le_bytes());
        bytes[Self::MXCSR..Self::MXCSR + 4].copy_from_slice(&0x1F80_u32.to_le_bytes());
        bytes[Self::XSTATE_BV..Self::XSTATE_BV + 8].copy_from_slice(&3_u64.to_le_bytes());
        Self { bytes }
    }

    /// From the bytes of an `XSAVE` area. `MXCSR_MASK` is cleared: it says what the processor has, not what the vCPU holds, and is there or not
    /// depending on when a hypervisor last saved the registers.
    pub fn from_bytes(mut bytes: [u8; XSAVE_LEN_BYTES]) -> Self {
        bytes[Self::MXCSR_MASK..Self::MXCSR_MASK + 4].fill(0);
        Self {
            bytes: Box::new(bytes),
        }
    }

    /// The bytes of the area.
    pub fn as_bytes(&self) -> &[u8; XSAVE_LEN_BYTES] {
        &self.bytes
    }

    /// Which components are not in their initial configuration.
    pub fn xstate_bv(&self) -> u64 {
        let mut raw = [0; 8];
        raw.copy_from_slice(&self.bytes[Self::XSTATE_BV..Self::XSTATE_BV + 8]);
        u64::from_le_bytes(raw)
    }
}

impl Default for XsaveArea {
    fn default() -> Self {
        Self::reset()
    }
}

impl fmt::Debug for XsaveArea {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XsaveArea(xstate_bv {:#x})", self.xstate_bv())
    }
}
