//! What a benchmark has counted, as it prints it.
//!
//! ```text
//! engine: kvm (nested paging, native ring 0), guest-side copy-on-write, cpu x86-64-v3
//! exits_per_call                        1.000                  (counted)
//! ```

/// Marks a number of events, among times.
const MARK: &str = "(counted)";
/// Begins the line that names the engine.
const ENGINE: &str = "engine: ";
const MODES: [&str; 2] = ["guest-side", "host-side"];

/// One number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count<'a> {
    /// Who copied pages.
    pub(super) mode: &'a str,
    pub(super) name: &'a str,
    pub(super) value: &'a str,
}

/// The numbers in what a program printed.
pub(super) fn of(output: &[String]) -> impl Iterator<Item = Count<'_>> {
    let engine = output.iter().find_map(|line| line.strip_prefix(ENGINE));
    let mode = engine
        .and_then(|engine| MODES.into_iter().find(|mode| engine.contains(mode)))
        .unwrap_or("-");
    output.iter().filter_map(move |line| {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some(name), Some(value), Some(MARK), None) => Some(Count { mode, name, value }),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_the_marked_lines_and_carry_the_mode_of_their_engine() {
        let output: Vec<String> = "\
engine: kvm (nested paging, native ring 0), host-side copy-on-write, cpu x86-64-v3
  exits_per_call: 1.000
figure                                value                      floor    ratio
exits_per_call                        1.000                  (counted)
call_null_ns                        33000.0           floor_kvm_run_ns     1.06
faults_per_dirty_page                 0.016                  (counted)         "
            .lines()
            .map(str::to_owned)
            .collect();
        let counts: Vec<_> = of(&output)
            .map(|count| (count.mode, count.name, count.value))
            .collect();
        assert_eq!(
            counts,
            [
                ("host-side", "exits_per_call", "1.000"),
                ("host-side", "faults_per_dirty_page", "0.016")
            ]
        );
    }
}
