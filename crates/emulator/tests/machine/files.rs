//! Memory that is a file, which others may shorten while it is mapped.

use std::fs::{self, File, OpenOptions};

use vellum_backend::{Exit, FileMemory, Protection, Vm};
use vellum_layout::{Gpa, GpaRange, PAGE_SIZE};

use crate::{Guest, flat};

/// Where the file is mapped.
const AT: u64 = 0x10_0000;

/// A guest with a file of so many pages, the first word of each its number. The memory outlives the VM.
struct Lab {
    guest: Guest,
    memory: FileMemory,
    file: File,
}

fn lab(name: &str, pages: u64, code: &[u8]) -> Lab {
    let name = format!("vellum-emulator-{}-{name}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let mut content = Vec::new();
    for page in 0..pages {
        content.extend(page.to_le_bytes());
        content.extend([0; 4088]);
    }
    fs::write(&path, content).expect("written");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .expect("opened");
    fs::remove_file(&path).expect("removed");
    let len_bytes = pages * PAGE_SIZE;
    let memory = FileMemory::map(&file, len_bytes).expect("mapped");
    let mut guest = flat(code);
    let range = GpaRange::new(Gpa::literal(AT), len_bytes).expect("a range");
    // SAFETY: the memory lives in the same struct, behind the VM, and nothing borrows its bytes.
    unsafe { guest.vm.map_file(range, memory.hva(), Protection::Write) }.expect("lent");
    guest.vm.set_fuel(None);
    Lab {
        guest,
        memory,
        file,
    }
}

impl Lab {
    /// The value of the next `out`.
    fn output(&mut self) -> Result<u32, Exit> {
        match self.guest.vm.run().expect("ran") {
            Exit::IoOut { data, .. } => Ok(data),
            exit => Err(exit),
        }
    }
}

const LOST: Exit = Exit::MemoryLost {
    gpa: Some(AT + PAGE_SIZE + 8),
};

#[test]
fn a_read_of_what_was_truncated_is_an_exit() {
    // mov eax, [AT + 0x1000]; out 0xe0, eax; mov eax, [AT + 0x1008]; out 0xe0, eax
    let code = [
        0xA1, 0, 0x10, 0x10, 0, 0xE7, 0xE0, 0xA1, 8, 0x10, 0x10, 0, 0xE7, 0xE0,
    ];
    let mut lab = lab("read", 2, &code);
    assert_eq!(lab.output(), Ok(1));
    lab.file.set_len(PAGE_SIZE).expect("truncated");
    assert_eq!(lab.output(), Err(LOST));
}

#[test]
fn a_write_to_what_was_truncated_is_an_exit() {
    // out 0xe0, eax; mov [AT + 0x1008], eax; out 0xe0, eax
    let code = [0xE7, 0xE0, 0xA3, 8, 0x10, 0x10, 0, 0xE7, 0xE0];
    let mut lab = lab("write", 2, &code);
    lab.output().expect("the first");
    lab.file.set_len(0).expect("truncated");
    assert_eq!(lab.output(), Err(LOST));
}

#[test]
fn code_in_what_was_truncated_is_an_exit() {
    // jmp AT + 0x1008
    let mut lab = lab("code", 2, &[0xE9, 0x03, 0xC0, 0x0F, 0]);
    lab.file.set_len(100).expect("truncated");
    assert_eq!(lab.output(), Err(LOST));
}

#[test]
fn writes_are_the_guest_s_own_until_they_are_discarded() {
    // mov eax, [AT]; add dword [AT], 5; out 0xe0, eax; jmp to the start
    let code = [
        0xA1, 0, 0, 0x10, 0, 0x83, 0x05, 0, 0, 0x10, 0, 5, 0xE7, 0xE0, 0xEB, 0xF0,
    ];
    let mut lab = lab("private", 1, &code);
    let outputs: Vec<_> = (0..3).map(|_| lab.output()).collect();
    assert_eq!(outputs, [Ok(0), Ok(5), Ok(10)]);
    lab.memory.discard_copies().expect("discarded");
    assert_eq!(lab.output(), Ok(0));
}

#[test]
fn a_guest_reaches_more_pages_than_are_copied_at_once() {
    // mov esi, AT; mov ecx, 3000; next: add eax, [esi]; inc dword [esi + 4]; add esi, 0x1000; dec ecx; jnz next; out 0xe0, eax;
    // mov esi, AT; mov ecx, 3000; xor eax, eax; jmp to the sum of [esi + 4]
    let sum = |offset: u8| {
        [
            0xBE, 0, 0, 0x10, 0, 0xB9, 0xB8, 0x0B, 0, 0, 0x31, 0xC0, 0x03, 0x46, offset, 0xFF,
            0x46, 4, 0x81, 0xC6, 0, 0x10, 0, 0, 0x49, 0x75, 0xF1, 0xE7, 0xE0,
        ]
    };
    let mut lab = lab("many", 3000, &[sum(0), sum(4)].concat());
    assert_eq!(lab.output(), Ok((0..3000).sum()));
    assert_eq!(lab.output(), Ok(3000));
}
