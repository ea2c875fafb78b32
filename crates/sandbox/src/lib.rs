//! Run untrusted functions in micro-VMs without a guest OS.
