//! Calls, with and without host calls, and the floor of both.

use vellum_sandbox::Engine;

use super::meter::{Meter, Repeat};
use crate::bare::BareVm;
use crate::sandboxes::{self, MIB};

/// The floor of everything that enters a guest.
pub(super) const FLOOR: &str = "bare_run";
/// Host calls in the longer of two calls whose difference counts.
const HOST_CALLS: u32 = 16;
/// Log records in the longer of two.
const RECORDS: u32 = 16;

pub(super) fn calls(engine: &Engine, meter: &mut Meter) -> anyhow::Result<()> {
    let mut bare = BareVm::new()?;
    let once = Repeat::default();
    meter.measure(FLOOR, once, &mut bare, |_| Ok(()), BareVm::run)?;

    let mut sandbox = sandboxes::sandbox(engine, 8 * MIB)?;
    let null = sandbox.function::<(), ()>("null")?;
    let echo = sandbox.function::<(i32,), i32>("echo_i32")?;
    let call_host = sandbox.function::<(u32,), i32>("call_host_add_loop")?;
    let sandbox = &mut sandbox;
    let nothing = |_: &mut _| Ok(());
    meter
        .measure("call_null", once, sandbox, nothing, |sandbox| {
            Ok(null.call(sandbox, ())?)
        })?
        .aim(3_400.0);
    meter
        .measure("call_echo_i32", once, sandbox, nothing, |sandbox| {
            anyhow::ensure!(echo.call(sandbox, (7,))? == 7, "not the same number");
            Ok(())
        })?
        .aim(3_900.0);
    for (name, count) in [("call_0_host_calls", 0), ("call_16_host_calls", HOST_CALLS)] {
        meter.measure(name, once, sandbox, nothing, |sandbox| {
            Ok(call_host.call(sandbox, (count,)).map(drop)?)
        })?;
    }
    let log = sandbox.function::<(u32,), ()>("log_lines")?;
    for (name, count) in [("call_0_records", 0), ("call_16_records", RECORDS)] {
        meter.measure(name, once, sandbox, nothing, |sandbox| {
            Ok(log.call(sandbox, (count,))?)
        })?;
    }
    // What a record may cost is said in time, of which an exit takes more than its instructions do.
    let both = ("call_16_records", "call_0_records");
    meter.difference("log_record", both, RECORDS)?;
    let both = ("call_16_host_calls", "call_0_host_calls");
    meter
        .difference("host_call", both, HOST_CALLS)?
        .aim(3_600.0);
    Ok(())
}
