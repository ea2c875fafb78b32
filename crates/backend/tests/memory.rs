//! How the kernel sees the mappings of a [`HostMemory`].

use std::fs;

use vellum_backend::memory::{HostMemory, SealedMemory};

const PAGE: u64 = vellum_layout::PAGE_SIZE;

/// The flags (`rwxp`) that Linux shows for the mapping that holds the start of `memory`.
fn flags_of(memory: &HostMemory) -> String {
    let address = memory.hva().as_u64();
    let maps = fs::read_to_string("/proc/self/maps").expect("Linux has it");
    let flags = maps.lines().find_map(|line| {
        let (bounds, rest) = line.split_once(' ')?;
        let (start, end) = bounds.split_once('-')?;
        let bound = |text| u64::from_str_radix(text, 16).ok();
        (bound(start)?..bound(end)?)
            .contains(&address)
            .then(|| rest.split(' ').next())?
    });
    flags.expect("it is mapped").to_owned()
}

#[test]
fn sealed_memory_is_never_mapped_shared_because_older_kernels_refuse_that() {
    let sealed = SealedMemory::create("vellum-test", PAGE, |_| Ok(())).expect("sealed");
    let mut memory = HostMemory::zeroed(2 * PAGE).expect("address space");
    memory.overlay(0, &sealed).expect("mapped");
    for memory in [&memory, &sealed.map().expect("mapped")] {
        assert_eq!(flags_of(memory), "rw-p");
    }
}
