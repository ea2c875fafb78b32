//! Running commands with a progress line before each and a clear error after a failed one.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Prints the heading of a stage.
pub(crate) fn heading(title: &str) {
    println!("\n=== {title} ===");
}

/// Prints a progress line.
pub(crate) fn progress(message: &str) {
    println!("--> {message}");
}

/// Runs a command with inherited output; a failure names the command and its exit status.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    progress(&line);
    let started = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("could not start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    progress(&format!("done in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

/// Runs a command that tells everything itself; a failure names its exit status.
pub(crate) fn run_quietly(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("could not start `{program}`"))?;
    if !status.success() {
        bail!("failed ({status})");
    }
    Ok(())
}

/// Runs a command, passing its standard output through line by line to `inspect` as well.
///
/// Returns whether the command succeeded, so that the caller can still print a summary.
pub(crate) fn run_inspected(command: &mut Command, mut inspect: impl FnMut(&str)) -> Result<bool> {
    let line = describe(command);
    progress(&line);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start `{line}`"))?;
    let stdout = child
        .stdout
        .take()
        .context("the child has no standard output")?;
    for output in BufReader::new(stdout).split(b'\n') {
        let output = output.with_context(|| format!("could not read the output of `{line}`"))?;
        let output = String::from_utf8_lossy(&output);
        println!("{output}");
        inspect(&output);
    }
    Ok(child
        .wait()
        .with_context(|| format!("could not wait for `{line}`"))?
        .success())
}

/// Runs a command and returns its standard output; errors go through.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("could not start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed ({})", output.status);
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{line}` printed bytes that are not UTF-8"))
}

/// The command as a reader would type it: the program by its short name, then the arguments.
fn describe(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let mut line = program
        .file_name()
        .unwrap_or(program.as_os_str())
        .to_string_lossy()
        .into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_described_by_its_short_name_and_arguments() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["test", "--workspace"]);
        assert_eq!(describe(&command), "cargo test --workspace");
    }

    #[test]
    fn a_failing_command_is_an_error_that_names_it() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert!(
            format!("{error:#}").contains("`sh -c exit 3` failed (exit status: 3)"),
            "{error:#}"
        );
    }

    #[test]
    fn a_command_that_does_not_exist_is_an_error_that_names_it() {
        let error = run(&mut Command::new("vellum-no-such-program")).unwrap_err();
        assert!(
            format!("{error:#}").contains("could not start `vellum-no-such-program`"),
            "{error:#}"
        );
    }

    #[test]
    fn inspected_output_arrives_line_by_line_with_the_outcome() {
        let mut lines = Vec::new();
        let ok = run_inspected(
            Command::new("sh").args(["-c", "echo one; echo two; exit 1"]),
            |line| {
                lines.push(line.to_owned());
            },
        )
        .unwrap();
        assert!(!ok);
        assert_eq!(lines, ["one", "two"]);
    }
}
