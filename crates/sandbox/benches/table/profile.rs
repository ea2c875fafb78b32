//! Which functions the instructions of an operation belong to: this program runs itself as a child, and has the kernel stop it after
//! every instruction of one operation. What the kernel and the guest execute is not seen; it is one step.
//!
//! Exact on every machine with a hypervisor, and slow: some microseconds an instruction.
#![expect(unsafe_code, reason = "traces a child process")]

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// How many functions are shown.
const SHOWN: usize = 60;
/// `si_code` of the breakpoint instruction and of a single step (Linux `include/uapi/asm-generic/siginfo.h`: `SI_KERNEL`, `TRAP_TRACE`).
const BREAKPOINT: i32 = 0x80;
const STEP: i32 = 2;

/// Marks the beginning and the end of what is stepped through. Ends the process if nobody traces it.
pub(crate) fn mark() {
    // SAFETY: the instruction changes no register and no memory; the tracer goes on behind it.
    unsafe { std::arch::asm!("int3") };
}

/// Runs this program with `arguments` and prints where the instructions between two marks are.
pub(crate) fn profile(arguments: &[String]) -> anyhow::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    // SAFETY: between fork and exec the child makes one system call and touches no memory of the parent.
    let command = unsafe { command.pre_exec(|| request(libc::PTRACE_TRACEME, 0).map(drop)) };
    let child = command.spawn()?;
    let child = i32::try_from(child.id())?;
    // The stop at exec.
    wait(child)?;
    run_to_mark(child)?;
    let mappings = Mapping::of(child)?;
    let counts = step_to_mark(child)?;
    request(libc::PTRACE_KILL, child)?;
    let functions = by_function(&mappings, &counts)?;
    print!("{}", table(&functions));
    Ok(())
}

/// Asks the kernel about a child, with neither address nor data.
fn request(what: u32, child: i32) -> io::Result<i64> {
    // SAFETY: these requests take no pointer.
    let result = unsafe { libc::ptrace(what, child, 0, 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Waits until the child stops, and returns why: the code of its trap.
fn wait(child: i32) -> anyhow::Result<i32> {
    let mut status = 0;
    // SAFETY: the status is valid for the call.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {
        return Err(io::Error::last_os_error().into());
    }
    if !libc::WIFSTOPPED(status) {
        bail!("the child ended before the operation was done; does the operation exist?");
    }
    if libc::WSTOPSIG(status) != libc::SIGTRAP {
        bail!("the child was stopped by signal {}", libc::WSTOPSIG(status));
    }
    // SAFETY: plain data, all zeroes are a value of it.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is valid for the call.
    if unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, child, 0, &raw mut info) } < 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(info.si_code)
}

fn run_to_mark(child: i32) -> anyhow::Result<()> {
    loop {
        request(libc::PTRACE_CONT, child)?;
        if wait(child)? == BREAKPOINT {
            return Ok(());
        }
    }
}

/// Steps to the next mark, and counts how often each instruction was next.
fn step_to_mark(child: i32) -> anyhow::Result<HashMap<u64, u64>> {
    let mut counts = HashMap::new();
    loop {
        request(libc::PTRACE_SINGLESTEP, child)?;
        match wait(child)? {
            BREAKPOINT => return Ok(counts),
            STEP => *counts.entry(instruction_pointer(child)).or_default() += 1,
            // The end of a system call may be reported as another trap.
            _ => {}
        }
    }
}

fn instruction_pointer(child: i32) -> u64 {
    let offset = std::mem::offset_of!(libc::user_regs_struct, rip);
    // SAFETY: reads a word of the child's registers, which the result is.
    let value = unsafe { libc::ptrace(libc::PTRACE_PEEKUSER, child, offset, 0) };
    u64::from_ne_bytes(value.to_ne_bytes())
}

/// A part of a file that is mapped in the child.
struct Mapping {
    start: u64,
    end: u64,
    /// Where address 0 of the file's own addresses lies.
    base: u64,
    path: String,
}

impl Mapping {
    fn of(child: i32) -> anyhow::Result<Vec<Self>> {
        let text = fs::read_to_string(format!("/proc/{child}/maps"))?;
        let mut bases: BTreeMap<String, u64> = BTreeMap::new();
        let mut mappings = Vec::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (start, end) = words
                .next()
                .and_then(|range| range.split_once('-'))
                .context("a line without a range in the child's mappings")?;
            let (start, end) = (
                u64::from_str_radix(start, 16)?,
                u64::from_str_radix(end, 16)?,
            );
            let path = words.nth(4).unwrap_or("[anonymous]").to_owned();
            // The first mapping of a file is that of its first byte.
            let base = *bases.entry(path.clone()).or_insert(start);
            mappings.push(Self {
                start,
                end,
                base,
                path,
            });
        }
        Ok(mappings)
    }
}

/// Sums by function; one that was inlined counts for itself.
fn by_function(
    mappings: &[Mapping],
    counts: &HashMap<u64, u64>,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let own = std::env::current_exe()?;
    let own = own.to_string_lossy();
    let mut functions: BTreeMap<String, u64> = BTreeMap::new();
    let (mut addresses, mut numbers) = (Vec::new(), Vec::new());
    for (&address, &count) in counts {
        match mappings
            .iter()
            .find(|it| (it.start..it.end).contains(&address))
        {
            Some(mapping) if mapping.path == own => {
                addresses.push(address - mapping.base);
                numbers.push(count);
            }
            Some(mapping) => *functions.entry(mapping.path.clone()).or_default() += count,
            None => *functions.entry("unknown".into()).or_default() += count,
        }
    }
    for (name, count) in names(&own, &addresses)?.into_iter().zip(numbers) {
        *functions.entry(name).or_default() += count;
    }
    Ok(functions)
}

/// The innermost function at each address, with the one that it was inlined into.
fn names(file: &str, addresses: &[u64]) -> anyhow::Result<Vec<String>> {
    let mut command = Command::new("addr2line");
    command.args([
        "--functions",
        "--inlines",
        "--demangle",
        "--addresses",
        "--exe",
        file,
    ]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("could not run addr2line (Debian: apt-get install binutils)")?;
    let mut input = child.stdin.take().context("no standard input")?;
    let text = addresses.iter().fold(String::new(), |mut text, address| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{address:#x}");
        text
    });
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output()?;
    writer
        .join()
        .map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    let text = String::from_utf8_lossy(&output.stdout);
    // An address, then a line with a name and a line with a place for each function, the innermost first.
    let mut names: Vec<Vec<&str>> = Vec::new();
    for line in text.lines() {
        match names.last_mut() {
            _ if line.starts_with("0x") => names.push(Vec::new()),
            Some(last) => last.push(line),
            None => bail!("addr2line printed {line:?} before an address"),
        }
    }
    Ok(names.iter().map(|lines| name(lines)).collect())
}

fn name(lines: &[&str]) -> String {
    let functions: Vec<&str> = lines.iter().step_by(2).copied().collect();
    match functions[..] {
        [] => "unknown".to_owned(),
        [only] => only.to_owned(),
        [inner, .., outer] => format!("{inner}  <- {outer}"),
    }
}

fn table(functions: &BTreeMap<String, u64>) -> String {
    let mut rows: Vec<(&String, &u64)> = functions.iter().collect();
    rows.sort_by(|one, other| other.1.cmp(one.1).then(one.0.cmp(other.0)));
    let total: u64 = functions.values().sum();
    let mut table = format!("\n{total:>12} instructions of this program\n");
    for (name, count) in rows.iter().take(SHOWN) {
        let _ = writeln!(table, "{count:>12} {name}");
    }
    if rows.len() > SHOWN {
        let rest: u64 = rows[SHOWN..].iter().map(|(_, count)| **count).sum();
        let _ = writeln!(table, "{rest:>12} in {} more", rows.len() - SHOWN);
    }
    table
}
