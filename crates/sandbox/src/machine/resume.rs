//! The resume page: how a restored guest gets its vector registers back without a system call.
//!
//! A restore must put back x87, SSE and AVX state, or the next caller reads what the last one left. `KVM_SET_XSAVE` does it for
//! the price of loading the vCPU. Instead the host lets the vCPU resume in this page, which only the host can write: three
//! instructions in ring 3 load the saved area, the two registers that they needed, and jump to where the snapshot was taken.
//! Everything else (general registers, segments, control registers) is written through the shared registers page.
//!
//! To the guest the page is read-only and executable, and holds nothing but its own snapshot's state. Running into it by itself
//! only resets the guest's own registers.

use vellum_backend::state::{Gprs, VcpuState, XSAVE_LEN_BYTES, Xcr0};
use vellum_layout::GvaRange;

use crate::memory::PAGE_LEN_BYTES;

/// State components that the page restores: x87, SSE, AVX and AVX-512. `xrstor` does not ask for those that XCR0 lacks, and takes
/// as initial those that the area lacks.
const COMPONENTS: u64 = 0xE7;

/// Offset of the area's list of components that are not in their initial configuration.
const XSTATE_BV: usize = 512;
/// Offset of the code behind the area.
const CODE: usize = 0xF00;
/// Where the code finds the values of RAX, RDX and RIP.
const RAX: usize = 0xF80;
const RDX: usize = 0xF88;
const RIP: usize = 0xF90;

/// Bytes of the area that the components can occupy (Intel SDM volume 1, section 13.5.6: the last one ends at 2688).
const AREA_LEN_BYTES: usize = 2688;

const _: () = assert!(AREA_LEN_BYTES <= CODE && CODE < RAX && RIP + 8 <= PAGE_LEN_BYTES);
const _: () = assert!(AREA_LEN_BYTES <= XSAVE_LEN_BYTES);

/// Content and entry state of a resume page.
#[derive(Clone, Debug)]
pub(crate) struct ResumePage {
    bytes: Box<[u8; PAGE_LEN_BYTES]>,
    entry: Gprs,
}

impl ResumePage {
    /// The page, to be mapped at `at`, that resumes `state`.
    pub(crate) fn new(state: &VcpuState, at: GvaRange) -> Self {
        let mut bytes = Box::new([0; PAGE_LEN_BYTES]);
        bytes[..AREA_LEN_BYTES].copy_from_slice(&state.xsave.as_bytes()[..AREA_LEN_BYTES]);
        let present = state.xsave.xstate_bv() & allowed_components(state);
        bytes[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&present.to_le_bytes());
        let mut code = Vec::with_capacity(RAX - CODE);
        emit(&mut code, &[0x48, 0x0F, 0xAE, 0x2D], 0); // xrstor64 [rip + area]
        emit(&mut code, &[0x48, 0x8B, 0x05], RAX); // mov rax, [rip + ...]
        emit(&mut code, &[0x48, 0x8B, 0x15], RDX); // mov rdx, [rip + ...]
        emit(&mut code, &[0xFF, 0x25], RIP); // jmp [rip + ...]
        bytes[CODE..CODE + code.len()].copy_from_slice(&code);
        for (at, value) in [
            (RAX, state.general.rax),
            (RDX, state.general.rdx),
            (RIP, state.general.rip),
        ] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        Self {
            bytes,
            entry: Gprs {
                rip: at.start().as_u64() + CODE as u64,
                rax: COMPONENTS,
                rdx: 0,
                ..state.general
            },
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..]
    }

    /// The general registers with which the page is entered.
    pub(crate) fn entry(&self) -> &Gprs {
        &self.entry
    }
}

/// The components that an area may name as present: `xrstor` raises #GP for one that XCR0 lacks (Intel SDM volume 1, section 13.8.1).
/// Where the guest has no XCR0 of its own, ring 3 runs under the host's, which has all of them.
fn allowed_components(state: &VcpuState) -> u64 {
    match state.xcr0 {
        Xcr0::RESET => COMPONENTS,
        Xcr0(enabled) => COMPONENTS & enabled,
    }
}

/// Appends an instruction whose operand is the page offset `target`, relative to the end of the instruction.
fn emit(code: &mut Vec<u8>, opcode: &[u8], target: usize) {
    code.extend_from_slice(opcode);
    let end = CODE + code.len() + 4;
    // Two's complement: the low half of the wrapped difference is the signed 32-bit displacement.
    let displacement = target.wrapping_sub(end).to_le_bytes();
    code.extend_from_slice(&displacement[..4]);
}

#[cfg(test)]
mod tests;
