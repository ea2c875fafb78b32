//! The state of a running guest, from its first instruction to its dispatch loop.

#![expect(
    unsafe_code,
    reason = "takes addresses from the host and keeps one thread's global state"
)]

use core::cell::OnceCell;
use core::sync::atomic::{AtomicBool, Ordering};

use vellum_abi::mapping::{MAX_MAPPINGS, MappingEntry};
use vellum_abi::peb::Peb;
use vellum_abi::port::{ABORT_BAD_PEB, IDLE_READY, IDLE_REPLY, Port};

use crate::dispatch::Session;
use crate::link::{Link, address, pointer};
use crate::table::{Export, Import};
use crate::{heap, logging, panic};

/// State of the guest's one thread, in a static.
pub(crate) struct Single<T>(T);

// SAFETY: a guest has one thread and no interrupts, so there is nobody to share with. Outside a guest nothing safe
// writes such a static: `start` and `set_region`, the only writers, are unsafe and ask for a single thread.
unsafe impl<T> Sync for Single<T> {}

impl<T> Single<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(value)
    }

    pub(crate) const fn get(&self) -> &T {
        &self.0
    }
}

struct State {
    link: Link<'static>,
    peb: *const Peb,
    functions: &'static [Export],
    imports: *const Import,
}

static STATE: Single<OnceCell<State>> = Single::new(OnceCell::new());
/// Whether the initialisation is over.
static SERVING: AtomicBool = AtomicBool::new(false);

/// Initialises the guest. Called by `entry!` on the first instructions; afterwards [`serve`] answers calls.
///
/// # Safety
/// `peb` is what the host passed at entry. The table pointers delimit arrays that live for ever. One thread.
pub unsafe fn start(peb: *const Peb, functions: [*const Export; 2], imports: *const Import) {
    // SAFETY: the host maps the PEB, readable, at the address it passes; its copy is checked before use.
    let block = unsafe { peb.read() };
    if block.check().is_err() {
        panic::give_up(ABORT_BAD_PEB);
    }
    let [first, end] = functions;
    let count = (end.addr() - first.addr()) / size_of::<Export>();
    let functions = if count == 0 {
        &[]
    } else {
        // SAFETY: the linker placed `count` exports between the two symbols; they are immutable.
        unsafe { core::slice::from_raw_parts(first, count) }
    };
    // SAFETY: a PEB that passed its check names the buffers that the host has mapped for this guest.
    let link = unsafe { Link::of_guest(&block) };
    // SAFETY: the same for the heap; the caller promises a single thread.
    unsafe { heap::set_region(block.heap_ptr, block.heap_len_bytes) };
    // A guest starts once.
    let _ = STATE.get().set(State {
        link,
        peb,
        functions,
        imports,
    });
    logging::install(block.log_level);
}

/// Initialises a kernel with paging: exceptions first, then as [`start`].
///
/// # Safety
/// As for [`start`], in ring 0 on page tables that the host has built.
pub unsafe fn start_kernel(peb: *const Peb, functions: [*const Export; 2], imports: *const Import) {
    // SAFETY: the caller promises what both ask for.
    unsafe {
        crate::kernel::start(peb);
        start(peb, functions, imports);
    }
}

/// Tells the host that the guest is ready, then answers calls for ever.
pub fn idle() -> ! {
    // Before the guest waits, so that it need not write when its first call comes, in every copy of its snapshot.
    SERVING.store(true, Ordering::Relaxed);
    if let Some(state) = STATE.get().get() {
        state.link.exit(Port::Idle, IDLE_READY);
    }
    serve()
}

/// Answers the call in the input buffer, then the next, for ever.
pub fn serve() -> ! {
    let state = state();
    let mut session = Session::new(state.link, state.functions);
    loop {
        session.answer();
        state.link.wait(Port::Idle, IDLE_REPLY);
    }
}

/// A number that differs between any two sandboxes, clones of one snapshot included. It changes when the sandbox
/// is restored, so ask again rather than keep it. It is no cryptographic secret.
///
/// # Panics
/// When called outside a guest.
#[must_use]
pub fn seed() -> u64 {
    let peb = state().peb;
    // SAFETY: `start` checked the PEB, which stays mapped and readable. The host rewrites the seed between calls,
    // hence volatile.
    unsafe { (&raw const (*peb).seed).read_volatile() }
}

/// The generation of the snapshot that this sandbox was made from or last restored to; 0 in one that has booted.
///
/// # Panics
/// When called outside a guest.
#[must_use]
pub fn generation() -> u64 {
    let peb = state().peb;
    // SAFETY: as for the seed.
    unsafe { (&raw const (*peb).generation).read_volatile() }
}

/// Asks the host for a snapshot of this moment and returns the generation afterwards: the same as before in this sandbox,
/// another one in those that are made from the snapshot or restored to it, which go on from here as well. The host gets
/// `tag` with the snapshot.
///
/// ```no_run
/// let before = vellum_guest::generation();
/// if vellum_guest::checkpoint(1) != before {
///     // This is a copy: take up connections again, draw new random numbers.
/// }
/// ```
///
/// # Panics
/// When called outside a guest.
pub fn checkpoint(tag: u32) -> u64 {
    state().link.exit(Port::Checkpoint, tag);
    generation()
}

/// The files and memories that the host has mapped for this guest, as the table says now. The host may change the table whenever
/// it runs: during calls that wait for it and between calls.
///
/// # Panics
/// When called outside a guest.
pub fn mappings() -> impl Iterator<Item = MappingEntry> {
    let peb = peb();
    let count = usize::try_from(peb.mappings_count)
        .unwrap_or(0)
        .min(MAX_MAPPINGS);
    let table = pointer::<MappingEntry>(peb.mappings_ptr);
    // SAFETY: the host keeps `mappings_count` entries mapped and readable; they are plain numbers. Volatile, because the host
    // changes them.
    (0..count).map(move |index| unsafe { table.add(index).read_volatile() })
}

/// The mapping with this label, if there is one (any more).
///
/// # Panics
/// When called outside a guest.
#[must_use]
pub fn find_mapping(label: &str) -> Option<MappingEntry> {
    mappings().find(|mapping| mapping.label() == Some(label))
}

/// The data that the embedder gave to this guest at its start; empty when there is none.
///
/// # Panics
/// When called outside a guest.
#[must_use]
pub fn init_data() -> &'static [u8] {
    let peb = peb();
    let Ok(len_bytes @ 1..) = usize::try_from(peb.init_data_len_bytes) else {
        return &[];
    };
    // SAFETY: the PEB passed its check, so the range does not wrap; the host keeps it mapped, readable and unchanged.
    unsafe { core::slice::from_raw_parts(address(peb.init_data_ptr).cast_const(), len_bytes) }
}

/// Ends the guest with a code of the caller's choice. The host reports it and does not resume the guest.
pub fn abort(code: u32) -> ! {
    panic::give_up(code)
}

/// A copy of the PEB.
///
/// # Panics
/// When called outside a guest.
#[must_use]
pub fn peb() -> Peb {
    let peb = state().peb;
    // SAFETY: `start` checked the PEB, which stays mapped and readable.
    unsafe { peb.read_volatile() }
}

/// The address of the PEB, in the guest's own translation.
///
/// # Panics
/// When called outside a guest.
#[must_use]
pub fn peb_address() -> u64 {
    state().peb.addr() as u64
}

/// The link, once the guest has started.
#[inline]
pub(crate) fn link() -> Option<&'static Link<'static>> {
    STATE.get().get().map(|state| &state.link)
}

/// Whether the guest is past its initialisation.
#[inline]
pub(crate) fn is_serving() -> bool {
    SERVING.load(Ordering::Relaxed)
}

/// The link, and the index of `import`.
#[inline]
pub(crate) fn import_call(import: &'static Import) -> (&'static Link<'static>, u32) {
    let state = state();
    let offset_bytes = core::ptr::from_ref(import).addr() - state.imports.addr();
    // Guests link into less than 4 GiB of tables.
    #[expect(clippy::cast_possible_truncation)]
    let index = (offset_bytes / size_of::<Import>()) as u32;
    (&state.link, index)
}

#[inline]
fn state() -> &'static State {
    STATE.get().get().expect("not inside a vellum guest")
}
