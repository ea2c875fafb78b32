use proptest::prelude::*;

use super::*;

const X87_SSE_AVX: u64 = 0b111;
const OPMASK: u32 = 5;
const ZMM_HIGH: u32 = 6;
/// A supervisor state, without a place in the standard format.
const CET_USER: u32 = 11;

/// Lengths and places of an Intel processor; the sixth component is made to need alignment.
fn leaf(index: u32) -> CpuidLeaf {
    let (eax, ebx, ecx) = match index {
        2 => (256, 576, 0),
        OPMASK => (64, 1088, 0),
        ZMM_HIGH => (512, 1152, 2),
        CET_USER => (16, 0, 1),
        _ => (0, 0, 0),
    };
    CpuidLeaf {
        leaf: 0xD,
        subleaf: Some(index),
        eax,
        ebx,
        ecx,
        edx: 0,
    }
}

fn area(xstate_bv: u64, xcomp_bv: u64) -> Vec<u8> {
    let mut area = vec![0; 4096];
    area[512..520].copy_from_slice(&xstate_bv.to_le_bytes());
    area[520..528].copy_from_slice(&(COMPACTED | xcomp_bv).to_le_bytes());
    area
}

fn format(components: u64) -> XsaveFormat {
    XsaveFormat::of(&area(0, components), leaf).expect("known")
}

#[test]
fn components_lie_behind_each_other_aligned_where_they_must_be() {
    // CET lies at 832 and ends at 848.
    let all = format(X87_SSE_AVX | 1 << CET_USER | 1 << ZMM_HIGH);
    let places: Vec<_> = all
        .components
        .iter()
        .map(|c| (c.bit, c.compacted))
        .collect();
    assert_eq!(
        places,
        [(1 << 2, 576), (1 << ZMM_HIGH, 832), (1 << CET_USER, 1344)]
    );
    let unaligned = format(X87_SSE_AVX | 1 << OPMASK | 1 << ZMM_HIGH);
    assert_eq!(unaligned.components[2].compacted, 896);
    assert_eq!(unaligned.len_bytes, 896 + 512);
}

#[test]
fn what_is_not_compacted_or_not_known_is_refused() {
    let mut standard = area(0, X87_SSE_AVX);
    standard[520..528].copy_from_slice(&X87_SSE_AVX.to_le_bytes());
    assert!(XsaveFormat::of(&standard, leaf).is_err(), "standard format");
    assert!(
        XsaveFormat::of(&area(0, 1 << 18), leaf).is_err(),
        "a component of length 0"
    );
    assert!(
        XsaveFormat::of(&area(0, X87_SSE_AVX)[..600], leaf).is_err(),
        "a component behind the end"
    );
}

#[test]
fn a_component_in_its_initial_configuration_shows_none_of_its_bytes() {
    let format = format(X87_SSE_AVX);
    let mut area = area(0, X87_SSE_AVX);
    area[..512].fill(0xEE);
    area[576..832].fill(0xEE);
    assert_eq!(format.to_standard(&area), XsaveArea::reset());
}

#[test]
fn mxcsr_belongs_to_sse_and_its_neighbours_to_x87() {
    let format = format(X87_SSE_AVX);
    let mut x87_only = area(1, X87_SSE_AVX);
    x87_only[..512].fill(0xEE);
    let read = format.to_standard(&x87_only);
    assert_eq!(read.as_bytes()[0..24], [0xEE; 24]);
    assert_eq!(read.as_bytes()[24..28], 0x1F80_u32.to_le_bytes());
    assert_eq!(read.as_bytes()[32..160], [0xEE; 128]);
    assert_eq!(read.as_bytes()[160..416], [0; 256]);
}

#[test]
fn the_reset_state_is_written_out_with_the_partitions_components() {
    let format = format(X87_SSE_AVX | 1 << CET_USER);
    let mut buffer = vec![0xFF; 4096];
    format
        .fill(&XsaveArea::reset(), &mut buffer)
        .expect("known");
    let mut expected = area(0b11 | 1 << CET_USER, X87_SSE_AVX | 1 << CET_USER);
    expected[..2].copy_from_slice(&0x037F_u16.to_le_bytes());
    expected[24..28].copy_from_slice(&0x1F80_u32.to_le_bytes());
    assert_eq!(buffer, expected);
}

#[test]
fn components_that_the_partition_lacks_are_an_error() {
    let mut bytes = *XsaveArea::reset().as_bytes();
    bytes[512] |= 1 << OPMASK;
    let state = XsaveArea::from_bytes(bytes);
    let result = format(X87_SSE_AVX).fill(&state, &mut [0; 4096]);
    assert_eq!(
        result,
        Err(MissingComponents {
            missing: 1 << OPMASK
        })
    );
}

proptest! {
    /// Whatever a guest had comes back, byte by byte.
    #[test]
    fn states_come_back(
        legacy in proptest::collection::vec(any::<u8>(), 416),
        avx in proptest::collection::vec(any::<u8>(), 256),
        zmm in proptest::collection::vec(any::<u8>(), 512),
        has_zmm in any::<bool>(),
    ) {
        let format = format(X87_SSE_AVX | 1 << OPMASK | 1 << ZMM_HIGH | 1 << CET_USER);
        let mut bytes = [0; XSAVE_LEN_BYTES];
        bytes[..416].copy_from_slice(&legacy);
        bytes[512] = 0b111;
        bytes[576..832].copy_from_slice(&avx);
        if has_zmm {
            bytes[512] |= 1 << ZMM_HIGH;
            bytes[1152..1664].copy_from_slice(&zmm);
        }
        let state = XsaveArea::from_bytes(bytes);
        let mut buffer = vec![0; 4096];
        format.fill(&state, &mut buffer).expect("known");
        prop_assert_eq!(format.to_standard(&buffer), state);
    }
}
