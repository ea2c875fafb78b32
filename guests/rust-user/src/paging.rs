//! Page tables, built and read by a guest: `vellum-layout` and `vellum-vmem` serve guests as they serve hosts.

use alloc::vec;

use vellum_guest::{GuestError, guest_function};
use vellum_layout::{Gpa, GpaRange, Gva, GvaRange};
use vellum_vmem::{Attrs, Format, FrameRange, Mapper, SliceStore, translate};

/// Bytes of heap that `translate_in_own_tables` maps, from this address, to this frame.
const MAPPED_LEN_BYTES: u64 = 0x40_0000;
const MAPPED_AT: Gva = Gva::literal(0x4000_0000);
const MAPPED_TO: Gpa = Gpa::literal(0x20_0000);

/// Builds 4-level tables in ordinary memory that map 4 MiB at `0x4000_0000` to `0x20_0000`, and returns what they
/// translate `address` to.
#[guest_function]
fn translate_in_own_tables(address: u64) -> Result<u64, GuestError> {
    let address = Gva::new(address).map_err(error)?;
    let root = Gpa::literal(0x10_0000);
    let mut memory = vec![0_u64; 8 * 512];
    let mut store = SliceStore::new(root, &mut memory);
    let frames =
        FrameRange::new(GpaRange::new(Gpa::literal(0x10_1000), 7 * 0x1000).map_err(error)?);
    let range = GvaRange::new(MAPPED_AT, MAPPED_LEN_BYTES).map_err(error)?;
    let attributes = Attrs::WRITE | Attrs::USER | Attrs::NO_EXECUTE;
    Mapper::new(&mut store, frames, root, Format::FOUR_LEVEL)
        .map_err(error)?
        .map(range, MAPPED_TO, attributes)
        .map_err(error)?
        .ignore("no processor uses these tables");
    let mapping = translate(&store, root, address, Format::FOUR_LEVEL).map_err(error)?;
    Ok(mapping.gpa.as_u64())
}

fn error(error: impl core::fmt::Display) -> GuestError {
    GuestError::new(alloc::format!("{error}"))
}
