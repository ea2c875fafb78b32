//! The host's side of a call, played over a [`Machine`].

use std::mem::offset_of;

use vellum_abi::fill::FillRequest;
use vellum_abi::function::{FunctionEntry, Signature};
use vellum_abi::log::PanicRecord;
use vellum_abi::mapping::MappingEntry;
use vellum_abi::message::{
    Argument, ErrorCode, External, Limits, Message, MessageKind, MessageWriter, Outcome, Place,
    WriteError, write_error,
};
use vellum_abi::outbox::{OutboxHeader, RECORDS_OFFSET, Record, Records};
use vellum_abi::peb::Peb;
use vellum_abi::port::{IDLE_READY, IDLE_REPLY, Port};
use vellum_abi::value::{ValueRef, ValueType};
use zerocopy::{FromBytes, IntoBytes};

use crate::machine::{BUFFER_LEN_BYTES, Machine, OUTBOX_LEN_BYTES, Places, Stop, tables};

/// How many characters of a panic message are compared.
pub(crate) const PANIC_LEN: usize = 80;

/// A guest and what its host remembers of it.
pub(crate) struct Host {
    machine: Machine,
    functions: Vec<String>,
    signatures: Vec<Signature>,
    imports: Vec<String>,
    /// Log records so far: level and message.
    pub(crate) logs: Vec<String>,
    /// Tags of the snapshots that the guest has asked for.
    pub(crate) checkpoints: Vec<u32>,
    /// The external values of the host's latest message, by slot.
    external: Vec<Option<Vec<u8>>>,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Owned {
    Unit,
    Bool(bool),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    F32(f32),
    F64(f64),
    String(String),
    Bytes(Vec<u8>),
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reply {
    Value(Owned),
    Failed(ErrorCode, String),
    Malformed(String),
    Panicked(String),
    Aborted(u32),
    Signal(i32),
}

impl Owned {
    fn borrow(&self) -> ValueRef<'_> {
        match self {
            Self::Unit => ValueRef::Unit,
            Self::Bool(value) => ValueRef::Bool(*value),
            Self::I32(value) => ValueRef::I32(*value),
            Self::U32(value) => ValueRef::U32(*value),
            Self::I64(value) => ValueRef::I64(*value),
            Self::U64(value) => ValueRef::U64(*value),
            Self::F32(value) => ValueRef::F32(*value),
            Self::F64(value) => ValueRef::F64(*value),
            Self::String(text) => ValueRef::String(text),
            Self::Bytes(bytes) => ValueRef::Bytes(bytes),
        }
    }
}

impl From<ValueRef<'_>> for Owned {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Unit => Self::Unit,
            ValueRef::Bool(value) => Self::Bool(value),
            ValueRef::I32(value) => Self::I32(value),
            ValueRef::U32(value) => Self::U32(value),
            ValueRef::I64(value) => Self::I64(value),
            ValueRef::U64(value) => Self::U64(value),
            ValueRef::F32(value) => Self::F32(value),
            ValueRef::F64(value) => Self::F64(value),
            ValueRef::String(text) => Self::String(text.into()),
            ValueRef::Bytes(bytes) => Self::Bytes(bytes.into()),
        }
    }
}

impl Host {
    /// Loads a guest and runs it to its first idling.
    pub(crate) fn start(elf: &[u8]) -> Self {
        let machine = Machine::load(elf).expect("this test needs fork and ptrace");
        let tables = tables(elf);
        let names = |section: &[u8]| -> Vec<String> {
            let entries = FunctionEntry::parse_table(section).expect("whole entries");
            entries.map(|entry| name(&machine, &entry)).collect()
        };
        let signatures = FunctionEntry::parse_table(&tables.functions)
            .expect("whole entries")
            .map(|entry| entry.signature().expect("a sound entry"))
            .collect();
        let (functions, imports) = (names(&tables.functions), names(&tables.imports));
        let host = Self {
            machine,
            functions,
            signatures,
            imports,
            logs: Vec::new(),
            checkpoints: Vec::new(),
            external: Vec::new(),
        };
        assert_eq!(host.machine.run(), Stop::Port(Port::Idle, IDLE_READY));
        host
    }

    /// Where things are in the guest.
    pub(crate) fn places(&self) -> &'static Places {
        self.machine.places()
    }

    /// The types of an exported function.
    pub(crate) fn signature(&self, function: &str) -> Option<Signature> {
        let index = self.functions.iter().position(|name| name == function)?;
        self.signatures.get(index).copied()
    }

    /// Calls a function by name.
    pub(crate) fn call(&mut self, function: &str, arguments: &[Owned]) -> Reply {
        let index = self.functions.iter().position(|name| name == function);
        let index = index.unwrap_or_else(|| panic!("the guest exports no {function}"));
        self.call_index(u32::try_from(index).expect("small"), arguments)
    }

    /// Calls a function by its index, which may be nonsense.
    pub(crate) fn call_index(&mut self, function: u32, arguments: &[Owned]) -> Reply {
        let message = self.message(MessageKind::Call, function, arguments);
        self.call_raw(&message)
    }

    /// Sends these bytes as a call and serves the guest until it has answered.
    pub(crate) fn call_raw(&mut self, message: &[u8]) -> Reply {
        self.machine.write(self.places().input, message);
        loop {
            let stop = self.machine.run();
            self.drain();
            match stop {
                Stop::Port(Port::Idle, IDLE_REPLY) => return self.reply(),
                Stop::Port(Port::HostCall, 0) => self.host_call(),
                Stop::Port(Port::Drain, 0) => {}
                Stop::Port(Port::Fill, 0) => self.fill(),
                Stop::Port(Port::Panic, 0) => {
                    let output = self.output();
                    let record = PanicRecord::parse(&output).expect("a sound record");
                    assert!(record.line > 0 && !record.file.is_empty());
                    // Where a long message is cut depends on the length of the file's path; its start will do.
                    return Reply::Panicked(record.message.chars().take(PANIC_LEN).collect());
                }
                Stop::Port(Port::Checkpoint, tag) => self.restore_copy(tag),
                Stop::Port(Port::Abort, code) => return Reply::Aborted(code),
                Stop::Signal(signal) => return Reply::Signal(signal),
                other @ Stop::Port(..) => panic!("the guest stopped with {other:?}"),
            }
        }
    }

    /// Takes the log records out of the outbox, as a host does at any exit.
    fn drain(&mut self) {
        let outbox = self.places().outbox;
        let room = usize::try_from(OUTBOX_LEN_BYTES).expect("small");
        let bytes = self.machine.read(outbox, room);
        let (header, _) = OutboxHeader::read_from_prefix(&bytes).expect("a header");
        let records = &bytes[RECORDS_OFFSET..];
        let unread = header.unread(0, records.len()).expect("a sound end");
        for record in Records::new(&records[..unread.end as usize]) {
            if let Record::Log(record) = record.expect("a sound record") {
                self.logs
                    .push(format!("{} {}", record.level as u32, record.message));
            }
        }
        self.machine.write(outbox, &[0; OutboxHeader::LEN_BYTES]);
    }

    /// Lets the guest go on behind a checkpoint as a restored copy does: with the generation of the snapshot, which here is one more
    /// than there were.
    fn restore_copy(&mut self, tag: u32) {
        self.checkpoints.push(tag);
        let generation = self.checkpoints.len() as u64;
        let at = self.places().peb + offset_of!(Peb, generation) as u64;
        self.machine.write(at, &generation.to_le_bytes());
    }

    /// Gives the guest a table of mappings.
    pub(crate) fn set_mappings(&mut self, mappings: &[MappingEntry]) {
        let table = self.places().mappings;
        let peb = self.places().peb;
        self.machine.write(table, mappings.as_bytes());
        for (field, value) in [
            (offset_of!(Peb, mappings_ptr), table),
            (offset_of!(Peb, mappings_count), mappings.len() as u64),
        ] {
            self.machine.write(peb + field as u64, &value.to_le_bytes());
        }
    }

    /// Calls a function and counts the guest's instructions, exits to the host included.
    pub(crate) fn count(&mut self, function: &str, arguments: &[Owned]) -> u64 {
        let index = self
            .functions
            .iter()
            .position(|name| name == function)
            .expect("exported");
        let message = self.message(
            MessageKind::Call,
            u32::try_from(index).expect("small"),
            arguments,
        );
        self.machine.write(self.places().input, &message);
        let mut total = 0;
        loop {
            let (stop, count) = self.machine.run_counting();
            total += count;
            match stop {
                Stop::Port(Port::Idle, IDLE_REPLY) => return total,
                Stop::Port(Port::HostCall, 0) => self.host_call(),
                other => panic!("the guest stopped with {other:?}"),
            }
        }
    }

    fn output(&self) -> Vec<u8> {
        self.machine.read(
            self.places().output,
            usize::try_from(BUFFER_LEN_BYTES).expect("small"),
        )
    }

    fn reply(&self) -> Reply {
        let output = self.output();
        let outcome =
            Message::parse(&output, Limits::for_buffer(output.len())).and_then(|message| {
                assert_eq!(message.kind(), MessageKind::Reply);
                message.outcome()
            });
        match outcome {
            Ok(Outcome::Value(argument)) => Reply::Value(self.value(argument)),
            Ok(Outcome::Failed { code, text }) => Reply::Failed(code, text.into()),
            Err(error) => Reply::Malformed(error.to_string()),
        }
    }

    /// The value of an argument from the guest.
    fn value(&self, argument: Argument<'_>) -> Owned {
        match argument {
            Argument::Value(value) => Owned::from(value),
            Argument::External(External {
                value_type,
                len_bytes,
                place: Place::GuestMemory { gva },
            }) => {
                let bytes = self.machine.read(gva, len_bytes as usize);
                if value_type == ValueType::String {
                    Owned::String(String::from_utf8(bytes).expect("utf-8"))
                } else {
                    Owned::Bytes(bytes)
                }
            }
            Argument::External(other) => panic!("{other:?} in a message of the guest"),
        }
    }

    fn host_call(&mut self) {
        let output = self.output();
        let message =
            Message::parse(&output, Limits::for_buffer(output.len())).expect("a sound call");
        assert_eq!(message.kind(), MessageKind::HostCall);
        let arguments: Vec<Owned> = message
            .arguments()
            .map(|argument| self.value(argument.expect("a sound argument")))
            .collect();
        let name = self.imports[message.function() as usize].as_str();
        let reply = match (name, arguments.as_slice()) {
            ("host_add", [Owned::I32(a), Owned::I32(b)]) => Ok(Owned::I32(a + b)),
            ("host_echo", [Owned::Bytes(bytes)]) => Ok(Owned::Bytes(bytes.clone())),
            ("host_fail", [Owned::String(text)]) => Err(format!("failing: {text}")),
            other => panic!("host call {other:?}"),
        };
        let function = message.function();
        let bytes = match reply {
            Ok(value) => self.message(MessageKind::HostReply, function, &[value]),
            Err(text) => {
                let mut bytes = vec![0; 4096];
                let code = ErrorCode::FunctionFailed;
                write_error(&mut bytes, MessageKind::HostReply, function, code, &text)
                    .expect("room");
                bytes
            }
        };
        self.machine.write(self.places().input, &bytes);
    }

    /// A message of the host; values that do not fit the input buffer become external.
    fn message(&mut self, kind: MessageKind, function: u32, values: &[Owned]) -> Vec<u8> {
        let mut buffer = vec![0; usize::try_from(BUFFER_LEN_BYTES).expect("small")];
        let mut writer =
            MessageWriter::new(&mut buffer, kind, function, values.len()).expect("room");
        self.external = vec![None; values.len()];
        for (value, external) in values.iter().zip(&mut self.external) {
            match writer.push(value.borrow()) {
                Ok(()) => {}
                Err(WriteError::BufferTooSmall { .. }) => {
                    let bytes = value.borrow().payload();
                    writer
                        .push_host_slot(value.borrow().value_type(), bytes.len())
                        .expect("a slot is left");
                    *external = Some(bytes.to_vec());
                }
                Err(error) => panic!("{error}"),
            }
        }
        let len_bytes = writer.finish().expect("complete");
        buffer.truncate(len_bytes);
        buffer
    }

    fn fill(&self) {
        let request = FillRequest::parse(&self.output()).expect("a sound request");
        let bytes = self.external[request.slot as usize]
            .as_ref()
            .expect("an external slot");
        assert_eq!(request.len_bytes, bytes.len() as u64);
        self.machine.write(request.gva, bytes);
    }
}

fn name(machine: &Machine, entry: &FunctionEntry) -> String {
    let bytes = machine.read(entry.name_ptr, entry.name_len_bytes as usize);
    vellum_abi::function::check_name(&bytes)
        .expect("a sound name")
        .to_owned()
}
