//! Engines, guests, and directories that are removed at the end of a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use vellum_sandbox::{
    CowMode, Engine, Error, GuestImage, HostFunctions, LoadOptions, Sandbox, Snapshot,
    SnapshotStore,
};

use super::engines::{self, Verdict};

pub(crate) const PAGE: u64 = 4096;
const HEAP_LEN_BYTES: u64 = 8 << 20;

/// A guest on an engine.
#[derive(Clone, Debug)]
pub(crate) struct Lab {
    pub(crate) name: &'static str,
    pub(crate) engine: Engine,
    pub(crate) elf: &'static [u8],
    pub(crate) image: GuestImage,
}

pub(crate) type Elf = Option<&'static [u8]>;

static ENGINES: LazyLock<Vec<(CowMode, Result<Engine, String>)>> = LazyLock::new(|| {
    [CowMode::HostSide, CowMode::GuestSide]
        .into_iter()
        .map(|cow| (cow, engines::open(cow)))
        .collect()
});

/// Runs `test` with the Rust user guest in every mode that this machine has.
pub(crate) fn with_user_guest<V: Verdict>(test: impl Fn(&Lab) -> V) {
    let elf = Some(vellum_test_guests::rust_user());
    with_guests(&[("amd64-user", elf, true)], test);
}

/// Runs `test` with every kernel that was built, in every mode that it and this machine have.
pub(crate) fn with_each_kernel<V: Verdict>(test: impl Fn(&Lab) -> V) {
    with_guests(&kernels(), test);
}

/// The kernels by name, and whether they have modes of copy-on-write.
pub(crate) fn kernels() -> [(&'static str, Elf, bool); 4] {
    [
        ("i686-c", vellum_test_guests::i686_c(), false),
        ("i686-rust", vellum_test_guests::i686_rust(), false),
        ("i686-paged", vellum_test_guests::i686_paged(), true),
        ("amd64-kernel", vellum_test_guests::amd64_kernel(), true),
    ]
}

fn with_guests<V: Verdict>(guests: &[(&'static str, Elf, bool)], test: impl Fn(&Lab) -> V) {
    for &(name, elf, has_modes) in guests {
        let suite = format!("store-{name}");
        for (cow, engine) in ENGINES.iter() {
            if *cow == CowMode::GuestSide && !has_modes {
                continue;
            }
            match lab(name, elf, engine) {
                Ok(lab) => {
                    engines::report(&suite, *cow, Some(&lab.engine), test(&lab).verdict());
                }
                Err(reason) => engines::report(&suite, *cow, None, Err(&reason)),
            }
        }
    }
}

fn lab(name: &'static str, elf: Elf, engine: &Result<Engine, String>) -> Result<Lab, String> {
    let engine = engine.clone()?;
    let elf = elf.ok_or("this guest was not built")?;
    if name == "i686-paged" && !engine.capabilities().two_level_paging {
        return Err("this hypervisor has no 2-level paging".into());
    }
    let image = GuestImage::from_bytes(elf).expect("the guest is valid");
    Ok(Lab {
        name,
        engine,
        elf,
        image,
    })
}

/// Host functions for every guest.
pub(crate) fn host() -> HostFunctions {
    HostFunctions::new()
        .with("host_add", i32::wrapping_add)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |text: String| Err::<(), String>(text))
}

impl Lab {
    pub(crate) fn sandbox(&self) -> Sandbox {
        Sandbox::builder(&self.image)
            .heap_len_bytes(HEAP_LEN_BYTES)
            .host_functions(&host())
            .build(&self.engine)
            .expect("a sandbox can be built")
    }

    pub(crate) fn fork(&self, snapshot: &Snapshot) -> Sandbox {
        fork(&self.engine, snapshot)
    }
}

/// A sandbox in the state of a snapshot.
pub(crate) fn fork(engine: &Engine, snapshot: &Snapshot) -> Sandbox {
    Sandbox::from_snapshot(engine, snapshot, &host()).expect("a sandbox can be made")
}

pub(crate) fn counter(sandbox: &mut Sandbox) -> u64 {
    sandbox
        .call("counter_get", ())
        .expect("the counter can be read")
}

pub(crate) fn count(sandbox: &mut Sandbox, by: u64) {
    let _: u64 = sandbox
        .call("counter_add", (by,))
        .expect("the counter can be changed");
}

pub(crate) fn touch(sandbox: &mut Sandbox, pages: u64) {
    let _: u64 = sandbox.call("touch_pages", (pages,)).expect("called");
}

pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> Error {
    match result {
        Err(error) => error,
        Ok(value) => panic!("succeeded with {value:?}"),
    }
}

/// The ways of loading.
pub(crate) fn each_way() -> [LoadOptions; 2] {
    [LoadOptions::new(), LoadOptions::new().trust_directory()]
}

/// A directory for one test, removed at its end.
#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("store_{}_{number}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        // Of an earlier process with this number.
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A new store in it.
    pub(crate) fn store(&self) -> SnapshotStore {
        SnapshotStore::create(&self.0).expect("a store can be made")
    }

    /// Names and lengths of all blobs, sorted.
    pub(crate) fn blobs(&self) -> Vec<(String, u64)> {
        let entries = fs::read_dir(self.file("blobs/sha256")).expect("a store has blobs");
        let mut blobs: Vec<_> = entries
            .map(|entry| {
                let entry = entry.expect("it can be read");
                let len_bytes = entry.metadata().expect("it is there").len();
                (entry.file_name().to_string_lossy().into_owned(), len_bytes)
            })
            .collect();
        blobs.sort();
        blobs
    }

    /// Bytes of all blobs.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.blobs().iter().map(|(_, len_bytes)| len_bytes).sum()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed lies in the target directory and harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}
