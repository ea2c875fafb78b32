//! What a partition's `cpuid` shows: KVM's leaves, with registered results on top.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::bytes::u32_at;
use crate::status::Failure;

/// The leaves of one partition.
#[derive(Clone, Debug)]
pub(crate) struct Leaves {
    entries: Vec<kvm_cpuid_entry2>,
    has_changed: bool,
}

/// Bytes of the parameters of a registered result: leaf, subleaf, two flags, and four registers with their masks.
pub(crate) const RESULT_LEN_BYTES: usize = 44;

impl Leaves {
    pub(crate) fn new(supported: &CpuId) -> Self {
        Self {
            entries: supported.as_slice().to_vec(),
            has_changed: true,
        }
    }

    pub(crate) fn as_slice(&self) -> &[kvm_cpuid_entry2] {
        &self.entries
    }

    /// The leaves in KVM's form, if they changed since the last time.
    pub(crate) fn take_changed(&mut self) -> Result<Option<CpuId>, Failure> {
        if !std::mem::take(&mut self.has_changed) {
            return Ok(None);
        }
        CpuId::from_entries(&self.entries)
            .map(Some)
            .map_err(|_| Failure::Errno(libc::ENOMEM))
    }

    /// EAX, EBX, ECX and EDX of a leaf.
    pub(crate) fn values(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        self.entries
            .iter()
            .find(|entry| entry.function == leaf && (!is_indexed(entry) || entry.index == subleaf))
            .map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
    }

    /// Registers a result: the masked bits of a leaf, or of one of its subleaves, are replaced.
    pub(crate) fn register(&mut self, parameters: &[u8]) {
        let word = |index: usize| u32_at(parameters, index * 4);
        let (leaf, subleaf) = (word(0), word(1));
        let is_specific = parameters[8] != 0;
        let results = [word(3), word(5), word(7), word(9)];
        let masks = [word(4), word(6), word(8), word(10)];
        let matches = |entry: &kvm_cpuid_entry2| {
            entry.function == leaf && (!is_specific || !is_indexed(entry) || entry.index == subleaf)
        };
        if !self.entries.iter().any(matches) {
            self.entries.push(kvm_cpuid_entry2 {
                function: leaf,
                index: subleaf,
                flags: if is_specific {
                    KVM_CPUID_FLAG_SIGNIFCANT_INDEX
                } else {
                    0
                },
                ..kvm_cpuid_entry2::default()
            });
        }
        for entry in self.entries.iter_mut().filter(|entry| matches(entry)) {
            let registers = [
                &mut entry.eax,
                &mut entry.ebx,
                &mut entry.ecx,
                &mut entry.edx,
            ];
            for ((register, result), mask) in registers.into_iter().zip(results).zip(masks) {
                *register = *register & !mask | result & mask;
            }
        }
        self.has_changed = true;
    }
}

const fn is_indexed(entry: &kvm_cpuid_entry2) -> bool {
    entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0
}
