//! The codec against a second reading of the manuals, over every combination of control bits.

extern crate alloc;

use super::*;

/// What a raw entry means, written down from the tables of the manuals without the codec's helpers.
#[derive(PartialEq, Eq, Debug)]
enum Meaning {
    Absent,
    Refused,
    Table { address: u64 },
    Leaf { address: u64, bytes: u64, pat: u64 },
}

/// A processor, as the manuals describe it.
#[expect(clippy::struct_excessive_bools, reason = "one for each feature bit")]
#[derive(Clone, Copy)]
struct Cpu {
    four_level: bool,
    physical_bits: u32,
    nx: bool,
    gib_pages: bool,
    pse: bool,
}

const MODERN: Cpu = Cpu {
    four_level: true,
    physical_bits: 52,
    nx: true,
    gib_pages: true,
    pse: true,
};

const OLD: Cpu = Cpu {
    four_level: false,
    physical_bits: 32,
    nx: false,
    gib_pages: false,
    pse: false,
};

fn bit(raw: u64, n: u32) -> u64 {
    raw >> n & 1
}

/// Bits `high` down to `low`, in place.
fn field(raw: u64, high: u32, low: u32) -> u64 {
    raw & (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

impl Cpu {
    fn meaning(self, level: Level, raw: u64) -> Meaning {
        match (bit(raw, 0), self.four_level) {
            (0, _) => Meaning::Absent,
            (_, true) => self.four_level_meaning(level, raw),
            (_, false) => self.two_level_meaning(level, raw),
        }
    }

    fn four_level_meaning(self, level: Level, raw: u64) -> Meaning {
        let too_wide = self.physical_bits < 52 && field(raw, 51, self.physical_bits) != 0;
        if too_wide || (!self.nx && bit(raw, 63) == 1) {
            return Meaning::Refused;
        }
        let page = |top_of_gap: u32| Meaning::Leaf {
            address: field(raw, 51, top_of_gap + 1),
            bytes: 1 << (top_of_gap + 1),
            pat: bit(raw, 12),
        };
        let table = Meaning::Table {
            address: field(raw, 51, 12),
        };
        match (level, bit(raw, 7)) {
            (Level::L4, 1) => Meaning::Refused,
            (Level::L4, _) | (Level::L3, 0) if bit(raw, 8) == 1 => Meaning::Refused,
            (Level::L4, _) | (Level::L3 | Level::L2, 0) => table,
            (Level::L3, _) if !self.gib_pages || field(raw, 29, 13) != 0 => Meaning::Refused,
            (Level::L3, _) => page(29),
            (Level::L2, _) if field(raw, 20, 13) != 0 => Meaning::Refused,
            (Level::L2, _) => page(20),
            (Level::L1, pat) => Meaning::Leaf {
                address: field(raw, 51, 12),
                bytes: 0x1000,
                pat,
            },
        }
    }

    fn two_level_meaning(self, level: Level, raw: u64) -> Meaning {
        match (level, bit(raw, 7)) {
            (Level::L1, pat) => Meaning::Leaf {
                address: field(raw, 31, 12),
                bytes: 0x1000,
                pat,
            },
            (_, 0) => Meaning::Table {
                address: field(raw, 31, 12),
            },
            // The processor ignores PS here; the codec refuses it on purpose.
            (_, _) if !self.pse => Meaning::Refused,
            (_, _) => {
                let high_address = field(raw, 20, 13) << 19;
                if bit(raw, 21) == 1 || high_address >> self.physical_bits != 0 {
                    return Meaning::Refused;
                }
                Meaning::Leaf {
                    address: field(raw, 31, 22) | high_address,
                    bytes: 0x40_0000,
                    pat: bit(raw, 12),
                }
            }
        }
    }

    fn format(self) -> Format {
        let mut format = match (self.four_level, self.pse) {
            (true, _) => Format::FOUR_LEVEL,
            (false, true) => Format::TWO_LEVEL_PSE,
            (false, false) => Format::TWO_LEVEL,
        };
        if !self.nx {
            format = format.without_no_execute();
        }
        if !self.gib_pages {
            format = format.without_1_gib_pages();
        }
        format.with_physical_bits(self.physical_bits).unwrap()
    }
}

/// Attribute bits of any entry: all but P, PS or PAT, and the address.
const PLAIN_ATTRS: u64 = 0xfff0_0000_0000_0f7e;

fn meaning_of(decoded: Result<Entry, DecodeError>) -> Meaning {
    match decoded {
        Err(_) => Meaning::Refused,
        Ok(Entry::Absent { .. }) => Meaning::Absent,
        Ok(Entry::Table { table, .. }) => Meaning::Table {
            address: table.as_u64(),
        },
        Ok(Entry::Leaf(leaf)) => Meaning::Leaf {
            address: leaf.frame.as_u64(),
            bytes: leaf.size.bytes(),
            pat: u64::from(leaf.attrs.contains(Attrs::PAT)),
        },
    }
}

fn check(cpu: Cpu, format: Format, level: Level, raw: u64) {
    let decoded = format.decode(level, raw);
    let expected = cpu.meaning(level, raw);
    assert_eq!(
        meaning_of(decoded),
        expected,
        "level {level:?}, raw {raw:#x}"
    );
    let Ok(entry) = decoded else { return };
    if let Entry::Table { attrs, .. } | Entry::Leaf(Leaf { attrs, .. }) = entry {
        assert_eq!(
            attrs.bits() & PLAIN_ATTRS,
            raw & PLAIN_ATTRS,
            "raw {raw:#x}"
        );
    }
    assert_eq!(format.encode(level, &entry), Ok(raw), "{entry:?}");
}

/// Every combination of the bits below the address, PAT of large leaves included.
const LOW_COMBINATIONS: u64 = 1 << 13;
/// Every combination of the bits above the address.
const HIGH_COMBINATIONS: u64 = 1 << 12;

fn check_all_control_bits(cpu: Cpu, level: Level) {
    let format = cpu.format();
    for high in 0..HIGH_COMBINATIONS {
        for low in 0..LOW_COMBINATIONS {
            check(cpu, format, level, high << 52 | low);
        }
    }
}

#[test]
fn level_4_entries_round_trip_for_all_control_bits() {
    check_all_control_bits(MODERN, Level::L4);
}

#[test]
fn level_3_entries_round_trip_for_all_control_bits() {
    check_all_control_bits(MODERN, Level::L3);
}

#[test]
fn level_2_entries_round_trip_for_all_control_bits() {
    check_all_control_bits(MODERN, Level::L2);
}

#[test]
fn level_1_entries_round_trip_for_all_control_bits() {
    check_all_control_bits(MODERN, Level::L1);
}

/// Values of the high control bits that matter when the low ones and the address vary.
const HIGH_SAMPLES: [u64; 4] = [0, 1 << 63, 0x7ff << 52, 0xfff << 52];

#[test]
fn four_level_entries_round_trip_for_every_address_bit_and_processor() {
    let cpus = [
        MODERN,
        Cpu {
            nx: false,
            ..MODERN
        },
        Cpu {
            gib_pages: false,
            ..MODERN
        },
        Cpu {
            physical_bits: 40,
            ..MODERN
        },
        Cpu {
            physical_bits: 32,
            ..MODERN
        },
    ];
    for cpu in cpus {
        let format = cpu.format();
        for level in Level::ALL {
            for address_bits in (12..52).map(|n| 1 << n).chain([0, field(u64::MAX, 51, 12)]) {
                for low in 0..1 << 12 {
                    for high in HIGH_SAMPLES {
                        check(cpu, format, level, high | address_bits | low);
                    }
                }
            }
        }
    }
}

#[test]
fn two_level_entries_round_trip_for_all_bits_below_the_4_mib_frame() {
    let pse = Cpu { pse: true, ..OLD };
    let cpus = [
        OLD,
        pse,
        Cpu {
            physical_bits: 36,
            ..pse
        },
        Cpu {
            physical_bits: 40,
            ..pse
        },
    ];
    for cpu in cpus {
        let format = cpu.format();
        for level in [Level::L1, Level::L2] {
            // Every low half of an entry that a 4 MiB leaf gives a meaning of its own.
            for raw in 0..1u64 << 22 {
                check(cpu, format, level, raw);
            }
            for address_bit in 22..32 {
                for low in 0..1u64 << 13 {
                    check(cpu, format, level, 1 << address_bit | low);
                }
            }
        }
    }
}

#[test]
fn levels_that_a_format_lacks_are_refused() {
    let absent = Entry::Absent { software: 0 };
    for level in [Level::L3, Level::L4] {
        let decoded = Format::TWO_LEVEL.decode(level, 0);
        assert_eq!(decoded, Err(DecodeError::NoSuchLevel { level }));
        let encoded = Format::TWO_LEVEL.encode(level, &absent);
        assert_eq!(encoded, Err(EncodeError::NoSuchLevel { level }));
    }
}

#[test]
fn two_level_entries_wider_than_32_bits_are_refused() {
    for raw in [1 << 32, 1 << 32 | 1, u64::MAX] {
        let bits = raw & !u64::from(u32::MAX);
        let level = Level::L1;
        let expected = Err(DecodeError::ReservedBits { level, raw, bits });
        assert_eq!(Format::TWO_LEVEL.decode(level, raw), expected);
    }
}

const NONE: Attrs = Attrs::empty();
const SMALL: PageSize = PageSize::Size4KiB;

fn leaf(address: u64, attrs: Attrs, size: PageSize) -> Entry {
    let frame = Gpa::literal(address);
    Entry::Leaf(Leaf { frame, attrs, size })
}

fn table(address: u64, attrs: Attrs) -> Entry {
    let table = Gpa::literal(address);
    Entry::Table { table, attrs }
}

type Refusals<'a> = &'a [(Level, Entry)];

fn assert_refused(format: Format, cases: Refusals<'_>, is_expected: fn(&EncodeError) -> bool) {
    for (level, entry) in cases {
        let error = format.encode(*level, entry).unwrap_err();
        assert!(is_expected(&error), "{level:?}, {entry:?}: {error:?}");
    }
}

#[test]
fn software_bits_that_look_present_or_are_too_wide_are_refused() {
    let expected = |error: &EncodeError| matches!(error, EncodeError::Software { .. });
    let present = Entry::Absent { software: 3 };
    let wide = Entry::Absent { software: 1 << 32 };
    assert_refused(Format::FOUR_LEVEL, &[(Level::L1, present)], expected);
    let both = [(Level::L1, present), (Level::L1, wide)];
    assert_refused(Format::TWO_LEVEL, &both, expected);
}

#[test]
fn attributes_without_a_place_are_refused() {
    let expected = |error: &EncodeError| matches!(error, EncodeError::Attributes { .. });
    let tables = [
        (Level::L2, table(0x1000, Attrs::PAT)),
        (Level::L3, table(0x1000, Attrs::GLOBAL)),
        (Level::L4, table(0x1000, Attrs::GLOBAL)),
    ];
    assert_refused(Format::FOUR_LEVEL, &tables, expected);
    let no_execute = [
        (Level::L1, leaf(0, Attrs::NO_EXECUTE, SMALL)),
        (Level::L2, table(0x1000, Attrs::NO_EXECUTE)),
    ];
    assert_refused(
        Format::FOUR_LEVEL.without_no_execute(),
        &no_execute,
        expected,
    );
    assert_refused(Format::TWO_LEVEL, &no_execute, expected);
    let high = [(Level::L1, leaf(0, Attrs::AVAILABLE_HIGH, SMALL))];
    assert_refused(Format::TWO_LEVEL, &high, expected);
}

#[test]
fn pages_of_a_size_that_a_level_lacks_are_refused() {
    let expected = |error: &EncodeError| matches!(error, EncodeError::Size { .. });
    let gib = (Level::L3, leaf(0, NONE, PageSize::Size1GiB));
    let cases = [
        (Level::L4, leaf(0, NONE, PageSize::Size1GiB)),
        (Level::L2, leaf(0, NONE, SMALL)),
        (Level::L2, leaf(0, NONE, PageSize::Size4MiB)),
        (Level::L1, leaf(0, NONE, PageSize::Size2MiB)),
    ];
    assert_refused(Format::FOUR_LEVEL, &cases, expected);
    assert_refused(Format::FOUR_LEVEL.without_1_gib_pages(), &[gib], expected);
    let large = [(Level::L2, leaf(0, NONE, PageSize::Size4MiB))];
    assert_refused(Format::TWO_LEVEL, &large, expected);
    assert!(Format::TWO_LEVEL_PSE.encode(Level::L2, &large[0].1).is_ok());
}

#[test]
fn frames_that_are_unaligned_or_too_high_are_refused() {
    let expected = |error: &EncodeError| matches!(error, EncodeError::Frame { .. });
    let unaligned = [
        (Level::L2, table(0x1008, NONE)),
        (Level::L1, leaf(0x800, NONE, SMALL)),
        (Level::L2, leaf(0x1000, NONE, PageSize::Size2MiB)),
        (Level::L3, leaf(0x20_0000, NONE, PageSize::Size1GiB)),
    ];
    assert_refused(Format::FOUR_LEVEL, &unaligned, expected);
    let high = [
        (Level::L1, leaf(1 << 36, NONE, SMALL)),
        (Level::L2, table(1 << 36, NONE)),
        (Level::L2, leaf(1 << 36, NONE, PageSize::Size2MiB)),
    ];
    let narrow = Format::FOUR_LEVEL.with_physical_bits(36).unwrap();
    assert_refused(narrow, &high, expected);
    let above_4_gib = [
        (Level::L1, leaf(1 << 32, NONE, SMALL)),
        (Level::L2, table(1 << 32, NONE)),
    ];
    let pse36 = Format::TWO_LEVEL_PSE.with_physical_bits(36).unwrap();
    assert_refused(Format::TWO_LEVEL, &above_4_gib, expected);
    assert_refused(pse36, &above_4_gib, expected);
    let large = [(Level::L2, leaf(1 << 32, NONE, PageSize::Size4MiB))];
    assert_refused(Format::TWO_LEVEL_PSE, &large, expected);
    assert!(pse36.encode(Level::L2, &large[0].1).is_ok());
}

#[test]
fn level_1_holds_no_tables() {
    let expected = |error: &EncodeError| matches!(error, EncodeError::NoSuchLevel { .. });
    let cases = [(Level::L1, table(0x1000, NONE))];
    assert_refused(Format::FOUR_LEVEL, &cases, expected);
    assert_refused(Format::TWO_LEVEL, &cases, expected);
}

#[test]
fn messages_name_level_and_bits() {
    let raw = 1 << 51 | 1;
    let format = Format::FOUR_LEVEL.with_physical_bits(46).unwrap();
    let error = format.decode(Level::L3, raw).unwrap_err();
    assert_eq!(
        alloc::format!("{error}"),
        "level-3 page-table entry 0x8000000000001 has reserved bits 0x8000000000000 set"
    );
}
