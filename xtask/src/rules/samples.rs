//! Sources for the unit tests of the rules.

use super::source::SourceFile;

/// A file with `text`, which must parse.
pub(super) fn sample(text: &str) -> SourceFile {
    sample_at("crates/sample/src/lib.rs", text)
}

/// The same at a given path.
pub(super) fn sample_at(path: &str, text: &str) -> SourceFile {
    SourceFile::parse(path, text).expect("the sample parses")
}
