//! The guests that tests of mappings use, and how each of them reaches what is mapped.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use vellum_sandbox::{
    CowMode, Engine, Error, ErrorKind, Gpa, GuestImage, HostFunctions, Sandbox, SandboxBuilder,
};

use super::engines::{self, Verdict};

pub(crate) const PAGE: u64 = 4096;
pub(crate) const MIB: u64 = 1 << 20;
/// Where tests map: clear of the memories of every guest here.
pub(crate) const AT: Gpa = Gpa::literal(0x4000_0000);
pub(crate) const ELSEWHERE: Gpa = Gpa::literal(0x5000_0000);

/// The guests of this repository that can look at mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    User,
    IdentityC,
    IdentityRust,
    Paged,
    Kernel,
}

impl Guest {
    const ALL: [Self; 5] = [
        Self::User,
        Self::IdentityC,
        Self::IdentityRust,
        Self::Paged,
        Self::Kernel,
    ];

    fn elf(self) -> Option<&'static [u8]> {
        match self {
            Self::User => Some(vellum_test_guests::rust_user()),
            Self::IdentityC => vellum_test_guests::i686_c(),
            Self::IdentityRust => vellum_test_guests::i686_rust(),
            Self::Paged => vellum_test_guests::i686_paged(),
            Self::Kernel => vellum_test_guests::amd64_kernel(),
        }
    }

    /// Whether it maps guest-physical addresses itself.
    pub(crate) fn has_own_tables(self) -> bool {
        matches!(self, Self::Paged | Self::Kernel)
    }

    fn modes(self) -> &'static [CowMode] {
        match self {
            Self::IdentityC | Self::IdentityRust => &[CowMode::HostSide],
            Self::User | Self::Paged | Self::Kernel => &[CowMode::HostSide, CowMode::GuestSide],
        }
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "amd64-user",
            Self::IdentityC => "i686-c",
            Self::IdentityRust => "i686-rust",
            Self::Paged => "i686-paged",
            Self::Kernel => "amd64-kernel",
        })
    }
}

/// A guest on an engine.
#[derive(Clone, Debug)]
pub(crate) struct Lab {
    pub(crate) guest: Guest,
    pub(crate) engine: Engine,
    pub(crate) image: GuestImage,
}

struct Entry {
    guest: Guest,
    cow: CowMode,
    lab: Result<Lab, String>,
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let guests = Guest::ALL.into_iter();
    let pairs = guests.flat_map(|guest| guest.modes().iter().map(move |cow| (guest, *cow)));
    pairs
        .map(|(guest, cow)| Entry {
            guest,
            cow,
            lab: Lab::open(guest, cow),
        })
        .collect()
});

/// Runs `test` with every guest in every mode that this machine has.
pub(crate) fn with_each_guest<V: Verdict>(test: impl Fn(&Lab) -> V) {
    with_guests(|_| true, test);
}

/// Runs `test` with some guests.
pub(crate) fn with_guests<V: Verdict>(wanted: impl Fn(Guest) -> bool, test: impl Fn(&Lab) -> V) {
    for Entry { guest, cow, lab } in ENTRIES.iter().filter(|it| wanted(it.guest)) {
        let suite = format!("map-{guest}");
        match lab {
            Ok(lab) => {
                println!("{guest} on {}", lab.engine);
                engines::report(suite, *cow, Some(&lab.engine), test(lab).verdict());
            }
            Err(reason) => engines::report(suite, *cow, None, Err(reason)),
        }
    }
}

impl Lab {
    fn open(guest: Guest, cow: CowMode) -> Result<Self, String> {
        let engine = engines::open(cow)?;
        if !engine.capabilities().read_only_memory {
            return Err("this hypervisor has no read-only memory".into());
        }
        let elf = guest.elf().ok_or("no compiler for this guest")?;
        let image = GuestImage::from_bytes(elf).expect("the guest is valid");
        let lab = Self {
            guest,
            engine,
            image,
        };
        match lab.builder().build(&lab.engine) {
            Ok(_) => Ok(lab),
            Err(error) if error.kind() == ErrorKind::Unsupported => Err(error.to_string()),
            Err(error) => panic!("{guest}, {cow}: {error:?}"),
        }
    }

    /// A builder with host functions and a small heap.
    pub(crate) fn builder(&self) -> SandboxBuilder {
        Sandbox::builder(&self.image)
            .heap_len_bytes(4 * MIB)
            .host_functions(&host())
    }

    pub(crate) fn sandbox(&self) -> Sandbox {
        self.builder()
            .build(&self.engine)
            .expect("a sandbox can be built")
    }

    /// Where the guest reaches a mapping from now on. A kernel with paging forgets it in a restore.
    pub(crate) fn locate(&self, sandbox: &mut Sandbox, label: &str) -> u64 {
        if !self.guest.has_own_tables() {
            return ask(sandbox, "mapping_address", label);
        }
        assert_eq!(ask(sandbox, "mapping_address", label), 0);
        let gpa = ask(sandbox, "mapping_gpa", label);
        let len_bytes = ask(sandbox, "mapping_len", label);
        // Writable in the guest's tables also where it must not write: it is the host that stops it.
        sandbox
            .call("map_physical", (gpa, len_bytes, true))
            .expect("the kernel can map it")
    }
}

pub(crate) fn host() -> HostFunctions {
    HostFunctions::new()
        .with("host_add", i32::wrapping_add)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |text: String| Err::<(), String>(text))
}

/// What the guest knows of a mapping.
pub(crate) fn ask(sandbox: &mut Sandbox, function: &str, label: &str) -> u64 {
    sandbox
        .call(function, (label,))
        .expect("the guest knows the mapping")
}

pub(crate) fn mapping_count(sandbox: &mut Sandbox) -> u64 {
    sandbox.call("mapping_count", ()).expect("called")
}

/// The 32-bit word at an address. (Guests of 64 bits read more.)
pub(crate) fn read(sandbox: &mut Sandbox, address: u64) -> Result<u32, Error> {
    let word: u64 = sandbox.call("read_address", (address,))?;
    Ok(u32::try_from(word & u64::from(u32::MAX)).expect("masked"))
}

pub(crate) fn word(sandbox: &mut Sandbox, address: u64) -> u32 {
    read(sandbox, address).unwrap_or_else(|error| panic!("{address:#x}: {error:?}"))
}

/// Writes a word; a guest of 64 bits writes zeroes behind it.
pub(crate) fn write(sandbox: &mut Sandbox, address: u64, value: u32) -> Result<(), Error> {
    sandbox.call("write_address", (address, u64::from(value)))
}

/// A file that is removed when the test is done with it.
#[derive(Debug)]
pub(crate) struct TempPath(PathBuf);

impl TempPath {
    /// A name that nothing has.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vellum-mappings-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn file_with(content: &[u8]) -> Self {
        let path = Self::new();
        fs::write(path.path(), content).expect("the file can be written");
        path
    }

    /// A file of words that are their own offsets.
    pub(crate) fn numbered(len_bytes: u64) -> Self {
        let words = (0..len_bytes).step_by(4).flat_map(number);
        let len = usize::try_from(len_bytes).expect("small");
        Self::file_with(&words.take(len).collect::<Vec<u8>>())
    }

    pub(crate) fn truncate(&self, len_bytes: u64) {
        File::options()
            .write(true)
            .open(self.path())
            .and_then(|file| file.set_len(len_bytes))
            .expect("the file can be truncated");
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0).or_else(|_| fs::remove_dir(&self.0));
    }
}

/// The bytes of the word at an offset of a [numbered](TempPath::numbered) file.
pub(crate) fn number(offset: u64) -> [u8; 4] {
    number_at(offset).to_le_bytes()
}

pub(crate) fn number_at(offset: u64) -> u32 {
    u32::try_from(offset).expect("small") | 0x4000_0000
}

/// The error of an operation that must fail.
pub(crate) fn refused<T: fmt::Debug>(what: &str, result: Result<T, Error>) -> Error {
    match result {
        Err(error) => error,
        Ok(value) => panic!("{what} succeeded with {value:?}"),
    }
}

/// That the guest could not do what it tried, and that its sandbox knows. (A kernel with paging panics where its own tables lead nowhere.)
pub(crate) fn assert_stopped<T: fmt::Debug>(
    what: &str,
    sandbox: &Sandbox,
    result: Result<T, Error>,
) {
    let kind = refused(what, result).kind();
    assert!(
        matches!(
            kind,
            ErrorKind::Fault | ErrorKind::Crashed | ErrorKind::GuestPanic
        ),
        "{what}: {kind:?}"
    );
    assert!(!sandbox.is_ready(), "{what}");
}
