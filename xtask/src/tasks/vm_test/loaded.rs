//! Programs without what no loader looks at: the first file system lies in the machine's memory, and debug information is nine tenths of
//! a program.

use anyhow::{Context, Result};
use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, ProgramHeader};

/// Where the file header says where section headers are, and how many and which (System V ABI, chapter 4, "ELF Header").
const SECTION_TABLE_OFFSET: std::ops::Range<usize> = 40..48;
const SECTION_TABLE_SHAPE: std::ops::Range<usize> = 58..64;

/// The part of an ELF file that its program headers name, as a file of its own.
pub(super) fn loaded_part(mut file: Vec<u8>) -> Result<Vec<u8>> {
    let end = end_of_segments(&file).context("no 64-bit program")?;
    file.truncate(usize::try_from(end)?);
    for field in [SECTION_TABLE_OFFSET, SECTION_TABLE_SHAPE] {
        file.get_mut(field)
            .context("a program without a header")?
            .fill(0);
    }
    Ok(file)
}

fn end_of_segments(file: &[u8]) -> object::Result<u64> {
    let header = FileHeader64::<Endianness>::parse(file)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, file)?.iter();
    let ends = segments.map(|it| it.p_offset(endian).saturating_add(it.p_filesz(endian)));
    Ok(ends.max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER_LEN_BYTES: usize = 64;
    const SEGMENT_LEN_BYTES: usize = 56;

    /// A file with one segment of 8 bytes, 16 bytes behind its headers, and debug information behind that.
    fn program() -> Vec<u8> {
        let mut file = vec![0; HEADER_LEN_BYTES + SEGMENT_LEN_BYTES];
        file[..7].copy_from_slice(&[0x7F, b'E', b'L', b'F', 2, 1, 1]);
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(32, &64_u64.to_le_bytes());
        put(40, &1000_u64.to_le_bytes());
        for (at, value) in [(52, 64_u16), (54, 56), (56, 1), (58, 64), (60, 3), (62, 2)] {
            put(at, &value.to_le_bytes());
        }
        put(HEADER_LEN_BYTES + 8, &136_u64.to_le_bytes());
        put(HEADER_LEN_BYTES + 32, &8_u64.to_le_bytes());
        file.extend([0; 16]);
        file.extend(*b"segment!");
        file.extend(*b"debug information");
        file
    }

    #[test]
    fn what_is_loaded_stays_and_what_is_not_goes() {
        let file = program();
        let loaded = loaded_part(file.clone()).expect("a program");
        assert_eq!(loaded.len(), 144);
        assert!(loaded.ends_with(b"segment!"));
        assert_eq!(loaded[..40], file[..40]);
        assert_eq!(loaded[40..48], [0; 8]);
        assert_eq!(loaded[48..58], file[48..58]);
        assert_eq!(loaded[58..64], [0; 6]);
        assert_eq!(loaded[64..], file[64..144]);
    }

    #[test]
    fn anything_but_a_program_is_refused() {
        for file in [vec![], b"#!/bin/sh".to_vec(), program()[..63].to_vec()] {
            assert!(loaded_part(file).is_err());
        }
    }
}
