use alloc::vec;
use alloc::vec::Vec;

use vellum_layout::GpaRange;
use vellum_vmem::{FrameRange, Level, SliceStore};

use super::*;

const ROOM: Gpa = Gpa::literal(0x10_0000);
const HOME: Gpa = ROOM;
const OTHER: Gpa = Gpa::literal(0x10_1000);
const FIRST_FREE: u64 = 0x10_2000;
const FRAMES: usize = 32;

const DATA: Gva = Gva::literal(0x40_3000);
const CODE: Gva = Gva::literal(0x40_0000);
const LARGE: Gva = Gva::literal(0x4000_0000);
const HEAP: u64 = 0x8000_0000;
/// Not a whole number of pages: the last one is the heap's as far as it goes.
const HEAP_LEN_BYTES: u64 = 0x2800;
/// Under a top-level entry of its own in either format.
const LATE: Gva = Gva::literal(0xC000_0000);
const LATE_AMD64: Gva = Gva::literal(0x6000_0000_0000);

const FORMATS: [Format; 2] = [Format::FOUR_LEVEL, Format::TWO_LEVEL_PSE];

/// What the server did to pages.
#[derive(Debug, Default, PartialEq)]
struct Log {
    copied: Vec<(Gva, Gpa)>,
    invalidated: Vec<Gva>,
}

impl Pages for &mut Log {
    fn copy(&mut self, from: Gva, to: Gpa) {
        self.copied.push((from, to));
    }

    fn invalidate(&mut self, page: Gva) {
        self.invalidated.push(page);
    }
}

/// Tables of a kernel in memory: code, a copy-on-write page of data, a large copy-on-write page, nothing in the heap.
struct Kernel {
    memory: Vec<u64>,
    frames: FrameRange,
    territory: Territory,
    log: Log,
}

impl Kernel {
    fn new(format: Format) -> Self {
        let free = GpaRange::new(Gpa::literal(FIRST_FREE), (FRAMES as u64 - 2) * PAGE_SIZE);
        let mut kernel = Self {
            memory: vec![0; FRAMES * 512],
            frames: FrameRange::new(free.expect("whole pages")),
            territory: Territory {
                home: HOME,
                heap: (HEAP, HEAP_LEN_BYTES),
                heap_attrs: no_execute(format),
                format,
            },
            log: Log::default(),
        };
        let large = format.leaf_size(Level::L2).expect("both have large pages");
        kernel.map(
            HOME,
            CODE,
            Gpa::literal(0x1000),
            PageSize::Size4KiB,
            Attrs::ACCESSED,
        );
        let cow = Attrs::COW | Attrs::ACCESSED | no_execute(format);
        kernel.map(HOME, DATA, Gpa::literal(0x2000), PageSize::Size4KiB, cow);
        kernel.map(HOME, LARGE, Gpa::literal(0x80_0000), large, cow);
        kernel.copy_top_level();
        kernel
    }

    fn map(&mut self, root: Gpa, page: Gva, frame: Gpa, size: PageSize, attrs: Attrs) {
        let range = GvaRange::new(page, size.bytes()).expect("a page");
        let mut store = SliceStore::new(ROOM, &mut self.memory);
        Mapper::new(&mut store, &mut self.frames, root, self.territory.format)
            .expect("a root")
            .map(range, frame, attrs)
            .expect("vacant")
            .ignore("no processor uses these tables");
    }

    /// Makes the other root share what the home root has.
    fn copy_top_level(&mut self) {
        let (home, other) = self.memory[..1024].split_at_mut(512);
        other.copy_from_slice(home);
    }

    fn serve(&mut self, root: Gpa, address: u64, code: u64) -> Result<Served, Refusal> {
        let mut frames = self.frames;
        let result = Server {
            territory: &self.territory,
            root,
            tables: SliceStore::new(ROOM, &mut self.memory),
            frames: &mut frames,
            pages: &mut self.log,
        }
        .serve(PageFault {
            address: Gva::literal(address),
            code,
        });
        self.frames = frames;
        result
    }

    /// Where a page leads, and its attributes.
    fn page(&mut self, root: Gpa, page: Gva) -> Option<(Gpa, Attrs)> {
        let store = SliceStore::new(ROOM, &mut self.memory);
        let mapping = translate(&store, root, page, self.territory.format).ok()?;
        Some((mapping.gpa, mapping.attrs))
    }

    fn next_frame(&self) -> Gpa {
        Gpa::literal(FIRST_FREE + self.frames.used_frames() * PAGE_SIZE)
    }

    /// Leaves `count` frames.
    fn leave_frames(&mut self, count: u64) {
        let left = FRAMES as u64 - 2 - self.frames.used_frames();
        for _ in count..left {
            let _ = self.frames.allocate_table();
        }
    }

    /// An address that no top-level entry of the home root covers.
    fn late(&self) -> Gva {
        if self.territory.format == Format::FOUR_LEVEL {
            LATE_AMD64
        } else {
            LATE
        }
    }
}

fn no_execute(format: Format) -> Attrs {
    if format == Format::FOUR_LEVEL {
        Attrs::NO_EXECUTE
    } else {
        Attrs::empty()
    }
}

fn private(format: Format) -> Attrs {
    Attrs::WRITE | Attrs::ACCESSED | Attrs::DIRTY | no_execute(format)
}

#[test]
fn a_write_to_a_copy_on_write_page_gives_it_a_frame_of_its_own() {
    for format in FORMATS {
        let mut kernel = Kernel::new(format);
        let frame = kernel.next_frame();
        let served = kernel.serve(HOME, DATA.as_u64() + 0x123, PRESENT | WRITE);
        assert_eq!(served, Ok(Served::Copied), "{format:?}");
        assert_eq!(kernel.page(HOME, DATA), Some((frame, private(format))));
        assert_eq!(kernel.log.copied, [(DATA, frame)]);
        assert_eq!(kernel.log.invalidated, [DATA]);
    }
}

#[test]
fn a_large_copy_on_write_page_is_split_and_one_part_copied() {
    for format in FORMATS {
        let mut kernel = Kernel::new(format);
        let page = Gva::literal(LARGE.as_u64() + 0x5000);
        let served = kernel.serve(HOME, page.as_u64(), PRESENT | WRITE);
        assert_eq!(served, Ok(Served::Copied), "{format:?}");
        let (frame, attrs) = kernel.page(HOME, page).expect("mapped");
        assert_eq!(kernel.log.copied, [(page, frame)]);
        assert_eq!(attrs, private(format));
        assert_eq!(
            kernel
                .page(HOME, LARGE)
                .map(|(gpa, attrs)| (gpa, attrs.contains(Attrs::COW))),
            Some((Gpa::literal(0x80_0000), true)),
            "the rest stays as it is"
        );
        assert!(kernel.log.invalidated.contains(&page));
    }
}

#[test]
fn a_first_touch_of_the_heap_gets_a_frame_and_no_copy() {
    for format in FORMATS {
        for (address, code) in [
            (HEAP, 0),
            (HEAP + 0x1008, WRITE),
            (HEAP + HEAP_LEN_BYTES - 1, WRITE),
        ] {
            let mut kernel = Kernel::new(format);
            assert_eq!(kernel.serve(HOME, address, code), Ok(Served::Zeroed));
            let page = Gva::literal(address & !0xFFF);
            let (_, attrs) = kernel.page(HOME, page).expect("mapped");
            assert_eq!(attrs, private(format));
            assert_eq!(
                kernel.log,
                Log::default(),
                "absent translations are not cached"
            );
        }
    }
}

#[test]
fn other_faults_are_not_served_and_change_nothing() {
    let cases = [
        ("a write to code", CODE.as_u64(), PRESENT | WRITE),
        ("below the heap", HEAP - 1, WRITE),
        ("behind the heap", HEAP + HEAP_LEN_BYTES, 0),
        ("nothing there", 0, 0),
        ("a fetch from the heap", HEAP, FETCH),
        ("a fetch from data", DATA.as_u64(), PRESENT | FETCH),
        ("ring 3 in the heap", HEAP, USER | WRITE),
        ("ring 3 in data", DATA.as_u64(), PRESENT | WRITE | USER),
        ("reserved bits", DATA.as_u64(), PRESENT | WRITE | RESERVED),
        ("a read of a present page", DATA.as_u64(), PRESENT),
        (
            "a write where the table says nothing is",
            LATE.as_u64(),
            PRESENT | WRITE,
        ),
    ];
    for format in FORMATS {
        for root in [HOME, OTHER] {
            for (name, address, code) in cases {
                let mut kernel = Kernel::new(format);
                let before = kernel.memory.clone();
                let served = kernel.serve(root, address, code);
                assert_eq!(served, Err(Refusal::NotServed), "{name}");
                assert!(kernel.memory == before, "{name}");
                assert_eq!(kernel.log, Log::default(), "{name}");
            }
        }
    }
}

#[test]
fn without_frames_the_fault_says_so() {
    for format in FORMATS {
        // With one frame left there is none for the table of the heap.
        for (left, address, code) in [
            (0, DATA.as_u64(), PRESENT | WRITE),
            (0, HEAP, WRITE),
            (1, HEAP, WRITE),
        ] {
            let mut kernel = Kernel::new(format);
            kernel.leave_frames(left);
            let served = kernel.serve(HOME, address, code);
            assert_eq!(served, Err(Refusal::OutOfFrames), "{left} {address:#x}");
            assert_eq!(kernel.log, Log::default());
        }
    }
}

#[test]
fn a_stale_translation_is_forgotten() {
    for format in FORMATS {
        let mut kernel = Kernel::new(format);
        kernel
            .serve(HOME, DATA.as_u64(), PRESENT | WRITE)
            .expect("served");
        kernel.log = Log::default();
        let memory = kernel.memory.clone();
        for code in [PRESENT | WRITE, WRITE] {
            assert_eq!(kernel.serve(HOME, DATA.as_u64(), code), Ok(Served::Stale));
        }
        assert!(kernel.memory == memory);
        assert_eq!(kernel.log.invalidated, [DATA, DATA]);
        assert!(kernel.log.copied.is_empty());
    }
}

#[test]
fn roots_that_share_tables_see_each_others_pages() {
    for format in FORMATS {
        let mut kernel = Kernel::new(format);
        let served = kernel.serve(OTHER, DATA.as_u64(), PRESENT | WRITE);
        assert_eq!(served, Ok(Served::Copied), "{format:?}");
        assert_eq!(kernel.page(HOME, DATA), kernel.page(OTHER, DATA));
        let served = kernel.serve(OTHER, HEAP, WRITE);
        assert_eq!(served, Ok(Served::Zeroed), "{format:?}");
        let heap = kernel.page(HOME, Gva::literal(HEAP));
        assert!(heap.is_some());
        assert_eq!(heap, kernel.page(OTHER, Gva::literal(HEAP)));
    }
}

#[test]
fn a_root_gets_what_the_home_root_got_later() {
    for format in FORMATS {
        let mut kernel = Kernel::new(format);
        let late = kernel.late();
        kernel.map(
            HOME,
            late,
            Gpa::literal(0x5000),
            PageSize::Size4KiB,
            Attrs::WRITE,
        );
        assert_eq!(kernel.page(OTHER, late), None);
        assert_eq!(kernel.serve(OTHER, late.as_u64(), 0), Ok(Served::Shared));
        let page = kernel.page(OTHER, late);
        assert_eq!(page, Some((Gpa::literal(0x5000), Attrs::WRITE)));
        assert_eq!(kernel.page(HOME, late), page);
        assert!(kernel.log.copied.is_empty());
    }
}

#[test]
fn accessed_bits_make_no_difference_between_roots() {
    for format in FORMATS {
        let mut kernel = Kernel::new(format);
        // The processor has used the other root's entry above the data: the first of eight bytes, the second of four.
        kernel.memory[512] ^= if format == Format::FOUR_LEVEL {
            1 << 5
        } else {
            1 << 37
        };
        assert_eq!(
            kernel.serve(OTHER, DATA.as_u64(), PRESENT | WRITE),
            Ok(Served::Copied)
        );
        assert_eq!(kernel.page(HOME, DATA), kernel.page(OTHER, DATA));
    }
}

#[test]
fn a_page_of_its_own_is_copied_for_its_root_alone() {
    for format in FORMATS {
        let mut kernel = Kernel::new(format);
        let own = kernel.late();
        let attrs = Attrs::COW | no_execute(format);
        kernel.map(OTHER, own, Gpa::literal(0x7000), PageSize::Size4KiB, attrs);
        let served = kernel.serve(OTHER, own.as_u64(), PRESENT | WRITE);
        assert_eq!(served, Ok(Served::Copied), "{format:?}");
        let page = kernel.page(OTHER, own);
        assert_eq!(page.map(|(_, attrs)| attrs), Some(private(format)));
        assert_eq!(kernel.page(HOME, own), None);
    }
}

#[test]
fn tables_outside_of_memory_are_named_as_the_reason() {
    for format in FORMATS {
        let mut kernel = Kernel::new(format);
        kernel.territory.home = Gpa::literal(0x80_0000);
        let root = kernel.territory.home;
        assert_eq!(kernel.serve(root, HEAP, WRITE), Err(Refusal::Tables));
        assert_eq!(
            kernel.serve(OTHER, DATA.as_u64(), PRESENT | WRITE),
            Err(Refusal::Tables)
        );
    }
}
