extern crate alloc;

use alloc::vec::Vec;

use super::*;

const KINDS: [GuestKind; 4] = [
    GuestKind::Amd64User,
    GuestKind::Amd64Kernel,
    GuestKind::I686Identity,
    GuestKind::I686Paged,
];

fn user() -> Note {
    Note::new(GuestKind::Amd64User)
}

#[test]
fn every_kind_survives_its_note() {
    for kind in KINDS {
        assert_eq!(
            GuestNote::parse(Note::new(kind).as_bytes()),
            Ok(GuestNote { kind })
        );
    }
}

#[test]
fn notes_of_other_owners_are_passed_over() {
    // A build id as linkers write it: owner "GNU", type 3, twenty bytes.
    let mut segment = Vec::from([4, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0, b'G', b'N', b'U', 0]);
    segment.extend_from_slice(&[0xAA; 20]);
    assert_eq!(GuestNote::parse(&segment), Err(NoteError::Missing));
    segment.extend_from_slice(user().as_bytes());
    assert_eq!(
        GuestNote::parse(&segment),
        Ok(GuestNote {
            kind: GuestKind::Amd64User
        })
    );
}

#[test]
fn each_defect_has_its_error() {
    let cases = [
        (
            Note {
                abi_version: 1,
                ..user()
            },
            NoteError::Version { guest: 1 },
        ),
        (
            Note {
                guest_kind: 0,
                ..user()
            },
            NoteError::UnknownKind(0),
        ),
        (
            Note {
                guest_kind: 5,
                ..user()
            },
            NoteError::UnknownKind(5),
        ),
        (
            Note {
                descriptor_len_bytes: 4,
                ..user()
            },
            NoteError::DescriptorLength { len_bytes: 4 },
        ),
        (
            Note {
                descriptor_len_bytes: u32::MAX,
                ..user()
            },
            NoteError::Truncated { offset: 0 },
        ),
        (
            Note {
                owner_len_bytes: u32::MAX,
                ..user()
            },
            NoteError::Truncated { offset: 0 },
        ),
        (
            Note {
                owner: *b"vellum\0\0",
                ..user()
            },
            NoteError::Missing,
        ),
        (
            Note {
                type_number: 2,
                ..user()
            },
            NoteError::Missing,
        ),
    ];
    for (note, expected) in cases {
        // A descriptor cut to 4 bytes leaves 4 stray bytes, which are no note; the first error counts.
        assert_eq!(GuestNote::parse(note.as_bytes()), Err(expected), "{note:?}");
    }
}

#[test]
fn two_notes_are_one_too_many() {
    let mut segment = Vec::from(user().as_bytes());
    segment.extend_from_slice(user().as_bytes());
    assert_eq!(GuestNote::parse(&segment), Err(NoteError::Several));
}

#[test]
fn a_truncated_note_is_refused_at_every_length() {
    for len in 1..28 {
        assert_eq!(
            GuestNote::parse(&user().as_bytes()[..len]),
            Err(NoteError::Truncated { offset: 0 })
        );
    }
    assert_eq!(GuestNote::parse(&[]), Err(NoteError::Missing));
}
