//! The table of files and host memories that the host has mapped into a guest.
//!
//! The host writes it and the [PEB](crate::peb::Peb) says where it is and how many entries it has. Both may change whenever the guest
//! waits for the host, so a guest looks a mapping up when it needs it, by its label.

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most mappings that a guest can have at a time.
pub const MAX_MAPPINGS: usize = 32;

/// Longest label.
pub const MAX_LABEL_LEN_BYTES: usize = 32;

/// Flag: the guest may write.
pub const FLAG_WRITABLE: u32 = 1 << 0;

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct MappingEntry {
    /// Guest-physical address, page-aligned.
    pub gpa: u64,
    /// Address under the translation that the host has set up for the guest; 0 in a kernel with paging, which maps `gpa` itself.
    pub ptr: u64,
    /// Length, without the zeroes that fill up the last page.
    pub len_bytes: u64,
    /// [`FLAG_WRITABLE`].
    pub flags: u32,
    /// Length of the label.
    pub label_len_bytes: u32,
    /// The label, UTF-8, filled up with zeroes.
    pub label: [u8; MAX_LABEL_LEN_BYTES],
}

const _: () = assert!(size_of::<MappingEntry>() == 64 && align_of::<MappingEntry>() == 8);

/// A text that is no label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("mapping label of {len_bytes} bytes; it must have 1 to {MAX_LABEL_LEN_BYTES}")]
pub struct LabelError {
    /// Its length.
    pub len_bytes: usize,
}

/// Lays a label out as [`MappingEntry::label`].
///
/// # Errors
/// An empty one, or one that is longer than [`MAX_LABEL_LEN_BYTES`].
pub fn encode_label(label: &str) -> Result<[u8; MAX_LABEL_LEN_BYTES], LabelError> {
    let refused = LabelError {
        len_bytes: label.len(),
    };
    let mut bytes = [0; MAX_LABEL_LEN_BYTES];
    let place = bytes.get_mut(..label.len()).ok_or(refused)?;
    if place.is_empty() {
        return Err(refused);
    }
    place.copy_from_slice(label.as_bytes());
    Ok(bytes)
}

impl MappingEntry {
    /// The label; `None` when the entry is none that a host wrote.
    #[must_use]
    pub fn label(&self) -> Option<&str> {
        let len_bytes = usize::try_from(self.label_len_bytes).ok()?;
        core::str::from_utf8(self.label.get(..len_bytes)?).ok()
    }

    /// Whether the guest may write.
    #[must_use]
    pub const fn is_writable(&self) -> bool {
        self.flags & FLAG_WRITABLE != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(label: [u8; MAX_LABEL_LEN_BYTES], label_len_bytes: u32) -> MappingEntry {
        MappingEntry {
            gpa: 0x1000_0000,
            ptr: 0,
            len_bytes: 5,
            flags: 0,
            label_len_bytes,
            label,
        }
    }

    #[test]
    fn labels_survive_a_round_trip() {
        for label in [
            "x",
            "model.bin",
            "größe",
            "01234567890123456789012345678901",
        ] {
            let bytes = encode_label(label).expect("a label");
            let len_bytes = u32::try_from(label.len()).expect("short");
            assert_eq!(entry(bytes, len_bytes).label(), Some(label));
        }
    }

    #[test]
    fn texts_that_are_no_labels_are_refused() {
        for (label, len_bytes) in [("", 0), ("012345678901234567890123456789012", 33)] {
            assert_eq!(encode_label(label), Err(LabelError { len_bytes }));
        }
    }

    #[test]
    fn an_entry_that_no_host_wrote_has_no_label() {
        assert_eq!(entry([0xFF; MAX_LABEL_LEN_BYTES], 4).label(), None);
        assert_eq!(entry([0; MAX_LABEL_LEN_BYTES], 33).label(), None);
        assert_eq!(entry([0; MAX_LABEL_LEN_BYTES], u32::MAX).label(), None);
    }
}
