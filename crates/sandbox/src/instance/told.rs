//! What the host tells the guest: the PEB and the bookkeeping words.

use std::mem::offset_of;

use vellum_abi::fault::FaultRecord;
use vellum_abi::peb::{FLAG_OUTBOX_DROPS, FLAG_TOUCH_BEFORE_FILL, Peb};
use vellum_layout::{
    FAULT_RECORD_OFFSET, GpaRange, SCRATCH_TOP_SIZE_OFFSET, SCRATCH_TOP_SNAPSHOT_GENERATION_OFFSET,
};
use zerocopy::IntoBytes;

use super::Instance;
use super::mappings::TABLE_OFFSET;
use crate::engine::CowMode;
use crate::error::Failure;
use crate::memory::{Geometry, OutboxOverflow};

/// The reason of a fault record that nobody wrote.
const REASON_NONE: u64 = u64::MAX;

impl Instance {
    /// Tells the guest what differs between it and other copies of its snapshot; and a kernel, which can write anywhere, also what it
    /// was told before.
    pub(super) fn tell_guest(&self) -> Result<(), Failure> {
        if self.is_kernel() {
            self.tell_peb()?;
            self.tell_bookkeeping()?;
        }
        self.tell_news()
    }

    /// What the PEB says that never changes, as long as nobody but the host writes it, and the table of mappings.
    pub(super) fn tell_peb(&self) -> Result<(), Failure> {
        let frame = self.geometry.peb_frame()?;
        let overflow = self.base.config.outbox_overflow;
        self.write_frame(frame, peb(&self.geometry, overflow).as_bytes())?;
        self.tell_mappings()
    }

    /// What the bookkeeping page says that never changes.
    pub(super) fn tell_bookkeeping(&self) -> Result<(), Failure> {
        let scratch = &self.memory.scratch;
        let top = scratch.len_bytes();
        scratch.write_u64(top - SCRATCH_TOP_SIZE_OFFSET, top)?;
        // Where ring 3 may use ports by IOPL it can use the monitor's, too: a record that the monitor did not write is then
        // known by its reason.
        let reason = offset_of!(FaultRecord, reason) as u64;
        Ok(scratch.write_u64(top - FAULT_RECORD_OFFSET + reason, REASON_NONE)?)
    }

    /// The seed, because two clones must not draw the same random numbers, and the
    /// generation.
    fn tell_news(&self) -> Result<(), Failure> {
        let scratch = &self.memory.scratch;
        let peb = self.memory.scratch_offset(self.geometry.peb_frame()?);
        scratch.write_u64(peb + offset_of!(Peb, seed) as u64, crate::seed::next())?;
        scratch.write_u64(peb + offset_of!(Peb, generation) as u64, self.generation)?;
        let word = scratch.len_bytes() - SCRATCH_TOP_SNAPSHOT_GENERATION_OFFSET;
        Ok(scratch.write_u64(word, self.generation)?)
    }

    pub(super) fn write_frame(&self, frame: GpaRange, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.memory.write(frame.start(), bytes)?)
    }
}

fn flags(cow: CowMode, overflow: OutboxOverflow) -> u32 {
    let fills = match cow {
        CowMode::GuestSide => FLAG_TOUCH_BEFORE_FILL,
        CowMode::HostSide => 0,
    };
    let drops = match overflow {
        OutboxOverflow::Drain => 0,
        OutboxOverflow::Drop => FLAG_OUTBOX_DROPS,
    };
    fills | drops
}

fn peb(geometry: &Geometry, overflow: OutboxOverflow) -> Peb {
    let view = &geometry.view;
    let scratch = view.scratch;
    Peb {
        input_ptr: view.input.start().as_u64(),
        input_len_bytes: view.input.len_bytes(),
        output_ptr: view.output.start().as_u64(),
        output_len_bytes: view.output.len_bytes(),
        outbox_ptr: view.outbox.start().as_u64(),
        outbox_len_bytes: view.outbox.len_bytes(),
        heap_ptr: view.heap.start().as_u64(),
        heap_len_bytes: view.heap.len_bytes(),
        stack_top: view.stack.end().as_u64(),
        stack_len_bytes: view.stack.len_bytes(),
        // The count is told when there is anything.
        mappings_ptr: view.peb.start().as_u64() + TABLE_OFFSET,
        log_level: vellum_abi::log::Level::Trace as u32,
        flags: flags(geometry.cow, overflow),
        scratch_ptr: scratch.map_or(0, |scratch| scratch.start().as_u64()),
        scratch_len_bytes: scratch.map_or(0, |scratch| scratch.len_bytes()),
        scratch_gpa: scratch.map_or(0, |_| geometry.plan.scratch().start().as_u64()),
        ..Peb::empty()
    }
}

#[cfg(test)]
mod tests;
