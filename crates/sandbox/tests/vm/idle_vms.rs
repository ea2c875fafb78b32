//! VMs that ended sandboxes leave to the engine: the next sandbox finds the snapshot in them, and nothing else.

use vellum_sandbox::{
    CallOptions, CowMode, Engine, ErrorKind, Gpa, HostFunctions, Mapping, Sandbox, SharedMemory,
};

use super::support::{Lab, add_to_counter, counter, host, in_each_mode, refused};

/// An engine of its own, because the others share theirs.
fn engine(cow: CowMode, idle_vms: usize) -> Engine {
    let builder = Engine::builder().cow_mode(cow).idle_vms(idle_vms);
    builder.build().expect("the lab has one")
}

fn sandbox(lab: &Lab, engine: &Engine) -> Sandbox {
    lab.builder().build(engine).expect("built")
}

#[test]
fn a_sandbox_in_a_used_vm_is_the_snapshot_and_nothing_else() {
    in_each_mode(|lab| {
        let engine = engine(lab.engine.cow_mode(), 4);
        let mut first = sandbox(lab, &engine);
        add_to_counter(&mut first, 5);
        let snapshot = first.snapshot().expect("taken");
        add_to_counter(&mut first, 100);
        let _: u64 = first.call("touch_pages", (30_u64,)).expect("called");
        first.recycle().expect("recycled");
        assert_eq!(engine.idle_vms(), 1);
        for _ in 0..3 {
            let mut next = Sandbox::from_snapshot(&engine, &snapshot, &host()).expect("made");
            assert_eq!(engine.idle_vms(), 0);
            assert_eq!(counter(&mut next), 5);
            assert_eq!(next.snapshot().expect("taken").generation(), 2);
            next.restore(&snapshot).expect("restored");
            add_to_counter(&mut next, 7);
            next.recycle().expect("recycled");
            assert_eq!(engine.idle_vms(), 1);
        }
    });
}

#[test]
fn a_used_vm_serves_other_snapshots_of_its_image_too() {
    in_each_mode(|lab| {
        let engine = engine(lab.engine.cow_mode(), 4);
        let mut first = sandbox(lab, &engine);
        let older = first.snapshot().expect("taken");
        add_to_counter(&mut first, 3);
        let newer = first.snapshot().expect("taken");
        add_to_counter(&mut first, 10);
        first.recycle().expect("recycled");
        for (snapshot, expected) in [(&older, 0), (&newer, 3), (&older, 0)] {
            let mut next = Sandbox::from_snapshot(&engine, snapshot, &host()).expect("made");
            assert_eq!(engine.idle_vms(), 0);
            assert_eq!(counter(&mut next), expected);
            next.recycle().expect("recycled");
        }
        // Also for one that boots.
        let mut booted = sandbox(lab, &engine);
        assert_eq!(engine.idle_vms(), 0);
        assert_eq!(counter(&mut booted), 0);
    });
}

#[test]
fn an_engine_keeps_as_many_as_it_may() {
    in_each_mode(|lab| {
        for most in [0, 2] {
            let engine = engine(lab.engine.cow_mode(), most);
            let sandboxes: Vec<Sandbox> = (0..3).map(|_| sandbox(lab, &engine)).collect();
            for sandbox in sandboxes {
                sandbox.recycle().expect("recycled");
            }
            assert_eq!(engine.idle_vms(), most);
        }
    });
}

#[test]
fn a_sandbox_that_went_wrong_leaves_nothing() {
    in_each_mode(|lab| {
        let engine = engine(lab.engine.cow_mode(), 4);
        let mut sandbox = sandbox(lab, &engine);
        let call = sandbox.call_dynamic("invalid_opcode", &[], &CallOptions::new());
        refused("invalid opcode", call);
        sandbox.recycle().expect("dropped");
        assert_eq!(engine.idle_vms(), 0);
    });
}

#[test]
fn what_was_mapped_is_gone_and_host_functions_are_those_of_the_new_sandbox() {
    in_each_mode(|lab| {
        let engine = engine(lab.engine.cow_mode(), 4);
        let mut first = sandbox(lab, &engine);
        let snapshot = first.snapshot().expect("taken");
        let memory = SharedMemory::new(4096).expect("memory");
        let mapping = Mapping::region("secret", &memory).expect("a mapping");
        let gpa = Gpa::new(0x4_0000_0000).expect("an address");
        first.map(gpa, &mapping).expect("mapped");
        first.recycle().expect("recycled");
        let error = Sandbox::from_snapshot(&engine, &snapshot, &HostFunctions::new());
        let error = error.err().map(|error| error.kind());
        assert!(matches!(error, None | Some(ErrorKind::MissingHostFunction)));
        let next = Sandbox::from_snapshot(&engine, &snapshot, &host()).expect("made");
        assert_eq!(next.mappings().count(), 0);
    });
}
