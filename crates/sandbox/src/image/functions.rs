//! The function tables of a guest, found by section name and read from the file.

use object::LittleEndian;
use object::read::elf::{FileHeader, SectionHeader, SectionTable};
use vellum_abi::function::{
    EXPORTS_SECTION, FunctionEntry, FunctionError, IMPORTS_SECTION, Signature, check_name,
};

use super::Function;
use super::elf::{ImageError, Segment};

/// Entries that a table may have.
const MAX_FUNCTIONS: usize = 4096;

/// Exports and imports.
pub(super) fn parse<H: FileHeader<Endian = LittleEndian>>(
    elf: &[u8],
    endian: LittleEndian,
    sections: &SectionTable<'_, H>,
    segments: &[Segment],
) -> Result<(Vec<Function>, Vec<Function>), ImageError> {
    let table = |section| parse_table(elf, endian, sections, segments, section);
    Ok((table(EXPORTS_SECTION)?, table(IMPORTS_SECTION)?))
}

fn parse_table<H: FileHeader<Endian = LittleEndian>>(
    elf: &[u8],
    endian: LittleEndian,
    sections: &SectionTable<'_, H>,
    segments: &[Segment],
    section: &'static str,
) -> Result<Vec<Function>, ImageError> {
    let Some((_, header)) = sections.section_by_name(endian, section.as_bytes()) else {
        return Ok(Vec::new());
    };
    let bytes = bytes_at(
        elf,
        segments,
        header.sh_addr(endian).into(),
        header.sh_size(endian).into(),
    )
    .ok_or(ImageError::TableOutsideImage { section })?;
    let error = |index, source| ImageError::Function {
        section,
        index,
        source,
    };
    let entries = FunctionEntry::parse_table(bytes).map_err(|source| error(0, source))?;
    if entries.len() > MAX_FUNCTIONS {
        return Err(ImageError::TooManyFunctions {
            section,
            count: entries.len(),
            limit: MAX_FUNCTIONS,
        });
    }
    let mut functions: Vec<Function> = Vec::with_capacity(entries.len());
    for (index, entry) in entries.enumerate() {
        let name = bytes_at(
            elf,
            segments,
            entry.name_ptr,
            u64::from(entry.name_len_bytes),
        )
        .ok_or(ImageError::NameOutsideImage {
            section,
            index,
            address: entry.name_ptr,
        })?;
        functions.push(Function {
            name: check_name(name)
                .map_err(|source| error(index, source))?
                .to_owned(),
            signature: signature(&entry, section).map_err(|source| error(index, source))?,
        });
    }
    check_unique(&functions, section)?;
    Ok(functions)
}

fn signature(entry: &FunctionEntry, section: &str) -> Result<Signature, FunctionError> {
    let signature = entry.signature()?;
    check_direction(&signature, section)?;
    Ok(signature)
}

/// Only host functions can be one-way.
fn check_direction(signature: &Signature, section: &str) -> Result<(), FunctionError> {
    if signature.is_one_way() && section == EXPORTS_SECTION {
        return Err(FunctionError::OneWayExport);
    }
    Ok(())
}

/// The bytes of the file that are loaded at a guest-virtual address.
fn bytes_at<'data>(
    elf: &'data [u8],
    segments: &[Segment],
    address: u64,
    len_bytes: u64,
) -> Option<&'data [u8]> {
    let len_bytes = usize::try_from(len_bytes).ok()?;
    segments.iter().find_map(|segment| {
        let first = segment.range.start().as_u64() + segment.lead_len_bytes;
        let offset = usize::try_from(address.checked_sub(first)?).ok()?;
        elf.get(segment.file.clone())?
            .get(offset..)?
            .get(..len_bytes)
    })
}

/// Functions that come back without their file.
pub(super) fn check_loaded(
    functions: Vec<(String, Signature)>,
    section: &'static str,
) -> Result<Vec<Function>, ImageError> {
    if functions.len() > MAX_FUNCTIONS {
        return Err(ImageError::TooManyFunctions {
            section,
            count: functions.len(),
            limit: MAX_FUNCTIONS,
        });
    }
    let checked = functions.into_iter().enumerate();
    let checked = checked.map(|(index, (name, signature))| {
        let checked = check_name(name.as_bytes()).and(check_direction(&signature, section));
        checked.map_err(|source| ImageError::Function {
            section,
            index,
            source,
        })?;
        Ok(Function { name, signature })
    });
    let functions = checked.collect::<Result<Vec<_>, ImageError>>()?;
    check_unique(&functions, section)?;
    Ok(functions)
}

fn check_unique(functions: &[Function], section: &'static str) -> Result<(), ImageError> {
    let mut names: Vec<&str> = functions.iter().map(Function::name).collect();
    names.sort_unstable();
    names
        .windows(2)
        .find(|pair| pair[0] == pair[1])
        .map_or(Ok(()), |pair| {
            Err(ImageError::DuplicateFunction {
                section,
                name: pair[0].to_owned(),
            })
        })
}
