use super::*;

fn report(contents: &str) -> EngineReport {
    EngineReport::new(contents, &[])
}

#[test]
fn lines_of_the_same_suite_add_up() {
    let table = report(
        "engine=kvm cow=host suite=sandbox tests=3\n\nengine=kvm cow=host suite=sandbox tests=4\n",
    )
    .table(None, None);
    assert!(
        table.contains("kvm      host     sandbox                     7  ran"),
        "{table}"
    );
}

#[test]
fn a_skip_is_shown_with_its_whole_reason_once() {
    let line = "engine=kvm cow=guest suite=sandbox skipped=ring 0 is emulated, k=v\n";
    let table = report(&line.repeat(2)).table(None, None);
    assert_eq!(
        table.matches("SKIPPED: ring 0 is emulated, k=v").count(),
        1,
        "{table}"
    );
}

#[test]
fn a_mode_that_nobody_reported_is_visible_with_the_reason() {
    let table = report("engine=kvm cow=host suite=sandbox tests=1").table(None, None);
    assert!(
        table.contains("NOT RUN: no test suite reported it"),
        "{table}"
    );
    assert_eq!(table.matches("NOT RUN").count(), 1, "{table}");
    let table = report("").table(None, Some("/dev/kvm is absent"));
    assert_eq!(
        table.matches("NOT RUN: /dev/kvm is absent").count(),
        2,
        "{table}"
    );
}

#[test]
fn unreadable_lines_are_shown_not_dropped() {
    for line in [
        "nonsense",
        "engine=kvm suite=x",
        "engine=kvm suite=x tests=many",
        "suite=x tests=1",
    ] {
        let table = report(line).table(None, None);
        assert!(
            table.contains(&format!("unreadable report line: {line}")),
            "{table}"
        );
    }
}

#[test]
fn a_printed_line_counts_after_the_marker_and_only_once() {
    assert_eq!(printed_report("engine=kvm suite=a tests=1"), None);
    let line = printed_report(" ENGINE engine=kvm cow=host suite=a tests=1 ")
        .unwrap()
        .to_owned();
    let other = "engine=kvm cow=host suite=b tests=2".to_owned();
    let table = EngineReport::new(&line, &[line.clone(), other]).table(None, None);
    assert!(
        table.contains("a                           1  ran"),
        "{table}"
    );
    assert!(
        table.contains("b                           2  ran"),
        "{table}"
    );
}

#[test]
fn a_mode_may_be_called_by_its_long_name() {
    let table = report("engine=kvm cow=host-side suite=a tests=1").table(None, None);
    assert!(table.contains("kvm      host     a"), "{table}");
}

#[test]
fn the_engine_that_was_asked_for_is_the_one_that_is_missed() {
    let table = report("engine=kvm cow=host suite=backend tests=1").table(Some("emulator"), None);
    let missed: Vec<&str> = table
        .lines()
        .filter(|line| line.contains("NOT RUN"))
        .collect();
    assert_eq!(missed.len(), 2, "{table}");
    assert!(missed.iter().all(|line| line.starts_with("emulator ")));
}

#[test]
fn an_engine_whose_tests_all_skip_themselves_has_not_run() {
    let ran = "engine=kvm cow=host suite=sandbox tests=1";
    let skipped = "engine=kvm cow=host suite=sandbox skipped=it does not run a guest";
    let cases = [
        (ran.to_owned(), true),
        (format!("{skipped}\n{ran}\n"), true),
        (skipped.to_owned(), false),
        (ran.replace("kvm", "emulator"), false),
        (String::new(), false),
    ];
    for (file, expected) in cases {
        let report = EngineReport::new(&file, &[]);
        assert_eq!(report.has_run("kvm"), expected, "{file}");
    }
}
