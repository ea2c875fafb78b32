use super::*;

fn report(contents: &str) -> EngineReport {
    let mut report = EngineReport::default();
    report.add_file(contents);
    report
}

#[test]
fn lines_of_the_same_suite_add_up() {
    let table = report(
        "engine=kvm cow=host suite=sandbox tests=3\n\nengine=kvm cow=host suite=sandbox tests=4\n",
    )
    .table(None);
    assert!(
        table.contains("kvm      host     sandbox               7  ran"),
        "{table}"
    );
}

#[test]
fn a_skip_is_shown_with_its_whole_reason_once() {
    let line = "engine=kvm cow=guest suite=sandbox skipped=ring 0 is emulated, k=v\n";
    let table = report(&line.repeat(2)).table(None);
    assert_eq!(
        table.matches("SKIPPED: ring 0 is emulated, k=v").count(),
        1,
        "{table}"
    );
}

#[test]
fn a_mode_that_nobody_reported_is_visible_with_the_reason() {
    let table = report("engine=kvm cow=host suite=sandbox tests=1").table(None);
    assert!(
        table.contains("NOT RUN: no test suite reported it"),
        "{table}"
    );
    assert_eq!(table.matches("NOT RUN").count(), 1, "{table}");
    let table = report("").table(Some("/dev/kvm is absent"));
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
        let table = report(line).table(None);
        assert!(
            table.contains(&format!("unreadable report line: {line}")),
            "{table}"
        );
    }
}

#[test]
fn output_lines_count_only_after_the_marker() {
    let mut report = EngineReport::default();
    report.add_output_line("engine=kvm cow=host suite=ignored tests=1");
    report.add_output_line("ENGINE engine=kvm cow=host suite=kept tests=1");
    let table = report.table(None);
    assert!(
        table.contains("kept") && !table.contains("ignored"),
        "{table}"
    );
}
