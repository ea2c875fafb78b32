//! Accesses to lent host memory.
//!
//! Every access is atomic and a page long at most. Loads acquire and stores release, which on x86 costs nothing and elsewhere gives
//! guests the order that they expect of an x86 (Intel SDM volume 3, section 10.2).
#![expect(
    unsafe_code,
    reason = "reads and writes memory that is lent to the guest"
)]

use std::ptr;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use vellum_backend::Hva;

use super::PAGE_LEN_BYTES;

/// The address of a byte of lent memory.
///
/// One is only made from a slot that is mapped ([`Slot::page`](super::Slot::page)), and none is kept beyond the slot: by the
/// contract of [`vellum_backend::Vm::map`] the memory behind it exists until then, and no Rust reference into it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Host(u64);

impl Host {
    /// The first byte of a page of a slot.
    pub(super) fn page(base: Hva, offset: u64) -> Self {
        Self(base.as_u64().wrapping_add(offset & !(PAGE_LEN_BYTES - 1)))
    }

    /// The distance from a linear page to this page, for [`Host::displaced`].
    #[inline]
    pub(super) fn distance_from(self, linear_page: u64) -> u64 {
        self.0.wrapping_sub(linear_page)
    }

    /// The byte that `distance`, made by [`distance_from`](Self::distance_from), says for a linear address of that page.
    #[inline]
    pub(super) fn displaced(distance: u64, linear: u64) -> Self {
        Self(linear.wrapping_add(distance))
    }

    /// A byte of the same page.
    #[inline]
    pub(crate) fn at(self, offset: u64) -> Self {
        Self(self.0 & !(PAGE_LEN_BYTES - 1) | offset & (PAGE_LEN_BYTES - 1))
    }

    /// The page that it lies in, as a number for comparison.
    pub(crate) fn page_number(self) -> u64 {
        self.0 / PAGE_LEN_BYTES
    }

    /// The address as a number, for hashing.
    #[inline]
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// Bytes from here to the end of the page.
    #[inline]
    pub(crate) fn room_bytes(self) -> u64 {
        PAGE_LEN_BYTES - self.0 % PAGE_LEN_BYTES
    }

    #[inline]
    fn pointer<T>(self) -> *mut T {
        ptr::with_exposed_provenance_mut(self.0 as usize)
    }

    #[inline]
    fn is_aligned<T>(self) -> bool {
        self.0.is_multiple_of(size_of::<T>() as u64)
    }

    /// Copies bytes out, up to the end of the page; says how many.
    pub(crate) fn read_bytes(self, into: &mut [u8]) -> usize {
        let len = into.len().min(self.room_bytes() as usize);
        for (index, byte) in into[..len].iter_mut().enumerate() {
            *byte = Host(self.0 + index as u64).load_byte();
        }
        len
    }

    /// Copies bytes in, up to the end of the page; says how many.
    pub(crate) fn write_bytes(self, from: &[u8]) -> usize {
        let len = from.len().min(self.room_bytes() as usize);
        for (index, byte) in from[..len].iter().enumerate() {
            Host(self.0 + index as u64).store_byte(*byte);
        }
        len
    }

    /// Copies `len_bytes` within lent memory; both ends stay in their pages. Refuses, and does nothing, where the two overlap so closely
    /// that the size of the items copied matters.
    pub(crate) fn copy_forward(self, from: Self, len_bytes: u64) -> bool {
        if self.0.abs_diff(from.0) < 8 {
            return false;
        }
        let len_bytes = len_bytes.min(self.room_bytes()).min(from.room_bytes());
        let mut done = 0;
        if self.0 % 8 == from.0 % 8 {
            while done < len_bytes && !Host(self.0 + done).is_aligned::<u64>() {
                Host(self.0 + done).store_byte(Host(from.0 + done).load_byte());
                done += 1;
            }
            while done + 8 <= len_bytes {
                let value = u64::load(Host(from.0 + done)).unwrap_or(0);
                let _ = u64::store(Host(self.0 + done), value);
                done += 8;
            }
        }
        while done < len_bytes {
            Host(self.0 + done).store_byte(Host(from.0 + done).load_byte());
            done += 1;
        }
        true
    }

    /// Stores `count` items of one value, which do not reach beyond the page.
    pub(crate) fn fill<C: Cell>(self, value: u64, count: u64) {
        let len_bytes = size_of::<C>() as u64;
        for index in 0..count {
            let _ = C::store(Host(self.0 + index * len_bytes), value);
        }
    }

    #[inline]
    fn load_byte(self) -> u8 {
        // SAFETY: by the invariant of the type the byte is mapped and only accessed atomically.
        unsafe { AtomicU8::from_ptr(self.pointer()) }.load(Ordering::Relaxed)
    }

    #[inline]
    fn store_byte(self, value: u8) {
        // SAFETY: as in `load_byte`; stores only happen to pages that the slot allows to be written.
        unsafe { AtomicU8::from_ptr(self.pointer()) }.store(value, Ordering::Relaxed);
    }

    /// Loads `len` bytes one by one, the lowest first.
    #[inline(never)]
    fn load_split(self, len_bytes: u64) -> u64 {
        (0..len_bytes).fold(0, |value, index| {
            value | u64::from(Host(self.0 + index).load_byte()) << (index * 8)
        })
    }

    #[inline(never)]
    fn store_split(self, value: u64, len_bytes: u64) {
        for (index, byte) in (0..len_bytes).zip(value.to_le_bytes()) {
            Host(self.0 + index).store_byte(byte);
        }
    }
}

/// A number as it lies in guest memory.
pub(crate) trait Cell: Sized {
    /// Loads it; `None` when it crosses the end of the page.
    fn load(at: Host) -> Option<u64>;

    /// Stores it; `None`, and nothing done, when it crosses the end of the page.
    fn store(at: Host, value: u64) -> Option<()>;

    /// Stores `new` where `old` still is; what is there otherwise. `None` when it is not aligned.
    fn compare_exchange(at: Host, old: u64, new: u64) -> Option<Result<(), u64>>;
}

macro_rules! cell {
    ($number:ty, $atomic:ty) => {
        impl Cell for $number {
            #[inline]
            fn load(at: Host) -> Option<u64> {
                const LEN_BYTES: u64 = size_of::<$number>() as u64;
                if at.is_aligned::<$number>() {
                    // SAFETY: aligned, so inside one page, which by the invariant of `Host` is mapped and only accessed
                    // atomically.
                    let cell = unsafe { <$atomic>::from_ptr(at.pointer()) };
                    let value = cell.load(Ordering::Acquire);
                    return Some(u64::from(<$number>::from_le(value)));
                }
                (at.room_bytes() >= LEN_BYTES).then(|| at.load_split(LEN_BYTES))
            }

            #[inline]
            fn store(at: Host, value: u64) -> Option<()> {
                const LEN_BYTES: u64 = size_of::<$number>() as u64;
                if at.is_aligned::<$number>() {
                    let value = (value as $number).to_le();
                    // SAFETY: as in `load`; the slot allows writing.
                    unsafe { <$atomic>::from_ptr(at.pointer()) }.store(value, Ordering::Release);
                    return Some(());
                }
                (at.room_bytes() >= LEN_BYTES).then(|| at.store_split(value, LEN_BYTES))
            }

            fn compare_exchange(at: Host, old: u64, new: u64) -> Option<Result<(), u64>> {
                if !at.is_aligned::<$number>() {
                    return None;
                }
                let (old, new) = ((old as $number).to_le(), (new as $number).to_le());
                // SAFETY: as in `store`.
                let cell = unsafe { <$atomic>::from_ptr(at.pointer()) };
                let done = cell.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst);
                Some(
                    done.map(|_| ())
                        .map_err(|now| u64::from(<$number>::from_le(now))),
                )
            }
        }
    };
}

cell!(u8, AtomicU8);
cell!(u16, AtomicU16);
cell!(u32, AtomicU32);
cell!(u64, AtomicU64);
