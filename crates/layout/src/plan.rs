//! Memory planning.

use core::fmt;

/// A region that a plan places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum RegionName {
    /// Snapshot layers: read only, or privately copied.
    Image,
    /// Everything the guest writes; contains all regions below.
    Scratch,
    /// Input buffer (host to guest).
    Input,
    /// Output buffer (guest to host).
    Output,
    /// Page tables that the host builds.
    Tables,
    /// Free frames for copy on write and demand-zero memory.
    Frames,
    /// Guard page below the exception stack.
    Guard,
    /// Stack for exceptions.
    ExceptionStack,
    /// Bookkeeping words, fault record and monitor data.
    Bookkeeping,
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Image => "image",
            Self::Scratch => "scratch",
            Self::Input => "input buffer",
            Self::Output => "output buffer",
            Self::Tables => "page tables",
            Self::Frames => "free frames",
            Self::Guard => "exception stack guard",
            Self::ExceptionStack => "exception stack",
            Self::Bookkeeping => "bookkeeping page",
        })
    }
}
