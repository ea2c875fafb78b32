//! Between [`Cpu`] and the state groups of the backend.

use vellum_backend::hyperv::validate_for_hyperv;
use vellum_backend::state::{Gprs, XSAVE_LEN_BYTES, Xcr0, XsaveArea, cr0};
use vellum_backend::{StateGroup, VcpuState, VmError};

use crate::cpu::Cpu;
use crate::flags::{self, Flags};
use crate::x87::X87;

/// Offsets in the save area (Intel SDM volume 1, table 10-2).
pub(crate) mod area {
    pub(crate) const FCW: usize = 0;
    pub(crate) const FSW: usize = 2;
    pub(crate) const FTW: usize = 4;
    pub(crate) const FOP: usize = 6;
    pub(crate) const FIP: usize = 8;
    pub(crate) const FDP: usize = 16;
    pub(crate) const MXCSR: usize = 24;
    pub(crate) const MXCSR_MASK: usize = 28;
    pub(crate) const ST: usize = 32;
    pub(crate) const XMM: usize = 160;
    pub(crate) const XSTATE_BV: usize = 512;
    /// Bytes of the part that `fxsave` writes registers to.
    pub(crate) const USED: usize = 416;
}

/// MXCSR after a reset: every exception masked.
const MXCSR_RESET: u32 = 0x1F80;
/// MXCSR bits that exist.
pub(crate) const MXCSR_DEFINED: u32 = 0xFFFF;
/// Bit 0 and 1 of XSTATE_BV: x87 and SSE.
const X87_AND_SSE: u64 = 3;

impl Cpu {
    pub(crate) fn get_group(&self, group: StateGroup, state: &mut VcpuState) {
        match group {
            StateGroup::General => state.general = self.general(),
            StateGroup::Special => state.special = self.special,
            StateGroup::Xsave => state.xsave = self.xsave(),
            StateGroup::Xcr0 => state.xcr0 = self.xcr0,
            StateGroup::Debug => state.debug = self.debug,
            StateGroup::Msrs => state.msrs = self.msrs,
            StateGroup::Events => state.events = self.events,
        }
    }

    pub(crate) fn set_group(
        &mut self,
        group: StateGroup,
        state: &VcpuState,
    ) -> Result<(), VmError> {
        // Whoever sets registers may have put back page tables: hypervisors forget translations then.
        self.tlb.flush();
        match group {
            StateGroup::General => self.set_general(&state.general),
            StateGroup::Special => {
                validate_for_hyperv(&state.special).map_err(VmError::InvalidState)?;
                self.set_special(state);
            }
            StateGroup::Xsave => self.set_xsave(&state.xsave),
            StateGroup::Xcr0 => self.xcr0 = state.xcr0,
            StateGroup::Debug => self.debug = state.debug,
            StateGroup::Msrs => self.msrs = state.msrs,
            StateGroup::Events => self.events = state.events,
        }
        Ok(())
    }

    fn general(&self) -> Gprs {
        let mut general = [0; 16];
        general.copy_from_slice(&self.gpr[..16]);
        Gprs::from_encoding_order(general, self.rip, self.flags.0)
    }

    fn set_general(&mut self, general: &Gprs) {
        self.gpr[..16].copy_from_slice(&general.in_encoding_order());
        self.rip = general.rip;
        self.flags = Flags(general.rflags & flags::DEFINED & !flags::VM | flags::FIXED);
        self.input = None;
    }

    fn set_special(&mut self, state: &VcpuState) {
        self.special = state.special;
        self.special.cr0 |= cr0::ET;
        self.refresh();
    }

    pub(crate) fn xsave(&self) -> XsaveArea {
        let mut bytes = *self.untouched.as_bytes();
        self.write_legacy(&mut bytes);
        let components = self.untouched.xstate_bv() | X87_AND_SSE;
        bytes[area::XSTATE_BV..area::XSTATE_BV + 8].copy_from_slice(&components.to_le_bytes());
        XsaveArea::from_bytes(bytes)
    }

    /// What `fxsave` writes: x87 and SSE registers.
    pub(crate) fn write_legacy(&self, bytes: &mut [u8]) {
        self.x87.write(bytes);
        bytes[area::MXCSR..area::MXCSR + 4].copy_from_slice(&self.mxcsr.to_le_bytes());
        for (target, value) in bytes[area::XMM..area::USED]
            .chunks_exact_mut(16)
            .zip(self.xmm)
        {
            target.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn set_xsave(&mut self, xsave: &XsaveArea) {
        let bytes: &[u8; XSAVE_LEN_BYTES] = xsave.as_bytes();
        let components = xsave.xstate_bv();
        self.untouched = xsave.clone();
        self.x87 = if components & 1 != 0 {
            X87::read(bytes)
        } else {
            X87::default()
        };
        if components & 2 != 0 {
            self.read_vectors(bytes);
        } else {
            self.xmm = [0; 16];
        }
        let mut raw = [0; 4];
        raw.copy_from_slice(&bytes[area::MXCSR..area::MXCSR + 4]);
        // An area with neither SSE nor AVX says nothing of MXCSR (Intel SDM volume 1, section 13.8.1).
        self.mxcsr = if components & (Xcr0::SSE | Xcr0::AVX) == 0 {
            MXCSR_RESET
        } else {
            u32::from_le_bytes(raw) & MXCSR_DEFINED
        };
    }

    /// XMM registers from an area.
    pub(crate) fn read_vectors(&mut self, bytes: &[u8]) {
        for (register, source) in self
            .xmm
            .iter_mut()
            .zip(bytes[area::XMM..area::USED].chunks_exact(16))
        {
            let mut raw = [0; 16];
            raw.copy_from_slice(source);
            *register = u128::from_le_bytes(raw);
        }
    }
}
