#![allow(missing_docs)]
use vellum_sandbox::*;
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut b = Engine::builder();
    if let Some(m) = std::env::args().nth(1) {
        b = b.cow_mode(if m == "guest" {
            CowMode::GuestSide
        } else {
            CowMode::HostSide
        });
    }
    let engine = b.build()?;
    println!("{engine}");
    let image = GuestImage::from_bytes(vellum_test_guests::rust_user())?;
    println!("{image:?}");
    for f in image.imports() {
        println!("import {}{}", f.name(), f.signature());
    }
    let host = HostFunctions::new()
        .with("host_add", |a: i32, b: i32| a + b)
        .with("host_echo", |b: Vec<u8>| b)
        .with("host_fail", |s: String| -> Result<(), String> { Err(s) });
    let mut sb = Sandbox::builder(&image)
        .host_functions(&host)
        .build(&engine)?;
    println!("built");
    let s: i32 = sb.call("add", (40, 2))?;
    println!("add {s}");
    let s: String = sb.call("greet", ("world",))?;
    println!("{s}");
    let s: i32 = sb.call("call_host_add", (40, 2))?;
    println!("host add {s}");
    println!("{:?}", sb.call::<_, u64>("counter_add", (5u64,)));
    let snap = sb.snapshot()?;
    println!("{snap:?}");
    println!("{:?}", sb.call::<_, u64>("counter_add", (5u64,)));
    sb.restore(&snap)?;
    println!("{:?}", sb.call::<_, u64>("counter_get", ()));
    println!("{:?}", sb.call::<_, u64>("counter_add", (1u64,)));
    sb.restore(&snap)?;
    println!("{:?}", sb.call::<_, u64>("counter_get", ()));
    let mut two = Sandbox::from_snapshot(&engine, &snap, &host)?;
    println!("two {:?}", two.call::<_, u64>("counter_add", (100u64,)));
    let big = vec![7u8; 50 << 20];
    println!("sum {:?}", sb.call::<_, u64>("sum_bytes", (&big[..],)));
    println!(
        "make {:?}",
        sb.call::<_, Vec<u8>>("make_bytes", (1u64 << 20,))
            .map(|v| v.len())
    );
    for f in ["do_panic"] {
        println!("{f} {:?}", sb.call::<_, ()>(f, ("boo",)));
        sb.restore(&snap)?;
    }
    for f in [
        "invalid_opcode",
        "overflow_stack",
        "write_read_only",
        "jump_to_nx",
        "read_null",
        "write_null",
        "read_supervisor",
        "halt",
        "int3",
        "exhaust_heap",
    ] {
        println!("{f} {:?}", sb.call::<_, ()>(f, ()));
        sb.restore(&snap)?;
        println!("  {:?}", sb.call::<_, u64>("counter_get", ()));
    }
    println!("div {:?}", sb.call::<_, i32>("divide", (1, 0)));
    sb.restore(&snap)?;
    println!("out {:?}", sb.call::<_, ()>("out_port", (0x3f8u32, 0u32)));
    sb.restore(&snap)?;
    println!(
        "spin {:?}",
        sb.call_dynamic(
            "spin",
            &[],
            &CallOptions::new().timeout(std::time::Duration::from_millis(20))
        )
    );
    sb.restore(&snap)?;
    println!("{:?}", sb.call::<_, u64>("counter_get", ()));
    Ok(())
}
