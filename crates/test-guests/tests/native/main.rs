//! The guests, run as Linux processes whose parent plays the host.

mod amd64;
mod host;
mod i686;
mod machine;
mod told;
