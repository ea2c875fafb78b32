use std::fs::File;

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use vellum_backend::HostMemory;

use super::*;

/// A layer of `pages`; those of `present` hold their own number and something else than zeroes.
fn layer(pages: u64, present: &[u64]) -> Arc<Layer> {
    Layer::create(pages, |memory| {
        present.iter().try_for_each(|&page| {
            memory.write(page * PAGE_SIZE, &page.to_le_bytes())?;
            memory.write(page * PAGE_SIZE + 4095, &[1])
        })
    })
    .expect("there is memory")
}

fn blob(layer: &Layer) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(layer, &mut bytes).expect("memory can be read");
    bytes
}

/// A file in memory.
fn file(bytes: &[u8]) -> File {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).expect("made");
    let file = File::from(fd);
    file.write_all_at(bytes, 0).expect("written");
    file
}

fn open(bytes: &[u8]) -> Result<LayerFile, ReadError> {
    LayerFile::open(file(bytes), bytes.len() as u64)
}

fn page_of(layer: &Layer, page: u64) -> [u8; PAGE_LEN_BYTES] {
    let mut bytes = [0xAA; PAGE_LEN_BYTES];
    layer
        .read_page(page, &mut bytes)
        .expect("memory can be read");
    bytes
}

/// What the guest would see: the layer, mapped over a memory that held something else.
fn mapped(layer: &Layer) -> Vec<u8> {
    let len_bytes = layer.pages() * PAGE_SIZE;
    let mut memory = HostMemory::zeroed(len_bytes).expect("there is memory");
    memory.write(0, &[0xEE; 100]).expect("in bounds");
    layer
        .map_into(&mut memory, 0, 0..layer.pages())
        .expect("mapped");
    let mut bytes = vec![0; usize::try_from(len_bytes).expect("small")];
    memory.read(0, &mut bytes).expect("in bounds");
    bytes
}

#[test]
fn a_layer_of_zeroes_is_an_index_alone() {
    let bytes = blob(&layer(1000, &[]));
    assert_eq!(bytes.len(), PAGE_LEN_BYTES);
    let (copied, _) = open(&bytes).expect("valid").copy().expect("copied");
    assert_eq!(copied.pages(), 1000);
    assert!(is_zero(&page_of(&copied, 999)));
}

#[test]
fn the_index_is_the_one_that_is_documented() {
    let bytes = blob(&layer(9, &[1, 2, 7]));
    assert_eq!(bytes.len(), 4 * PAGE_LEN_BYTES);
    let number = |at: usize| {
        let raw = bytes[at..at + 8].try_into().expect("8 bytes");
        u64::from_le_bytes(raw)
    };
    assert_eq!(&bytes[..8], b"VELLAYER");
    assert_eq!(number(8), 1);
    assert_eq!([16, 24, 32].map(number), [9, 3, 2]);
    assert_eq!([64, 72, 80, 88].map(number), [1, 2, 7, 1]);
    assert!(is_zero(&bytes[96..PAGE_LEN_BYTES]));
    assert_eq!([4096, 8192, 12288].map(number), [1, 2, 7]);
}

#[test]
fn the_digest_is_that_of_the_file_and_survives_both_ways_of_loading() {
    let original = layer(40, &[0, 3, 4, 39]);
    let bytes = blob(&original);
    let expected = BlobId::of(&bytes);
    assert_eq!(id(&original).expect("read"), expected);
    assert_eq!(id(&original).expect("known"), expected);
    let (copied, digest) = open(&bytes).expect("valid").copy().expect("copied");
    assert_eq!(digest, expected.digest);
    assert_eq!(id(&copied).expect("read"), expected);
    let mapped = open(&bytes).expect("valid").map().expect("mapped");
    assert_eq!(id(&mapped).expect("read"), expected);
}

#[test]
fn each_field_of_the_index_is_checked() {
    let good = blob(&layer(9, &[1, 2, 7]));
    let cases: &[(usize, u64, &str)] = &[
        (0, 0, "magic"),
        (8, 2, "layer version"),
        (8, 1 | 1 << 32, "reserved bytes"),
        (16, 0, "pages"),
        (16, u64::MAX, "pages"),
        (16, MAX_PAGES + 1, "pages"),
        (16, 7, "runs"),
        (24, 4, "pages in the blob"),
        (32, u64::MAX, "runs"),
        (32, MAX_RUNS + 1, "runs"),
        (32, MAX_RUNS, "runs"),
        (32, 1, "padding"),
        (32, 3, "runs"),
        (40, 1, "reserved bytes"),
        (56, 1 << 56, "reserved bytes"),
        (64, u64::MAX, "runs"),
        (64, 7, "runs"),
        (72, 0, "runs"),
        (72, u64::MAX, "runs"),
        (72, 6, "runs"),
        (88, 3, "runs"),
        (96, 1, "padding"),
        (4088, 1 << 63, "padding"),
    ];
    for &(at, value, expected) in cases {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        match open(&bytes) {
            Err(ReadError::Invalid(Invalid::Field(field, _) | Invalid::Version { field, .. })) => {
                assert_eq!(field, expected, "{value:#x} at {at}");
            }
            other => panic!("{value:#x} at {at}: {other:?}"),
        }
    }
}

#[test]
fn a_blob_of_another_length_is_refused() {
    let good = blob(&layer(9, &[1, 2, 7]));
    for len in [0, 1, 63, 64, 4095, 4096, good.len() - 1, good.len() - 4096] {
        assert!(open(&good[..len]).is_err(), "{len}");
    }
    for more in [1, 4096] {
        let longer = [&good[..], &vec![0; more]].concat();
        assert!(open(&longer).is_err(), "{more}");
    }
    // It became shorter after somebody looked.
    let cut = LayerFile::open(file(&good[..8192]), good.len() as u64).expect("its index is whole");
    assert!(cut.copy().is_err());
    let cut = LayerFile::open(file(&good[..8192]), good.len() as u64).expect("its index is whole");
    assert!(cut.map().is_err());
}

#[test]
fn short_gaps_are_closed_first() {
    let mut present = vec![0..1, 2..3, 6..9, 10..11, 20..21];
    close_gaps(&mut present, 1);
    assert_eq!(present, [0..3, 6..11, 20..21]);
    close_gaps(&mut present, 3);
    assert_eq!(present, [0..11, 20..21]);
    close_gaps(&mut present, 100);
    assert_eq!(present, [const { 0..21 }]);
}

#[test]
fn pages_of_zeroes_that_a_blob_holds_take_no_memory() {
    // As another writer may have made it: one run over everything.
    #[expect(clippy::single_range_in_vec_init, reason = "there is one run")]
    let index = Index::new(64, &[0..64]);
    let mut bytes = index.to_bytes();
    bytes.resize(bytes.len() + 64 * PAGE_LEN_BYTES, 0);
    let (copied, _) = open(&bytes).expect("valid").copy().expect("copied");
    assert_eq!(blob(&copied).len(), PAGE_LEN_BYTES, "nothing but an index");
}

#[test]
fn a_layer_of_many_runs_is_not_worth_mapping() {
    let alternating = |count: u64| -> Vec<u64> { (0..count).map(|page| page * 2).collect() };
    for (runs, expected) in [(0, true), (1, true), (64, true), (65, false), (500, false)] {
        let bytes = blob(&layer(1000, &alternating(runs)));
        let file = open(&bytes).expect("valid");
        assert_eq!(file.has_few_runs(), expected, "{runs}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn both_ways_of_loading_show_the_same_pages(
        present in btree_set(0..90_u64, 0..60),
        pages in 90..100_u64,
        part in (0..80_u64, 1..10_u64),
    ) {
        let present: Vec<u64> = present.into_iter().collect();
        let original = layer(pages, &present);
        let bytes = blob(&original);
        let copied = open(&bytes).expect("valid").copy().expect("copied").0;
        let from_file = open(&bytes).expect("valid").map().expect("mapped");
        let expected = mapped(&original);
        prop_assert!(mapped(&copied) == expected);
        prop_assert!(mapped(&from_file) == expected);
        for page in 0..pages {
            prop_assert!(page_of(&from_file, page) == page_of(&original, page));
        }
        // A part of it, as an extent of a kernel has it.
        let (first, count) = part;
        let len_bytes = count * PAGE_SIZE;
        let mut memory = HostMemory::zeroed(len_bytes + PAGE_SIZE).expect("there is memory");
        from_file.map_into(&mut memory, PAGE_SIZE, first..first + count).expect("mapped");
        let mut found = vec![0; usize::try_from(len_bytes).expect("small")];
        memory.read(PAGE_SIZE, &mut found).expect("in bounds");
        let start = usize::try_from(first * PAGE_SIZE).expect("small");
        prop_assert!(found == expected[start..start + found.len()]);
    }

    #[test]
    fn any_bytes_are_a_blob_or_an_error(
        changes in vec((0..4096_usize, any::<u8>()), 1..6),
        len in 0..20_000_usize,
    ) {
        let mut bytes = blob(&layer(9, &[1, 2, 7]));
        for (at, value) in changes {
            bytes[at] = value;
        }
        bytes.resize(len, 0);
        if let Ok(file) = open(&bytes) {
            let (layer, digest) = file.copy().expect("copied");
            prop_assert_eq!(digest, Digest::of(&bytes));
            prop_assert!(layer.pages() <= MAX_PAGES);
        }
    }
}
