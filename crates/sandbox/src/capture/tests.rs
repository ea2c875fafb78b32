use super::layers_below;

#[test]
fn small_layers_are_merged_and_a_large_one_below_them_stays() {
    let mut sizes = vec![100_000, 16];
    sizes.extend([16; 126]);
    assert_eq!(layers_below(&sizes, 16), 1);
}

#[test]
fn a_merge_takes_one_layer_at_least() {
    assert_eq!(layers_below(&[1000, 100], 1), 1);
    assert_eq!(layers_below(&[1000], 1), 0);
}

#[test]
fn equal_layers_are_all_merged() {
    assert_eq!(layers_below(&[8; 20], 8), 0);
}

/// A chain that goes on for ever copies each page a few times, and never has more layers than it may.
#[test]
fn a_long_chain_copies_little() {
    const LIMIT: usize = 32;
    let (mut sizes, mut copied) = (vec![50_000], 0);
    for _ in 0..10_000 {
        if sizes.len() < LIMIT {
            sizes.push(16);
            continue;
        }
        let keep = layers_below(&sizes, 16);
        let merged: u64 = sizes.drain(keep..).sum();
        copied += merged;
        sizes.push(merged + 16);
        assert!(sizes.len() <= LIMIT);
    }
    let written = 10_000 * 16;
    assert!(
        copied < 8 * written,
        "{copied} pages copied for {written} written"
    );
}
