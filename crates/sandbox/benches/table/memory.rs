//! Page tables: what it costs to map a GiB of 4 KiB pages.

use vellum_layout::{Gpa, GpaRange, Gva, GvaRange, PageSize};
use vellum_vmem::{Attrs, Format, FrameRange, FrameSource, Mapper, SliceStore};

use crate::figures::Figures;
use crate::measure::{Effort, median};

const GIB: u64 = 1 << 30;
/// 512 tables of 4 KiB leaves, and those above them.
const TABLE_FRAMES: u64 = 520;

pub(crate) fn page_tables(effort: Effort, figures: &mut Figures) -> anyhow::Result<()> {
    let base = Gpa::new(0x100_0000)?;
    let frames = GpaRange::new(base, TABLE_FRAMES * 4096)?;
    let mut words = vec![0_u64; usize::try_from(TABLE_FRAMES * 512)?];
    let target = GvaRange::new(Gva::new(1 << 40)?, GIB)?;
    let build = |words: &mut [u64]| -> anyhow::Result<()> {
        let mut frames = FrameRange::new(frames);
        let root = frames
            .allocate_table()
            .ok_or_else(|| anyhow::anyhow!("no frame for the root"))?;
        let mut mapper = Mapper::new(
            SliceStore::new(base, words),
            frames,
            root,
            Format::FOUR_LEVEL,
        )?
        .with_max_leaf(PageSize::Size4KiB);
        mapper
            .map(target, Gpa::new(2 * GIB)?, Attrs::WRITE | Attrs::USER)?
            .ignore("no processor uses these tables");
        Ok(())
    };
    let mut times = Vec::new();
    for _ in 0..effort.samples(200) {
        words.fill(0);
        let words = &mut words;
        let mut run = || build(words);
        times.push(median(1, || Ok(()), |()| run())?);
    }
    times.sort_unstable_by(f64::total_cmp);
    // The floor: writing the same words once, plainly.
    let floor = median(
        effort.samples(200),
        || Ok(()),
        |()| {
            for (index, word) in words.iter_mut().enumerate() {
                *word = index as u64;
            }
            std::hint::black_box(&mut words);
            Ok(())
        },
    )?;
    figures.add("pagetable_fill_floor_ns", floor);
    figures.add_beside(
        "pagetable_build_1gib_ns",
        times[times.len() / 2],
        "pagetable_fill_floor_ns",
    );
    Ok(())
}
