//! Runs a vCPU: finds blocks, carries them out, delivers exceptions, and leaves at exits.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vellum_backend::Exit;
use vellum_backend::cpuid::CpuModel;

use crate::blocks::{BlockCache, Start};
use crate::cpu::{CodeSize, Cpu, seg};
use crate::flags;
use crate::memory::{Intent, NOT_CANONICAL, next_page, watch};
use crate::op::Op;
use crate::trap::{Cause, Exception, Trap, vector};

/// Different blocks that a trace holds at most.
const MAX_TRACED: usize = 1 << 20;

/// A vCPU with what is known about its code.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) cpu: Cpu,
    blocks: BlockCache,
    pub(crate) interrupted: Arc<AtomicBool>,
    /// The count of instructions at which a run ends.
    pub(crate) fuel_until: Option<u64>,
    /// First addresses of blocks that ran.
    pub(crate) trace: Option<HashSet<u64>>,
}

impl Machine {
    pub(crate) fn new(model: Arc<CpuModel>) -> Self {
        Self {
            cpu: Cpu::new(model),
            blocks: BlockCache::default(),
            interrupted: Arc::default(),
            fuel_until: None,
            trace: None,
        }
    }

    /// Runs to the next exit.
    pub(crate) fn run(&mut self) -> Exit {
        // The host may have changed code since the last run.
        self.cpu.physical.forget_code();
        let exit = self.run_blocks();
        match self.cpu.give_up_copies() {
            Ok(()) => exit,
            Err(lost) => lost,
        }
    }

    fn run_blocks(&mut self) -> Exit {
        if let Err(exit) = self.deliver_pending() {
            return exit;
        }
        loop {
            if self.interrupted.load(Ordering::Relaxed) {
                return Exit::Interrupted;
            }
            if let Err(exit) = self.step() {
                return exit;
            }
        }
    }

    /// What waited for the vCPU to run.
    fn deliver_pending(&mut self) -> Result<(), Exit> {
        if let Some((vector, error)) = self.cpu.events.exception.take() {
            self.cpu.deliver_exception(Exception {
                vector,
                error,
                address: self.cpu.special.cr2,
            })?;
        }
        let events = &mut self.cpu.events;
        if events.nmi_pending && !events.nmi_masked && events.interrupt_shadow == 0 {
            events.nmi_pending = false;
            events.nmi_masked = true;
            self.cpu.deliver_exception(Exception::plain(vector::NMI))?;
        }
        Ok(())
    }

    /// Runs one block, or a part of it.
    fn step(&mut self) -> Result<(), Exit> {
        if self.cpu.physical.is_short_of_copies() {
            self.cpu.give_up_copies()?;
        }
        let Ok(place) = self.find() else {
            return self.finish(None);
        };
        if let (Some(trace), Some(block)) = (&mut self.trace, self.blocks.block(place))
            && trace.len() < MAX_TRACED
        {
            trace.insert(block.rip());
        }
        let stepping = self.cpu.flags.has(flags::TF);
        let fuel = match self.fuel_until {
            None => usize::MAX,
            Some(until) => {
                let left = until.saturating_sub(self.cpu.retired);
                if left == 0 {
                    return Err(Exit::OutOfFuel);
                }
                usize::try_from(left).unwrap_or(usize::MAX)
            }
        };
        let limit = if stepping { 1 } else { fuel };
        self.cpu.events.interrupt_shadow = 0;
        self.execute(place, limit)?;
        if stepping {
            self.single_step()?;
        }
        Ok(())
    }

    /// Runs at most `limit` instructions of a block.
    fn execute(&mut self, place: usize, limit: usize) -> Result<(), Exit> {
        let Some(block) = self.blocks.block(place) else {
            return Ok(());
        };
        let cpu = &mut self.cpu;
        let ops = &block.ops[..block.ops.len().min(limit)];
        let ops = within_segment(cpu, ops);
        if ops.is_empty() {
            let _ = cpu.gp();
            return self.finish(None);
        }
        let mut done = 0;
        for op in ops {
            cpu.rip = op.next;
            if (op.run)(cpu, op).is_err() {
                cpu.retired += done;
                let op = *op;
                return self.finish(Some(&op));
            }
            done += 1;
            if cpu.code_changed {
                cpu.code_changed = false;
                break;
            }
        }
        cpu.retired += done;
        Ok(())
    }

    /// Acts on why an instruction, or the fetch of one, did not complete.
    #[cold]
    fn finish(&mut self, op: Option<&Op>) -> Result<(), Exit> {
        let cpu = &mut self.cpu;
        cpu.code_changed = false;
        if let Some(op) = op {
            cpu.rip = op.ip();
        }
        match cpu.cause {
            Cause::Again => {
                cpu.retired += 1;
                Ok(())
            }
            Cause::Exit(exit) => {
                if let Some(next) = cpu.left_behind.take() {
                    cpu.rip = next;
                    cpu.retired += 1;
                }
                Err(exit)
            }
            Cause::Exception(exception) => {
                let on_stack = op.is_some_and(|op| op.segment == seg::SS);
                cpu.deliver_exception(to_stack_fault(exception, on_stack))
            }
        }
    }

    /// #DB behind an instruction that ran with TF set.
    fn single_step(&mut self) -> Result<(), Exit> {
        /// DR6.BS: the exception is one of single-stepping (Intel SDM volume 3, section 19.2.3).
        const SINGLE_STEP: u64 = 1 << 14;
        self.cpu.debug.dr6 |= SINGLE_STEP;
        self.cpu.deliver_exception(Exception::plain(vector::DB))
    }

    /// The block at RIP.
    #[inline]
    fn find(&mut self) -> Result<usize, Trap> {
        let cpu = &mut self.cpu;
        let linear = cpu.wrap(cpu.bases[usize::from(seg::CS)].wrapping_add(cpu.rip));
        let host = cpu.host_of(linear, Intent::Execute)?;
        let start = Start {
            host,
            rip: cpu.rip,
            size: cpu.code_size,
        };
        match self.blocks.find(&start, cpu.physical.generation()) {
            Some(place) => Ok(place),
            None => self.find_slowly(&start, linear),
        }
    }

    #[cold]
    #[inline(never)]
    fn find_slowly(&mut self, start: &Start, linear: u64) -> Result<usize, Trap> {
        let cpu = &mut self.cpu;
        let behind = cpu.wrap(next_page(linear));
        let mut second = None;
        if self.blocks.crosses(start) {
            second = Some(cpu.host_of(behind, Intent::Execute)?);
        }
        // First watched, then read: nothing is missed.
        watch(&mut cpu.tlb, &mut cpu.physical, start.host);
        if let Some(second) = second {
            watch(&mut cpu.tlb, &mut cpu.physical, second);
        }
        let generation = cpu.physical.generation();
        if let Some(place) = self.blocks.verify(start, second, generation) {
            return Ok(place);
        }
        if let Some(place) = self.blocks.decode(start, None, generation) {
            return Ok(place);
        }
        let second = cpu.host_of(behind, Intent::Execute)?;
        watch(&mut cpu.tlb, &mut cpu.physical, second);
        match self.blocks.decode(start, Some(second), generation) {
            Some(place) => Ok(place),
            None => Err(cpu.gp()),
        }
    }
}

impl Cpu {
    /// Puts back the pages of files that the guest worked on copies of.
    fn give_up_copies(&mut self) -> Result<(), Exit> {
        if !self.physical.has_copies() {
            return Ok(());
        }
        self.tlb.flush();
        let lost = |gpa| Exit::MemoryLost { gpa: Some(gpa) };
        self.physical.give_up_copies().map_err(lost)
    }
}

/// The instructions that lie within the code segment. In 64-bit code there is no limit.
#[inline]
fn within_segment<'a>(cpu: &Cpu, ops: &'a [Op]) -> &'a [Op] {
    if cpu.code_size == CodeSize::Bits64 || cpu.special.cs.limit == u32::MAX {
        return ops;
    }
    let limit = u64::from(cpu.special.cs.limit);
    let inside = |op: &Op| op.ip().wrapping_add(u64::from(op.len) - 1) <= limit;
    let count = ops.iter().take_while(|op| inside(op)).count();
    &ops[..count]
}

/// An address that is not canonical is a #SS where the access was one to the stack.
fn to_stack_fault(exception: Exception, on_stack: bool) -> Exception {
    let is_marked = exception.vector == vector::GP && exception.address == NOT_CANONICAL;
    if is_marked && on_stack {
        return Exception::with_error(vector::SS, 0);
    }
    exception
}
