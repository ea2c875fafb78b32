//! Hypervisor backends of Vellum behind one trait.
