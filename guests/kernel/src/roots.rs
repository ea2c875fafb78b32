//! Several address spaces: roots that share everything of the kernel's and have one page each of their own.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vellum_guest::{GuestError, guest_function, kernel};
use vellum_layout::{Gpa, Gva, GvaRange, PAGE_SIZE};
use vellum_vmem::{Attrs, TableStore};

use crate::tables::{data, error, is_user_in, mapper};

/// Where each root but the first has a page of its own, in an area that the host leaves alone.
const USER_PAGE: GvaRange = GvaRange::literal(
    Gva::literal(if usize::BITS == 64 {
        0x5000_0000_0000
    } else {
        0xB000_0000
    }),
    PAGE_SIZE,
);

/// The guest-physical addresses of the roots that [`make_root`] has made, from number 1.
static ROOTS: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
static ROOT_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Makes a root with the top-level entries of the home root and a user page of its own. Returns its number; 0 is the home root.
#[guest_function]
fn make_root() -> Result<u32, GuestError> {
    let index = ROOT_COUNT.load(Ordering::Relaxed);
    let slot = ROOTS
        .get(index)
        .ok_or_else(|| GuestError::new("no more roots"))?;
    let (root, page) = (take_frame()?, take_frame()?);
    copy_frame(kernel::home_root(), root)?;
    let attrs = Attrs::WRITE | Attrs::USER | Attrs::ACCESSED | Attrs::DIRTY;
    mapper(root)?
        .map(USER_PAGE, page, data(attrs))
        .map_err(error)?
        .ignore("no processor has used this root");
    slot.store(root.as_u64(), Ordering::Relaxed);
    ROOT_COUNT.store(index + 1, Ordering::Relaxed);
    u32::try_from(index + 1).map_err(error)
}

/// Writes to the user page of a root, on that root.
#[guest_function]
fn root_write(root: u32, value: u64) -> Result<(), GuestError> {
    root_write_at(root, USER_PAGE.start().as_u64(), value)
}

/// Reads from the user page of a root, on that root.
#[guest_function]
fn root_read(root: u32) -> Result<u64, GuestError> {
    root_read_at(root, USER_PAGE.start().as_u64())
}

/// Writes a word of eight bytes to any address, on a root.
#[guest_function]
fn root_write_at(root: u32, address: u64, value: u64) -> Result<(), GuestError> {
    let word = word(address)?;
    // SAFETY: none that this function could check: the caller answers for what lies at the address.
    on_root(root, || unsafe { word.write_volatile(value) })
}

/// Reads a word of eight bytes from any address, on a root.
#[guest_function]
fn root_read_at(root: u32, address: u64) -> Result<u64, GuestError> {
    let word = word(address)?;
    // SAFETY: as above.
    on_root(root, || unsafe { word.read_volatile() })
}

/// The guest-physical address of a root.
#[guest_function]
fn root_gpa(root: u32) -> Result<u64, GuestError> {
    Ok(find(root)?.as_u64())
}

/// The guest-physical address of the user page of a root.
#[guest_function]
fn root_user_gpa(root: u32) -> Result<u64, GuestError> {
    let mapping = kernel::translate(find(root)?, USER_PAGE.start()).map_err(error)?;
    Ok(mapping.gpa.as_u64())
}

/// Where the user page of each root is.
#[guest_function]
fn user_address() -> u64 {
    USER_PAGE.start().as_u64()
}

/// Whether ring 3 could access an address of a root.
#[guest_function]
fn is_user_in_root(root: u32, address: u64) -> Result<bool, GuestError> {
    is_user_in(find(root)?, address)
}

/// Whether no top-level entry of a root is another one than the home root has, so that they share the tables below. An entry that
/// the root lacks is no difference: it gets it when it needs it.
#[guest_function]
fn root_shares_kernel(root: u32) -> Result<bool, GuestError> {
    /// Bits that the processor sets by itself: accessed and dirty.
    const OF_PROCESSOR: u64 = 1 << 5 | 1 << 6;
    let root = find(root)?;
    // SAFETY: the tables are only read.
    let tables = unsafe { kernel::tables() };
    let width = kernel::FORMAT.entry_width();
    for offset in (0..PAGE_SIZE).step_by(usize::try_from(width.bytes()).map_err(error)?) {
        let entry = |root: Gpa| {
            let at = root
                .checked_add(offset)
                .ok_or_else(|| GuestError::new("root wraps"))?;
            tables.read_entry(at, width).map_err(error)
        };
        let (theirs, ours) = (entry(kernel::home_root())?, entry(root)?);
        let is_present = |entry: u64| entry & 1 != 0;
        if is_present(theirs) && is_present(ours) && (theirs ^ ours) & !OF_PROCESSOR != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Switches to a root for as long as `access` takes.
fn on_root<T>(root: u32, access: impl FnOnce() -> T) -> Result<T, GuestError> {
    let (root, before) = (find(root)?, kernel::root());
    // SAFETY: the root has all entries of the home root, on which everything in use is mapped.
    unsafe { kernel::switch_root(root) };
    let result = access();
    // SAFETY: as above; it was in use before.
    unsafe { kernel::switch_root(before) };
    Ok(result)
}

/// The word at an address.
fn word(address: u64) -> Result<*mut u64, GuestError> {
    let address = usize::try_from(address).map_err(error)?;
    let word = core::ptr::with_exposed_provenance_mut::<u64>(address);
    if word.is_aligned() {
        Ok(word)
    } else {
        Err(GuestError::new("address is no multiple of 8"))
    }
}

fn find(root: u32) -> Result<Gpa, GuestError> {
    let Some(index) = root.checked_sub(1) else {
        return Ok(kernel::home_root());
    };
    let slot = ROOTS
        .get(index as usize)
        .map_or(0, |slot| slot.load(Ordering::Relaxed));
    if slot == 0 {
        return Err(GuestError::new("no such root"));
    }
    Gpa::new(slot).map_err(error)
}

fn take_frame() -> Result<Gpa, GuestError> {
    kernel::take_frame().ok_or_else(|| GuestError::new("out of frames"))
}

/// Copies a whole frame.
fn copy_frame(from: Gpa, to: Gpa) -> Result<(), GuestError> {
    let [from, to] = [from, to].map(kernel::frame_ptr);
    let (Some(from), Some(to)) = (from, to) else {
        return Err(GuestError::new("frame is none of scratch"));
    };
    // SAFETY: both are frames of scratch, of which `to` is fresh.
    unsafe { from.copy_to_nonoverlapping(to, 4096) };
    Ok(())
}
