//! Counts the system calls of this thread with the kernel's own tracepoint (Linux `Documentation/trace/events.rst`;
//! `perf_event_open(2)`).
#![expect(unsafe_code, reason = "asks the kernel for a file descriptor")]

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::FromRawFd;

use anyhow::Context;

/// The number of the tracepoint at the entry of every system call.
const TRACEPOINT: &str = "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id";
/// `PERF_TYPE_TRACEPOINT` of Linux `include/uapi/linux/perf_event.h`.
const TYPE_TRACEPOINT: u32 = 2;
/// `PERF_ATTR_SIZE_VER0` of the same file.
const ATTRIBUTES_LEN_BYTES: u32 = 64;

/// The first version of `struct perf_event_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    type_: u32,
    len_bytes: u32,
    config: u64,
    rest: [u64; 6],
}

/// The counter of one thread. It counts as long as it exists, and makes every system call dearer.
pub(crate) struct SystemCalls {
    file: File,
}

impl SystemCalls {
    /// Begins to count those of this thread.
    pub(crate) fn of_this_thread() -> anyhow::Result<Self> {
        let number = fs::read_to_string(TRACEPOINT).context("this kernel shows no tracepoints")?;
        let attributes = Attributes {
            type_: TYPE_TRACEPOINT,
            len_bytes: ATTRIBUTES_LEN_BYTES,
            config: number.trim().parse()?,
            ..Attributes::default()
        };
        // This thread, every processor, no group, no flags.
        let (thread, processor, group, flags) = (0, -1, -1, 0_u64);
        // SAFETY: the attributes are of the length that they name, and the kernel only reads them.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                thread,
                processor,
                group,
                flags,
            )
        };
        let fd = i32::try_from(fd)?;
        if fd < 0 {
            let error = std::io::Error::last_os_error();
            return Err(error).context("this kernel counts no tracepoints");
        }
        // SAFETY: a fresh file descriptor that nobody else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        Ok(Self { file })
    }

    /// How many there were, with the one that reads the number.
    fn count(&self) -> anyhow::Result<u64> {
        let mut count = [0; 8];
        (&self.file).read_exact(&mut count)?;
        Ok(u64::from_le_bytes(count))
    }

    /// How many `work` makes.
    pub(crate) fn during(&self, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<u64> {
        let before = self.count()?;
        work()?;
        // The second reading counts itself.
        Ok(self.count()? - before - 1)
    }
}
