use super::*;

fn read(text: &str) -> Transcript {
    let mut transcript = Transcript::default();
    for line in text.lines() {
        transcript.add_line(line);
    }
    transcript
}

const COMPLETE: &str = "insmod: nothing to say
@vellum kernel 6.1.0-1-cloud-amd64
@vellum npt Y

@vellum list 0
a::one: test
a::two: test
a::three: test
a::four: test

4 tests, 0 benchmarks

@vellum start 0

running 4 tests
test a::one ... ok
test a::two ... FAILED
test a::three ... ignored, too slow
test a::four - should panic ... ok
test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s

@vellum end 0 101

@vellum start 1
engine kvm

@vellum end 1 0
@vellum engine engine=kvm suite=a tests=1
@vellum done
";

#[test]
fn a_complete_transcript_has_every_result() {
    let transcript = read(COMPLETE);
    assert_eq!(transcript.kernel.as_deref(), Some("6.1.0-1-cloud-amd64"));
    assert_eq!(transcript.npt.as_deref(), Some("Y"));
    assert!(transcript.done);
    assert_eq!(transcript.engines, ["engine=kvm suite=a tests=1"]);
    let tests = &transcript.steps[&0];
    assert_eq!(tests.status, Some(101));
    assert_eq!(tests.count(TestResult::Passed), 2);
    assert_eq!(tests.count(TestResult::Ignored), 1);
    assert_eq!(tests.failed(), ["a::two"]);
    assert_eq!(tests.unfinished(), [""; 0]);
    let other = &transcript.steps[&1];
    assert_eq!((other.status, other.tests.len()), (Some(0), 0));
    assert!(other.output.contains(&"engine kvm".to_owned()));
}

#[test]
fn a_transcript_that_breaks_off_is_not_done_and_names_what_did_not_end() {
    let (start, _) = COMPLETE.split_once("test a::three ...").unwrap();
    let transcript = read(start);
    assert!(!transcript.done);
    let tests = &transcript.steps[&0];
    assert_eq!(tests.status, None);
    assert_eq!(tests.unfinished(), ["a::four", "a::three"]);
}

#[test]
fn output_of_child_processes_is_not_taken_for_results() {
    let transcript = read(
        "@vellum list 0\na::parent: test\na::child: test\n@vellum start 0\n\
         running 1 test\ntest a::child ... kvm, one mode\n\
         test unknown ... ok\n\
         test a::child ... test a::parent ... ok\n\
         test result: ok. 1 passed\n@vellum end 0 0\n",
    );
    let tests = &transcript.steps[&0].tests;
    assert_eq!(tests["a::parent"], Some(TestResult::Passed));
    assert_eq!(tests["a::child"], None);
    assert_eq!(tests.len(), 2);
}

#[test]
fn marks_lists_and_empty_lines_are_not_shown() {
    let mut transcript = Transcript::default();
    let cases = [
        ("kernel message", Line::Shown),
        ("@vellum list 0", Line::Hidden),
        ("a::one: test", Line::Hidden),
        ("@vellum start 0", Line::Hidden),
        ("", Line::Hidden),
        ("test a::one ... ok", Line::Shown),
        ("@vellum nonsense", Line::Hidden),
        ("@vellum end x y", Line::Hidden),
    ];
    for (line, expected) in cases {
        assert_eq!(transcript.add_line(line), expected, "{line}");
    }
}
