//! `include/vellum.h` against the Rust definitions, by a C compiler.

use std::env;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::mem::offset_of;
use std::process::{Command, Stdio};

use vellum_abi::ABI_VERSION;
use vellum_abi::fault::FaultRecord;
use vellum_abi::fill::FillRequest;
use vellum_abi::function::{FLAG_ONE_WAY, FunctionEntry};
use vellum_abi::log::{Level, LogHeader, PanicHeader};
use vellum_abi::mapping::{FLAG_WRITABLE, MAX_LABEL_LEN_BYTES, MAX_MAPPINGS, MappingEntry};
use vellum_abi::message::{
    ErrorCode, FLAG_EXTERNAL, MAX_ERROR_TEXT_LEN_BYTES, MAX_SLOTS, MIN_BUFFER_LEN_BYTES,
    MessageHeader, MessageKind, Slot,
};
use vellum_abi::metric::MetricHeader;
use vellum_abi::note::Note;
use vellum_abi::outbox::{
    MIN_OUTBOX_LEN_BYTES, OutboxHeader, RECORDS_OFFSET, RecordHeader, RecordKind,
};
use vellum_abi::peb::{FLAG_OUTBOX_DROPS, FLAG_TOUCH_BEFORE_FILL, PEB_MAGIC, Peb};
use vellum_abi::port::{ABORT_BAD_PEB, ABORT_NESTED_PANIC, IDLE_READY, IDLE_REPLY, Port};
use vellum_abi::value::ValueType;
use zerocopy::IntoBytes;

/// Size and fields of a structure that both languages define.
macro_rules! structure {
    ($checks:ident, $c:literal, $rust:ty => $($field:ident)*) => {
        $checks.push((format!("sizeof(struct {})", $c), size_of::<$rust>() as u64));
        $checks.push((format!("_Alignof(struct {})", $c), align_of::<$rust>() as u64));
        $($checks.push((
            format!("offsetof(struct {}, {})", $c, stringify!($field)),
            offset_of!($rust, $field) as u64,
        ));)*
    };
}

/// C expressions and the values they must have.
fn checks() -> Vec<(String, u64)> {
    let mut checks = constants();
    structure!(checks, "vellum_message_header", MessageHeader =>
        kind function status slot_count total_len_bytes reserved);
    structure!(checks, "vellum_slot", Slot =>
        ty flags reserved len_bytes bits);
    structure!(checks, "vellum_fill_request", FillRequest =>
        slot reserved gva len_bytes);
    structure!(checks, "vellum_log_header", LogHeader =>
        level target_len_bytes message_len_bytes reserved);
    structure!(checks, "vellum_panic_header", PanicHeader =>
        line column file_len_bytes message_len_bytes);
    structure!(checks, "vellum_fault_record", FaultRecord =>
        vector error_code cr2 rip cs rflags rsp ss reason);
    structure!(checks, "vellum_function", FunctionEntry =>
        name_ptr name_len_bytes param_count ret flags params entry);
    structure!(checks, "vellum_peb", Peb =>
        magic abi_version size_bytes input_ptr input_len_bytes output_ptr output_len_bytes
        heap_ptr heap_len_bytes stack_top stack_len_bytes init_data_ptr init_data_len_bytes seed
        mappings_ptr mappings_count log_level flags generation scratch_ptr scratch_len_bytes scratch_gpa
        outbox_ptr outbox_len_bytes);
    structure!(checks, "vellum_outbox_header", OutboxHeader => end_bytes dropped);
    structure!(checks, "vellum_record_header", RecordHeader => kind len_bytes);
    structure!(checks, "vellum_metric_header", MetricHeader => kind name_len_bytes bits);
    structure!(checks, "vellum_mapping", MappingEntry =>
        gpa ptr len_bytes flags label_len_bytes label);
    checks
}

fn constants() -> Vec<(String, u64)> {
    let mut constants = vec![
        ("ABI_VERSION", u64::from(ABI_VERSION)),
        ("PEB_MAGIC", PEB_MAGIC),
        ("IDLE_READY", u64::from(IDLE_READY)),
        ("IDLE_REPLY", u64::from(IDLE_REPLY)),
        ("ABORT_BAD_PEB", u64::from(ABORT_BAD_PEB)),
        ("ABORT_NESTED_PANIC", u64::from(ABORT_NESTED_PANIC)),
        ("MAX_SLOTS", MAX_SLOTS as u64),
        ("MAX_ERROR_TEXT_LEN_BYTES", MAX_ERROR_TEXT_LEN_BYTES as u64),
        ("MIN_BUFFER_LEN_BYTES", MIN_BUFFER_LEN_BYTES as u64),
        ("FLAG_EXTERNAL", u64::from(FLAG_EXTERNAL)),
        ("MAX_MAPPINGS", MAX_MAPPINGS as u64),
        ("MAX_LABEL_LEN_BYTES", MAX_LABEL_LEN_BYTES as u64),
        ("MAPPING_WRITABLE", u64::from(FLAG_WRITABLE)),
        ("OUTBOX_RECORDS_OFFSET", RECORDS_OFFSET as u64),
        ("MIN_OUTBOX_LEN_BYTES", MIN_OUTBOX_LEN_BYTES as u64),
        ("FUNCTION_ONE_WAY", u64::from(FLAG_ONE_WAY)),
        ("PEB_TOUCH_BEFORE_FILL", u64::from(FLAG_TOUCH_BEFORE_FILL)),
        ("PEB_OUTBOX_DROPS", u64::from(FLAG_OUTBOX_DROPS)),
        ("RECORD_LOG", RecordKind::Log as u64),
        ("RECORD_METRIC", RecordKind::Metric as u64),
        ("RECORD_ONE_WAY", RecordKind::OneWay as u64),
        ("OK", 0),
    ];
    let ports = [
        ("PORT_IDLE", Port::Idle),
        ("PORT_HOST_CALL", Port::HostCall),
        ("PORT_DRAIN", Port::Drain),
        ("PORT_PANIC", Port::Panic),
        ("PORT_ABORT", Port::Abort),
        ("PORT_FILL", Port::Fill),
        ("PORT_FAULT", Port::Fault),
        ("PORT_CHECKPOINT", Port::Checkpoint),
    ];
    constants.extend(ports.map(|(name, port)| (name, u64::from(port.number()))));
    let types = [
        "UNIT", "BOOL", "I32", "U32", "I64", "U64", "F32", "F64", "STRING", "BYTES",
    ];
    constants.extend(
        types
            .into_iter()
            .zip(ValueType::ALL.map(|ty| u64::from(ty.code()))),
    );
    let kinds = [
        ("CALL", MessageKind::Call),
        ("REPLY", MessageKind::Reply),
        ("HOST_CALL", MessageKind::HostCall),
        ("HOST_REPLY", MessageKind::HostReply),
        ("ONE_WAY", MessageKind::OneWay),
    ];
    constants.extend(kinds.map(|(name, kind)| (name, kind as u64)));
    let codes = [
        "UNKNOWN_FUNCTION",
        "ARGUMENT_COUNT",
        "ARGUMENT_TYPE",
        "MALFORMED_MESSAGE",
        "FUNCTION_FAILED",
        "FUNCTION_PANICKED",
        "TOO_LARGE",
        "NOT_NOW",
    ];
    constants.extend(
        codes
            .into_iter()
            .zip(ErrorCode::ALL.map(|code| u64::from(code.number()))),
    );
    let levels = [
        ("LOG_ERROR", Level::Error),
        ("LOG_WARN", Level::Warn),
        ("LOG_INFO", Level::Info),
        ("LOG_DEBUG", Level::Debug),
        ("LOG_TRACE", Level::Trace),
    ];
    constants.extend(levels.map(|(name, level)| (name, level as u64)));
    constants
        .into_iter()
        .map(|(name, value)| (format!("VELLUM_{name}"), value))
        .collect()
}

/// What selects code for amd64 and for i686. Neither takes a library for that architecture.
const ARCHITECTURES: [&str; 2] = ["-m64", "-m32"];

/// Compiles `source` with the header. The outer result is whether there is a compiler, the inner one what it said.
fn compile(source: &str, architecture: &str) -> io::Result<Result<(), String>> {
    let compiler = env::var_os("CC").unwrap_or_else(|| "gcc".into());
    let mut child = Command::new(compiler)
        .args([
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-ffreestanding",
            "-fsyntax-only",
            architecture,
        ])
        .args([
            "-I",
            concat!(env!("CARGO_MANIFEST_DIR"), "/include"),
            "-x",
            "c",
            "-",
        ])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(source.as_bytes())?;
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    Ok(Err(String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn the_header_agrees_with_the_crate() {
    let checks = checks();
    let mut source = String::from("#include <vellum.h>\n");
    for (expression, value) in &checks {
        writeln!(
            source,
            "_Static_assert({expression} == UINT64_C({value}), \"{expression} is {value}\");"
        )
        .expect("a String takes any text");
    }
    for architecture in ARCHITECTURES {
        match compile(&source, architecture) {
            Err(error) => eprintln!("SKIPPED: no C compiler: {error}"),
            Ok(result) => {
                assert_eq!(result, Ok(()), "{} checks, {architecture}", checks.len());
            }
        }
    }
}

#[test]
fn the_header_names_the_guest_kind_of_its_architecture() {
    for (architecture, note) in ARCHITECTURES
        .into_iter()
        .zip([Note::AMD64_USER, Note::I686_IDENTITY])
    {
        let kind = note
            .as_bytes()
            .last_chunk()
            .copied()
            .map(u32::from_le_bytes);
        let kind = kind.expect("a note ends with the kind");
        let source = format!(
            "#include <vellum.h>\n_Static_assert(VELLUM_GUEST_KIND == {kind}, \"differs\");\n"
        );
        match compile(&source, architecture) {
            Err(error) => eprintln!("SKIPPED: no C compiler: {error}"),
            Ok(result) => assert_eq!(result, Ok(()), "{architecture}"),
        }
    }
}

#[test]
fn a_wrong_value_would_be_noticed() {
    let source = "#include <vellum.h>\n_Static_assert(VELLUM_BYTES == 8, \"differs\");\n";
    for architecture in ARCHITECTURES {
        match compile(source, architecture) {
            Err(error) => eprintln!("SKIPPED: no C compiler: {error}"),
            Ok(result) => assert!(result.is_err_and(|text| text.contains("differs"))),
        }
    }
}
