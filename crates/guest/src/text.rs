//! Formatting into a buffer of fixed size.

use core::fmt;

/// Collects text in a byte buffer. What does not fit is cut between characters and dropped.
pub(crate) struct TextBuffer<'a> {
    bytes: &'a mut [u8],
    len_bytes: usize,
    is_full: bool,
}

impl<'a> TextBuffer<'a> {
    pub(crate) const fn new(bytes: &'a mut [u8]) -> Self {
        Self {
            bytes,
            len_bytes: 0,
            is_full: false,
        }
    }

    /// Adds text and returns how many bytes of it fitted.
    pub(crate) fn push(&mut self, text: &str) -> usize {
        if self.is_full {
            return 0;
        }
        let room_bytes = self.bytes.len() - self.len_bytes;
        let fitting = text.floor_char_boundary(room_bytes);
        self.is_full = fitting < text.len();
        self.bytes[self.len_bytes..self.len_bytes + fitting]
            .copy_from_slice(&text.as_bytes()[..fitting]);
        self.len_bytes += fitting;
        fitting
    }

    /// Whether some of the text was dropped.
    pub(crate) const fn is_full(&self) -> bool {
        self.is_full
    }

    pub(crate) const fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl fmt::Write for TextBuffer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use core::fmt::Write;

    use super::*;

    #[test]
    fn text_that_does_not_fit_is_cut_between_characters() {
        let cases = [
            ("abc", "def", "abcdef"),
            ("abcdefg", "hij", "abcdefgh"),
            ("abcdefgé", "x", "abcdefg"),
            ("", "", ""),
        ];
        for (first, second, expected) in cases {
            let mut bytes = [0; 8];
            let mut text = TextBuffer::new(&mut bytes);
            write!(text, "{first}{second}").expect("never fails");
            let len_bytes = text.len_bytes();
            assert_eq!(&bytes[..len_bytes], expected.as_bytes());
        }
    }
}
