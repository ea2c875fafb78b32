//! The host-guest contract of Vellum: PEB, ports, messages.
