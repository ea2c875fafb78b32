//! What kernels say without leaving.

use std::sync::{Arc, Mutex};

use vellum_sandbox::{CowMode, GuestImage, HostFunctions, Metric, Sandbox};

use super::engines;
use super::support::{Kernel, call, host, peb, with_kernels};

type Told = Arc<Mutex<Vec<String>>>;

fn taken(told: &Told) -> Vec<String> {
    std::mem::take(&mut *told.lock().expect("no panic"))
}

fn noting(told: &Told) -> impl Fn(Metric<'_>) + Send + Sync + 'static {
    let told = told.clone();
    move |metric: Metric<'_>| {
        let text = format!("{} {:?}", metric.name, metric.value);
        told.lock().expect("no panic").push(text);
    }
}

#[test]
fn logs_and_metrics_of_rust_kernels_arrive_over_as_many_exits_as_it_takes() {
    with_kernels(
        |kernel| kernel != Kernel::IdentityC,
        |lab| {
            let told = Told::default();
            let mut sandbox = lab
                .builder()
                .outbox_len_bytes(4096)
                .host_functions(&host().with_metrics(noting(&told)))
                .build(&lab.engine)
                .expect("built");
            let snapshot = sandbox.snapshot().expect("taken");
            for round in 1..=2 {
                let () = call(&mut sandbox, "log_and_report", (70_u32,));
                let expected = (0..70).map(|line| format!("reports Counter({line})"));
                assert!(taken(&told).into_iter().eq(expected));
                assert_eq!(sandbox.outbox_counts().log_records, round * 70);
                sandbox.restore(&snapshot).expect("restored");
            }
        },
    );
}

#[test]
fn no_restore_leaves_anything_in_the_outbox_of_a_kernel() {
    with_kernels(
        |kernel| kernel != Kernel::IdentityC,
        |lab| {
            let mut sandbox = lab.sandbox();
            let snapshot = sandbox.snapshot().expect("taken");
            let mut outbox = || {
                let () = call(&mut sandbox, "log_and_report", (20_u32,));
                sandbox.restore(&snapshot).expect("restored");
                let peb = peb(&mut sandbox);
                let len = usize::try_from(peb.outbox_len_bytes).expect("small");
                let mut bytes = vec![1; len];
                sandbox
                    .read_memory(peb.outbox_ptr, &mut bytes)
                    .expect("mapped");
                bytes
            };
            for _ in 0..2 {
                assert!(outbox().iter().all(|byte| *byte == 0));
            }
        },
    );
}

#[test]
fn a_kernel_in_c_tells_things_in_order() {
    let told = Told::default();
    let mut sandbox = match telling(&told) {
        Ok(sandbox) => sandbox,
        Err(reason) => {
            return engines::report(Kernel::IdentityC, CowMode::HostSide, None, Err(&reason));
        }
    };
    let () = call(&mut sandbox, "tell_all", (40_u32,));
    let expected = (0..40).flat_map(|number| {
        [
            format!("tell {number} from C"),
            format!("told Counter({number})"),
        ]
    });
    assert!(taken(&told).into_iter().eq(expected));
    let () = call(&mut sandbox, "report", ());
    let expected = [
        format!("counter Counter({})", u64::MAX),
        "gauge Gauge(-0.5)".to_owned(),
        "sample Sample(1e300)".to_owned(),
    ];
    assert_eq!(taken(&told), expected);
    assert_eq!(sandbox.outbox_counts().log_records, 40);
}

/// The C program that tells things, as an i686 kernel with a small outbox.
fn telling(told: &Told) -> Result<Sandbox, String> {
    let elf = vellum_test_guests::i686_telling().ok_or("no C compiler for it")?;
    let engine = engines::open(CowMode::HostSide)?;
    let tell = told.clone();
    let host = HostFunctions::new()
        .with_one_way("tell", move |number: u32, text: String| {
            let text = format!("tell {number} {text}");
            tell.lock().expect("no panic").push(text);
        })
        .with_metrics(noting(told));
    let image = GuestImage::from_bytes(elf).expect("the guest is valid");
    let sandbox = Sandbox::builder(&image)
        .outbox_len_bytes(4096)
        .host_functions(&host)
        .build(&engine);
    Ok(sandbox.expect("built"))
}
