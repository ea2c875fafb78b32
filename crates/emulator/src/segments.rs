//! Segment descriptors (Intel SDM volume 3, section 3.4.5) and the loading of segment registers.

use vellum_backend::state::{Segment, SegmentType};

use crate::cpu::{Cpu, seg};
use crate::trap::{Trap, vector};

/// The low 8 bytes of a descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) raw: u64,
    /// Linear address of the descriptor.
    at: u64,
}

impl Descriptor {
    pub(crate) fn attributes(self) -> SegmentType {
        SegmentType::from_bits((self.raw >> 40 & 0xFF | self.raw >> 52 << 12 & 0xF000) as u16)
    }

    pub(crate) fn base(self) -> u64 {
        self.raw >> 16 & 0xFF_FFFF | self.raw >> 32 & 0xFF00_0000
    }

    pub(crate) fn limit(self) -> u32 {
        let raw = (self.raw & 0xFFFF | self.raw >> 32 & 0xF_0000) as u32;
        if self.attributes().is_page_granular() {
            raw << 12 | 0xFFF
        } else {
            raw
        }
    }

    fn type_(self) -> u8 {
        self.attributes().type_()
    }

    pub(crate) fn is_code(self) -> bool {
        self.attributes().is_code_or_data() && self.type_() & 8 != 0
    }

    fn is_data(self) -> bool {
        self.attributes().is_code_or_data() && self.type_() & 8 == 0
    }

    pub(crate) fn is_conforming(self) -> bool {
        self.type_() & 4 != 0
    }

    /// Writable data or readable code.
    pub(crate) fn has_second_right(self) -> bool {
        self.type_() & 2 != 0
    }

    pub(crate) fn dpl(self) -> u8 {
        self.attributes().dpl()
    }

    pub(crate) fn segment(self, selector: u16) -> Segment {
        Segment {
            base: self.base(),
            limit: self.limit(),
            selector,
            attributes: self.attributes(),
        }
    }
}

/// The part of a selector that goes into an error code.
pub(crate) fn error_of(selector: u16) -> u32 {
    u32::from(selector & !3)
}

pub(crate) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// Which faults a stack segment that cannot be used is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StackFaults {
    /// What is wrong with the selector, or with what it names.
    pub(crate) wrong: u8,
    /// The segment is not present.
    pub(crate) absent: u8,
}

impl StackFaults {
    /// Of `mov`, `pop` and a far return.
    pub(crate) const OF_LOAD: Self = Self {
        wrong: vector::GP,
        absent: vector::SS,
    };
    /// Of `iret` (Intel SDM volume 2, `IRET`).
    pub(crate) const OF_IRET: Self = Self {
        wrong: vector::GP,
        absent: vector::NP,
    };
    /// Of a stack that a task-state segment names.
    pub(crate) const OF_TASK: Self = Self {
        wrong: vector::TS,
        absent: vector::SS,
    };
}

impl Cpu {
    /// Reads the descriptor of a selector that is not null. One beyond the end of its table is a fault of `vector`.
    pub(crate) fn descriptor(&mut self, selector: u16, vector: u8) -> Result<Descriptor, Trap> {
        /// TI: the local table.
        const LOCAL: u16 = 4;
        let (base, limit) = if selector & LOCAL != 0 {
            let ldt = self.special.ldtr;
            let limit = if ldt.attributes.is_present() {
                ldt.limit
            } else {
                0
            };
            (ldt.base, limit)
        } else {
            (self.special.gdtr.base, u32::from(self.special.gdtr.limit))
        };
        let offset = u32::from(selector & !7);
        if offset + 7 > limit {
            return Err(self.fault_with(vector, error_of(selector)));
        }
        let at = self.wrap_table(base.wrapping_add(u64::from(offset)));
        let raw = self.load_implicitly::<u64>(at)?;
        Ok(Descriptor { raw, at })
    }

    /// Addresses of tables are 64 bits wide in long mode, also while 32-bit code runs.
    pub(crate) fn wrap_table(&self, linear: u64) -> u64 {
        if self.is_long_mode() {
            linear
        } else {
            linear & 0xFFFF_FFFF
        }
    }

    /// #GP unless all of a system descriptor of the global table is there: 16 bytes in long mode (Intel SDM volume 3, section 3.5.2).
    pub(crate) fn require_system_descriptor(&mut self, selector: u16) -> Result<(), Trap> {
        let last = u32::from(selector & !7) + if self.is_long_mode() { 15 } else { 7 };
        if last > u32::from(self.special.gdtr.limit) {
            return Err(self.fault_with(vector::GP, error_of(selector)));
        }
        Ok(())
    }

    /// The upper 8 bytes of a system descriptor of long mode.
    pub(crate) fn descriptor_high(&mut self, descriptor: Descriptor) -> Result<u64, Trap> {
        self.load_implicitly::<u64>(self.wrap_table(descriptor.at.wrapping_add(8)))
    }

    /// Sets bits of the type of a descriptor in memory, and in the copy.
    pub(crate) fn mark_descriptor(
        &mut self,
        descriptor: &mut Descriptor,
        bits: u8,
    ) -> Result<(), Trap> {
        let wanted = u64::from(bits) << 40;
        if descriptor.raw & wanted == wanted {
            return Ok(());
        }
        descriptor.raw |= wanted;
        let at = self.wrap_table(descriptor.at.wrapping_add(5));
        self.store_implicitly::<u8>(at, descriptor.raw >> 40 & 0xFF)
    }

    /// Loads DS, ES, FS, GS or SS as `mov` does.
    pub(crate) fn load_segment(&mut self, number: u8, selector: u16) -> Result<(), Trap> {
        if !self.is_protected() {
            let segment = self.segment_mut(number);
            segment.selector = selector;
            segment.base = u64::from(selector) << 4;
            self.refresh();
            return Ok(());
        }
        let segment = if number == seg::SS {
            self.stack_segment(selector, self.cpl, StackFaults::OF_LOAD)?
        } else {
            self.data_segment(selector)?
        };
        *self.segment_mut(number) = segment;
        self.refresh();
        Ok(())
    }

    fn data_segment(&mut self, selector: u16) -> Result<Segment, Trap> {
        if is_null(selector) {
            return Ok(Segment {
                selector,
                ..Segment::default()
            });
        }
        let mut descriptor = self.descriptor(selector, vector::GP)?;
        let usable = descriptor.is_data() || descriptor.is_code() && descriptor.has_second_right();
        let checked = descriptor.is_data() || !descriptor.is_conforming();
        let rpl = (selector & 3) as u8;
        if !usable || checked && descriptor.dpl() < rpl.max(self.cpl) {
            return Err(self.fault_with(vector::GP, error_of(selector)));
        }
        if !descriptor.attributes().is_present() {
            return Err(self.fault_with(vector::NP, error_of(selector)));
        }
        self.mark_descriptor(&mut descriptor, 1)?;
        Ok(descriptor.segment(selector))
    }

    /// The stack segment for code of privilege `cpl`.
    pub(crate) fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        faults: StackFaults,
    ) -> Result<Segment, Trap> {
        let vector = faults.wrong;
        let rpl = (selector & 3) as u8;
        if is_null(selector) {
            if self.is_64_bit() && cpl < 3 && rpl == cpl {
                return Ok(null_stack(selector, cpl));
            }
            return Err(self.fault_with(vector, 0));
        }
        let mut descriptor = self.descriptor(selector, vector)?;
        let usable = descriptor.is_data() && descriptor.has_second_right();
        if !usable || rpl != cpl || descriptor.dpl() != cpl {
            return Err(self.fault_with(vector, error_of(selector)));
        }
        if !descriptor.attributes().is_present() {
            return Err(self.fault_with(faults.absent, error_of(selector)));
        }
        self.mark_descriptor(&mut descriptor, 1)?;
        Ok(descriptor.segment(selector))
    }

    /// Makes a checked descriptor the code segment, at privilege `cpl`.
    pub(crate) fn put_code_segment(
        &mut self,
        mut descriptor: Descriptor,
        selector: u16,
        cpl: u8,
    ) -> Result<(), Trap> {
        self.mark_descriptor(&mut descriptor, 1)?;
        self.special.cs = descriptor.segment(selector & !3 | u16::from(cpl));
        self.refresh();
        Ok(())
    }

    /// Empties data segments that code of a lower privilege may not keep (Intel SDM volume 3, section 6.8.6).
    pub(crate) fn drop_privileged_segments(&mut self) {
        let cpl = self.cpl;
        for number in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let segment = self.segment_mut(number);
            let type_ = segment.attributes.type_();
            let conforming_code = type_ & 0b1100 == 0b1100;
            if !conforming_code && segment.attributes.dpl() < cpl {
                *segment = Segment::default();
            }
        }
        self.refresh();
    }
}

/// SS after a change of privilege in long mode.
pub(crate) fn null_stack(selector: u16, cpl: u8) -> Segment {
    Segment {
        selector,
        attributes: SegmentType::ABSENT.with_dpl(u16::from(cpl)),
        ..Segment::default()
    }
}
