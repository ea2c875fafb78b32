//! Where mappings may lie, and that they come and go.

use vellum_sandbox::{ErrorKind, Gpa, GpaRange, Mapping, SharedMemory};

use crate::support::*;

fn region(label: &str, len_bytes: u64) -> Mapping {
    let memory = SharedMemory::new(len_bytes).expect("memory");
    Mapping::region(label, &memory).expect("mapped")
}

#[test]
fn as_many_as_a_guest_can_have_are_all_reached() {
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        for index in 0..32_u32 {
            let memory = SharedMemory::new(PAGE).expect("memory");
            memory.store(0, index.into()).expect("in bounds");
            let label = format!("m{index}");
            let mapping = Mapping::region(&label, &memory).expect("mapped");
            // Each across the border of a large page of its own.
            let gpa = AT
                .checked_add(u64::from(index) * 4 * MIB)
                .expect("an address");
            sandbox.map(gpa, &mapping).expect("mapped");
        }
        assert_eq!(mapping_count(&mut sandbox), 32);
        for index in [0_u32, 1, 17, 31] {
            let at = lab.locate(&mut sandbox, &format!("m{index}"));
            assert_eq!(word(&mut sandbox, at), index);
        }
        let gpa = AT.checked_add(32 * 4 * MIB).expect("an address");
        let error = refused("one more", sandbox.map(gpa, &region("m32", PAGE)));
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains("at most 32"), "{error}");
        assert_eq!(mapping_count(&mut sandbox), 32);
    });
}

#[test]
fn what_is_unmapped_is_gone_and_the_rest_stays() {
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        let memory = SharedMemory::new(PAGE).expect("memory");
        memory.store(0, 7).expect("in bounds");
        let stays = Mapping::region("stays", &memory).expect("mapped");
        sandbox.map(AT, &region("goes", 3 * PAGE)).expect("mapped");
        sandbox.map(ELSEWHERE, &stays).expect("mapped");
        let goes = lab.locate(&mut sandbox, "goes");
        let stays = lab.locate(&mut sandbox, "stays");
        assert_eq!(
            (word(&mut sandbox, goes), word(&mut sandbox, stays)),
            (0, 7)
        );
        let ready = sandbox.snapshot().expect("a snapshot");

        sandbox.unmap("goes").expect("unmapped");
        assert_eq!(mapping_count(&mut sandbox), 1);
        assert_eq!(word(&mut sandbox, stays), 7);
        let unknown = sandbox.call::<_, u64>("mapping_gpa", ("goes",));
        assert_eq!(refused("a question", unknown).kind(), ErrorKind::GuestError);
        let result = read(&mut sandbox, goes);
        assert_stopped("a read", &sandbox, result);

        sandbox.restore(&ready).expect("restored");
        assert_eq!(
            mapping_count(&mut sandbox),
            1,
            "a restore brings nothing back"
        );
        assert_eq!(word(&mut sandbox, stays), 7);
        let result = read(&mut sandbox, goes);
        assert_stopped("a read", &sandbox, result);
    });
}

#[test]
fn a_place_is_free_again_when_its_mapping_is_gone() {
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        for value in [7, 8, 9] {
            let memory = SharedMemory::new(PAGE).expect("memory");
            memory.store(0, value).expect("in bounds");
            let mapping = Mapping::region("same", &memory).expect("mapped");
            sandbox.map(AT, &mapping).expect("mapped");
            let at = lab.locate(&mut sandbox, "same");
            assert_eq!(u64::from(word(&mut sandbox, at)), value);
            sandbox.unmap("same").expect("unmapped");
        }
    });
}

#[test]
fn the_host_is_told_what_is_mapped_where() {
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        sandbox
            .map(AT, &region("a", 5000).writable())
            .expect("mapped");
        sandbox.map(ELSEWHERE, &region("b", 1)).expect("mapped");
        let labels: Vec<_> = sandbox
            .mappings()
            .map(|info| {
                let mapping = info.mapping();
                (mapping.label(), mapping.len_bytes(), mapping.is_writable())
            })
            .collect();
        assert_eq!(labels, [("a", 5000, true), ("b", 1, false)]);
        let first = sandbox.mappings().next().expect("one");
        assert_eq!(first.range(), GpaRange::literal(AT, 2 * PAGE));
        let address = first.address();
        assert_eq!(address.is_none(), lab.guest.has_own_tables());
        let told = ask(&mut sandbox, "mapping_address", "a");
        assert_eq!(told, address.unwrap_or(0));
        let writable = ["a", "b"].map(|label| {
            sandbox
                .call::<_, bool>("mapping_is_writable", (label,))
                .expect("called")
        });
        assert_eq!(writable, [true, false]);
    });
}

#[test]
fn a_reserved_range_is_there_to_be_covered() {
    with_each_guest(|lab| {
        // Where the image of most guests would lie.
        let range = GpaRange::literal(Gpa::literal(0x40_0000 + 64 * MIB), 16 * MIB);
        let builder = lab.builder().reserve("frame buffer", range);
        let mut sandbox = builder.build(&lab.engine).expect("a sandbox");
        sandbox
            .map(range.start(), &region("frames", 16 * MIB))
            .expect("mapped");
        let at = lab.locate(&mut sandbox, "frames");
        assert_eq!(word(&mut sandbox, at + 16 * MIB - 8), 0);
    });
}

#[test]
fn the_debugger_does_not_reach_mappings() {
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        sandbox
            .map(AT, &region("m", PAGE).writable())
            .expect("mapped");
        let at = lab.locate(&mut sandbox, "m");
        let mut bytes = [0; 4];
        let error = refused("reading", sandbox.read_memory(at, &mut bytes));
        assert_eq!(error.kind(), ErrorKind::GuestMemory, "{error:?}");
        let error = refused("writing", sandbox.write_memory(at, &bytes));
        assert_eq!(error.kind(), ErrorKind::GuestMemory, "{error:?}");
        assert_eq!(word(&mut sandbox, at), 0);
    });
}
