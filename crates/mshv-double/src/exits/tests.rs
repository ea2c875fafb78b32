use super::*;

fn access(port: u16, len: usize) -> PortAccess {
    PortAccess::new(port, &vec![0; len], true)
}

fn at<'a>(mut bytes: impl Iterator<Item = &'a u8>, index: u64) -> Option<u8> {
    bytes.nth(usize::try_from(index).ok()?).copied()
}

#[test]
fn a_port_instruction_is_found_behind_its_end() {
    // The bytes before the place, last one last; port; width; length; string.
    let cases: [(&[u8], u16, usize, u64, bool); 8] = [
        (&[0x90, 0xE6, 0x21], 0x21, 1, 2, false),
        (&[0x66, 0xE7, 0x21], 0x21, 2, 3, false),
        (&[0x90, 0xE7, 0x21], 0x21, 4, 2, false),
        (&[0x90, 0x90, 0xEE], 0xF123, 1, 1, false),
        (&[0x90, 0x66, 0xEF], 0xF123, 2, 2, false),
        (&[0x90, 0x90, 0x6E], 0x21, 1, 1, true),
        // A port of the number of an opcode.
        (&[0x90, 0xE6, 0x6E], 0x6E, 1, 2, false),
        // A byte before the instruction that looks like an opcode with an operand.
        (&[0x90, 0xE6, 0xEE], 0x21, 1, 1, false),
    ];
    for (bytes, port, width, len_bytes, is_string) in cases {
        let byte = |back: u64| at(bytes.iter().rev(), back - 1);
        let found = PortInstruction::at_end(access(port, width), byte);
        assert_eq!(
            (found.len_bytes, found.is_string),
            (len_bytes, is_string),
            "{bytes:x?}"
        );
    }
}

#[test]
fn a_port_instruction_is_found_at_its_start() {
    type Found = Option<(u64, bool)>;
    let cases: [(&[u8], Found); 6] = [
        (&[0xE6, 0x21], Some((2, false))),
        (&[0x66, 0xEF], Some((2, false))),
        (&[0xF3, 0x6E], Some((2, true))),
        (&[0x66, 0xF3, 0x6F], Some((3, true))),
        (&[0x90], None),
        (&[0x66; 20], None),
    ];
    for (bytes, expected) in cases {
        let found = PortInstruction::at_start(|index| at(bytes.iter(), index));
        let found = found.map(|instruction| (instruction.len_bytes, instruction.is_string));
        assert_eq!(found, expected, "{bytes:x?}");
    }
}
