//! i686 identity guests: 32-bit kernels without paging, booted on the machine's own /dev/kvm. What is missing (a hypervisor, a
//! compiler for the guests) is a visible skip.

use std::io::Write as _;
use std::time::Duration;

use vellum_sandbox::{
    CallOptions, CancelToken, Engine, ErrorKind, GuestImage, HostFunctions, Sandbox,
    SandboxBuilder, Value,
};

const MIB: u64 = 1 << 20;
/// The first page that no memory of an i686 guest may cover.
const LOCAL_APIC: u64 = 0xFEE0_0000;
const PE_AND_ET: u32 = 0x11;

/// Runs `test` with each 32-bit guest that was built, and reports it.
fn with_each_guest(test: impl Fn(&Engine, &GuestImage)) {
    let engine = match Engine::new() {
        Ok(engine) => engine,
        Err(error) if error.kind() == ErrorKind::NoHypervisor => {
            return skip(&format!("{error:?}"));
        }
        Err(error) => panic!("{error:?}"),
    };
    let guests = [
        ("C", vellum_test_guests::i686_c()),
        ("Rust", vellum_test_guests::i686_rust()),
    ];
    for (language, elf) in guests {
        let Some(elf) = elf else {
            skip(&format!("no compiler for 32-bit {language} guests"));
            continue;
        };
        let image = GuestImage::from_bytes(elf).expect("the guest is valid");
        test(&engine, &image);
        report("tests=1");
    }
}

fn skip(reason: &str) {
    // Written directly, because the harness hides what a passing test prints.
    let _ = writeln!(std::io::stderr(), "SKIPPED i686 guests: {reason}");
    report(&format!("skipped={reason}"));
}

fn report(outcome: &str) {
    let Some(path) = std::env::var_os("VELLUM_TEST_REPORT") else {
        return;
    };
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .create(true)
        .append(true)
        .open(path)
        .expect("the report file can be opened");
    let line = format!("engine=kvm cow=host suite=i686 {outcome}\n");
    file.write_all(line.as_bytes())
        .expect("the report file can be written");
}

fn host() -> HostFunctions {
    HostFunctions::new().with("host_add", i32::wrapping_add)
}

fn builder(image: &GuestImage) -> SandboxBuilder {
    Sandbox::builder(image)
        .heap_len_bytes(8 * MIB)
        .host_functions(&host())
}

fn sandbox(engine: &Engine, image: &GuestImage) -> Sandbox {
    builder(image)
        .build(engine)
        .expect("a sandbox can be built")
}

fn counter(sandbox: &mut Sandbox) -> u64 {
    sandbox
        .call("counter_get", ())
        .expect("the counter can be read")
}

fn count(sandbox: &mut Sandbox, by: u64) {
    sandbox
        .call::<_, u64>("counter_add", (by,))
        .expect("the counter can be changed");
}

fn read_word(sandbox: &mut Sandbox, address: u64) -> u64 {
    sandbox
        .call("read_address", (address,))
        .expect("the address can be read")
}

#[test]
fn a_kernel_without_paging_is_called_and_calls_back() {
    with_each_guest(|engine, image| {
        let mut sandbox = sandbox(engine, image);
        assert_eq!(
            sandbox.call::<_, u32>("get_cr0", ()).expect("called"),
            PE_AND_ET
        );
        assert_eq!(sandbox.call::<_, i32>("add", (40, 2)).expect("called"), 42);
        assert_eq!(
            sandbox
                .call::<_, i32>("call_host_add", (i32::MAX, 1))
                .expect("called"),
            i32::MIN
        );
        let greeting: String = sandbox.call("greet", ("Vellum",)).expect("called");
        assert_eq!(greeting, "Hello, Vellum!");
        // Larger than the buffer: fetched straight into the guest's heap.
        let bytes = vec![3_u8; 1_000_000];
        assert_eq!(
            sandbox
                .call::<_, u64>("sum_bytes", (&bytes[..],))
                .expect("called"),
            3_000_000
        );
    });
}

#[test]
fn what_a_kernel_is_told_are_guest_physical_addresses_below_the_local_apic() {
    with_each_guest(|engine, image| {
        for scratch_len_bytes in [None, Some(MIB), Some(512 * MIB), Some(2048 * MIB)] {
            let builder = builder(image);
            let builder = match scratch_len_bytes {
                Some(len_bytes) => builder.scratch_len_bytes(len_bytes),
                None => builder,
            };
            let mut sandbox = builder.build(engine).expect("a sandbox can be built");
            let peb: u64 = sandbox.call("peb_address", ()).expect("called");
            assert!(peb < LOCAL_APIC, "{peb:#x}");
            // The block's magic number, read through its own address, without translation.
            assert_eq!(
                read_word(&mut sandbox, peb),
                u64::from(u32::from_le_bytes(*b"VELL"))
            );
            // The pointer to the output buffer, which the guest can write and read through.
            let output = read_word(&mut sandbox, peb + 32);
            assert!(output < LOCAL_APIC, "{output:#x}");
            let last = output + read_word(&mut sandbox, peb + 40) - 4;
            sandbox
                .call::<_, ()>("write_address", (last, 0x5EED_u64))
                .expect("called");
            assert_eq!(read_word(&mut sandbox, last), 0x5EED);
        }
    });
}

#[test]
fn snapshots_restores_and_forks_work_as_for_any_guest() {
    with_each_guest(|engine, image| {
        let mut first = sandbox(engine, image);
        count(&mut first, 5);
        let five = first.snapshot().expect("a snapshot");
        count(&mut first, 1);
        first
            .call::<_, u64>("touch_pages", (64_u64,))
            .expect("called");
        let six = first.snapshot().expect("a snapshot");
        first.restore(&five).expect("restored to an older snapshot");
        assert_eq!(counter(&mut first), 5);
        for _ in 0..3 {
            count(&mut first, 1);
            first.restore(&five).expect("restored");
            assert_eq!(counter(&mut first), 5);
        }
        let mut second = Sandbox::from_snapshot(engine, &six, &host()).expect("a fork");
        count(&mut second, 10);
        assert_eq!((counter(&mut first), counter(&mut second)), (5, 16));
        first
            .restore(&six)
            .expect("restored to a snapshot that another sandbox was made from");
        assert_eq!((counter(&mut first), counter(&mut second)), (6, 16));
    });
}

#[test]
fn a_restore_puts_back_all_memory_that_a_kernel_can_write() {
    with_each_guest(|engine, image| {
        let mut sandbox = sandbox(engine, image);
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let peb: u64 = sandbox.call("peb_address", ()).expect("called");
        let output = read_word(&mut sandbox, peb + 32);
        let output_len_bytes = read_word(&mut sandbox, peb + 40);
        // Low memory that no segment covers, the end of the output buffer, scratch behind the block, the block's own tail.
        let places = [
            0x2000,
            0x8_0000,
            output + output_len_bytes - 8,
            peb + 0x1000,
            peb + 0xF00,
        ];
        let before = places.map(|place| read_word(&mut sandbox, place));
        for place in places {
            sandbox
                .call::<_, ()>("write_address", (place, 0xBAD_u64))
                .expect("called");
            assert_eq!(read_word(&mut sandbox, place), 0xBAD, "{place:#x}");
        }
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(places.map(|place| read_word(&mut sandbox, place)), before);
    });
}

#[test]
fn a_kernel_that_fails_is_named_and_healed() {
    with_each_guest(|engine, image| {
        let mut sandbox = sandbox(engine, image);
        count(&mut sandbox, 7);
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let cases: [(&str, &[Value], ErrorKind); 4] = [
            ("halt", &[], ErrorKind::Halted),
            ("triple_fault", &[], ErrorKind::Crashed),
            (
                "do_panic",
                &[Value::String("on purpose".into())],
                ErrorKind::GuestPanic,
            ),
            // Behind the image and far below the scratch: no memory.
            (
                "write_address",
                &[Value::U64(0x8000_0000), Value::U64(1)],
                ErrorKind::Crashed,
            ),
        ];
        for (function, args, expected) in cases {
            let error = sandbox
                .call_dynamic(function, args, &CallOptions::new())
                .expect_err(function);
            assert_eq!(error.kind(), expected, "{function}: {error}");
            let refused = sandbox
                .call::<_, u64>("counter_get", ())
                .expect_err("not restored");
            assert_eq!(refused.kind(), ErrorKind::NeedsRestore);
            sandbox.restore(&snapshot).expect("restored");
            assert_eq!(counter(&mut sandbox), 7, "after {function}");
        }
    });
}

#[test]
fn an_endless_kernel_is_stopped_by_deadline_and_by_token() {
    with_each_guest(|engine, image| {
        let mut sandbox = sandbox(engine, image);
        let snapshot = sandbox.snapshot().expect("a snapshot");
        let spin = sandbox.function::<(), ()>("spin").expect("exported");
        let deadline = CallOptions::new().timeout(Duration::from_millis(5));
        let error = spin
            .call_with(&mut sandbox, (), &deadline)
            .expect_err("stopped");
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        sandbox.restore(&snapshot).expect("restored");
        let token = CancelToken::new();
        let other = std::thread::spawn({
            let token = token.clone();
            move || token.cancel()
        });
        let options = CallOptions::new().cancel_token(&token);
        let error = spin
            .call_with(&mut sandbox, (), &options)
            .expect_err("stopped");
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        other.join().expect("the other thread ends");
    });
}

#[test]
fn guests_of_both_architectures_run_side_by_side() {
    with_each_guest(|engine, image| {
        let wide =
            GuestImage::from_bytes(vellum_test_guests::rust_user()).expect("the guest is valid");
        let wide_host = host()
            .with("host_echo", |bytes: Vec<u8>| bytes)
            .with("host_fail", |text: String| Err::<(), String>(text));
        let mut wide = Sandbox::builder(&wide)
            .heap_len_bytes(8 * MIB)
            .host_functions(&wide_host)
            .build(engine)
            .expect("a sandbox can be built");
        let mut narrow = sandbox(engine, image);
        let (mut narrow_snapshot, mut wide_snapshot) = (None, None);
        for round in 1..=4 {
            for sandbox in [&mut wide, &mut narrow] {
                count(sandbox, round);
                assert_eq!(
                    sandbox
                        .call::<_, i32>("call_host_add", (40, 2))
                        .expect("called"),
                    42
                );
            }
            if round == 2 {
                wide_snapshot = Some(wide.snapshot().expect("a snapshot"));
                narrow_snapshot = Some(narrow.snapshot().expect("a snapshot"));
            }
        }
        assert_eq!((counter(&mut wide), counter(&mut narrow)), (10, 10));
        let (wide_snapshot, narrow_snapshot) = wide_snapshot
            .zip(narrow_snapshot)
            .expect("taken in round 2");
        let error = narrow.restore(&wide_snapshot).expect_err("another image");
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        wide.restore(&wide_snapshot).expect("restored");
        narrow.restore(&narrow_snapshot).expect("restored");
        assert_eq!((counter(&mut wide), counter(&mut narrow)), (3, 3));
    });
}

#[test]
fn sizes_that_do_not_fit_below_4_gib_are_refused() {
    with_each_guest(|engine, image| {
        for heap_len_bytes in [4096 * MIB, 4077 * MIB, !0xFFF] {
            let error = builder(image)
                .heap_len_bytes(heap_len_bytes)
                .build(engine)
                .expect_err("too large");
            assert_eq!(
                error.kind(),
                ErrorKind::InvalidConfig,
                "{heap_len_bytes:#x}: {error:?}"
            );
        }
        let error = builder(image)
            .scratch_len_bytes(0x1000)
            .build(engine)
            .expect_err("too small");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error:?}");
    });
}

#[test]
fn a_32_bit_file_that_claims_to_be_another_kind_is_refused() {
    let Some(elf) = vellum_test_guests::i686_c() else {
        return skip("no compiler for 32-bit C guests");
    };
    // The note's descriptor: ABI version 1, guest kind 3.
    let note = b"Vellum\0\0\x01\0\0\0\x03\0\0\0";
    let at = elf
        .windows(note.len())
        .position(|window| window == note)
        .expect("the file has its note");
    for kind in [0_u8, 1, 2, 5] {
        let mut patched = elf.to_vec();
        patched[at + note.len() - 4] = kind;
        let error = GuestImage::from_bytes(&patched).expect_err("refused");
        assert_eq!(
            error.kind(),
            ErrorKind::InvalidImage,
            "kind {kind}: {error:?}"
        );
    }
}
