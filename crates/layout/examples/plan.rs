//! Plans the memory of one guest of each kind and prints its memory map, then shows what a plan
//! that cannot be says.

use vellum_layout::{
    GuestKind, Hole, IO_APIC_PAGE, MemoryPlan, PlanError, PlanRequest, RegionName, ScratchRequest,
    Translation,
};

const MIB: u64 = 0x10_0000;

fn main() -> Result<(), PlanError> {
    for kind in GuestKind::ALL {
        let plan = plan(kind, 8 * MIB, &[])?;
        println!("{kind} guest, {} translation:", kind.translation());
        print!("{plan}");
        for region in RegionName::PLACED {
            if let Ok(pointer) = plan.guest_ptr(region) {
                println!("  the guest sees the {region} at {pointer}");
            }
        }
        println!();
    }

    println!("i686 identity guest with an in-kernel interrupt controller:");
    print!(
        "{}",
        plan(GuestKind::I686Identity, 8 * MIB, &[IO_APIC_PAGE])?
    );

    println!("\nAn image that is too long:");
    match plan(GuestKind::I686Identity, 4050 * MIB, &[IO_APIC_PAGE]) {
        Ok(plan) => println!("{plan}"),
        Err(error) => println!("  {error}"),
    }
    Ok(())
}

fn plan(kind: GuestKind, image_len_bytes: u64, holes: &[Hole]) -> Result<MemoryPlan, PlanError> {
    let tables_len_bytes = match kind.translation() {
        Translation::Identity => 0,
        Translation::TwoLevel | Translation::FourLevel => MIB,
    };
    MemoryPlan::new(&PlanRequest {
        kind,
        image_len_bytes,
        scratch: ScratchRequest {
            len_bytes: 64 * MIB,
            input_len_bytes: 0x1_0000,
            output_len_bytes: 0x1_0000,
            tables_len_bytes,
        },
        holes,
        reserved: &[],
    })
}
