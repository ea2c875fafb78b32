//! Boots a 32-bit ELF file the way a multiboot loader does: flat protected mode, EAX = the loader's magic number, EBX = the
//! address of its information (Multiboot specification 0.6.96, section 3.2). A byte written to port 0xE9 is printed.
//!
//! `cargo run -p vellum-backend --example multiboot [-- KERNEL.elf]`. Without a file it boots a kernel of a few instructions.

use std::io::Write as _;

use object::LittleEndian;
use object::elf::{FileHeader32, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use vellum_backend::boot;
use vellum_backend::cpuid::CpuProfile;
use vellum_backend::flat::{FlatGuest, Flow};
use vellum_backend::kvm::Kvm;
use vellum_backend::{Irqchip, Tracking, VmConfig};
use vellum_layout::{Gpa, GpaRange};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What EAX holds when a multiboot loader hands over.
const LOADER_MAGIC: u32 = 0x2BAD_B002;
/// What a kernel's header begins with.
const HEADER_MAGIC: u32 = 0x1BAD_B002;
const RAM_LEN_BYTES: u64 = 16 << 20;
const INFO: u64 = 0x9000;
const STACK_TOP: u64 = 0x8000;
/// The port on which many emulators print a byte.
const DEBUG_PORT: u16 = 0xE9;

fn main() -> Result<()> {
    let elf = match std::env::args().nth(1) {
        Some(path) => std::fs::read(path)?,
        None => small_kernel(),
    };
    let kvm = Kvm::open()?;
    let config =
        VmConfig::new(kvm.cpu_model(CpuProfile::Best)?, Tracking::None).with_irqchip(Irqchip::None);
    let mut guest = FlatGuest::new(Box::new(kvm.create_vm(&config)?));
    guest.add_ram(GpaRange::new(Gpa::new(0)?, RAM_LEN_BYTES)?)?;
    guest.on_output(DEBUG_PORT, |_, data| {
        // A byte that cannot be printed is lost; the guest goes on.
        let _ = std::io::stdout().write_all(&[data.to_le_bytes()[0]]);
        Flow::Continue
    });
    let entry = load(&guest, &elf)?;
    // The information structure: flag 0, memory below 1 MiB and above it in KiB.
    for (offset, word) in (0..).step_by(4).zip([1_u32, 640, 15 << 10]) {
        guest.write(Gpa::new(INFO + offset)?, &word.to_le_bytes())?;
    }
    guest.boot(&boot::flat32(
        entry,
        Gpa::new(STACK_TOP)?,
        LOADER_MAGIC,
        u32::try_from(INFO)?,
    ))?;
    println!("the guest ended: {:?}", guest.run()?);
    Ok(())
}

/// Copies the loadable segments to their physical addresses and returns the entry point.
fn load(guest: &FlatGuest, elf: &[u8]) -> Result<Gpa> {
    let header = FileHeader32::<LittleEndian>::parse(elf)?;
    let endian = header.endian()?;
    for segment in header.program_headers(endian, elf)? {
        if segment.p_type(endian) == PT_LOAD {
            let bytes = segment
                .data(endian, elf)
                .map_err(|()| "a segment lies outside of the file")?;
            guest.write(Gpa::new(segment.p_paddr(endian).into())?, bytes)?;
        }
    }
    Ok(Gpa::new(header.e_entry(endian).into())?)
}

/// A kernel at 1 MiB that checks EAX, prints a line and halts.
fn small_kernel() -> Vec<u8> {
    const LOAD_ADDRESS: u32 = 0x10_0000;
    const CODE_OFFSET: u32 = 84;
    const TEXT: &[u8] = b"hello from a multiboot kernel\n\0";
    let text_address = LOAD_ADDRESS + CODE_OFFSET + 12 + 25;
    let mut code = Vec::new();
    // The header: magic, flags, and a checksum that makes their sum zero.
    for word in [HEADER_MAGIC, 0, 0_u32.wrapping_sub(HEADER_MAGIC)] {
        code.extend_from_slice(&word.to_le_bytes());
    }
    code.extend_from_slice(&[0x3D, 0x02, 0xB0, 0xAD, 0x2B]); // cmp eax, LOADER_MAGIC
    code.extend_from_slice(&[0x75, 0x10]); // jne halt
    code.push(0xBE); // mov esi, text
    code.extend_from_slice(&text_address.to_le_bytes());
    code.extend_from_slice(&[0x8A, 0x06]); // next: mov al, [esi]
    code.extend_from_slice(&[0x84, 0xC0]); // test al, al
    code.extend_from_slice(&[0x74, 0x05]); // jz halt
    code.extend_from_slice(&[0xE6, 0xE9]); // out 0xE9, al
    code.push(0x46); // inc esi
    code.extend_from_slice(&[0xEB, 0xF5]); // jmp next
    code.extend_from_slice(&[0xF4, 0x90]); // halt: hlt
    code.extend_from_slice(TEXT);
    elf32(LOAD_ADDRESS, CODE_OFFSET, &code)
}

/// An executable ELF file with one segment (System V ABI, chapters 4 and 5).
fn elf32(load_address: u32, code_offset: u32, code: &[u8]) -> Vec<u8> {
    let mut elf = vec![0x7F, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let len_bytes = code_offset + u32::try_from(code.len()).unwrap_or(0);
    let entry = load_address + code_offset + 12;
    elf.extend([2_u16, 3].iter().flat_map(|half| half.to_le_bytes())); // executable, 386
    elf.extend(
        [1, entry, 52, 0, 0]
            .iter()
            .flat_map(|word: &u32| word.to_le_bytes()),
    );
    elf.extend(
        [52_u16, 32, 1, 40, 0, 0]
            .iter()
            .flat_map(|half| half.to_le_bytes()),
    );
    let segment = [
        1,
        0,
        load_address,
        load_address,
        len_bytes,
        len_bytes,
        5,
        0x1000,
    ];
    elf.extend(segment.iter().flat_map(|word: &u32| word.to_le_bytes()));
    elf.extend_from_slice(code);
    elf
}
