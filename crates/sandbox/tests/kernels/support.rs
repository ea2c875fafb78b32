//! The kernels of this repository, on the engines of this machine.

use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use vellum_abi::peb::Peb;
use vellum_sandbox::{
    Arguments, CallOptions, CowMode, Engine, Error, ErrorKind, FromValue, GuestImage,
    HostFunctions, Sandbox, SandboxBuilder, Snapshot, Value,
};
use zerocopy::FromBytes;

use super::engines::{self, Verdict};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const PAGE: u64 = 4096;
/// Bytes of heap of most tests: enough for a large page of either size.
pub(crate) const HEAP_LEN_BYTES: u64 = 8 * MIB;

/// A kernel of `guests/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    IdentityC,
    IdentityRust,
    Paged,
    Amd64,
}

impl Kernel {
    fn elf(self) -> Option<&'static [u8]> {
        match self {
            Self::IdentityC => vellum_test_guests::i686_c(),
            Self::IdentityRust => vellum_test_guests::i686_rust(),
            Self::Paged => vellum_test_guests::i686_paged(),
            Self::Amd64 => vellum_test_guests::amd64_kernel(),
        }
    }

    pub(crate) fn has_paging(self) -> bool {
        matches!(self, Self::Paged | Self::Amd64)
    }

    fn modes(self) -> &'static [CowMode] {
        if self.has_paging() {
            &[CowMode::HostSide, CowMode::GuestSide]
        } else {
            &[CowMode::HostSide]
        }
    }
}

impl fmt::Display for Kernel {
    /// As the table of engines names the suite.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IdentityC => "i686-c",
            Self::IdentityRust => "i686-rust",
            Self::Paged => "i686-paged",
            Self::Amd64 => "amd64-kernel",
        })
    }
}

/// A kernel on an engine.
#[derive(Clone, Debug)]
pub(crate) struct Lab {
    pub(crate) kernel: Kernel,
    pub(crate) engine: Engine,
    pub(crate) image: GuestImage,
}

struct Entry {
    kernel: Kernel,
    cow: CowMode,
    lab: Result<Lab, String>,
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let kernels = [
        Kernel::IdentityC,
        Kernel::IdentityRust,
        Kernel::Paged,
        Kernel::Amd64,
    ];
    let pairs = kernels
        .into_iter()
        .flat_map(|kernel| kernel.modes().iter().map(move |cow| (kernel, *cow)));
    pairs
        .map(|(kernel, cow)| Entry {
            kernel,
            cow,
            lab: Lab::open(kernel, cow),
        })
        .collect()
});

/// Runs `test` with every kernel in every mode that this machine has, and says what it has not.
pub(crate) fn with_each_kernel<V: Verdict>(test: impl Fn(&Lab) -> V) {
    with_kernels(|_| true, test);
}

/// Runs `test` with the kernels that are entered on page tables of the host.
pub(crate) fn with_each_paged<V: Verdict>(test: impl Fn(&Lab) -> V) {
    with_kernels(Kernel::has_paging, test);
}

/// Runs `test` with the kernels without paging.
pub(crate) fn with_each_identity<V: Verdict>(test: impl Fn(&Lab) -> V) {
    with_kernels(|kernel| !kernel.has_paging(), test);
}

/// Runs `test` with some kernels.
pub(crate) fn with_kernels<V: Verdict>(wanted: impl Fn(Kernel) -> bool, test: impl Fn(&Lab) -> V) {
    for Entry { kernel, cow, lab } in ENTRIES.iter().filter(|it| wanted(it.kernel)) {
        match lab {
            Ok(lab) => {
                println!("{kernel} on {}", lab.engine);
                engines::report(kernel, *cow, Some(&lab.engine), test(lab).verdict());
            }
            Err(reason) => engines::report(kernel, *cow, None, Err(reason)),
        }
    }
}

/// The host functions that the kernels import.
pub(crate) fn host() -> HostFunctions {
    HostFunctions::new().with("host_add", i32::wrapping_add)
}

impl Lab {
    fn open(kernel: Kernel, cow: CowMode) -> Result<Self, String> {
        let engine = engines::open(cow)?;
        let elf = kernel
            .elf()
            .ok_or("no compiler for it when the guests were built")?;
        let image = GuestImage::from_bytes(elf).expect("the guest is valid");
        let capabilities = engine.capabilities();
        if kernel == Kernel::Paged && !capabilities.two_level_paging {
            return Err("this hypervisor does not know 2-level paging".into());
        }
        Ok(Self {
            kernel,
            engine,
            image,
        })
    }

    /// Whether the guest copies its pages itself.
    pub(crate) fn copies_itself(&self) -> bool {
        self.kernel.has_paging() && self.engine.cow_mode() == CowMode::GuestSide
    }

    /// A builder with host functions and a small heap.
    pub(crate) fn builder(&self) -> SandboxBuilder {
        Sandbox::builder(&self.image)
            .heap_len_bytes(HEAP_LEN_BYTES)
            .host_functions(&host())
    }

    /// A sandbox whose guest has made its first calls, for which it may have copied pages of its own.
    pub(crate) fn sandbox(&self) -> Sandbox {
        let mut sandbox = self
            .builder()
            .build(&self.engine)
            .expect("a sandbox can be built");
        count(&mut sandbox, 0);
        assert_eq!(call::<_, i32>(&mut sandbox, "call_host_add", (40, 2)), 42);
        sandbox
    }

    /// A sandbox in the state of a snapshot.
    pub(crate) fn fork(&self, snapshot: &Snapshot) -> Sandbox {
        Sandbox::from_snapshot(&self.engine, snapshot, &host()).expect("a fork can be made")
    }
}

/// Heaps of these lengths are refused, and a scratch of one page.
pub(crate) fn assert_sizes_refused(lab: &Lab, heap_len_bytes: &[u64]) {
    let heaps = heap_len_bytes
        .iter()
        .map(|len_bytes| lab.builder().heap_len_bytes(*len_bytes));
    for builder in heaps.chain([lab.builder().scratch_len_bytes(PAGE)]) {
        let text = format!("{builder:?}");
        let error = builder.build(&lab.engine).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}: {error:?}");
    }
}

/// So long may a call of a test take: a kernel that loops fails its test by name.
pub(crate) fn limited() -> CallOptions {
    CallOptions::new().timeout(Duration::from_mins(1))
}

/// A call that must succeed.
#[track_caller]
pub(crate) fn call<Args: Arguments, Ret: FromValue>(
    sandbox: &mut Sandbox,
    name: &str,
    args: Args,
) -> Ret {
    let function = sandbox.function::<Args, Ret>(name).expect("exported");
    match function.call_with(sandbox, args, &limited()) {
        Ok(value) => value,
        Err(error) => panic!("{name}: {error:?}"),
    }
}

/// The error of a call that must fail.
#[track_caller]
pub(crate) fn refused(sandbox: &mut Sandbox, name: &str, args: &[Value]) -> Error {
    match sandbox.call_dynamic(name, args, &limited()) {
        Err(error) => error,
        Ok(value) => panic!("{name} succeeded with {value:?}"),
    }
}

/// The state that tests look at most: the guest's counter.
#[track_caller]
pub(crate) fn counter(sandbox: &mut Sandbox) -> u64 {
    call(sandbox, "counter_get", ())
}

/// Adds to the guest's counter.
#[track_caller]
pub(crate) fn count(sandbox: &mut Sandbox, by: u64) {
    let _: u64 = call(sandbox, "counter_add", (by,));
}

/// What the guest was told, read from where it was told that it lies.
#[track_caller]
pub(crate) fn peb(sandbox: &mut Sandbox) -> Peb {
    let address = call(sandbox, "peb_address", ());
    let mut bytes = [0; Peb::LEN_BYTES];
    sandbox
        .read_memory(address, &mut bytes)
        .expect("the block is mapped");
    let peb = Peb::read_from_bytes(&bytes).expect("as many bytes");
    peb.check().expect("sound");
    peb
}

/// Where the kernel sees guest-physical memory of scratch.
#[track_caller]
pub(crate) fn address_of(peb: &Peb, gpa: u64) -> u64 {
    let offset = gpa.checked_sub(peb.scratch_gpa).expect("in scratch");
    assert!(offset < peb.scratch_len_bytes, "{gpa:#x} is in scratch");
    peb.scratch_ptr + offset
}
