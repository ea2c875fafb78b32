//! Stores that somebody changed.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use vellum_sandbox::{CallOptions, ErrorKind, LoadOptions, Sandbox, Snapshot};

use super::support::{
    Directory, Lab, count, counter, each_way, host, refused, with_each_kernel, with_user_guest,
};

const VALUE: u64 = 77;

/// A store with one snapshot, tagged `tag`, whose guest has counted.
fn saved(lab: &Lab) -> Directory {
    let directory = Directory::new();
    let mut sandbox = lab.sandbox();
    count(&mut sandbox, VALUE);
    let snapshot = sandbox.snapshot().expect("taken");
    snapshot.save(directory.path(), "tag").expect("saved");
    directory
}

/// The file of the blob that a descriptor names.
fn blob_of(descriptor: &Value) -> String {
    let digest = descriptor["digest"].as_str().expect("a digest");
    format!("blobs/{}", digest.replace(':', "/"))
}

fn json_of(directory: &Directory, name: &str) -> Value {
    let bytes = fs::read(directory.file(name)).expect("read");
    serde_json::from_slice(&bytes).expect("json")
}

/// The files of manifest and configuration.
fn manifest_and_config(directory: &Directory) -> [String; 2] {
    let manifest = blob_of(&json_of(directory, "index.json")["manifests"][0]);
    let config = blob_of(&json_of(directory, &manifest)["config"]);
    [manifest, config]
}

/// Index, marker, configuration, manifest, and both layers.
fn files(directory: &Directory) -> Vec<String> {
    let [manifest, config] = manifest_and_config(directory);
    let layers = json_of(directory, &manifest)["layers"].clone();
    let layers = layers.as_array().expect("a list");
    let fixed = ["index.json", "oci-layout", &manifest, &config].map(str::to_owned);
    fixed
        .into_iter()
        .chain(layers.iter().map(blob_of))
        .collect()
}

#[derive(Clone, Debug)]
enum Damage {
    Flip { at: usize, bit: u8 },
    Truncate { at: usize },
    Append { count: usize },
    Swap { at: usize, text: &'static str },
}

fn damage() -> impl Strategy<Value = Damage> {
    let text = prop_oneof![
        Just("18446744073709551615"),
        Just("-1"),
        Just("0"),
        Just("null"),
        Just("[]"),
        Just("\""),
        Just("1e99"),
        Just("{}{}"),
    ];
    prop_oneof![
        6 => (any::<usize>(), 0..8_u8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        2 => any::<usize>().prop_map(|at| Damage::Truncate { at }),
        1 => (1..9000_usize).prop_map(|count| Damage::Append { count }),
        3 => (any::<usize>(), text).prop_map(|(at, text)| Damage::Swap { at, text }),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    let len = bytes.len();
    match *damage {
        Damage::Flip { at, bit } => bytes[at % len] ^= 1 << bit,
        Damage::Truncate { at } => bytes.truncate(at % len),
        Damage::Append { count } => bytes.resize(len + count, b' '),
        Damage::Swap { at, text } => {
            let at = at % len;
            let end = len.min(at + text.len());
            bytes.splice(at..end, text.bytes());
        }
    }
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    })
}

#[test]
fn a_damaged_file_is_an_error_or_makes_no_difference() {
    with_user_guest(|lab| {
        let directory = saved(lab);
        let whole = Snapshot::load(directory.path(), "tag", &LoadOptions::new()).expect("loaded");
        for name in files(&directory) {
            let path = directory.file(&name);
            let good = fs::read(&path).expect("read");
            let outcome = runner(96).run(&damage(), |damage| {
                let mut bytes = good.clone();
                apply(&mut bytes, &damage);
                fs::write(&path, &bytes).expect("written");
                match Snapshot::load(directory.path(), "tag", &LoadOptions::new()) {
                    Ok(loaded) => {
                        prop_assert!(whole.difference(&loaded).expect("comparable").is_empty());
                        prop_assert_eq!(counter(&mut lab.fork(&loaded)), VALUE);
                    }
                    Err(error) => prop_assert!(
                        matches!(
                            error.kind(),
                            ErrorKind::InvalidSnapshot | ErrorKind::UnknownSnapshot | ErrorKind::Io
                        ),
                        "{:?}",
                        error
                    ),
                }
                Ok(())
            });
            outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
            fs::write(&path, &good).expect("written");
        }
    });
}

/// Writes a configuration, and a manifest and an index that name it with the right digests: what a forger does.
fn forge(directory: &Directory, config: &[u8]) {
    let names = manifest_and_config(directory);
    let mut manifest = json_of(directory, &names[0]);
    manifest["config"]["digest"] = digest(config).into();
    manifest["config"]["size"] = config.len().into();
    let manifest = manifest.to_string();
    let mut index = json_of(directory, "index.json");
    index["manifests"][0]["digest"] = digest(manifest.as_bytes()).into();
    index["manifests"][0]["size"] = manifest.len().into();
    for name in names {
        fs::remove_file(directory.file(&name)).expect("removed");
    }
    put(directory.path(), config);
    put(directory.path(), manifest.as_bytes());
    fs::write(directory.file("index.json"), index.to_string()).expect("written");
}

fn digest(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    let mut text = "sha256:".to_owned();
    for byte in sha2::Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("text takes everything");
    }
    text
}

fn put(directory: &Path, bytes: &[u8]) {
    let name = digest(bytes).replace(':', "/");
    fs::write(directory.join("blobs").join(name), bytes).expect("written");
}

fn config_of(directory: &Directory) -> Vec<u8> {
    let [_, config] = manifest_and_config(directory);
    fs::read(directory.file(&config)).expect("read")
}

/// With digests that are right nothing but the checks of the contents is left. What passes them is run.
fn forge_at_random(lab: &Lab, cases: u32) {
    let directory = saved(lab);
    let good = config_of(&directory);
    let outcome = runner(cases).run(&damage(), |damage| {
        let mut bytes = good.clone();
        apply(&mut bytes, &damage);
        forge(&directory, &bytes);
        match Snapshot::load(directory.path(), "tag", &LoadOptions::new()) {
            Ok(loaded) => {
                // The guest may be broken, the host not.
                if let Ok(mut sandbox) = Sandbox::from_snapshot(&lab.engine, &loaded, &host()) {
                    let options = CallOptions::new().timeout(Duration::from_secs(2));
                    let _ = sandbox.call_dynamic("counter_get", &[], &options);
                }
            }
            Err(error) => prop_assert!(
                matches!(
                    error.kind(),
                    ErrorKind::InvalidSnapshot | ErrorKind::Io | ErrorKind::Hypervisor
                ),
                "{:?}",
                error
            ),
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{}: {error}", lab.name));
}

#[test]
fn a_forged_configuration_of_a_user_guest_harms_nobody() {
    with_user_guest(|lab| forge_at_random(lab, 200));
}

#[test]
fn a_forged_configuration_of_a_kernel_harms_nobody() {
    with_each_kernel(|lab| forge_at_random(lab, 100));
}

/// What a change of the configuration is refused with.
fn refusal(directory: &Directory, good: &Value, pointer: &str, to: Value) -> String {
    let mut config = good.clone();
    *config
        .pointer_mut(pointer)
        .unwrap_or_else(|| panic!("{pointer}")) = to;
    forge(directory, config.to_string().as_bytes());
    for options in each_way() {
        let error = refused(Snapshot::load(directory.path(), "tag", &options));
        assert_eq!(
            error.kind(),
            ErrorKind::InvalidSnapshot,
            "{pointer}: {error:?}"
        );
    }
    format!(
        "{:?}",
        refused(Snapshot::load(directory.path(), "tag", &LoadOptions::new()))
    )
}

/// A change of the configuration: where, to what, and what the refusal says.
type Forgery = (&'static str, Value, &'static str);

fn each_is_refused(cases: &[Forgery]) {
    with_user_guest(|lab| {
        let directory = saved(lab);
        let good: Value = serde_json::from_slice(&config_of(&directory)).expect("json");
        let mut others = Vec::new();
        for (pointer, to, says) in cases {
            let message = refusal(&directory, &good, pointer, to.clone());
            if !message.contains(says) {
                others.push(format!("{pointer} = {to}: {message}"));
            }
        }
        assert!(others.is_empty(), "{}", others.join("\n"));
        // The forger can write what is right, too.
        forge(&directory, good.to_string().as_bytes());
        let loaded = Snapshot::load(directory.path(), "tag", &LoadOptions::new()).expect("loaded");
        assert_eq!(counter(&mut lab.fork(&loaded)), VALUE);
    });
}

#[test]
fn a_forged_image_is_refused_by_the_name_of_the_field() {
    let max = u64::MAX;
    each_is_refused(&[
        (
            "/version",
            json!(3),
            "version is 3, this version of vellum knows 2",
        ),
        (
            "/version",
            json!(0),
            "version is 0, this version of vellum knows 2",
        ),
        ("/generation", json!(0), "generation"),
        ("/generation", json!(max), "generation"),
        ("/cpu_profile", json!("host"), "cpu_profile"),
        (
            "/cpu_profile",
            json!("x86-64-v9"),
            "knows x86-64-v1, x86-64-v2, x86-64-v3",
        ),
        ("/image/kind", json!("arm"), "image.kind"),
        ("/image/kind", json!("amd64 kernel"), "space"),
        ("/image/entry", json!(0), "entry point"),
        ("/image/segments/0/start", json!(0), "segment"),
        ("/image/segments/0/start", json!(max), "segment"),
        ("/image/segments/0/len_bytes", json!(max), "segment"),
        ("/image/segments/0/len_bytes", json!(0), "segment"),
        ("/image/segments", json!([]), "image.layer.pages"),
        ("/image/exports/0/name", json!(""), "function name"),
        ("/image/exports/0/returns", json!("u128"), "u128"),
        ("/image/exports/0/params", json!(vec!["u8"; 300]), "u8"),
        (
            "/image/exports/0/params",
            json!(vec!["u32"; 300]),
            "parameters",
        ),
        ("/image/layer/pages", json!(max), "layer.pages"),
        ("/image/layer/pages", json!(1), "pages"),
        ("/image/layer/digest", json!("sha256:00"), "layer.digest"),
    ]);
}

#[test]
fn forged_sizes_layers_and_extents_are_refused_by_the_name_of_the_field() {
    let max = u64::MAX;
    each_is_refused(&[
        ("/sizes/heap_len_bytes", json!(max), "sizes"),
        ("/sizes/heap_len_bytes", json!(1_u64 << 60), "sizes"),
        ("/sizes/heap_len_bytes", json!(0), "sizes"),
        ("/sizes/heap_len_bytes", json!(4 << 20), "view"),
        ("/sizes/input_len_bytes", json!(1_u64 << 62), "sizes"),
        ("/sizes/scratch_len_bytes", json!(4096), "sizes"),
        ("/reserved", json!([[max, max]]), "reserved"),
        ("/reserved", json!(vec![[0x1000, 0x1000]; 65]), "reserved"),
        ("/view/heap/0", json!(0), "view"),
        ("/view/scratch", json!([0, 4096]), "view"),
        ("/layers", json!([]), "layers"),
        ("/layers/0/pages", json!(2), "pages"),
        ("/layers/1/pages", json!(max), "pages"),
        ("/space/user/extents", json!([]), "space.extents"),
        ("/space/user/extents/0/0", json!(1), "space.extents"),
        ("/space/user/extents/1/1", json!(0), "twice"),
        (
            "/space/user/extents/0/0",
            json!(max - 0xFFF),
            "space.extents",
        ),
        ("/space/user/extents/0/1", json!(max), "space.extents"),
        ("/space/user/extents/0/2", json!(max), "space.extents"),
        ("/space/user/extents/0/2", json!(0), "space.extents"),
        (
            "/suspended",
            json!({"function": 100_000, "input": ""}),
            "suspended.function",
        ),
        (
            "/suspended",
            json!({"function": null, "input": "00".repeat(20_000)}),
            "suspended.input",
        ),
        (
            "/suspended",
            json!({"function": null, "input": "0"}),
            "hexadecimal",
        ),
    ]);
}

#[test]
fn forged_registers_are_refused_by_the_name_of_the_field() {
    let max = u64::MAX;
    each_is_refused(&[
        ("/state/special/cs/selector", json!(8), "state.special.cs"),
        (
            "/state/special/cs/attributes",
            json!(0xA09B),
            "registers refused",
        ),
        (
            "/state/special/ss/selector",
            json!(0x10),
            "state.special.ss",
        ),
        ("/state/special/ds/base", json!(4096), "state.special"),
        ("/state/special/fs/base", json!(4096), "state.special"),
        ("/state/special/gdtr/base", json!(0), "state.special"),
        (
            "/state/special/idtr/base",
            json!(0x40_0000),
            "state.special",
        ),
        ("/state/special/tr/base", json!(0), "state.special"),
        ("/state/special/cr0", json!(0), "registers refused"),
        ("/state/special/cr4", json!(max), "registers refused"),
        ("/state/special/efer", json!(0x1D01), "registers refused"),
        (
            "/state/special/apic_base",
            json!(0xFEE0_0C00_u64),
            "state.special",
        ),
        ("/state/msrs/0/1", json!(8), "state.msrs"),
        ("/state/msrs/0/0", json!(0x10), "registers"),
        ("/state/msrs", json!([]), "registers"),
        ("/state/debug/dr7", json!(0x401), "state.debug"),
        ("/state/events/nmi_pending", json!(true), "state.events"),
        ("/state/events/exception", json!([13, 0]), "state.events"),
        (
            "/state/general/rip",
            json!(0xFFFF_8000_0000_0000_u64),
            "state.general.rip",
        ),
        ("/state/general/rflags", json!(0), "state.general.rflags"),
        (
            "/state/general/rflags",
            json!(0x2_3002),
            "state.general.rflags",
        ),
        ("/state/xcr0", json!(0x21), "state.xcr0"),
        ("/state/xcr0", json!(2), "state.xcr0"),
        ("/state/xsave", json!("ff".repeat(4097)), "save area"),
        ("/state/xsave", json!("ff".repeat(4096)), "state.xsave"),
    ]);
}

#[test]
fn other_versions_and_media_types_are_refused_by_the_names_of_both() {
    with_user_guest(|lab| {
        let cases = [
            ("oci-layout", "1.0.0", "2.0.0"),
            (
                "index.json",
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.index.v1+json",
            ),
            (
                "index.json",
                "application/vnd.vellum.snapshot.v1",
                "application/vnd.vellum.snapshot.v2",
            ),
            ("index.json", "\"schemaVersion\":2", "\"schemaVersion\":3"),
            ("index.json", "sha256:", "sha512:"),
        ];
        for (name, from, to) in cases {
            let directory = saved(lab);
            let path = directory.file(name);
            let text = fs::read_to_string(&path).expect("read");
            assert!(text.contains(from), "{name}: {text}");
            fs::write(&path, text.replace(from, to)).expect("written");
            let error = refused(Snapshot::load(directory.path(), "tag", &LoadOptions::new()));
            assert_eq!(error.kind(), ErrorKind::InvalidSnapshot, "{to}: {error:?}");
            if from != "sha256:" {
                let message = error.to_string();
                let digits = |text: &str| text.rsplit(':').next().expect("a part").to_owned();
                assert!(message.contains(&digits(from)), "{message}");
                assert!(message.contains(&digits(to)), "{message}");
            }
        }
    });
}

#[test]
fn a_layer_with_a_wrong_digest_is_refused_unless_the_directory_is_trusted() {
    with_user_guest(|lab| {
        let directory = saved(lab);
        let layers: Vec<_> = directory
            .blobs()
            .into_iter()
            .filter(|(_, len_bytes)| len_bytes % 4096 == 0)
            .collect();
        assert!(layers.len() >= 2);
        for (name, _) in layers {
            let path = directory.file(&format!("blobs/sha256/{name}"));
            let good = fs::read(&path).expect("read");
            let mut bad = good.clone();
            let last = bad.len() - 1;
            bad[last] ^= 1;
            fs::write(&path, &bad).expect("written");
            let error = refused(Snapshot::load(directory.path(), "tag", &LoadOptions::new()));
            assert_eq!(error.kind(), ErrorKind::InvalidSnapshot);
            assert!(error.to_string().contains(&name), "{error}");
            let trusting = LoadOptions::new().trust_directory();
            Snapshot::load(directory.path(), "tag", &trusting).expect("not looked at");
            fs::write(&path, &good).expect("written");
        }
    });
}

#[test]
fn a_verified_snapshot_does_not_care_what_happens_to_its_files() {
    with_user_guest(|lab| {
        let directory = saved(lab);
        let loaded = Snapshot::load(directory.path(), "tag", &LoadOptions::new()).expect("loaded");
        for (name, _) in directory.blobs() {
            fs::write(directory.file(&format!("blobs/sha256/{name}")), b"").expect("truncated");
        }
        let mut sandbox = lab.fork(&loaded);
        assert_eq!(counter(&mut sandbox), VALUE);
        count(&mut sandbox, 1);
        sandbox.restore(&loaded).expect("restored");
        assert_eq!(counter(&mut sandbox), VALUE);
        // It can be saved again, where it was and elsewhere.
        loaded.save(directory.path(), "tag").expect("saved");
        let again = Snapshot::load(directory.path(), "tag", &LoadOptions::new()).expect("loaded");
        assert_eq!(counter(&mut lab.fork(&again)), VALUE);
    });
}

#[test]
fn a_snapshot_beyond_the_budget_is_refused_before_it_is_read() {
    with_user_guest(|lab| {
        let directory = saved(lab);
        let options = LoadOptions::new().max_len_bytes(10_000);
        let error = refused(Snapshot::load(directory.path(), "tag", &options));
        assert_eq!(error.kind(), ErrorKind::InvalidSnapshot);
        assert!(error.to_string().contains("0x2710"), "{error}");
    });
}
