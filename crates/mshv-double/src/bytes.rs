//! Reading and writing the structures that a program passes by address.
#![expect(
    unsafe_code,
    reason = "copies structures at addresses that the program gives"
)]

use crate::status::Failure;

/// A plain structure at an address of the program.
///
/// The kernel would answer EFAULT to an address that is not mapped; the double lives in the same process and crashes. Only null is caught.
pub(crate) fn read<T: Copy>(address: u64) -> Result<T, Failure> {
    let pointer = checked::<T>(address)?;
    // SAFETY: the program passed this address to `ioctl` as that of a `T` (see above), a structure of plain numbers without invalid values.
    Ok(unsafe { pointer.read_unaligned() })
}

pub(crate) fn write<T: Copy>(address: u64, value: T) -> Result<(), Failure> {
    let pointer = checked::<T>(address)?;
    // SAFETY: as in `read`; the request says that it is written.
    unsafe { pointer.write_unaligned(value) };
    Ok(())
}

/// Copies bytes of the program.
pub(crate) fn read_bytes(address: u64, len_bytes: usize) -> Result<Vec<u8>, Failure> {
    let pointer = checked::<u8>(address)?;
    let mut bytes = vec![0; len_bytes];
    // SAFETY: as in `read`: the program says that so many bytes lie there.
    unsafe { pointer.copy_to_nonoverlapping(bytes.as_mut_ptr(), len_bytes) };
    Ok(bytes)
}

pub(crate) fn write_bytes(address: u64, bytes: &[u8]) -> Result<(), Failure> {
    let pointer = checked::<u8>(address)?;
    // SAFETY: as in `write`: the program says that there is room for so many bytes.
    unsafe { pointer.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    Ok(())
}

fn checked<T>(address: u64) -> Result<*mut T, Failure> {
    match usize::try_from(address) {
        Ok(address) if address != 0 => Ok(std::ptr::with_exposed_provenance_mut(address)),
        _ => Err(Failure::Errno(libc::EFAULT)),
    }
}

/// The number of `N` bytes at an offset.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(number)
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(number)
}
