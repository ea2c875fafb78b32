//! A test double of `/dev/mshv`, for machines that have `/dev/kvm` instead.
//!
//! No machine with Microsoft's hypervisor as its root was at hand when Vellum's MSHV backend was written. This crate answers the system
//! calls that a program makes on `/dev/mshv`: it keeps partitions, virtual processors and their registers as the interface describes
//! them, runs the guest on `/dev/kvm`, and translates exits into intercept messages. It is strict where MSHV is and KVM is not, so that a program
//! which satisfies it has satisfied the rules as they are read here.
//!
//! **What it cannot tell.** It checks a reading of the interface, not the hypervisor: exact status codes, the behaviour of real
//! model-specific registers, interrupt controllers, exception, MSR and CPUID intercepts, string port accesses in detail, timing, and what differs
//! between kernel versions are not modelled. A double of pinned memory only notices pages that vanished from a mapped range.
//!
//! The crate defines the symbols `open`, `open64`, `ioctl` and `close`. A test that links it and calls [`link`] runs against the double from
//! then on; any other program does when it is started with the shared library preloaded. Whatever is not about `/dev/mshv` goes to the
//! kernel.
//!
//! | module | what it holds |
//! |---|---|
//! | `transport` | the symbols, and which descriptor is what |
//! | `device`, `partition`, `vp` | the three kinds of descriptors and their requests |
//! | `hypercall` | hypercalls that the driver passes through |
//! | `registers`, `rules` | registers by name, and which values are refused when |
//! | `memory` | regions of guest memory, and their access bitmaps |
//! | `exits` | from KVM's exits to messages |
//! | `walk` | where a linear address lies |
//! | `xsave` | the compacted format |
//! | [`inject`] | failures and losses on demand, of requests to MSHV and to KVM |
//! | [`strictness`] | what the double insists on beyond what other programs do |
//! | [`driver`] | in what Linux's drivers differ |
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod bytes;
mod cpuid;
mod device;
pub mod driver;
mod exits;
mod hypercall;
pub mod inject;
mod memory;
mod msrs;
mod partition;
mod registers;
mod rules;
mod status;
pub mod strictness;
mod transport;
mod vp;
mod walk;
mod xsave;

/// Makes sure that the double's symbols are linked into a test. Call it before `/dev/mshv` is opened.
pub fn link() {
    transport::keep();
}
