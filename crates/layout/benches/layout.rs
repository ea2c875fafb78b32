//! Memory plans and addresses: `cargo bench -p vellum-layout`.

use divan::{Bencher, black_box};
use vellum_layout::{Gpa, GuestKind, IO_APIC_PAGE, MemoryPlan, PlanRequest, ScratchRequest};

const MIB: u64 = 0x10_0000;

fn main() {
    divan::main();
}

fn request(kind: GuestKind) -> PlanRequest<'static> {
    PlanRequest {
        kind,
        image_len_bytes: 8 * MIB,
        scratch: ScratchRequest {
            len_bytes: 64 * MIB,
            input_len_bytes: 0x1_0000,
            output_len_bytes: 0x1_0000,
            tables_len_bytes: 0,
        },
        holes: &[IO_APIC_PAGE],
        reserved: &[],
    }
}

/// The whole plan of a guest without tables of the host's.
#[divan::bench]
fn plan_of_an_identity_guest(bencher: Bencher) {
    bencher.bench(|| MemoryPlan::new(black_box(&request(GuestKind::I686Identity))));
}

#[divan::bench]
fn checked_address(bencher: Bencher) {
    bencher.bench(|| Gpa::new(black_box(0x1234_5000)));
}

#[divan::bench]
fn checked_sum(bencher: Bencher) {
    let base = Gpa::literal(0x1000);
    bencher.bench(|| black_box(base).checked_add(black_box(0x2000)));
}
