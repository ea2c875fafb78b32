//! What a call and a start cost where there is no hypervisor.

use vellum_sandbox::{Engine, EngineKind};

use crate::figures::Figures;
use crate::measure::{Effort, median};
use crate::sandboxes::{MIB, sandbox};

/// Calls of one sample.
const CALLS: u32 = 10;

/// Measures the emulator: how long it takes until the engine is there, and a null call.
pub(crate) fn emulator(effort: Effort, figures: &mut Figures) -> anyhow::Result<()> {
    let builder = || Engine::builder().kind(EngineKind::Emulator);
    let start = median(
        effort.samples(200),
        || Ok(builder()),
        |builder| Ok(builder.build().map(drop)?),
    )?;
    figures.add("emulator_start_ns", start);

    let engine = builder().build()?;
    let mut sandbox = sandbox(&engine, 8 * MIB)?;
    let null = sandbox.function::<(), ()>("null")?;
    let calls = median(
        effort.samples(500),
        || Ok(()),
        |()| (0..CALLS).try_for_each(|_| Ok(null.call(&mut sandbox, ())?)),
    )?;
    figures.add("emulator_call_null_ns", calls / f64::from(CALLS));
    Ok(())
}
