//! Numbers of exceptions (Intel SDM volume 3A, table 6-1).

/// Numbers that the processor vendors have defined or reserved.
pub const COUNT: usize = 32;

/// Double fault: an exception that could not be delivered.
pub const DOUBLE_FAULT: u32 = 8;

/// Page fault.
pub const PAGE_FAULT: u32 = 14;
