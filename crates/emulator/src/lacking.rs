//! What a guest asked for and the emulator lacks.

use std::fmt;

use crate::cpu::Cpu;
use crate::op::Op;
use crate::trap::Trap;

/// How many different ones are remembered.
const MAX_RECORDS: usize = 32;

/// Something that a guest tried and that is not emulated. The guest got #UD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// What it is: the mnemonic of an instruction, or a feature.
    pub name: String,
    /// RIP of the first use.
    pub rip: u64,
    /// How often it was tried.
    pub count: u64,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at {:#x}, {} times, is not emulated",
            self.name, self.rip, self.count
        )
    }
}

/// A bounded list of them.
#[derive(Debug, Default)]
pub(crate) struct Lacking(Vec<Unsupported>);

impl Lacking {
    pub(crate) fn records(&self) -> &[Unsupported] {
        &self.0
    }

    fn note(&mut self, name: &str, rip: u64) {
        if let Some(known) = self.0.iter_mut().find(|record| record.name == name) {
            known.count += 1;
        } else if self.0.len() < MAX_RECORDS {
            tracing::warn!(name, rip = format_args!("{rip:#x}"), "not emulated");
            self.0.push(Unsupported {
                name: name.to_owned(),
                rip,
                count: 1,
            });
        }
    }
}

impl Cpu {
    /// Notes something that is not emulated, and makes it a #UD.
    #[cold]
    pub(crate) fn lacks(&mut self, name: &str) -> Trap {
        self.lacking.note(name, self.rip);
        self.ud()
    }
}

/// An instruction that exists but has no handler.
pub(crate) fn unsupported(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let code = iced_x86::Code::try_from(usize::from(op.code)).unwrap_or_default();
    let name = format!("{:?}", code.mnemonic()).to_lowercase();
    cpu.lacking.note(&name, op.ip());
    Err(cpu.ud())
}

/// Bytes that are no instruction.
pub(crate) fn undefined(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    Err(cpu.ud())
}

/// An instruction of more than 15 bytes (Intel SDM volume 2, section 2.3.11).
pub(crate) fn too_long(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    Err(cpu.gp())
}
