//! What guests say without leaving: log records, metrics and one-way host calls.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing::Level;
use vellum_abi::message::{MessageKind, MessageWriter};
use vellum_abi::outbox::RecordKind;
use vellum_abi::value::ValueRef;
use vellum_sandbox::{
    CallOptions, ErrorKind, GuestImage, HostFunctions, Metric, MetricValue, OutboxOverflow, Pool,
    Sandbox, SandboxBuilder,
};

use super::bad_messages::outbox_of;
use super::logging::collected;
use super::support::{NO_C_COMPILER, in_each_mode, refused};

/// What the host was told, in order.
type Told = Arc<Mutex<Vec<String>>>;

/// The host functions of the telling guests, and a sink for their metrics. All write to one list.
fn telling_host(told: &Told) -> HostFunctions {
    let note = |told: &Told| {
        let told = told.clone();
        move |text: String| told.lock().expect("no panic").push(text)
    };
    let (ask, tell, tell_bytes, metric) = (note(told), note(told), note(told), note(told));
    HostFunctions::new()
        .with("ask", move |number: u32| {
            ask(format!("ask {number}"));
            number + 100
        })
        .with_one_way("tell", move |number: u32, text: String| {
            tell(format!("tell {number} {text}"));
        })
        .with_one_way("tell_bytes", move |bytes: Vec<u8>| {
            tell_bytes(format!("bytes {}", bytes.len()));
        })
        .with_metrics(move |it: Metric<'_>| metric(format!("{} {:?}", it.name, it.value)))
}

fn taken(told: &Told) -> Vec<String> {
    std::mem::take(&mut *told.lock().expect("no panic"))
}

/// A builder for the Rust guest that tells things.
fn telling(told: &Told) -> SandboxBuilder {
    let elf = vellum_test_guests::rust_telling();
    let image = GuestImage::from_bytes(elf).expect("the guest is valid");
    Sandbox::builder(&image)
        .heap_len_bytes(4 << 20)
        .host_functions(&telling_host(told))
}

#[test]
fn everything_arrives_in_order_over_as_many_exits_as_it_takes() {
    in_each_mode(|lab| {
        let told = Told::default();
        let mut sandbox = telling(&told)
            .outbox_len_bytes(4096)
            .build(&lab.engine)
            .expect("built");
        let lines = collected(|| sandbox.call("tell_all", (100_u32,)).expect("called"));
        let expected = (0..100).flat_map(|number| {
            [
                format!("tell {number} from Rust"),
                format!("told Counter({number})"),
            ]
        });
        assert!(taken(&told).into_iter().eq(expected));
        assert_eq!(lines.len(), 100);
        assert!(lines[99].1.contains("told 99"), "{:?}", lines[99]);
        let counts = sandbox.outbox_counts();
        let arrived = (counts.log_records, counts.metrics, counts.one_way_calls);
        // One log record is of the initialisation.
        assert_eq!(arrived, (101, 100, 100));
        assert_eq!((counts.dropped_by_guest, counts.metrics_refused), (0, 0));
    });
}

#[test]
fn one_way_calls_keep_their_place_among_the_others() {
    in_each_mode(|lab| {
        let told = Told::default();
        let mut sandbox = telling(&told).build(&lab.engine).expect("built");
        assert!(sandbox.call::<_, bool>("was_refused", ()).expect("called"));
        assert_eq!(
            sandbox.call::<_, u32>("tell_ask_tell", ()).expect("called"),
            102
        );
        assert_eq!(taken(&told), ["tell 1 before", "ask 2", "tell 3 behind"]);
        assert_eq!(sandbox.outbox_counts().one_way_calls_discarded, 0);
    });
}

#[test]
fn a_guest_that_may_drop_never_leaves_for_logs_or_metrics() {
    in_each_mode(|lab| {
        let told = Told::default();
        let mut sandbox = lab
            .builder()
            .outbox_len_bytes(4096)
            .outbox_overflow(OutboxOverflow::Drop)
            .build(&lab.engine)
            .expect("built");
        let lines = collected(|| sandbox.call("log_lines", (500_u32,)).expect("called"));
        let counts = sandbox.outbox_counts();
        // The first fill the outbox; were there an exit, more would have arrived.
        let (arrived, dropped) = (counts.log_records, counts.dropped_by_guest);
        assert_eq!(arrived + dropped, 500);
        // Each takes 48 bytes or 56.
        let room_bytes = 4096 - 128;
        assert!(
            (room_bytes / 56..=room_bytes / 48).contains(&arrived),
            "{arrived}"
        );
        let (level, last) = lines.last().expect("a warning");
        assert!(
            *level == Level::WARN && last.contains(&format!("dropped={dropped}")),
            "{last}"
        );
        assert!(lines[0].1.contains("line 0"), "the newest are dropped");
        // One-way calls are not dropped.
        let mut sandbox = telling(&told)
            .outbox_len_bytes(4096)
            .outbox_overflow(OutboxOverflow::Drop)
            .build(&lab.engine)
            .expect("built");
        let () = sandbox.call("tell_only", (500_u32,)).expect("called");
        assert_eq!(taken(&told).len(), 500);
        assert_eq!(sandbox.outbox_counts().dropped_by_guest, 0);
    });
}

#[test]
fn metrics_of_each_sort_reach_the_sink() {
    in_each_mode(|lab| {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let copy = seen.clone();
        let mut sandbox = lab
            .builder()
            .metrics(move |metric: Metric<'_>| {
                let mut seen = copy.lock().expect("no panic");
                seen.push((metric.name.to_owned(), metric.value));
            })
            .build(&lab.engine)
            .expect("built");
        let () = sandbox.call("report_metrics", (3_u32,)).expect("called");
        let expected = (0..3_u32).flat_map(|round| {
            let value = f64::from(round);
            [
                ("reports".to_owned(), MetricValue::Counter(round.into())),
                ("level".to_owned(), MetricValue::Gauge(value / 2.0)),
                ("sizes".to_owned(), MetricValue::Sample(-value)),
            ]
        });
        let seen = std::mem::take(&mut *seen.lock().expect("no panic"));
        assert!(seen.into_iter().eq(expected));
    });
}

#[test]
fn names_beyond_the_bound_are_counted() {
    in_each_mode(|lab| {
        let host = super::support::host().with_bounded_metrics(2, |_: Metric<'_>| ());
        let mut sandbox = lab
            .builder()
            .host_functions(&host)
            .build(&lab.engine)
            .expect("built");
        let () = sandbox.call("report_metrics", (5_u32,)).expect("called");
        let counts = sandbox.outbox_counts();
        assert_eq!((counts.metrics, counts.metrics_refused), (10, 5));
    });
}

#[test]
fn a_one_way_call_larger_than_the_outbox_is_an_error_for_the_guest() {
    in_each_mode(|lab| {
        let told = Told::default();
        let mut sandbox = telling(&told).build(&lab.engine).expect("built");
        // 8 KiB less the header; record, message and slot take 56 bytes.
        let most = 8192_u32 - 128 - 56;
        for (len_bytes, fits) in [(0, true), (most, true), (most + 1, false), (1 << 20, false)] {
            let answer: String = sandbox.call("tell_large", (len_bytes,)).expect("called");
            assert_eq!(answer.is_empty(), fits, "{len_bytes}: {answer}");
        }
        assert_eq!(taken(&told), ["bytes 0", &format!("bytes {most}")]);
    });
}

#[test]
fn the_last_words_before_a_panic_are_heard() {
    in_each_mode(|lab| {
        let told = Told::default();
        let mut sandbox = telling(&told).build(&lab.engine).expect("built");
        let error = refused("a panic", sandbox.call::<_, ()>("tell_and_panic", ()));
        assert_eq!(error.kind(), ErrorKind::GuestPanic);
        assert_eq!(taken(&told), ["tell 9 the last words"]);
        let mut sandbox = lab.sandbox();
        let lines = collected(|| {
            let result = sandbox.call::<_, ()>("log_and_panic", ("words",));
            let error = refused("a panic", result);
            assert_eq!(error.kind(), ErrorKind::GuestPanic);
        });
        assert!(lines[0].1.contains("before: words"), "{lines:?}");
    });
}

#[test]
fn what_was_said_before_a_deadline_is_heard_but_no_call_is_made_behind_it() {
    in_each_mode(|lab| {
        // Time enough to say it on a machine that is emulated and busy.
        let options = CallOptions::new().timeout(Duration::from_millis(300));
        let mut sandbox = lab.sandbox();
        let spin = sandbox
            .function::<(&str,), ()>("log_and_spin")
            .expect("exported");
        let lines = collected(|| {
            let error = refused(
                "spinning",
                spin.call_with(&mut sandbox, ("words",), &options),
            );
            assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        });
        assert!(lines[0].1.contains("before: words"), "{lines:?}");

        let told = Told::default();
        let mut sandbox = telling(&told).build(&lab.engine).expect("built");
        let spin = sandbox
            .function::<(u32,), ()>("tell_and_spin")
            .expect("exported");
        let result = spin.call_with(&mut sandbox, (7,), &options);
        assert_eq!(
            refused("spinning", result).kind(),
            ErrorKind::DeadlineExceeded
        );
        let discarded = sandbox.outbox_counts().one_way_calls_discarded;
        assert_eq!((taken(&told).len(), discarded), (0, 7));
    });
}

#[test]
fn a_failing_one_way_call_is_counted_and_reported_once() {
    in_each_mode(|lab| {
        let host = HostFunctions::new()
            .with("ask", |number: u32| number)
            .with_one_way("tell", |number: u32, _: String| match number % 3 {
                0 => Ok(()),
                1 => Err("no time"),
                _ => panic!("nerves"),
            })
            .with_one_way("tell_bytes", |_: Vec<u8>| ());
        let told = Told::default();
        let mut sandbox = telling(&told)
            .host_functions(&host)
            .build(&lab.engine)
            .expect("built");
        let lines = collected(|| sandbox.call("tell_only", (9_u32,)).expect("called"));
        let counts = sandbox.outbox_counts();
        assert_eq!((counts.one_way_calls, counts.one_way_calls_failed), (9, 6));
        let [(Level::WARN, line)] = lines.as_slice() else {
            panic!("{lines:?}")
        };
        assert!(
            line.contains("failed=6") && line.contains("no time"),
            "{line}"
        );
    });
}

#[test]
fn both_sides_must_agree_that_a_function_is_one_way() {
    in_each_mode(|lab| {
        let told = Told::default();
        let answered = telling_host(&told);
        let cases = [
            (
                "answered here, one-way there",
                HostFunctions::new()
                    .with("ask", |number: u32| number)
                    .with("tell", |_: u32, _: String| ())
                    .with_one_way("tell_bytes", |_: Vec<u8>| ()),
            ),
            (
                "one-way here, answered there",
                HostFunctions::new()
                    .with_one_way("ask", |_: u32| ())
                    .with_one_way("tell", |_: u32, _: String| ())
                    .with_one_way("tell_bytes", |_: Vec<u8>| ()),
            ),
            (
                "one-way with a result",
                answered.with_one_way("another", |number: u32| number),
            ),
        ];
        for (what, host) in cases {
            let built = telling(&told).host_functions(&host).build(&lab.engine);
            let error = refused(what, built);
            let expected = [ErrorKind::MissingHostFunction, ErrorKind::InvalidConfig];
            assert!(
                expected.contains(&error.kind()),
                "{what}: {:?} {error:?}",
                error.kind()
            );
        }
    });
}

/// A one-way call, as a message.
fn one_way(kind: MessageKind, function: u32, values: &[ValueRef<'_>]) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    let mut writer = MessageWriter::new(&mut bytes, kind, function, values.len()).expect("room");
    for value in values {
        writer.push(*value).expect("room");
    }
    let len_bytes = writer.finish().expect("complete");
    bytes.truncate(len_bytes);
    bytes
}

#[test]
fn a_hostile_outbox_breaks_the_protocol_and_nothing_else() {
    in_each_mode(|lab| {
        let told = Told::default();
        let mut sandbox = telling(&told).build(&lab.engine).expect("built");
        let snapshot = sandbox.snapshot().expect("taken");
        let imports = sandbox.image().imports();
        let index = |name: &str| {
            let found = imports.iter().position(|it| it.name() == name);
            u32::try_from(found.expect("imported")).expect("few")
        };
        let (ask, tell) = (index("ask"), index("tell"));
        let text = [ValueRef::U32(1), ValueRef::String("x")];
        let sound = one_way(MessageKind::OneWay, tell, &text);
        let kind = RecordKind::OneWay as u32;
        let message = |bytes: &[u8]| outbox_of(&[(kind, bytes)]);
        let with_end = |end: u32| {
            let mut bytes = message(&sound);
            bytes[..4].copy_from_slice(&end.to_le_bytes());
            bytes
        };
        let mut external = sound.clone();
        external[32 + 16 + 1] = 1;
        let cases = [
            ("an end past the outbox", with_end(8192)),
            ("the largest end", with_end(u32::MAX)),
            ("an end inside of a word", with_end(9)),
            ("an end inside of a record", with_end(16)),
            ("an unknown kind", outbox_of(&[(9, b"")])),
            (
                "a host call",
                message(&one_way(MessageKind::HostCall, tell, &text)),
            ),
            (
                "a reply",
                message(&one_way(MessageKind::Reply, tell, &text[..1])),
            ),
            (
                "no such function",
                message(&one_way(MessageKind::OneWay, 77, &text)),
            ),
            (
                "an answered function",
                message(&one_way(MessageKind::OneWay, ask, &text[..1])),
            ),
            (
                "too few arguments",
                message(&one_way(MessageKind::OneWay, tell, &text[..1])),
            ),
            ("arguments elsewhere", message(&external)),
        ];
        for (what, bytes) in cases {
            let error = refused(what, sandbox.call::<_, ()>("raw_outbox", (bytes,)));
            assert_eq!(error.kind(), ErrorKind::Protocol, "{what}: {error:?}");
            assert!(!sandbox.is_ready(), "{what}");
            assert!(taken(&told).is_empty(), "{what}");
            sandbox.restore(&snapshot).expect("restored");
        }
        // What comes before the fault of the guest counts, and is taken once.
        let mut half = outbox_of(&[(kind, &sound), (9, b"")]);
        half[4] = 3;
        let before = sandbox.outbox_counts();
        refused("half", sandbox.call::<_, ()>("raw_outbox", (half,)));
        assert_eq!(taken(&told), ["tell 1 x"]);
        let counts = sandbox.outbox_counts();
        assert_eq!(counts.dropped_by_guest - before.dropped_by_guest, 3);
        // A sound one by hand is taken like any other.
        sandbox.restore(&snapshot).expect("restored");
        let () = sandbox
            .call("raw_outbox", (message(&sound),))
            .expect("called");
        assert_eq!(taken(&told), ["tell 1 x"]);
    });
}

#[test]
fn no_restore_leaves_anything_in_the_outbox() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("taken");
        let secret = vec![0x5A; 8192 - 128];
        let filled = outbox_of(&[]);
        for dirty in [false, true] {
            let bytes: Vec<u8> = filled.iter().chain(&secret).copied().collect();
            let () = sandbox.call("raw_outbox", (bytes,)).expect("called");
            if dirty {
                refused("a panic", sandbox.call::<_, ()>("log_and_panic", ("x",)));
            }
            sandbox.restore(&snapshot).expect("restored");
            let seen: Vec<u8> = sandbox.call("read_outbox", ()).expect("called");
            assert!(seen.iter().all(|byte| *byte == 0), "dirty: {dirty}");
        }
        // Nor does a new snapshot.
        let () = sandbox.call("raw_outbox", (filled,)).expect("called");
        let second = sandbox.snapshot().expect("taken");
        sandbox.restore(&second).expect("restored");
        let seen: Vec<u8> = sandbox.call("read_outbox", ()).expect("called");
        assert!(seen.iter().all(|byte| *byte == 0));
    });
}

#[test]
fn sizes_that_make_no_outbox_are_refused() {
    in_each_mode(|lab| {
        for len_bytes in [0, 1, 4095, 4097, (16 << 20) + 4096, u64::MAX - 4095] {
            let built = lab.builder().outbox_len_bytes(len_bytes).build(&lab.engine);
            let error = refused("such an outbox", built);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{len_bytes}");
        }
        let mut sandbox = lab
            .builder()
            .outbox_len_bytes(16 << 20)
            .build(&lab.engine)
            .expect("built");
        let () = sandbox.call("log_lines", (10_u32,)).expect("called");
        assert_eq!(sandbox.outbox_counts().log_records, 10);
    });
}

#[test]
fn sandboxes_of_a_pool_share_their_sink() {
    in_each_mode(|lab| {
        let told = Told::default();
        let mut sandbox = telling(&told).build(&lab.engine).expect("built");
        let snapshot = sandbox.snapshot().expect("taken");
        let pool = Pool::builder(&lab.engine, &snapshot, &telling_host(&told))
            .ready(1)
            .max_live(2)
            .build()
            .expect("built");
        for _ in 0..2 {
            let mut taken_out = pool.take().expect("one is ready");
            let () = taken_out.call("tell_all", (1_u32,)).expect("called");
        }
        assert_eq!(
            taken(&told),
            ["tell 0 from Rust", "told Counter(0)"].repeat(2)
        );
    });
}

#[test]
fn a_guest_in_c_tells_the_same() {
    in_each_mode(|lab| {
        let Some(elf) = vellum_test_guests::c_telling() else {
            return Err(NO_C_COMPILER);
        };
        let image = GuestImage::from_bytes(elf).expect("the guest is valid");
        let told = Told::default();
        let mut sandbox = Sandbox::builder(&image)
            .outbox_len_bytes(4096)
            .host_functions(&telling_host(&told))
            .build(&lab.engine)
            .expect("built");
        c_guest_tells(&mut sandbox, &told);
        Ok(())
    });
}

fn c_guest_tells(sandbox: &mut Sandbox, told: &Told) {
    let lines = collected(|| sandbox.call("tell_all", (60_u32,)).expect("called"));
    let expected = (0..60).flat_map(|number| {
        [
            format!("tell {number} from C"),
            format!("told Counter({number})"),
        ]
    });
    assert!(taken(told).into_iter().eq(expected));
    assert_eq!(lines.len(), 60);
    let () = sandbox.call("report", ()).expect("called");
    let expected = [
        format!("counter Counter({})", u64::MAX),
        "gauge Gauge(-0.5)".to_owned(),
        "sample Sample(1e300)".to_owned(),
    ];
    assert_eq!(taken(told), expected);
    let most = 4096_u32 - 128 - 8 - 32 - 32;
    let () = sandbox.call("tell_large", (most,)).expect("it fits");
    assert_eq!(taken(told).len(), 1);
    let error = refused("one more", sandbox.call::<_, ()>("tell_large", (most + 1,)));
    assert_eq!(error.kind(), ErrorKind::GuestError);
    let lines = collected(|| sandbox.call("log_large", (100_000_u32,)).expect("called"));
    assert_eq!(lines.len(), 1);
    assert!(lines[0].1.contains("xxx"), "the text is cut");
}
