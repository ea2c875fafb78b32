//! VMs give back their file descriptors. Alone in its process, because it counts those of the whole process.

#[path = "kvm/support.rs"]
#[expect(dead_code, reason = "made for another suite, too")]
mod support;

use std::fs::{self, File};
use std::os::fd::AsRawFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vellum_backend::cpuid::CpuProfile;
use vellum_backend::kvm::Kvm;
use vellum_backend::{Exit, Protection, VmError};
use vellum_backend::{Tracking, VmConfig};

use support::{flat_state, guest, kvm};

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("Linux has it").count()
}

#[test]
fn every_descriptor_is_closed_also_when_a_vm_cannot_be_made() {
    let Some(kvm) = kvm() else { return };
    let before = open_descriptors();
    for _ in 0..8 {
        let mut guest = guest(&kvm, &[0xF4], Protection::TrackedWrite);
        flat_state().restore(&mut guest.vm).expect("restored");
        assert_eq!(guest.run(), Exit::Halt);
        assert!(open_descriptors() > before, "a vm needs some");
    }
    assert_eq!(open_descriptors(), before, "after VMs that ran");

    let refused = refusals(&kvm);
    assert_eq!(
        open_descriptors(),
        before,
        "after VMs that could not be made"
    );
    assert!(refused.len() >= 2, "{refused:?}");

    drop(Kvm::open().expect("opens twice"));
    assert_eq!(open_descriptors(), before, "after a second engine");
}

/// What is refused while fewer descriptors may be opened than a VM needs.
fn refusals(kvm: &Kvm) -> Vec<VmError> {
    let model = kvm.cpu_model(CpuProfile::V1).expect("a model");
    let config = VmConfig::new(model, Tracking::FirstWrites);
    let limit = getrlimit(Resource::Nofile);
    // The limit is on the numbers of descriptors, and the kernel hands out the lowest free one.
    let lowest_free = File::open("/dev/null").expect("Linux has it").as_raw_fd();
    let refused = (lowest_free..).map_while(|first_refused| {
        let current = u64::try_from(first_refused).ok();
        setrlimit(Resource::Nofile, Rlimit { current, ..limit }).expect("the limit is lowered");
        kvm.create_vm(&config).err()
    });
    let refused = refused.collect();
    setrlimit(Resource::Nofile, limit).expect("the limit is raised again");
    refused
}
