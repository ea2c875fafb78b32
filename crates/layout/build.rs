//! Derives the `guest_arch` cfg of the facade from the target.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(guest_arch, values(\"amd64\", \"i686\"))");
    let target_arch = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    match target_arch.as_str() {
        "x86_64" => println!("cargo::rustc-cfg=guest_arch=\"amd64\""),
        "x86" => println!("cargo::rustc-cfg=guest_arch=\"i686\""),
        // Elsewhere the crate is still useful to a host; it only has no facade.
        _ => {}
    }
}
