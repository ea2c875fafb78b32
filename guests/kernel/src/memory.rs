//! Memory: pages that are dirtied on demand, and words at any guest-physical address.

use core::alloc::Layout;
use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use alloc::alloc::{alloc, dealloc};
use alloc::vec::Vec;

use vellum_guest::{GuestError, guest_function};
use vellum_layout::PAGE_SIZE;

static ARENA: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static ARENA_PAGES: AtomicUsize = AtomicUsize::new(0);

/// Writes one word into each of the first `count` pages of a block of the heap, which is made if it is too short.
/// Returns `count`.
#[guest_function]
fn touch_pages(count: u64) -> Result<u64, GuestError> {
    let refused = || GuestError::new("the heap has fewer pages");
    let pages = usize::try_from(count).map_err(|_| refused())?;
    if ARENA_PAGES.load(Ordering::Relaxed) < pages {
        make_arena(pages).ok_or_else(refused)?;
    }
    let arena = ARENA.load(Ordering::Relaxed);
    for (page, value) in (0..pages).zip(0x5EED..) {
        write(arena.addr() + page * page_len_bytes(), value);
    }
    Ok(count)
}

/// Replaces the arena by one of `pages` pages, or leaves none when the heap has no room.
fn make_arena(pages: usize) -> Option<()> {
    let old_pages = ARENA_PAGES.swap(0, Ordering::Relaxed);
    if old_pages > 0 {
        let old = ARENA.swap(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: pointer and layout are those of the allocation below.
        unsafe { dealloc(old, arena_layout(old_pages)?) };
    }
    // SAFETY: the caller asks for more pages than there were, so the layout is not empty.
    let arena = unsafe { alloc(arena_layout(pages)?) };
    if arena.is_null() {
        return None;
    }
    ARENA.store(arena, Ordering::Relaxed);
    ARENA_PAGES.store(pages, Ordering::Relaxed);
    Some(())
}

fn arena_layout(pages: usize) -> Option<Layout> {
    Layout::from_size_align(pages.checked_mul(page_len_bytes())?, page_len_bytes()).ok()
}

/// The length of a page as this machine counts bytes.
#[expect(clippy::cast_possible_truncation, reason = "a page has 4096 bytes")]
const fn page_len_bytes() -> usize {
    PAGE_SIZE as usize
}

/// Reads a 32-bit word.
#[guest_function]
fn read_address(address: u64) -> Result<u64, GuestError> {
    Ok(read(pointer(address)?).into())
}

/// Writes the low 32 bits of `value`.
#[guest_function]
fn write_address(address: u64, value: u64) -> Result<(), GuestError> {
    #[expect(clippy::cast_possible_truncation, reason = "the low half is asked for")]
    write(pointer(address)?, value as u32);
    Ok(())
}

/// Reads with a plain instruction: the compiler knows nothing of what lies at the address.
pub(crate) fn read(address: usize) -> u32 {
    let value;
    // SAFETY: a read has no effect on Rust's memory. Whether there is memory at the address is the caller's affair.
    unsafe {
        asm!("mov {:e}, dword ptr [{}]", out(reg) value, in(reg) address, options(nostack, readonly, preserves_flags));
    };
    value
}

/// Writes with a plain instruction.
pub(crate) fn write(address: usize, value: u32) {
    // SAFETY: none that this function could check: the caller answers for what lies at the address.
    unsafe {
        asm!("mov dword ptr [{}], {:e}", in(reg) address, in(reg) value, options(nostack, preserves_flags));
    };
}

/// Copies bytes between any two addresses.
fn copy(from: usize, to: usize, len_bytes: usize) {
    let from = ptr::with_exposed_provenance::<u8>(from);
    // SAFETY: none that this function could check: the caller answers for what lies at the addresses.
    unsafe { from.copy_to(ptr::with_exposed_provenance_mut(to), len_bytes) };
}

fn pointer(address: u64) -> Result<usize, GuestError> {
    usize::try_from(address).map_err(|_| GuestError::new("address of more than 32 bits"))
}

/// The bytes at an address.
#[guest_function]
fn peek(address: u64, len_bytes: u32) -> Result<Vec<u8>, GuestError> {
    let mut bytes = alloc::vec![0; len_bytes as usize];
    copy(
        pointer(address)?,
        bytes.as_mut_ptr().expose_provenance(),
        bytes.len(),
    );
    Ok(bytes)
}

/// Writes bytes to an address.
#[guest_function]
fn poke(address: u64, bytes: &[u8]) -> Result<(), GuestError> {
    copy(
        bytes.as_ptr().expose_provenance(),
        pointer(address)?,
        bytes.len(),
    );
    Ok(())
}

/// The word of eight bytes with this index in the heap, whatever the allocator keeps there; 0 where nothing was written yet.
#[guest_function]
fn heap_word(index: u64) -> Result<u64, GuestError> {
    let address = heap_address(index)?;
    Ok(u64::from(read(address)) | u64::from(read(address + 4)) << 32)
}

/// Writes such a word. Low ones may belong to the allocator.
#[guest_function]
fn set_heap_word(index: u64, value: u64) -> Result<(), GuestError> {
    let address = heap_address(index)?;
    let bytes = value.to_le_bytes();
    copy(bytes.as_ptr().expose_provenance(), address, bytes.len());
    Ok(())
}

fn heap_address(index: u64) -> Result<usize, GuestError> {
    let peb = vellum_guest::rt::peb();
    let offset = index
        .checked_mul(8)
        .filter(|offset| {
            offset
                .checked_add(8)
                .is_some_and(|end| end <= peb.heap_len_bytes)
        })
        .ok_or_else(|| GuestError::new("the heap has fewer words"))?;
    pointer(peb.heap_ptr + offset)
}

#[guest_function]
fn heap_len() -> u64 {
    vellum_guest::rt::peb().heap_len_bytes
}

#[guest_function]
fn heap_start() -> u64 {
    vellum_guest::rt::peb().heap_ptr
}

/// The address of a word of this kernel's data that nothing else uses: a page of its own, to be copied on write.
#[guest_function]
fn data_address() -> u64 {
    #[repr(align(4096))]
    struct Page([AtomicUsize; 1024]);
    static PAGE: Page = Page([const { AtomicUsize::new(0x5EED) }; 1024]);
    PAGE.0.as_ptr().addr() as u64
}

#[guest_function]
fn peb_address() -> u64 {
    vellum_guest::rt::peb_address()
}

/// Copies `len_bytes` bytes inside `bytes`, from offset `from` to offset `to`, and returns them all: memmove.
#[guest_function]
fn copy_within(mut bytes: Vec<u8>, from: u32, to: u32, len_bytes: u32) -> Vec<u8> {
    let [from, to, len_bytes] = [from, to, len_bytes].map(|number| number as usize);
    bytes.copy_within(from..from + len_bytes, to);
    bytes
}

/// Sets `len_bytes` bytes from offset `from` to `value`, and returns them all: memset.
#[guest_function]
fn fill_within(mut bytes: Vec<u8>, value: u32, from: u32, len_bytes: u32) -> Vec<u8> {
    let [from, len_bytes] = [from, len_bytes].map(|number| number as usize);
    bytes[from..from + len_bytes].fill(value.to_le_bytes()[0]);
    bytes
}

/// -1, 0 or 1 as `left` is less than, equal to or greater than `right`: memcmp.
#[guest_function]
fn compare(left: &[u8], right: &[u8]) -> i32 {
    left.cmp(right) as i32
}
