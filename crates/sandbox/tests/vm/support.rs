//! The engines of this machine, and what every test needs of them.

use std::sync::LazyLock;

use vellum_sandbox::{CowMode, Engine, Error, GuestImage, HostFunctions, Sandbox, SandboxBuilder};

use super::engines::{self, Verdict};

/// What the table of engines calls these tests.
const SUITE: &str = "sandbox";

/// Bytes of heap of most tests: enough for their values, and few enough to exhaust quickly.
pub(crate) const HEAP_LEN_BYTES: u64 = 4 << 20;

/// Why a guest in C is not there.
pub(crate) const NO_C_COMPILER: &str = "no C compiler when the guests were built";

/// An engine in one mode, and the Rust guest.
#[derive(Clone, Debug)]
pub(crate) struct Lab {
    pub(crate) engine: Engine,
    pub(crate) image: GuestImage,
}

/// A lab, or why there is none.
type Outcome = Result<Lab, String>;

static HOST_SIDE: LazyLock<Outcome> = LazyLock::new(|| open(CowMode::HostSide));
static GUEST_SIDE: LazyLock<Outcome> = LazyLock::new(|| open(CowMode::GuestSide));

/// Runs `test` in every mode that this machine has, and says which those are.
pub(crate) fn in_each_mode<V: Verdict>(test: impl Fn(&Lab) -> V) {
    in_mode(CowMode::HostSide, &test);
    in_mode(CowMode::GuestSide, &test);
}

/// Runs `test` in one mode, or says why not.
pub(crate) fn in_mode<V: Verdict>(cow: CowMode, test: impl Fn(&Lab) -> V) {
    let lab = match cow {
        CowMode::HostSide => &*HOST_SIDE,
        CowMode::GuestSide => &*GUEST_SIDE,
    };
    match lab {
        Ok(lab) => {
            println!("{}", lab.engine);
            engines::report(SUITE, cow, Some(&lab.engine), test(lab).verdict());
        }
        Err(reason) => engines::report(SUITE, cow, None, Err(reason)),
    }
}

fn open(cow: CowMode) -> Outcome {
    engines::open(cow).map(Lab::on)
}

/// The host functions that the Rust guest imports.
pub(crate) fn host() -> HostFunctions {
    HostFunctions::new()
        .with("host_add", i32::wrapping_add)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |text: String| Err::<(), String>(text))
}

/// The Rust guest with another name in its table of functions: another guest.
pub(crate) fn another_image() -> GuestImage {
    let mut elf = vellum_test_guests::rust_user().to_vec();
    let name = b"echo_bool";
    let at = elf
        .windows(name.len())
        .position(|window| window == name)
        .expect("the guest has such a function");
    elf[at] = b'E';
    GuestImage::from_bytes(&elf).expect("still valid")
}

impl Lab {
    /// The Rust guest on this engine.
    pub(crate) fn on(engine: Engine) -> Self {
        let image = GuestImage::from_bytes(vellum_test_guests::rust_user());
        Self {
            engine,
            image: image.expect("the guest is valid"),
        }
    }

    /// A builder with host functions and a small heap.
    pub(crate) fn builder(&self) -> SandboxBuilder {
        Sandbox::builder(&self.image)
            .heap_len_bytes(HEAP_LEN_BYTES)
            .host_functions(&host())
    }

    /// A sandbox as the builder makes it.
    pub(crate) fn sandbox(&self) -> Sandbox {
        self.builder()
            .build(&self.engine)
            .expect("a sandbox can be built")
    }

    /// A sandbox with this much heap.
    pub(crate) fn sandbox_with_heap(&self, len_bytes: u64) -> Sandbox {
        self.builder()
            .heap_len_bytes(len_bytes)
            .build(&self.engine)
            .expect("a sandbox can be built")
    }
}

/// The state that tests look at most: the guest's counter.
pub(crate) fn counter(sandbox: &mut Sandbox) -> u64 {
    sandbox
        .call("counter_get", ())
        .expect("the counter can be read")
}

/// Adds to the guest's counter.
pub(crate) fn add_to_counter(sandbox: &mut Sandbox, amount: u64) {
    let _: u64 = sandbox
        .call("counter_add", (amount,))
        .expect("the counter can be changed");
}

/// The error of a call that must fail.
pub(crate) fn refused<T: std::fmt::Debug>(what: &str, result: Result<T, Error>) -> Error {
    match result {
        Err(error) => error,
        Ok(value) => panic!("{what} succeeded with {value:?}"),
    }
}

/// Bytes that differ from their neighbours and from those a page or a buffer further on.
pub(crate) fn pattern(len_bytes: usize) -> Vec<u8> {
    (0..251).cycle().take(len_bytes).collect()
}
