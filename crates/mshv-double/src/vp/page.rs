//! The pages that a virtual processor shares: registers, and the last message.
#![expect(
    unsafe_code,
    reason = "maps and accesses pages that the program uses as well"
)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use crate::device::last_error;
use crate::registers::{Values, name};
use crate::status::Failure;

const PAGE_LEN: usize = 4096;
const PAGES: usize = 2;
const VERSION: u16 = 1;

// Offsets in the register page.
const IS_VALID: usize = 2;
const DIRTY: usize = 4;
const GENERAL: usize = 8;
const RIP: usize = 0x88;
const RFLAGS: usize = 0x90;
const SEGMENTS: usize = 0x100;
const CONTROL: usize = 0x160;
const XFEM: usize = 0x1A8;

// Classes of registers that the program may say it changed.
const CLASS_GENERAL: u32 = 1;
const CLASS_IP: u32 = 1 << 1;
const CLASS_SEGMENT: u32 = 1 << 3;
const CLASS_FLAGS: u32 = 1 << 4;

/// The double's own mapping of both pages.
#[derive(Debug)]
pub(super) struct SharedPages(NonNull<u8>);

// SAFETY: the mapping has no thread affinity, and is used under the virtual processor's lock.
unsafe impl Send for SharedPages {}

impl SharedPages {
    pub(super) fn map(file: &File) -> Result<Self, Failure> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGES * PAGE_LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(last_error());
        }
        NonNull::new(address.cast())
            .map(Self)
            .ok_or(Failure::Errno(libc::ENOMEM))
    }

    /// Shows the registers of a stopped virtual processor.
    pub(super) fn publish(&self, values: &Values) {
        self.write(0, &VERSION.to_le_bytes());
        self.write(IS_VALID, &[1, 0]);
        self.write(DIRTY, &[0; 4]);
        for index in 0..16_u32 {
            let value = values.u64(name::RAX + index);
            self.write(GENERAL + 8 * index as usize, &value.to_le_bytes());
        }
        self.write(RIP, &values.u64(name::RIP).to_le_bytes());
        self.write(RFLAGS, &values.u64(name::RFLAGS).to_le_bytes());
        for index in 0..6_u32 {
            let value = values.get(name::ES + index);
            self.write(SEGMENTS + 16 * index as usize, &value.to_le_bytes());
        }
        let control = [
            name::CR0,
            name::CR3,
            name::CR4,
            name::CR8,
            name::EFER,
            name::DR7,
            name::PENDING_INTERRUPTION,
            name::INTERRUPT_STATE,
        ];
        for (index, register) in control.into_iter().enumerate() {
            self.write(CONTROL + 8 * index, &values.u64(register).to_le_bytes());
        }
        self.write(XFEM, &values.u64(name::XFEM).to_le_bytes());
    }

    /// Takes over what the program says it changed.
    pub(super) fn take(
        &self,
        mut set: impl FnMut(u32, u128) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let dirty = self.dirty();
        self.write(DIRTY, &[0; 4]);
        if dirty & CLASS_GENERAL != 0 {
            for index in 0..16_u32 {
                set(name::RAX + index, self.number(GENERAL + 8 * index as usize))?;
            }
        }
        if dirty & CLASS_IP != 0 {
            set(name::RIP, self.number(RIP))?;
        }
        if dirty & CLASS_FLAGS != 0 {
            set(name::RFLAGS, self.number(RFLAGS))?;
        }
        if dirty & CLASS_SEGMENT != 0 {
            for index in 0..6_u32 {
                let offset = SEGMENTS + 16 * index as usize;
                let value = self.number(offset) | self.number(offset + 8) << 64;
                set(name::ES + index, value)?;
            }
        }
        Ok(())
    }

    /// Whether the program wrote a register to the page, which the next entry takes over.
    pub(super) fn is_waiting_for_entry(&self, register: u32) -> bool {
        let class = match register {
            name::RIP => CLASS_IP,
            name::RFLAGS => CLASS_FLAGS,
            name::RAX..name::RIP => CLASS_GENERAL,
            name::ES..=name::GS => CLASS_SEGMENT,
            _ => 0,
        };
        self.dirty() & class != 0
    }

    /// Shows a message.
    pub(super) fn show_message(&self, message: &[u8]) {
        self.write(PAGE_LEN, message);
    }

    fn dirty(&self) -> u32 {
        u32::try_from(self.number(DIRTY) & 0xFFFF_FFFF).unwrap_or(0)
    }

    fn number(&self, offset: usize) -> u128 {
        // SAFETY: the offset lies in the mapping; the program may write at the same time, so nothing is assumed of the value.
        let value = unsafe { self.0.as_ptr().add(offset).cast::<u64>().read_unaligned() };
        value.into()
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: every offset and length that is passed lies in the mapping.
        unsafe {
            self.0
                .as_ptr()
                .add(offset)
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGES * PAGE_LEN) };
    }
}
