//! Code that a Markdown page quotes from a source file is still in that file.
//!
//! A page writes `<!-- quoted from PATH -->` on the line before a code block. The block's lines must stand in the
//! file in that order, broken and indented alike or not; a line `// ..` in the block leaves something out.

use super::Violation;
use super::source::Sources;

const RULE: &str = "stale-quote";
const ELISION: &str = "// ..";

/// Checks every marked code block.
pub(super) fn check(sources: &Sources) -> Vec<Violation> {
    let pages = sources
        .other
        .iter()
        .filter(|(path, _)| super::links::is_markdown(path));
    let quotes = pages.flat_map(|(path, text)| quotes(path, text));
    let stale = quotes.filter_map(|quote| {
        let source = sources.texts().find(|(path, _)| *path == quote.source);
        let message = match source {
            None => format!("quotes {}, which does not exist", quote.source),
            Some((_, text)) if quote.is_in(text) => return None,
            Some(_) => format!("the code is no longer in {}", quote.source),
        };
        Some(Violation {
            path: quote.page.to_owned(),
            line: quote.line,
            rule: RULE,
            item: String::new(),
            message,
        })
    });
    stale.collect()
}

/// One quoted code block.
struct Quote<'a> {
    page: &'a str,
    line: usize,
    source: &'a str,
    lines: Vec<&'a str>,
}

impl Quote<'_> {
    /// Whether each unbroken part of the quote stands in the text, one after the other. White space does not count, so
    /// that the formatter may break the lines of the source otherwise than the page does.
    fn is_in(&self, text: &str) -> bool {
        let text = without_white_space(text);
        let mut rest = text.as_str();
        self.lines.split(|line| *line == ELISION).all(|part| {
            let part = without_white_space(&part.concat());
            let found = rest.split_once(&part).map(|(_, after)| after);
            rest = found.unwrap_or(rest);
            found.is_some()
        })
    }
}

fn without_white_space(text: &str) -> String {
    text.split_whitespace().collect()
}

/// The marked code blocks of a page.
fn quotes<'a>(page: &'a str, text: &'a str) -> Vec<Quote<'a>> {
    let mut quotes = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let marker = line.trim().strip_prefix("<!-- quoted from ");
        let Some(source) = marker.and_then(|rest| rest.strip_suffix(" -->")) else {
            continue;
        };
        let block = lines
            .by_ref()
            .map(|(_, line)| line.trim())
            .skip_while(|line| !line.starts_with("```"));
        let block = block.skip(1).take_while(|line| !line.starts_with("```"));
        let lines = block.filter(|line| !line.is_empty()).collect();
        quotes.push(Quote {
            page,
            line: index + 1,
            source,
            lines,
        });
    }
    quotes
}

#[cfg(test)]
mod tests;
