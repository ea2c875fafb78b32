//! What a sandbox from a pool costs.

use vellum_sandbox::{Engine, Pool};

use crate::figures::Figures;
use crate::measure::{Effort, median};
use crate::sandboxes::{FLOOR, MIB, host_functions, sandbox};

/// Taking a sandbox, a null call, and giving it back: one entry into the guest and a restore.
pub(crate) fn pool(engine: &Engine, effort: Effort, figures: &mut Figures) -> anyhow::Result<()> {
    let mut sandbox = sandbox(engine, 8 * MIB)?;
    let null = sandbox.function::<(), ()>("null")?;
    let snapshot = sandbox.snapshot()?;
    let pool = Pool::builder(engine, &snapshot, &host_functions())
        .ready(4)
        .build()?;
    let time = median(
        effort.samples(1000),
        || Ok(()),
        |()| {
            let mut sandbox = pool.take()?;
            Ok(null.call(&mut sandbox, ())?)
        },
    )?;
    figures.add_beside("pool_take_return_ns", time, FLOOR);
    Ok(())
}
