//! SHA-256 digests, by which blobs are named.

use std::fmt;
use std::io::{self, Write};

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Digest([u8; Self::LEN_BYTES]);

impl Digest {
    const LEN_BYTES: usize = 32;

    /// Of some bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// From `sha256:` and 64 lower-case hexadecimal digits (OCI image specification, "Descriptor", on digests).
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:")?;
        let bytes = super::hex::decode(hex)?;
        // Upper-case digits would name the same blob by another file name.
        let is_canonical = !hex.bytes().any(|byte| byte.is_ascii_uppercase());
        bytes.try_into().ok().filter(|_| is_canonical).map(Self)
    }

    /// The digits alone: the name of the blob's file.
    pub(crate) fn hex(&self) -> String {
        super::hex::encode(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hashes what is written to it, and counts it.
#[derive(Default)]
pub(crate) struct Hasher {
    hasher: Sha256,
    len_bytes: u64,
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.len_bytes += bytes.len() as u64;
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    pub(crate) fn finish(self) -> Digest {
        Digest(self.hasher.finalize().into())
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A blob: its digest and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlobId {
    pub(crate) digest: Digest,
    pub(crate) len_bytes: u64,
}

impl BlobId {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self {
            digest: Digest::of(bytes),
            len_bytes: bytes.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_the_one_of_the_standard_and_comes_back_from_its_text() {
        // FIPS 180-4, example "abc".
        let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), text);
        assert_eq!(Digest::parse(text), Some(digest));
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let digits = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        for text in [
            String::new(),
            digits.to_owned(),
            format!("sha512:{digits}"),
            format!("sha256:{}", &digits[1..]),
            format!("sha256:{digits}0"),
            format!("sha256:{}", digits.to_uppercase()),
            format!("sha256:../{}", &digits[3..]),
            format!("sha256:ä{}", &digits[2..]),
        ] {
            assert_eq!(Digest::parse(&text), None, "{text}");
        }
    }
}
