use super::*;
use crate::tasks::vm_test::programs::Program;

const PASSED: &str = "@vellum npt Y\n@vellum list 0\na: test\n@vellum start 0\ntest a ... ok\n\
                      @vellum end 0 0\n@vellum engine engine=kvm cow=guest-side suite=s tests=1\n\
                      @vellum engine engine=kvm cow=host-side suite=s tests=1\n@vellum done";
const SKIPPED: &str = "@vellum npt absent\n@vellum list 0\na: test\n@vellum start 0\ntest a ... ok\n\
                       @vellum end 0 0\n@vellum start 1\n\
                       demo failed: /dev/kvm does not exist; load the kvm_intel or kvm_amd module, or ..\n\
                       @vellum end 1 1\n@vellum engine engine=kvm suite=s skipped=absent\n@vellum done";

fn outcome(boot: Boot, text: &str) -> Outcome {
    outcome_of("s", boot, text)
}

/// What a boot amounts to that ran the programs of one package.
fn outcome_of(directory: &str, boot: Boot, text: &str) -> Outcome {
    let programs: Vec<Program> = [Kind::Tests, Kind::Demo]
        .into_iter()
        .filter(|kind| *kind == Kind::Tests || boot == Boot::NoSvm)
        .map(|kind| Program {
            name: format!("{directory}/{kind:?}"),
            kind,
            executable: "s".into(),
        })
        .collect();
    let mut transcript = Transcript::default();
    for line in text.lines() {
        transcript.add_line(line);
    }
    Outcome {
        boot,
        steps: boot.steps(&programs, None),
        transcript,
        ending: Ending::Ended {
            status: "exit status: 0".into(),
        },
    }
}

#[test]
fn a_boot_in_which_all_is_as_expected_has_no_problem() {
    assert_eq!(outcome(Boot::Nested, PASSED).problems(), [""; 0]);
    assert_eq!(outcome(Boot::NoSvm, SKIPPED).problems(), [""; 0]);
}

#[test]
fn tests_of_the_emulator_count_in_no_boot() {
    let line = "@vellum engine engine=emulator cow=host-side suite=m tests=1\n@vellum done";
    let text = SKIPPED.replace("@vellum done", line);
    assert_eq!(outcome(Boot::NoSvm, &text).problems(), [""; 0]);
    let text = PASSED
        .replace("engine=kvm cow=host-side", "engine=kvm cow=guest-side")
        .replace("@vellum done", line);
    let problems = outcome_of("sandbox", Boot::Nested, &text).problems();
    assert!(problems[0].contains("cow=host"), "{problems:?}");
}

#[test]
fn whatever_is_not_as_expected_is_a_problem() {
    let cases = [
        (
            Boot::Nested,
            PASSED.replace("a ... ok", "a ... FAILED"),
            "a failed",
        ),
        (
            Boot::Nested,
            PASSED.replace(
                "@vellum done",
                "@vellum engine engine=kvm suite=k skipped=too old\n@vellum done",
            ),
            "skipped themselves: engine=kvm suite=k skipped=too old",
        ),
        (
            Boot::Nested,
            PASSED.replace("test a ... ok\n", ""),
            "no result",
        ),
        (
            Boot::Nested,
            PASSED.replace("end 0 0", "end 0 139"),
            "exit status 139",
        ),
        (
            Boot::Nested,
            PASSED.replace("@vellum end 0 0\n", ""),
            "did not end",
        ),
        (
            Boot::Nested,
            PASSED.replace("a: test\n", ""),
            "lists no test",
        ),
        (
            Boot::Nested,
            PASSED.replace("npt Y", "npt N"),
            "nested paging",
        ),
        (
            Boot::Nested,
            PASSED.replace("@vellum done", ""),
            "before all was done",
        ),
        (
            Boot::Nested,
            PASSED.replace("guest-side suite=s tests=1", "guest-side suite=s skipped=x"),
            "skipped themselves",
        ),
        (
            Boot::Nested,
            PASSED.replace("guest-side suite=s tests=1", "host-side suite=s tests=1"),
            "ran with engine=kvm cow=guest",
        ),
        (Boot::Nested, String::new(), "did not start"),
        (Boot::Nested, String::new(), "no test ran"),
        (Boot::Shadow, PASSED.to_owned(), "nested paging"),
        (
            Boot::NoSvm,
            SKIPPED.replace("end 1 1", "end 1 0"),
            "succeeded",
        ),
        (Boot::NoSvm, SKIPPED.replace("load", "eat"), "does not say"),
        (
            Boot::NoSvm,
            SKIPPED.replace("skipped=absent", "tests=1"),
            "where there is none",
        ),
    ];
    for (boot, text, expected) in cases {
        let problems = outcome_of("sandbox", boot, &text).problems();
        assert!(
            problems.iter().any(|problem| problem.contains(expected)),
            "{expected}: {problems:?}"
        );
    }
}

#[test]
fn a_boot_that_was_ended_is_a_problem_with_its_last_line() {
    let mut outcome = outcome(Boot::Nested, PASSED);
    outcome.ending = Ending::TimeLimit {
        unfinished_line: "test b ...".into(),
    };
    let problems = outcome.problems();
    assert!(problems[0].contains("test b ..."), "{problems:?}");
}

#[test]
fn the_table_has_a_row_for_each_test_and_a_column_for_each_boot() {
    let outcomes = [outcome(Boot::Nested, PASSED), outcome(Boot::NoSvm, SKIPPED)];
    let expected = "nested   no-svm   test\n\
                    -        ok       s/Demo \n\
                    ok       no VM    s/Tests a\n";
    assert_eq!(table(&outcomes), expected);
    assert_eq!(
        totals(&outcomes[0]),
        "nested: kernel unknown, 1 passed, 0 failed, 0 ignored, 0 without result"
    );
}
