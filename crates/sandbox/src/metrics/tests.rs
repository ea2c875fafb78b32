use std::sync::{Arc, Mutex};

use super::{Delivery, KnownNames, Metric, MetricValue, Metrics};

type Seen = Arc<Mutex<Vec<(String, MetricValue)>>>;

fn collecting(max_names: usize) -> (Arc<Metrics>, Seen) {
    let seen = Seen::default();
    let copy = seen.clone();
    let sink = move |metric: Metric<'_>| {
        let mut seen = copy.lock().expect("no panic");
        seen.push((metric.name.to_owned(), metric.value));
    };
    (Metrics::new(Box::new(sink), max_names), seen)
}

fn count(name: &str) -> Metric<'_> {
    Metric {
        name,
        value: MetricValue::Counter(1),
    }
}

#[test]
fn names_beyond_the_bound_are_refused_in_every_sandbox() {
    let (metrics, seen) = collecting(2);
    let (mut one, mut other) = (KnownNames::default(), KnownNames::default());
    let cases = [
        (0, "a", Delivery::Delivered),
        (1, "b", Delivery::Delivered),
        (0, "c", Delivery::Refused),
        (0, "d", Delivery::Refused),
        (1, "c", Delivery::Refused),
        // What another sandbox came first with is known to all.
        (0, "b", Delivery::Delivered),
        (1, "a", Delivery::Delivered),
    ];
    for (which, name, expected) in cases {
        let known = if which == 0 { &mut one } else { &mut other };
        let delivered = known.deliver(&metrics, count(name));
        assert_eq!(delivered, expected, "{which} {name}");
    }
    let seen: Vec<_> = seen.lock().expect("no panic").clone();
    let names: Vec<_> = seen.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a", "b", "b", "a"]);
}

#[test]
fn a_sink_without_names_takes_nothing() {
    let (metrics, seen) = collecting(0);
    let delivered = KnownNames::default().deliver(&metrics, count("a"));
    assert_eq!(delivered, Delivery::Refused);
    assert!(seen.lock().expect("no panic").is_empty());
}

#[test]
fn what_is_no_number_is_refused() {
    let (metrics, seen) = collecting(8);
    let mut known = KnownNames::default();
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for value in [MetricValue::Gauge(value), MetricValue::Sample(value)] {
            let delivered = known.deliver(&metrics, Metric { name: "a", value });
            assert_eq!(delivered, Delivery::Refused, "{value:?}");
        }
    }
    assert!(seen.lock().expect("no panic").is_empty());
}

#[test]
fn a_sink_that_panics_harms_nobody() {
    let sink = |metric: Metric<'_>| assert_eq!(metric.name, "good");
    let metrics = Metrics::new(Box::new(sink), 8);
    let mut known = KnownNames::default();
    assert_eq!(known.deliver(&metrics, count("bad")), Delivery::Refused);
    assert_eq!(known.deliver(&metrics, count("good")), Delivery::Delivered);
}
