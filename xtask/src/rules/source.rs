//! The files under check, parsed once.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::workspace::Workspace;

/// One parsed Rust file.
pub(crate) struct SourceFile {
    /// Relative to the workspace root.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) syntax: syn::File,
}

impl SourceFile {
    /// Parses `text`.
    pub(crate) fn parse(path: &str, text: &str) -> Result<Self> {
        let syntax = syn::parse_file(text).with_context(|| format!("could not parse {path}"))?;
        Ok(Self {
            path: path.to_owned(),
            text: text.to_owned(),
            syntax,
        })
    }
}

/// Every file of the workspace.
pub(crate) struct Sources {
    pub(crate) rust: Vec<SourceFile>,
    /// Path and text of the files that are text but not Rust.
    pub(crate) other: Vec<(String, String)>,
}

impl Sources {
    /// Reads all files; those that are not UTF-8 are binary and not under check.
    pub(crate) fn read(workspace: &Workspace) -> Result<Self> {
        let mut sources = Self {
            rust: Vec::new(),
            other: Vec::new(),
        };
        for path in workspace.files()? {
            let bytes = fs::read(workspace.root().join(&path))
                .with_context(|| format!("could not read {path}"))?;
            let Ok(text) = String::from_utf8(bytes) else {
                continue;
            };
            if Path::new(&path)
                .extension()
                .is_some_and(|extension| extension == "rs")
            {
                sources.rust.push(SourceFile::parse(&path, &text)?);
            } else {
                sources.other.push((path, text));
            }
        }
        Ok(sources)
    }

    /// Path and text of every file.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        let rust = self
            .rust
            .iter()
            .map(|file| (file.path.as_str(), file.text.as_str()));
        rust.chain(
            self.other
                .iter()
                .map(|(path, text)| (path.as_str(), text.as_str())),
        )
    }
}
