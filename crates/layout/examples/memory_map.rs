//! Prints `docs/memory-map.md`.

use std::io::Write;

fn main() -> std::io::Result<()> {
    write!(std::io::stdout(), "{}", vellum_layout::MemoryMapPage)
}
