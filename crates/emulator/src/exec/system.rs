//! Control registers, model-specific registers, CPUID, and what else only a supervisor does.

use iced_x86::{Instruction, Mnemonic, OpKind};
use vellum_backend::Exit;
use vellum_backend::msr;
use vellum_backend::state::{SpecialRegs, cr0, cr4, efer};

use crate::cpu::{Cpu, reg};
use crate::flags;
use crate::memory::{Paging, is_canonical};
use crate::op::{Handler, Kind, Op};
use crate::trap::Trap;
use crate::width::Width;

pub(super) fn select(instruction: &Instruction, _: u8) -> Option<Handler> {
    let register = |index: u32| instruction.op_kind(index) == OpKind::Register;
    Some(match instruction.mnemonic() {
        Mnemonic::Mov if register(0) && instruction.op0_register().is_cr() => write_control,
        Mnemonic::Mov if register(1) && instruction.op1_register().is_cr() => read_control,
        Mnemonic::Mov if register(0) && instruction.op0_register().is_dr() => write_debug,
        Mnemonic::Mov if register(1) && instruction.op1_register().is_dr() => read_debug,
        Mnemonic::Hlt => halt,
        Mnemonic::Cli => clear_interrupts,
        Mnemonic::Sti => set_interrupts,
        Mnemonic::Clts => clear_task_switched,
        Mnemonic::Smsw => store_machine_status,
        Mnemonic::Lmsw => load_machine_status,
        Mnemonic::Invlpg => invalidate_page,
        Mnemonic::Invd | Mnemonic::Wbinvd => invalidate_caches,
        Mnemonic::Rdmsr => read_msr,
        Mnemonic::Wrmsr => write_msr,
        Mnemonic::Cpuid => identify,
        Mnemonic::Rdtsc => read_clock,
        Mnemonic::Swapgs => swap_gs,
        Mnemonic::Stac => set_access_check,
        Mnemonic::Clac => clear_access_check,
        Mnemonic::Ud2 | Mnemonic::Ud0 | Mnemonic::Ud1 => crate::lacking::undefined,
        _ => return None,
    })
}

/// CR0.TS: vector and x87 instructions raise #NM.
pub(crate) const CR0_TS: u64 = 1 << 3;
/// CR0.EM: there is no x87 unit.
pub(crate) const CR0_EM: u64 = 1 << 2;
/// CR4.TSD: `rdtsc` is privileged.
const CR4_TSD: u64 = 1 << 2;
/// CR0 bits that exist (Intel SDM volume 3, section 2.5).
const CR0_DEFINED: u64 = 0xE005_003F;
/// CR4 bits that exist beside those that a CPU model names: VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT.
const CR4_DEFINED: u64 = 0x7FF;
/// Bits of a physical address that the CPU profiles tell guests.
const PHYSICAL_BITS: u32 = 39;
/// EFER bits that exist, LMA apart.
const EFER_WRITABLE: u64 = efer::SCE | efer::LME | efer::NXE;

impl Cpu {
    /// Changes control registers; #GP when they contradict each other, an exit when they ask for paging that is not emulated.
    fn put_control(&mut self, new: SpecialRegs) -> Result<(), Trap> {
        let paging = new.cr0 & cr0::PG != 0;
        let bad_cr0 = paging && new.cr0 & cr0::PE == 0
            || new.cr0 & cr0::NW != 0 && new.cr0 & cr0::CD == 0
            || new.cr0 >> 32 != 0;
        let long = new.efer & efer::LME != 0 && paging;
        let bad_long = long && (new.cr4 & cr4::PAE == 0 || new.cr3 >> PHYSICAL_BITS != 0);
        if bad_cr0 || bad_long {
            return Err(self.gp());
        }
        let new = SpecialRegs {
            cr0: new.cr0 & CR0_DEFINED | cr0::ET,
            efer: if long {
                new.efer | efer::LMA
            } else {
                new.efer & !efer::LMA
            },
            ..new
        };
        if Paging::from_registers(&new).is_none() {
            let _ = self.lacks("pae or 5-level paging");
            return Err(self.exit(Exit::EmulationFailure));
        }
        self.special = new;
        self.tlb.flush();
        self.refresh();
        Ok(())
    }

    pub(crate) fn msr_value(&self, index: u32) -> u64 {
        self.msrs.get(index).unwrap_or(0)
    }

    /// After `mov ss`, `pop ss` and `sti`.
    pub(crate) fn shadow_interrupts(&mut self) {
        self.events.interrupt_shadow = 1;
    }
}

fn full_gpr(cpu: &Cpu, index: u8) -> u64 {
    if cpu.is_64_bit() {
        cpu.gpr[usize::from(index) & 31]
    } else {
        cpu.gpr[usize::from(index) & 31] & 0xFFFF_FFFF
    }
}

fn put_full_gpr(cpu: &mut Cpu, index: u8, value: u64) {
    if cpu.is_64_bit() {
        u64::set(&mut cpu.gpr, index, value);
    } else {
        u32::set(&mut cpu.gpr, index, value);
    }
}

fn read_control(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_ring_zero()?;
    let special = &cpu.special;
    let value = match op.b.index {
        0 => special.cr0,
        2 => special.cr2,
        3 => special.cr3,
        4 => special.cr4,
        8 => special.cr8,
        _ => return Err(cpu.ud()),
    };
    put_full_gpr(cpu, op.a.index, value);
    Ok(())
}

fn write_control(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_ring_zero()?;
    let value = full_gpr(cpu, op.b.index);
    let special = cpu.special;
    match op.a.index {
        0 => {
            let leaves_long = cpu.is_64_bit() && value & cr0::PG == 0;
            let enters_long = special.cr0 & cr0::PG == 0
                && value & cr0::PG != 0
                && special.efer & efer::LME != 0
                && special.cs.attributes.is_long();
            if leaves_long || enters_long {
                return Err(cpu.gp());
            }
            cpu.put_control(SpecialRegs {
                cr0: value,
                ..special
            })
        }
        2 => {
            cpu.special.cr2 = value;
            Ok(())
        }
        3 => cpu.put_control(SpecialRegs {
            cr3: value,
            ..special
        }),
        4 => {
            let defined = CR4_DEFINED | cpu.model.cr4_features;
            let leaves_pae = cpu.is_long_mode() && value & cr4::PAE == 0;
            if value & !defined != 0 || leaves_pae {
                return Err(cpu.gp());
            }
            cpu.put_control(SpecialRegs {
                cr4: value,
                ..special
            })
        }
        8 if value <= 0xF => {
            cpu.special.cr8 = value;
            Ok(())
        }
        8 => Err(cpu.gp()),
        _ => Err(cpu.ud()),
    }
}

/// CR4.DE: DR4 and DR5 do not exist, instead of being other names of DR6 and DR7.
const CR4_DE: u64 = 1 << 3;

fn debug_index(cpu: &mut Cpu, index: u8) -> Result<u8, Trap> {
    match index {
        4 | 5 if cpu.special.cr4 & CR4_DE != 0 => Err(cpu.ud()),
        4 | 5 => Ok(index + 2),
        0..=7 => Ok(index),
        _ => Err(cpu.ud()),
    }
}

fn read_debug(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_ring_zero()?;
    let value = match debug_index(cpu, op.b.index)? {
        6 => cpu.debug.dr6,
        7 => cpu.debug.dr7,
        index => cpu.debug.dr[usize::from(index & 3)],
    };
    put_full_gpr(cpu, op.a.index, value);
    Ok(())
}

/// The registers hold what is written; breakpoints do not fire.
fn write_debug(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    /// Bits of DR6 and DR7 that can change, and those that are always 1 (Intel SDM volume 3, section 19.2).
    const DR6: (u64, u64) = (0xE00F, 0xFFFF_0FF0);
    const DR7: (u64, u64) = (0xFFFF_2BFF, 0x400);
    cpu.require_ring_zero()?;
    let value = full_gpr(cpu, op.b.index);
    let index = debug_index(cpu, op.a.index)?;
    if index >= 6 && value >> 32 != 0 {
        return Err(cpu.gp());
    }
    match index {
        6 => cpu.debug.dr6 = value & DR6.0 | DR6.1,
        7 => cpu.debug.dr7 = value & DR7.0 | DR7.1,
        index => cpu.debug.dr[usize::from(index & 3)] = value,
    }
    Ok(())
}

fn halt(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_ring_zero()?;
    cpu.left_behind = Some(op.next);
    Err(cpu.exit(Exit::Halt))
}

fn require_io_privilege(cpu: &mut Cpu) -> Result<(), Trap> {
    if !cpu.is_protected() || cpu.cpl <= cpu.flags.iopl() {
        Ok(())
    } else {
        Err(cpu.gp())
    }
}

fn clear_interrupts(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    require_io_privilege(cpu)?;
    cpu.flags.put(flags::IF, false);
    Ok(())
}

fn set_interrupts(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    require_io_privilege(cpu)?;
    if !cpu.flags.has(flags::IF) {
        cpu.shadow_interrupts();
    }
    cpu.flags.put(flags::IF, true);
    Ok(())
}

fn clear_task_switched(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.require_ring_zero()?;
    cpu.special.cr0 &= !CR0_TS;
    cpu.refresh();
    Ok(())
}

fn store_machine_status(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = cpu.special.cr0;
    match (op.a.kind, op.size) {
        (Kind::Register, 8) => cpu.put::<u64>(op, op.a, value),
        (Kind::Register, 4) => cpu.put::<u32>(op, op.a, value),
        _ => cpu.put::<u16>(op, op.a, value),
    }
}

/// Only PE, MP, EM and TS; PE can be set but not cleared.
fn load_machine_status(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_ring_zero()?;
    let value = cpu.get::<u16>(op, op.a)?;
    let special = cpu.special;
    cpu.put_control(SpecialRegs {
        cr0: special.cr0 & !0xE | value & 0xF,
        ..special
    })
}

fn invalidate_page(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_ring_zero()?;
    let linear = cpu.bases[usize::from(op.segment) & 7].wrapping_add(cpu.effective(op));
    cpu.tlb.flush_page(cpu.wrap(linear));
    Ok(())
}

fn invalidate_caches(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.require_ring_zero()
}

fn put_pair(cpu: &mut Cpu, value: u64) {
    u32::set(&mut cpu.gpr, reg::RAX, value);
    u32::set(&mut cpu.gpr, reg::RDX, value >> 32);
}

fn read_msr(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.require_ring_zero()?;
    let index = u32::get(&cpu.gpr, reg::RCX) as u32;
    let value = match index {
        msr::IA32_EFER => cpu.special.efer,
        msr::IA32_FS_BASE => cpu.special.fs.base,
        msr::IA32_GS_BASE => cpu.special.gs.base,
        _ => match cpu.msrs.get(index) {
            Some(value) => value,
            None => return Err(cpu.gp()),
        },
    };
    put_pair(cpu, value);
    Ok(())
}

fn write_msr(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.require_ring_zero()?;
    let index = u32::get(&cpu.gpr, reg::RCX) as u32;
    let value = u32::get(&cpu.gpr, reg::RDX) << 32 | u32::get(&cpu.gpr, reg::RAX);
    let is_address = matches!(
        index,
        msr::IA32_FS_BASE
            | msr::IA32_GS_BASE
            | msr::IA32_KERNEL_GS_BASE
            | msr::IA32_LSTAR
            | msr::IA32_CSTAR
            | msr::IA32_SYSENTER_ESP
            | msr::IA32_SYSENTER_EIP
    );
    if is_address && !is_canonical(value) {
        return Err(cpu.gp());
    }
    match index {
        msr::IA32_EFER => return write_efer(cpu, value),
        msr::IA32_FS_BASE => cpu.special.fs.base = value,
        msr::IA32_GS_BASE => cpu.special.gs.base = value,
        _ if cpu.msrs.set(index, value) => {}
        _ => return Err(cpu.gp()),
    }
    cpu.refresh();
    Ok(())
}

fn write_efer(cpu: &mut Cpu, value: u64) -> Result<(), Trap> {
    let old = cpu.special.efer;
    let changes_mode = (old ^ value) & efer::LME != 0 && cpu.special.cr0 & cr0::PG != 0;
    if value & !(EFER_WRITABLE | efer::LMA) != 0 || changes_mode {
        return Err(cpu.gp());
    }
    let special = cpu.special;
    cpu.put_control(SpecialRegs {
        efer: value & EFER_WRITABLE | old & efer::LMA,
        ..special
    })
}

/// Leaves that the model does not have read as zero.
fn identify(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    const OSXSAVE: u32 = 1 << 27;
    let leaf = u32::get(&cpu.gpr, reg::RAX) as u32;
    let subleaf = u32::get(&cpu.gpr, reg::RCX) as u32;
    let found = cpu
        .model
        .leaves
        .iter()
        .find(|it| it.leaf == leaf && it.subleaf.is_none_or(|it| it == subleaf));
    let mut values = found.map_or([0; 4], |it| [it.eax, it.ebx, it.ecx, it.edx]);
    if leaf == 1 && cpu.special.cr4 & cr4::OSXSAVE != 0 {
        values[2] |= OSXSAVE;
    }
    for (register, value) in [reg::RAX, reg::RBX, reg::RCX, reg::RDX]
        .into_iter()
        .zip(values)
    {
        u32::set(&mut cpu.gpr, register, u64::from(value));
    }
    Ok(())
}

/// The clock counts instructions. The block ends here, so that those before are counted.
fn read_clock(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if cpu.special.cr4 & CR4_TSD != 0 {
        cpu.require_ring_zero()?;
    }
    let value = cpu.retired.wrapping_add(op.imm);
    put_pair(cpu, value);
    Ok(())
}

fn swap_gs(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    if !cpu.is_64_bit() {
        return Err(cpu.ud());
    }
    cpu.require_ring_zero()?;
    let other = cpu.msr_value(msr::IA32_KERNEL_GS_BASE);
    cpu.msrs.set(msr::IA32_KERNEL_GS_BASE, cpu.special.gs.base);
    cpu.special.gs.base = other;
    cpu.refresh();
    Ok(())
}

fn put_access_check(cpu: &mut Cpu, value: bool) -> Result<(), Trap> {
    if cpu.cpl != 0 || cpu.model.cr4_features & cr4::SMAP == 0 {
        return Err(cpu.ud());
    }
    cpu.flags.put(flags::AC, value);
    Ok(())
}

fn set_access_check(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    put_access_check(cpu, true)
}

fn clear_access_check(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    put_access_check(cpu, false)
}
