//! Guest addresses, fixed memory layout and memory planning of Vellum micro-VMs.
