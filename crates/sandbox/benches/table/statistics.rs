//! What KVM counts about a vCPU, read from its binary statistics (Linux `Documentation/virt/kvm/api.rst`, section 4.133; since
//! Linux 5.14).
#![expect(unsafe_code, reason = "asks KVM for a file descriptor")]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use anyhow::Context;

use crate::ioctls;

/// The request number of `KVM_GET_STATS_FD` (Linux `include/uapi/linux/kvm.h`: `_IO(0xAE, 0xce)`).
const KVM_GET_STATS_FD: libc::c_ulong = 0xAECE;
/// Bytes of `struct kvm_stats_header`, six words.
const HEADER_LEN_BYTES: usize = 24;
/// Bytes of `struct kvm_stats_desc` before the name.
const DESCRIPTOR_LEN_BYTES: usize = 16;

/// The counters of one vCPU.
pub(crate) struct Statistics {
    file: File,
    /// Where the value of each counter lies in the file.
    offsets: BTreeMap<String, u64>,
}

impl Statistics {
    /// Those of the vCPU that this process has entered last.
    pub(crate) fn of_last_entered() -> anyhow::Result<Self> {
        // SAFETY: the request takes no argument. The result is checked.
        let fd = unsafe { libc::ioctl(ioctls::last_entered(), KVM_GET_STATS_FD) };
        if fd < 0 {
            let error = std::io::Error::last_os_error();
            return Err(error).context("this KVM has no binary statistics");
        }
        // SAFETY: a fresh file descriptor that nobody else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        let offsets = offsets(&file).context("the binary statistics cannot be read")?;
        Ok(Self { file, offsets })
    }

    /// How often a counter has counted by now; an error if there is none of this name.
    pub(crate) fn get(&self, name: &str) -> anyhow::Result<u64> {
        let offset = self
            .offsets
            .get(name)
            .with_context(|| format!("this KVM has no counter {name}"))?;
        let mut value = [0; 8];
        self.file.read_exact_at(&mut value, *offset)?;
        Ok(u64::from_le_bytes(value))
    }

    /// Exits that the guest has caused: all but those by interrupts of the host.
    pub(crate) fn exits(&self) -> anyhow::Result<u64> {
        Ok(self.get("exits")? - self.get("irq_exits")?)
    }

    /// Page faults that KVM has served itself, and not passed on to the guest.
    pub(crate) fn faults(&self) -> anyhow::Result<u64> {
        self.get("pf_fixed")
    }
}

fn offsets(file: &File) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut header = [0; HEADER_LEN_BYTES];
    file.read_exact_at(&mut header, 0)?;
    // Flags come first, and the offset of an identifier in the middle.
    let [name_len_bytes, count, _, descriptors, data] =
        [4, 8, 12, 16, 20].map(|at| word(&header, at));
    let mut descriptor = vec![0; DESCRIPTOR_LEN_BYTES + name_len_bytes as usize];
    let mut offsets = BTreeMap::new();
    for index in 0..u64::from(count) {
        let at = u64::from(descriptors) + index * descriptor.len() as u64;
        file.read_exact_at(&mut descriptor, at)?;
        let offset = u64::from(data) + u64::from(word(&descriptor, 8));
        let name = descriptor[DESCRIPTOR_LEN_BYTES..]
            .split(|byte| *byte == 0)
            .next();
        let name = String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
        offsets.insert(name, offset);
    }
    Ok(offsets)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}
