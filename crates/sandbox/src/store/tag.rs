//! Tags: the names of snapshots in a store.

use super::error::StoreError;

/// Bytes of the longest tag.
const MAX_LEN_BYTES: usize = 128;

/// A name that the OCI image specification allows for `org.opencontainers.image.ref.name`: letters and digits, separated by one of
/// `-._:@/+` or by `--` ("Annotations", on pre-defined annotation keys).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag(String);

impl Tag {
    pub(super) fn new(text: &str) -> Result<Self, StoreError> {
        if is_tag(text) {
            Ok(Self(text.to_owned()))
        } else {
            let shown = text.chars().take(MAX_LEN_BYTES).collect();
            Err(StoreError::Tag(shown))
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_tag(text: &str) -> bool {
    let is_separator = |byte: u8| b"-._:@/+".contains(&byte);
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    let alphanumeric_ends = ends
        .iter()
        .all(|end| end.is_some_and(u8::is_ascii_alphanumeric));
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || is_separator(*byte);
    // Two separators stand together only as a double dash, and three never do.
    let double = |pair: &[u8]| is_separator(pair[0]) && is_separator(pair[1]) && pair != b"--";
    let triple = |three: &[u8]| three.iter().all(|&byte| is_separator(byte));
    bytes.len() <= MAX_LEN_BYTES
        && alphanumeric_ends
        && bytes.iter().all(known)
        && !bytes.windows(2).any(double)
        && !bytes.windows(3).any(triple)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_specification_are_tags() {
        let longest = "x".repeat(MAX_LEN_BYTES);
        for text in [
            "a",
            "0",
            "warm",
            "v1.2-rc_3",
            "localhost:5000/guest@stable+1",
            "a--b",
            &longest,
        ] {
            assert!(is_tag(text), "{text}");
        }
    }

    #[test]
    fn odd_names_are_no_tags() {
        let too_long = "x".repeat(MAX_LEN_BYTES + 1);
        for text in [
            "", ".", "..", "/", "a/", "/a", "../a", "a//b", "a---b", "a.-b", "-a", "a b", "a\0b",
            "a\nb", "ä", "a\"b", "a\\b", &too_long,
        ] {
            assert!(!is_tag(text), "{text:?}");
            assert!(Tag::new(text).is_err());
        }
    }
}
