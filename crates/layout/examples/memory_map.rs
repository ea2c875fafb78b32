//! Prints `docs/memory-map.md`.

fn main() {
    print!("{}", vellum_layout::MemoryMapPage);
}
