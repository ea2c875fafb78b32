//! Page sizes.

/// Length in bytes of the smallest page of both guest architectures (Intel SDM Vol. 3A,
/// chapter "Paging"). Every region that this crate places is a whole number of these.
pub const PAGE_SIZE: u64 = 0x1000;

/// The page sizes that the translations of this crate can produce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB: the last level of every translation.
    Size4KiB,
    /// 2 MiB: a level-2 leaf of 4-level paging.
    Size2MiB,
    /// 4 MiB: a level-2 leaf of 2-level paging (needs CR4.PSE).
    Size4MiB,
    /// 1 GiB: a level-3 leaf of 4-level paging.
    Size1GiB,
}

impl PageSize {
    /// Every page size, smallest first.
    pub const ALL: [Self; 4] = [
        Self::Size4KiB,
        Self::Size2MiB,
        Self::Size4MiB,
        Self::Size1GiB,
    ];

    /// Length of a page of this size.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4KiB => PAGE_SIZE,
            Self::Size2MiB => 0x20_0000,
            Self::Size4MiB => 0x40_0000,
            Self::Size1GiB => 0x4000_0000,
        }
    }
}

const _: () = {
    let mut index = 0;
    while index < PageSize::ALL.len() {
        assert!(PageSize::ALL[index].bytes().is_power_of_two());
        assert!(PageSize::ALL[index].bytes().is_multiple_of(PAGE_SIZE));
        index += 1;
    }
};
